"""Figures of :mod:`opd.study.analysis.quality`.

Each is returned, open, for the caller to save or show.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opd.control import AGENT
from opd.study.analysis.estimates import signed
from opd.study.analysis.quality import CLAIRVOYANT, MYOPIC
from opd.study.plots.style import legend_below, ordered, panel_grid, policy_style, short_label, symmetric_logarithmic

_LINEAR = 0.1
"""Differences of reward up to which the axis is linear."""


# ------------------------------------------------------------------------------------------------- intervals


def plot_intervals(quality: pd.DataFrame, label: str) -> Figure:
    """Draw the reward of each policy minus the myopic solver's, with its 95 % interval, one panel a pipeline.

    The random policy is far below all others and is omitted.

    Args:
        quality: of :func:`opd.study.analysis.quality.quality_table`.
        label: of the trace, for the title.

    Returns:
        The figure, not saved.
    """
    shown = quality[~quality["policy"].isin(["random", MYOPIC])]
    pipelines = list(dict.fromkeys(shown["pipeline"]))
    policies = ordered(shown["policy"])
    figure, panels = panel_grid(len(pipelines), 4.4, 2.6)
    figure.suptitle(
        "Reward per decision minus the myopic solver's for the same requests: mean and 95 % interval\n"
        f"{label}; random is far below and not shown"
    )
    for pipeline, axes in zip(pipelines, panels, strict=True):
        rows = shown[shown["pipeline"] == pipeline].set_index("policy")
        _draw_intervals(axes, rows.loc[[policy for policy in policies if policy in rows.index]])
        axes.set_title(pipeline)
    scale = _share_width(panels, shown)
    for axes in panels[-3:]:
        axes.set_xlabel(f"difference of reward\n{scale}")
    return figure


def _draw_intervals(axes: Axes, rows: pd.DataFrame) -> None:
    """One pipeline; policies by name, from top to bottom."""
    name = "more_reward_than_myopic"
    for place, (policy, row) in enumerate(rows.iterrows()):
        style = policy_style(str(policy))
        mean, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
        axes.plot([low, high], [place, place], color=style.colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot(mean, place, color=style.colour, marker=style.marker, markersize=style.marker_size)
        axes.annotate(signed(mean), (mean, place), (0, 7), textcoords="offset points", ha="center", fontsize=8)
    axes.axvline(0.0, color=policy_style(MYOPIC).colour, linewidth=1.3, linestyle="--")
    axes.set_yticks(range(len(rows)), [short_label(str(policy)) for policy in rows.index])
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.grid(axis="x", alpha=0.25)


def _share_width(panels: Iterable[Axes], shown: pd.DataFrame) -> str:
    """Set the same symmetric logarithmic axis in all panels; returns the description of its scale."""
    ends = shown[["more_reward_than_myopic_low", "more_reward_than_myopic_high"]].to_numpy()
    for axes in panels:
        axes.set_xlim(2.0 * min(ends.min(), -_LINEAR), 1.3 * max(ends.max(), _LINEAR))
        scale = symmetric_logarithmic(axes, _LINEAR)
    return scale


# ------------------------------------------------------------------------------------------------------- gap


def plot_gap(gap: pd.DataFrame, label: str) -> Figure:
    """Draw the gain of a perfect forecast, the gain of the agent without one, and their ratio.

    One line a pipeline, the last all of them. A whisker is the 95 % interval. A share without an interval is hollow,
    where the gap is not significant; without a gap there is no share.

    Args:
        gap: of :func:`opd.study.analysis.quality.gap_table`.
        label: of the trace, for the title.

    Returns:
        The figure, not saved.
    """
    figure, (gains, shares) = plt.subplots(
        1, 2, figsize=(11.0, 1.9 + 0.5 * len(gap)), layout="constrained", sharey=True, width_ratios=(1.2, 1.0)
    )
    figure.suptitle(f"The gap between the myopic and the clairvoyant solver: {label}")
    places = np.arange(len(gap))
    for name, policy, aside in (("gap", CLAIRVOYANT, -0.14), ("gain", AGENT, 0.14)):
        _draw_means(gains, gap, name, places + aside, policy)
    _draw_shares(shares, gap, places)
    gains.set(xlabel="reward per decision (Eq. 7) minus the myopic solver's", title="gains")
    shares.set(xlabel="agent's gain / gap", title="share of the gap that the agent closes")
    gains.set_yticks(places, gap["pipeline"])
    gains.set_ylim(len(gap) - 0.5, -0.5)
    for axes in (gains, shares):
        axes.axvline(0.0, color="0.4", linewidth=1.0, zorder=1)
        axes.axhline(len(gap) - 1.5, color="0.8", linewidth=1.0)
        axes.grid(axis="x", alpha=0.25)
    legend_below(figure, gains, shares)
    return figure


def _draw_means(axes: Axes, rows: pd.DataFrame, name: str, places: np.ndarray, policy: str) -> None:
    """Draw a column of means with their intervals, one a line."""
    style = policy_style(policy)
    whiskers = np.abs(rows[[f"{name}_low", f"{name}_high"]].to_numpy().T - rows[name].to_numpy())
    axes.errorbar(
        rows[name], places, xerr=whiskers, color=style.colour, marker=style.marker, ms=7, linestyle="", capsize=3,
        label=style.label,
    )  # fmt: skip


def _draw_shares(axes: Axes, gap: pd.DataFrame, places: np.ndarray) -> None:
    """Draw the shares, also as numbers in a column on the right; those without an interval are hollow."""
    style, sure, known = policy_style(AGENT), gap["share_low"].notna(), gap["share"].notna()
    axes.axvline(1.0, color=policy_style(CLAIRVOYANT).colour, linestyle="--", linewidth=1.3)
    if sure.any():
        _draw_means(axes, gap[sure], "share", places[sure], AGENT)
        axes.containers[-1].set_label("_")  # looks as the agent does on the left
    if (known & ~sure).any():
        axes.plot(
            gap.loc[known & ~sure, "share"], places[known & ~sure], color=style.colour, marker=style.marker, ms=7,
            linestyle="", fillstyle="none", label="share of a gap that is not significant",
        )  # fmt: skip
    for share, place in zip(gap["share"], places, strict=True):
        axes.annotate(
            "no gap" if np.isnan(share) else f"{share:.2f}", (1.0, place), (4, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="center", fontsize=8, color="0.3",
        )  # fmt: skip
    axes.margins(x=0.08)


# ----------------------------------------------------------------------------------------------------- paper


def plot_paper(paper: pd.DataFrame, label: str) -> Figure:
    """Draw cost and QoS relative to greedy and IPA, the paper's and ours.

    One line a load and baseline. A mark of ours is the mean over the pipelines, a light one a single pipeline.

    Args:
        paper: of :func:`opd.study.analysis.quality.paper_table`.
        label: of the trace, for the title.

    Returns:
        The figure, not saved.
    """
    of_rows = list(zip(paper["cycle"], paper["against"], strict=True))
    lines = list(dict.fromkeys(of_rows))
    pipelines = list(paper)[list(paper).index("mean") + 1 :]
    paper = paper.assign(place=[lines.index(line) for line in of_rows])
    figure, panels = plt.subplots(1, 2, figsize=(11.0, 1.9 + 0.62 * len(lines)), layout="constrained", sharey=True)
    figure.suptitle(f"The paper's comparisons (Sec. VI-B) and ours: {label}")
    for axes, (quantity, name) in zip(panels, {"cost": "cost", "qos": "QoS"}.items(), strict=True):
        _draw_comparisons(axes, paper[paper["quantity"] == quantity], pipelines)
        axes.set(xlabel=f"{name} relative to the baseline's (%)", title=name)
        axes.hlines(np.arange(1, len(lines)) - 0.5, 0.0, 1.0, color="0.9", transform=axes.get_yaxis_transform())
        axes.axvline(0.0, color="0.4", linewidth=1.0, zorder=1)
        axes.grid(axis="x", alpha=0.25)
    panels[0].set_yticks(range(len(lines)), [f"{load}\nvs {short_label(baseline)}" for load, baseline in lines])
    panels[0].set_ylim(len(lines) - 0.5, -0.5)
    legend_below(figure, panels[0], columns=5)
    return figure


def _draw_comparisons(axes: Axes, rows: pd.DataFrame, pipelines: Sequence[Hashable]) -> None:
    """Draw one quantity at each row's ``place``: the paper's figure on top, those of the agents below."""
    for number, (policy, own) in enumerate(rows.groupby("policy", sort=False)):
        style, heights = policy_style(str(policy)), own["place"].to_numpy() + 0.27 * number
        if number == 0:  # the paper's figures stand in the rows of every agent
            axes.plot(own["paper"], heights - 0.27, color="black", marker="X", ms=7, linestyle="", label="paper")
        axes.plot(
            own[pipelines].to_numpy().ravel(), heights.repeat(len(pipelines)), color=style.colour, marker=style.marker,
            ms=0.75 * style.marker_size, alpha=0.35, mew=0, linestyle="", label=f"{style.label}, one pipeline",
        )  # fmt: skip
        axes.plot(
            own["mean"], heights, color=style.colour, marker=style.marker, ms=style.marker_size, linestyle="",
            label=style.label,
        )  # fmt: skip
