"""The figure of the simulator's speed: requests compared with the peers, environment steps, and parts of a step."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from opd.study.benchmarks.criteria import STEPS_PER_CPU_SECOND, TIMES_SIMPY
from opd.study.benchmarks.environment_steps import EPISODES, GYMNASIUM, SIMULATOR
from opd.study.benchmarks.scenarios import LOAD, QUEUES, WHOLE_MODEL
from opd.study.benchmarks.simulated_requests import CONTENDERS, REFERENCE
from opd.study.plots.style import PALETTE, Style

_COLOURS = dict(zip((contender.name for contender in CONTENDERS), np.array(PALETTE)[[0, 9, 1, 8, 7]], strict=True))
_CASES = {
    QUEUES: "queues alone: no batches,\none configuration",
    WHOLE_MODEL: "whole model: batches,\nage limit, reconfiguration",
}
_LAYERS = {
    EPISODES: Style("episodes, as in training (reward and state included)", PALETTE[0], "o"),
    SIMULATOR: Style("simulation alone", PALETTE[2], "s"),
}


def _plainly(value: float) -> str:
    """Format a figure for people: 6.1 M, 52 k, 310."""
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:.2g}{name}" if value < 10 * unit else f"{value / unit:.0f}{name}"
    return f"{value:.3g}"


def _logarithmic(axes: Axes, labelled: tuple[float, ...]) -> None:
    """Make the y axis logarithmic, labelled at these multiples of every power of ten."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=labelled))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _plainly(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _ratio(ratio: float) -> str:
    return f"{ratio:.2g}" if ratio < 10 else f"{ratio:.0f}"


def plot_simulator(requests: pd.DataFrame, steps: pd.DataFrame, profile: pd.DataFrame) -> Figure:
    """Draw requests per CPU-second of all simulators, environment steps by batch size, and the parts of a batched step.

    Args:
        requests: table of :func:`opd.study.benchmarks.simulated_requests.measure_requests`.
        steps: table of :func:`opd.study.benchmarks.environment_steps.measure_steps`.
        profile: table of :func:`opd.study.benchmarks.environment_steps.profile`.

    Returns:
        The figure, not saved.
    """
    figure = plt.figure(figsize=(12, 8.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.15, 1.0))[:, 0]
    _plot_requests(top.subplots(), requests)
    left, right = bottom.subplots(1, 2, width_ratios=(1.15, 1.0))
    _plot_steps(left, steps)
    _plot_profile(right, profile)
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
            text = _plainly(rate) if name == REFERENCE else f"{_plainly(rate)}\n{_ratio(ratio)} ×"
            axes.annotate(
                text, (place, rate), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=8,
                bbox=dict(facecolor="white", edgecolor="none", alpha=1.0, pad=0.2), zorder=4,
            )  # fmt: skip
    _mark_bar(axes, requests)
    _logarithmic(axes, (1.0,))
    # Room for the labels of the highest bars.
    axes.set_ylim(
        10 ** np.floor(np.log10(requests["requests_per_cpu_second"].min())),
        4.0 * requests["requests_per_cpu_second"].max(),
    )
    axes.set_xticks(
        range(len(groups)), [f"{pipeline}, {stages} stages\n{_CASES[case]}" for pipeline, stages, case in groups]
    )
    axes.set(
        ylabel="requests per CPU-second",
        title="Simulated requests, same arrivals and answers; × is the ratio to simpy",
    )
    axes.grid(axis="y", alpha=0.25)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _mark_bar(axes: Axes, requests: pd.DataFrame) -> None:
    """Mark the speed of the criterion, which differs between groups."""
    rates = requests.loc[requests["simulator"] == REFERENCE, "requests_per_cpu_second"].to_numpy()
    places = np.arange(len(rates))
    axes.hlines(
        TIMES_SIMPY * rates, places - 0.45, places + 0.45,
        color="black", linestyle="--", linewidth=1.2, label=f"{TIMES_SIMPY} × {REFERENCE}",
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
    axes.axhline(
        STEPS_PER_CPU_SECOND, color="black", linestyle="--", linewidth=1.2,
        label=f"{_plainly(STEPS_PER_CPU_SECOND)} steps",
    )  # fmt: skip
    axes.set_xscale("log", base=2)
    _logarithmic(axes, (1.0, 2.0, 5.0))
    batches = sorted(set(steps["environments"]))
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set(
        xlabel="environments stepped together",
        ylabel="environment steps per CPU-second",
        title=f"Steps of 10 s at {LOAD} requests/s, {steps['stages'].iloc[0]} stages",
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
