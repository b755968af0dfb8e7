"""The figure of :mod:`opd.study.benchmarks.decision_time`: decision time as pipelines grow."""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from opd.control import AGENT
from opd.study.plots.style import legend_below, ordered, policy_style


def plot_decision_times(times: pd.DataFrame) -> Figure:
    """Draw Fig. 6 of the paper: decision time by pipeline size, and the cycle total H as a ratio to the agent's.

    Args:
        times: table of :func:`opd.study.benchmarks.decision_time.compare_decision_times`.

    Returns:
        The figure, not saved.
    """
    measured = times[times["skipped"] == ""]
    sizes = list(dict.fromkeys(zip(times["stages"], times["variants"], strict=True)))
    names = ordered(measured["policy"])
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.8), layout="constrained")
    for number, name in enumerate(names):
        rows, style = measured[measured["policy"] == name], policy_style(name)
        places = np.array([sizes.index(size) for size in zip(rows["stages"], rows["variants"], strict=True)])
        aside = places + 0.07 * (number - (len(names) - 1) / 2)
        spread = np.array([np.zeros(len(rows)), (rows["p99_ms"] - rows["median_ms"]).clip(lower=0.0)])
        look = dict(color=style.colour, marker=style.marker, linewidth=1.4)
        left.errorbar(aside, rows["median_ms"], yerr=spread, capsize=4, elinewidth=0.9, label=style.label, **look)
        middle.plot(aside, rows["decision_ms"], **look)
        if name != AGENT:
            right.plot(aside, rows["total_ratio"], **look)
    middle.plot(
        range(len(sizes)), _of_each_size(measured, sizes, "forecast_ms"),
        color="0.4", linestyle=":", label="the forecast alone",
    )  # fmt: skip
    right.axhline(1.0, color=policy_style(AGENT).colour, linewidth=1.4)
    labels = {
        left: ("milliseconds", "Forecast and decision:\nmedian, whisker to the 99th percentile"),
        middle: ("milliseconds", "Decision alone: median"),
        right: ("ratio to the agent", "Total of a cycle (H), ratio to the agent:\nabove 1 the agent is faster"),
    }
    for axes, (unit, title) in labels.items():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(plt.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xticks(range(len(sizes)), [f"{stages}×{variants}" for stages, variants in sizes])
        axes.set(xlabel="stages × variants a stage", ylabel=unit, title=title)
        axes.grid(axis="y", which="both", alpha=0.25)
    right.set_ylim(bottom=0.5)
    legend_below(figure, left, middle)
    return figure


def _of_each_size(times: pd.DataFrame, sizes: Iterable[tuple[int, int]], column: str) -> list[float]:
    """The agent's figure in ``column`` for every size."""
    agent = times[times["policy"] == AGENT].set_index(["stages", "variants"])[column]
    return [float(agent.loc[size]) for size in sizes]
