"""The figure of :mod:`opd.study.analysis.frontier`: QoS against cost as the price of a core varies."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opd.control import AGENT
from opd.study.analysis.frontier import ANY, IPA, MYOPIC, POLICIES, SERVED, mean_points, non_dominated
from opd.study.plots.style import legend_below, ordered, panel_grid, policy_style, short_label


def plot_frontier(points: pd.DataFrame, areas: pd.DataFrame, label: str) -> Figure:
    """Draw mean QoS over mean cost for a sweep of the price per core, one panel a pipeline.

    A marker is a price, the mean of the seeds, and a light one a single seed of the agent. The steps are the
    non-dominated means. The panels end below IPA's lowest QoS; points below are given as text.

    Args:
        points: of :func:`opd.study.analysis.frontier.measure_frontier`.
        areas: of :func:`opd.study.analysis.frontier.hypervolumes`.
        label: of the trace, for the title.

    Returns:
        The figure, not saved.
    """
    pipelines = list(dict.fromkeys(points["pipeline"]))
    figure, panels = panel_grid(len(pipelines), 4.4, 3.8)
    prices = ", ".join(f"{price:g}" for price in sorted(set(points["cost_weight"])))
    figure.suptitle(f"QoS and cost at prices per core of {prices}\n{label}")
    for pipeline, axes in zip(pipelines, panels, strict=True):
        here = points[points["pipeline"] == pipeline]
        _draw_seeds(axes, here[here["policy"] == AGENT])
        means = mean_points(here)
        for policy in ordered(POLICIES):
            _draw_sweep(axes, policy, means.loc[means["policy"] == policy, ["cost", "qos"]].to_numpy())
        _frame(axes, means)
        axes.set_title(_title(pipeline, areas[areas["pipeline"] == pipeline]), fontsize=9)
        axes.set(xlabel="mean cost (CPU cores)", ylabel="mean QoS (Eq. 3)")
    legend_below(figure, panels[0], columns=4)
    return figure


def _draw_seeds(axes: Axes, agents: pd.DataFrame) -> None:
    style = policy_style(AGENT)
    axes.scatter(
        agents["cost"], agents["qos"], s=28, color=style.colour, marker=style.marker, alpha=0.3, linewidths=0,
        label=f"{style.label}, one seed",
    )  # fmt: skip


def _draw_sweep(axes: Axes, policy: str, means: np.ndarray) -> None:
    """Draw points (P, 2) of one policy in the order of prices, and their non-dominated set."""
    style = policy_style(policy)
    axes.plot(*means.T, color=style.colour, linewidth=0.8, linestyle=":", zorder=2)
    axes.plot(*means.T, color=style.colour, marker=style.marker, markersize=6, linestyle="none", label=style.label)
    axes.step(*non_dominated(means).T, where="post", color=style.colour, linewidth=1.6, alpha=0.8)


def _frame(axes: Axes, means: pd.DataFrame) -> None:
    """Show the points that are not far below IPA's lowest QoS, and describe the others."""
    lowest, highest = float(means.loc[means["policy"] == IPA, "qos"].min()), float(means["qos"].max())
    space = 0.08 * max(highest - lowest, 1e-3)
    far = means["qos"] < lowest - space
    inside, outside = means[~far], means[far]
    texts = [
        f"{short_label(policy)}: {len(rows)} below, down to QoS {rows['qos'].min():.4g}"
        for policy in ordered(POLICIES)
        if len(rows := outside[outside["policy"] == policy])
    ]
    cheapest, dearest = float(inside["cost"].min()), float(inside["cost"].max())
    width = 0.06 * max(dearest - cheapest, 0.1)
    axes.set_xlim(cheapest - width, dearest + width)
    axes.set_ylim(lowest - (1 + len(texts)) * space, highest + space)
    axes.text(0.98, 0.02, "\n".join(texts), transform=axes.transAxes, ha="right", va="bottom", fontsize=8, color="0.35")


def _title(pipeline: str, areas: pd.DataFrame) -> str:
    """The pipeline, and the ratio of the agent's hypervolume to the others'."""
    lines = [pipeline]
    for reference, name in ((ANY, "hypervolume"), (SERVED, "above IPA's lowest QoS")):
        rows = areas[areas["reference"] == reference]
        ratios = dict(zip(rows["policy"], rows["agent_times"], strict=True))
        lines.append(f"{name}: " + ", ".join(_times(ratios[policy], policy) for policy in (IPA, MYOPIC)))
    return "\n".join(lines)


def _times(ratio: float, policy: str) -> str:
    return f"{short_label(policy)} has none" if np.isnan(ratio) else f"{ratio:.3f} × {short_label(policy)}"
