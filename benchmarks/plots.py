"""Figures of the benchmarks of simulator and decision time; each is returned, open, for the caller to save or show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.decision_time import AGENT, GUROBI
from benchmarks.simulator import CONTENDERS, EPISODES, GYMNASIUM, QUEUES, REFERENCE, SIMULATOR, WHOLE_MODEL
from opd.plots_style import PALETTE, Style, ordered, policy_style

_COLOURS = dict(zip((contender.name for contender in CONTENDERS), np.array(PALETTE)[[0, 9, 1, 8, 7]], strict=True))
_CASES = {
    QUEUES: "queues alone: no batches,\none configuration",
    WHOLE_MODEL: "whole model: batches,\nage limit, reconfiguration",
}
_LAYERS = {
    EPISODES: Style("episodes, as in training (reward and state included)", PALETTE[0], "o"),
    SIMULATOR: Style("simulation alone", PALETTE[2], "s"),
}
_BAR_STEPS = 50_000
"""Environment steps per CPU-second that the batched simulator should reach."""
_BAR_RATIO = 100
"""How many times as fast as simpy it should be."""


def _style(policy: str) -> Style:
    return Style("IPA (Gurobi)", PALETTE[1], "D") if policy == GUROBI else policy_style(policy)


def _plainly(value: float) -> str:
    """A figure for people: 6.1 M, 52 k, 310."""
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:.2g}{name}" if value < 10 * unit else f"{value / unit:.0f}{name}"
    return f"{value:.3g}"


def _plain_axis(axis: Axes, which: str) -> None:
    (axis.yaxis if which == "y" else axis.xaxis).set_major_formatter(plt.FuncFormatter(lambda v, _: _plainly(v)))


# ------------------------------------------------------------------------------------------------- simulator


def plot_simulator(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Requests per CPU-second beside the peers, environment steps by batch size, and what a batched step is made of.

    Args:
        frames: ``requests``, ``steps`` and ``profile``: the tables of :func:`benchmarks.simulator.measure_requests`,
            :func:`benchmarks.simulator.measure_steps` and :func:`benchmarks.simulator.profile`.
    """
    figure = plt.figure(figsize=(12, 8.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.15, 1.0))
    _plot_requests(top.subplots(), frames["requests"])
    left, right = bottom.subplots(1, 2, width_ratios=(1.15, 1.0))
    _plot_steps(left, frames["steps"])
    _plot_profile(right, frames["profile"])
    return figure


def _plot_requests(axes: Axes, requests: pd.DataFrame) -> None:
    groups = list(dict.fromkeys(zip(requests["pipeline"], requests["stages"], requests["case"], strict=True)))
    width = 0.84 / len(_COLOURS)
    for number, (name, colour) in enumerate(_COLOURS.items()):
        rows = requests[requests["simulator"] == name]
        places = [groups.index(key) for key in zip(rows["pipeline"], rows["stages"], rows["case"], strict=True)]
        at = np.array(places) + width * (number - (len(_COLOURS) - 1) / 2)
        axes.bar(at, rows["requests_per_cpu_second"], 0.92 * width, color=colour, label=name)
        for place, rate, ratio in zip(at, rows["requests_per_cpu_second"], rows["ratio"], strict=True):
            text = _plainly(rate) if name == REFERENCE else f"{_plainly(rate)}\n{ratio:.3g} ×"
            axes.annotate(text, (place, rate), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=8)
    _mark_bar(axes, requests, groups)
    axes.set_yscale("log")
    # Room for the figures on top of the highest bars.
    axes.set_ylim(
        10 ** np.floor(np.log10(requests["requests_per_cpu_second"].min())),
        4.0 * requests["requests_per_cpu_second"].max(),
    )
    _plain_axis(axes, "y")
    axes.set_xticks(
        range(len(groups)), [f"{pipeline}, {stages} stages\n{_CASES[case]}" for pipeline, stages, case in groups]
    )
    axes.set(
        ylabel="requests per CPU-second",
        title="Requests simulated, same arrivals and same answers; × is the ratio to simpy",
    )
    axes.grid(axis="y", alpha=0.25)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _mark_bar(axes: Axes, requests: pd.DataFrame, groups: Iterable[tuple[str, int, str]]) -> None:
    """The speed that is 100 times simpy's, in every group."""
    reference = requests[requests["simulator"] == REFERENCE].set_index(["pipeline", "stages", "case"])
    for place, group in enumerate(groups):
        rate = _BAR_RATIO * float(reference.loc[group, "requests_per_cpu_second"])
        axes.hlines(
            rate, place - 0.45, place + 0.45, color="black", linestyle="--", linewidth=1.2,
            label=f"{_BAR_RATIO} × simpy" if place == 0 else None,
        )  # fmt: skip


def _plot_steps(axes: Axes, steps: pd.DataFrame) -> None:
    for layer, style in _LAYERS.items():
        rows = steps[steps["layer"] == layer]
        axes.plot(
            rows["environments"], rows["steps_per_cpu_second"],
            color=style.colour, marker=style.marker, label=style.label,
        )  # fmt: skip
    gymnasium = steps[steps["layer"] == GYMNASIUM]
    axes.plot(
        gymnasium["environments"], gymnasium["steps_per_cpu_second"],
        color=PALETTE[3], marker="*", markersize=12, linestyle="none", label=GYMNASIUM,
    )  # fmt: skip
    axes.axhline(_BAR_STEPS, color="black", linestyle="--", linewidth=1.2, label=f"{_plainly(_BAR_STEPS)} steps")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    _plain_axis(axes, "y")
    batches = sorted(set(steps["environments"]))
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set(
        xlabel="environments stepped together",
        ylabel="environment steps per CPU-second",
        title="Steps of 10 s at 12 requests/s, two stages",
    )
    axes.grid(axis="y", which="both", alpha=0.25)
    axes.legend(fontsize=8.5, loc="lower right")


def _plot_profile(axes: Axes, profile: pd.DataFrame) -> None:
    rows = profile[::-1]
    bars = axes.barh(rows["part"], rows["microseconds"], color=PALETTE[0])
    axes.bar_label(bars, [f"{share:.0%}" for share in rows["share"]], padding=3, fontsize=9)
    axes.margins(x=0.15)
    axes.set(xlabel="CPU time of one environment's step (µs)", title="Where a batched step's time goes")
    axes.tick_params(axis="y", labelsize=9)
    axes.grid(axis="x", alpha=0.25)


# ------------------------------------------------------------------------------------------------- decision time


def plot_decision_times(times: pd.DataFrame) -> Figure:
    """Fig. 6 of the paper: decision time by pipeline size, and the cycle total H as a ratio to the agent's.

    Args:
        times: table of :func:`benchmarks.decision_time.measure_decision_times`.
    """
    measured = times[times["skipped"] == ""]
    sizes = list(dict.fromkeys(zip(times["stages"], times["variants"], strict=True)))
    names = ordered(measured["policy"])
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.8), layout="constrained")
    for number, name in enumerate(names):
        rows, style = measured[measured["policy"] == name], _style(name)
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
    right.axhline(1.0, color=_style(AGENT).colour, linewidth=1.4)
    right.set_ylim(bottom=0.5)
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
    shown = [axes.get_legend_handles_labels() for axes in (left, middle)]
    handles, texts = ([entry for pair in shown for entry in pair[side]] for side in (0, 1))
    figure.legend(handles, texts, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _of_each_size(times: pd.DataFrame, sizes: Iterable[tuple[int, int]], column: str) -> list[float]:
    """The agent's figure in ``column`` for every size."""
    agent = times[times["policy"] == AGENT].set_index(["stages", "variants"])[column]
    return [float(agent.loc[size]) for size in sizes]
