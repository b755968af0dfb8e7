"""Figures of :mod:`benchmarks.quality` and :mod:`benchmarks.frontier`.

Each is returned, open, for the caller to save or show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.frontier import ANY, IPA, POLICIES, SERVED, non_dominated
from benchmarks.plots_axes import symmetric_logarithmic
from benchmarks.quality import MYOPIC
from benchmarks.wording import signed
from opd.plots_style import ordered, policy_style
from opd.report import AGENT

_LINEAR = 0.1
"""Differences of reward up to which the axis is linear."""


def _panels(number: int, height: float) -> tuple[Figure, Sequence[Axes]]:
    """A figure of panels ``height`` inches high, three in a row."""
    columns = min(number, 3)
    rows = -(-number // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(1.0 + 4.4 * columns, 1.2 + height * rows), layout="constrained", squeeze=False
    )
    for axes in grid.flat[number:]:
        axes.remove()
    return figure, list(grid.flat[:number])


# ------------------------------------------------------------------------------------------------- intervals


def plot_intervals(quality: pd.DataFrame, label: str) -> Figure:
    """The reward of each policy less the myopic solver's, with its 95 % interval, one panel a pipeline.

    The random policy, far below all others, is left out.

    Args:
        quality: of :func:`benchmarks.quality.quality_table`.
        label: of the trace, for the title.

    Returns:
        The figure, not saved.
    """
    shown = quality[~quality["policy"].isin(["random", MYOPIC])]
    pipelines = list(dict.fromkeys(shown["pipeline"]))
    policies = ordered(shown["policy"])
    figure, panels = _panels(len(pipelines), 2.6)
    figure.suptitle(
        "Reward of a decision less the myopic solver's for the same requests: mean and 95 % interval\n"
        f"{label}; random, far below, is left out"
    )
    for pipeline, axes in zip(pipelines, panels, strict=True):
        rows = shown[shown["pipeline"] == pipeline].set_index("policy")
        _draw_intervals(axes, rows.loc[[policy for policy in policies if policy in rows.index]])
        axes.set_title(pipeline)
    _share_width(panels, shown)
    for axes in panels[-3:]:
        axes.set_xlabel(f"difference of reward\n(linear within ±{_LINEAR:g}, logarithmic beyond)")
    return figure


def _draw_intervals(axes: Axes, rows: pd.DataFrame) -> None:
    """One pipeline; policies by name, from top to bottom."""
    name = "more_reward_than_myopic"
    for place, (policy, row) in enumerate(rows.iterrows()):
        style = policy_style(str(policy))
        mean, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
        axes.plot([low, high], [place, place], color=style.colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot(mean, place, color=style.colour, marker=style.marker, markersize=9 if style.marker == "*" else 7)
        axes.annotate(signed(mean), (mean, place), (0, 7), textcoords="offset points", ha="center", fontsize=8)
    axes.axvline(0.0, color=policy_style(MYOPIC).colour, linewidth=1.3, linestyle="--")
    axes.set_yticks(range(len(rows)), [_short(str(policy)) for policy in rows.index])
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.grid(axis="x", alpha=0.25)


def _share_width(panels: Iterable[Axes], shown: pd.DataFrame) -> None:
    """The same symmetric logarithmic axis for all panels."""
    ends = shown[["more_reward_than_myopic_low", "more_reward_than_myopic_high"]].to_numpy()
    for axes in panels:
        axes.set_xlim(2.0 * min(ends.min(), -_LINEAR), 1.3 * max(ends.max(), _LINEAR))
        symmetric_logarithmic(axes, _LINEAR)


# -------------------------------------------------------------------------------------------------- frontier


def plot_frontier(points: pd.DataFrame, areas: pd.DataFrame, label: str) -> Figure:
    """Mean QoS over mean cost as the price of a core is swept, one panel a pipeline.

    A marker is a price, the mean of the seeds, and a light one a single seed of the agent. The steps are the
    non-dominated of these means. The panels end below IPA's lowest QoS; what lies further down is named.

    Args:
        points: of :func:`benchmarks.frontier.measure_frontier`.
        areas: of :func:`benchmarks.frontier.hypervolumes`.
        label: of the trace, for the title.

    Returns:
        The figure, not saved.
    """
    pipelines = list(dict.fromkeys(points["pipeline"]))
    figure, panels = _panels(len(pipelines), 3.8)
    prices = ", ".join(f"{price:g}" for price in sorted(set(points["cost_weight"])))
    figure.suptitle(f"QoS and cost at prices of a core of {prices}\n{label}")
    for pipeline, axes in zip(pipelines, panels, strict=True):
        here = points[points["pipeline"] == pipeline]
        _draw_seeds(axes, here[here["policy"] == AGENT])
        means = here.groupby(["policy", "cost_weight"])[["cost", "qos"]].mean().reset_index()
        for policy in ordered(POLICIES):
            _draw_sweep(axes, policy, means.loc[means["policy"] == policy, ["cost", "qos"]].to_numpy())
        _frame(axes, means)
        axes.set_title(_title(pipeline, areas[areas["pipeline"] == pipeline]), fontsize=9)
        axes.set(xlabel="mean cost (CPU cores)", ylabel="mean QoS (Eq. 3)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _draw_seeds(axes: Axes, agents: pd.DataFrame) -> None:
    style = policy_style(AGENT)
    axes.scatter(
        agents["cost"], agents["qos"], s=28, color=style.colour, marker=style.marker, alpha=0.3, linewidths=0,
        label=f"{style.label}, one seed",
    )  # fmt: skip


def _draw_sweep(axes: Axes, policy: str, means: np.ndarray) -> None:
    """Points (P, 2) of one policy in the order of prices, and their non-dominated set."""
    style = policy_style(policy)
    axes.plot(*means.T, color=style.colour, linewidth=0.8, linestyle=":", zorder=2)
    axes.plot(*means.T, color=style.colour, marker=style.marker, markersize=6, linestyle="none", label=style.label)
    axes.step(*non_dominated(means).T, where="post", color=style.colour, linewidth=1.6, alpha=0.8)


def _frame(axes: Axes, means: pd.DataFrame) -> None:
    """Show what is not far below IPA's lowest QoS, and name the rest."""
    lowest, highest = float(means.loc[means["policy"] == IPA, "qos"].min()), float(means["qos"].max())
    space = 0.08 * max(highest - lowest, 1e-3)
    far = means["qos"] < lowest - space
    inside, outside = means[~far], means[far]
    texts = [
        f"{_short(policy)}: {len(rows)} further down, to QoS {rows['qos'].min():.4g}"
        for policy in ordered(POLICIES)
        if len(rows := outside[outside["policy"] == policy])
    ]
    cheapest, dearest = float(inside["cost"].min()), float(inside["cost"].max())
    width = 0.06 * max(dearest - cheapest, 0.1)
    axes.set_xlim(cheapest - width, dearest + width)
    axes.set_ylim(lowest - (1 + len(texts)) * space, highest + space)
    axes.text(0.98, 0.02, "\n".join(texts), transform=axes.transAxes, ha="right", va="bottom", fontsize=8, color="0.35")


def _short(policy: str) -> str:
    return policy_style(policy).label.split(" (")[0]


def _title(pipeline: str, areas: pd.DataFrame) -> str:
    """The pipeline, and how many times the others' hypervolume the agent's is."""
    lines = [pipeline]
    for reference, name in ((ANY, "hypervolume"), (SERVED, "above IPA's lowest QoS")):
        rows = areas[areas["reference"] == reference]
        ratios = dict(zip(rows["policy"], rows["agent_times"], strict=True))
        lines.append(f"{name}: " + ", ".join(_times(ratios[policy], policy) for policy in (IPA, MYOPIC)))
    return "\n".join(lines)


def _times(ratio: float, policy: str) -> str:
    return f"{_short(policy)} has none" if np.isnan(ratio) else f"{ratio:.3f} × {_short(policy)}"
