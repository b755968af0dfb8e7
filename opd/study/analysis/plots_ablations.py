"""The figure of :mod:`opd.study.analysis.ablation_findings`: the effect of removing a part on the agent's reward."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opd.control import AGENT
from opd.study.analysis.ablations import ABLATIONS, INSTANT, MYOPIC
from opd.study.analysis.estimates import signed
from opd.study.plots.style import PALETTE, Style, policy_style, symmetric_logarithmic

PARTS = {
    "expert": Style("expert", PALETTE[0], "o"),
    "features": Style("features", PALETTE[1], "s"),
    "heads": Style("heads", PALETTE[2], "^"),
    "forecast": Style("forecast", PALETTE[3], "v"),
    "queues": Style("queues", PALETTE[9], "X"),
}
"""The style of each ablated part, from top to bottom."""

ENVIRONMENTS = {
    AGENT: "as in the study",
    INSTANT: "no start-up delays",
    "recent-maximum": "maximum of the last 20 s",
    "perfect-forecast": "perfect forecast",
}
"""Agents that are compared with the myopic solver in their own environment, and the name of the environment."""

Row = tuple[str, str, Style]
"""A variant, its label and its style."""


def plot_ablations(summary: pd.DataFrame, title: str = "") -> Figure:
    """Draw every variant's reward minus the full agent's, and below the agent's minus the myopic solver's.

    A point is the mean over seeds and cycles, a whisker its 95 % interval; the mean is also given as a number.
    Pipelines share an axis, which is logarithmic on both sides of zero if a few differences are much larger.

    Args:
        summary: of :func:`opd.study.analysis.ablation_findings.summarise_ablations`.
        title: of the figure.

    Returns:
        The figure, not saved.
    """
    pipelines = list(dict.fromkeys(summary["pipeline"]))
    figure, grid = plt.subplots(
        2, len(pipelines), figsize=(3.0 + 4.0 * len(pipelines), 6.6), layout="constrained", squeeze=False,
        sharex="row", sharey="row", height_ratios=(2.4, 1.0),
    )  # fmt: skip
    figure.suptitle(title)
    against = {"difference": "the full agent's", "over_myopic": "the myopic solver's in the same environment"}
    for row, (quantity, whose), groups in zip(grid, against.items(), (_ablated(), _environments()), strict=True):
        for axes, pipeline in zip(row, pipelines, strict=True):
            own = summary[summary["pipeline"] == pipeline].to_dict("records")
            _draw(axes, {record["variant"]: record for record in own}, groups, quantity)
        shown = summary["variant"].isin([name for group in groups for name, _, _ in group])
        note = _scale(row[0], summary[shown], quantity)
        for axes in row:
            axes.set_xlabel(f"reward minus {whose}{note}")
    for axes, pipeline in zip(grid[0], pipelines, strict=True):
        axes.set_title(pipeline)
    return figure


def _ablated() -> list[list[Row]]:
    """Variants that are compared with the full agent, in groups: the ablations by part, then the solvers."""
    groups = [
        [(name, ablation.label, style) for name, ablation in ABLATIONS.items() if ablation.part == part]
        for part, style in PARTS.items()
    ]
    return [*groups, [(name, policy_style(name).label, policy_style(name)) for name in (MYOPIC, "clairvoyant")]]


def _environments() -> list[list[Row]]:
    """Agents that are compared with the myopic solver: two with different delays, two with different forecasts."""
    agent, forecast = policy_style(AGENT), PARTS["forecast"]
    rows = [
        (name, label, forecast if ABLATIONS[name].part == "forecast" else agent) for name, label in ENVIRONMENTS.items()
    ]
    return [rows[:2], rows[2:]]


def _draw(axes: Axes, rows: Mapping[str, Mapping[Hashable, Any]], groups: list[list[Row]], quantity: str) -> None:
    """Draw a point and a whisker for every variant, groups half a line apart, the first on top."""
    places: list[float] = []
    for number, group in enumerate(groups):
        for name, _, style in group:
            place = -len(places) - 0.5 * number
            mean, low, high = (rows[name][f"{quantity}{end}"] for end in ("", "_low", "_high"))
            spread = [[max(mean - low, 0.0)], [max(high - mean, 0.0)]]
            axes.errorbar(mean, place, xerr=spread, color=style.colour, marker=style.marker, ms=7, capsize=4)
            axes.annotate(
                signed(mean), (1.0, place), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                va="center", fontsize=8, color="0.3",
            )  # fmt: skip
            places.append(place)
    axes.axvline(0.0, color="black", linewidth=1.0)
    axes.set_yticks(places, [label for group in groups for _, label, _ in group])
    axes.set_ylim(min(places) - 0.7, 0.7)
    axes.grid(axis="x", alpha=0.25)


def _scale(axes: Axes, shown: pd.DataFrame, quantity: str) -> str:
    """Choose a scale on which typical and large differences can be read; returns a note if it is not linear."""
    ends = np.abs(shown[[f"{quantity}_low", f"{quantity}_high"]].to_numpy())
    typical, largest = float(np.median(ends)), float(ends.max())
    axes.margins(x=0.08)
    if not largest > 8.0 * typical > 0.0:
        axes.locator_params(axis="x", nbins=5)
        return ""
    linear = float(10.0 ** np.ceil(np.log10(typical)))
    return "\n" + symmetric_logarithmic(axes, linear, width=1.5)
