"""The figures of the benchmarks: the simulator's speed, training, and decision time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from opd.control import AGENT
from opd.study.benchmarks.criteria import STEPS_PER_CPU_SECOND, TIMES_SIMPY
from opd.study.benchmarks.environment_steps import EPISODES, GYMNASIUM, SIMULATOR
from opd.study.benchmarks.simulated_requests import CONTENDERS, LOAD, QUEUES, REFERENCE, WHOLE_MODEL
from opd.study.benchmarks.training import METHODS, MYOPIC
from opd.study.plots.style import PALETTE, Style, label_decades, legend_below, ordered, policy_style

_COLOURS = dict(zip((contender.name for contender in CONTENDERS), np.array(PALETTE)[[0, 9, 1, 8, 7]], strict=True))
_CASES = {
    QUEUES: "queues alone: no batches,\none configuration",
    WHOLE_MODEL: "whole model: batches,\nage limit, reconfiguration",
}
_LAYERS = {
    EPISODES: Style("episodes, as in training (reward and state included)", PALETTE[0], "o"),
    SIMULATOR: Style("simulation alone", PALETTE[2], "s"),
    GYMNASIUM: Style(GYMNASIUM, PALETTE[3], "*"),
}
STYLES = {
    "agent": Style("ours", PALETTE[0], "o"),
    "agent-unaided": Style("ours, without imitation", PALETTE[9], "s"),
    "ppo": Style("SB3 PPO", PALETTE[3], "^"),
    "maskable-ppo": Style("sb3-contrib MaskablePPO", PALETTE[2], "v"),
    "ppo-batched": Style("SB3 PPO, batched", PALETTE[1], "<"),
    "maskable-ppo-batched": Style("sb3-contrib MaskablePPO, batched", PALETTE[5], ">"),
}
_CRITERION: dict[str, Any] = dict(color="black", linestyle="--", linewidth=1.2)


def _groups(table: pd.DataFrame, columns: list[str]) -> tuple[pd.Series, list[tuple]]:
    """The place of every row on an axis with one tick a group of ``columns``, and the groups in order of appearance."""
    groups = table[columns].drop_duplicates().itertuples(index=False, name=None)
    return table.groupby(columns, sort=False).ngroup(), list(groups)


def _aside(places: pd.Series, number: int, count: int, width: float) -> pd.Series:
    """Places shifted so that ``count`` series, each ``width`` from the next, are centred on their ticks."""
    return places + width * (number - (count - 1) / 2)


# ------------------------------------------------------------------------------------------------- simulator


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


def _for_people(value: float) -> str:
    """Format a figure with about two digits: 6.1 M, 52 k, 310."""
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:.2g}{name}" if value < 10 * unit else f"{value / unit:.0f}{name}"
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _plot_requests(axes: Axes, requests: pd.DataFrame) -> None:
    places, groups = _groups(requests, ["pipeline", "stages", "case"])
    rates = requests["requests_per_cpu_second"]
    width = 0.84 / len(_COLOURS)
    for number, (name, colour) in enumerate(_COLOURS.items()):
        rows = requests["simulator"] == name
        at = _aside(places[rows], number, len(_COLOURS), width)
        bars = axes.bar(at, rates[rows], 0.92 * width, color=colour, label=name)
        ratios = ["" if name == REFERENCE else f"\n{_for_people(ratio)} ×" for ratio in requests.loc[rows, "ratio"]]
        texts = [_for_people(rate) + ratio for rate, ratio in zip(rates[rows], ratios, strict=True)]
        axes.bar_label(bars, texts, padding=2, fontsize=8, bbox=dict(fc="white", ec="none", pad=0.2), zorder=4)
    # The speed of the criterion differs between groups.
    reference = requests["simulator"] == REFERENCE
    at = places[reference]
    label = f"{TIMES_SIMPY} × {REFERENCE}"
    axes.hlines(TIMES_SIMPY * rates[reference], at - 0.45, at + 0.45, label=label, **_CRITERION)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(EngFormatter())
    # Room for the labels of the highest bars.
    axes.set_ylim(10 ** np.floor(np.log10(rates.min())), 4.0 * rates.max())
    axes.set_xticks(range(len(groups)), [f"{name}, {stages} stages\n{_CASES[case]}" for name, stages, case in groups])
    title = "Simulated requests, same arrivals and answers; × is the ratio to simpy"
    axes.set(ylabel="requests per CPU-second", title=title)
    axes.grid(axis="y", alpha=0.25)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _plot_steps(axes: Axes, steps: pd.DataFrame) -> None:
    for layer, style in _LAYERS.items():
        rows = steps[steps["layer"] == layer]
        x, y = rows["environments"], rows["steps_per_cpu_second"]
        axes.plot(x, y, color=style.colour, marker=style.marker, ms=style.marker_size, label=style.label)
    axes.axhline(STEPS_PER_CPU_SECOND, label=f"{_for_people(STEPS_PER_CPU_SECOND)} steps", **_CRITERION)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    label_decades(axes.yaxis)
    axes.yaxis.set_major_formatter(EngFormatter())
    batches = sorted(set(steps["environments"]))
    axes.set_xticks(batches, [str(batch) for batch in batches])
    title = f"Steps of 10 s at {LOAD} requests/s, {steps['stages'].iloc[0]} stages"
    axes.set(xlabel="environments stepped together", ylabel="environment steps per CPU-second", title=title)
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


# ------------------------------------------------------------------------------------------------- training


def plot_training_speed(summary: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Draw reward over CPU-seconds, whole and close to the solver, and the speed of each method.

    A line is a seed. A bar is the mean of the seeds, its whisker the slowest and the fastest of them.

    Args:
        summary: of :func:`opd.study.benchmarks.training.measure_training`; reward as in Eq. 7.
        curves: of the same.

    Returns:
        The figure, not saved.
    """
    layout: dict[str, Any] = dict(figsize=(14, 4.6), layout="constrained", width_ratios=(1.2, 1.2, 1.0))
    figure, (whole, close, speed) = plt.subplots(1, 3, **layout)
    level = float(summary.loc[summary["method"] == MYOPIC, "final_reward"].iloc[0])
    for axes in (whole, close):
        _draw_curves(axes, curves, level)
    whole.set(title="from the first step", ylabel="reward of the greedy policy in validation (Eq. 7)")
    # The upper half of all evaluations.
    top, low = max(float(curves["reward"].max()), level), min(float(curves["reward"].median()), level)
    margin = 0.08 * (top - low) or 0.1
    close.set(title="close to the myopic solver", ylim=(low - margin, top + margin))
    _draw_speeds(speed, summary)
    legend_below(figure, whole, columns=4)
    return figure


def _draw_curves(axes: Axes, curves: pd.DataFrame, level: float) -> None:
    for method, style in STYLES.items():
        for number, (_, run) in enumerate(curves[curves["method"] == method].groupby("seed")):
            label = style.label if number == 0 else None
            x, y = run["cpu_seconds"], run["reward"]
            axes.plot(x, y, color=style.colour, marker=style.marker, ms=3.5, lw=1.2, alpha=0.85, label=label)
    myopic = policy_style(MYOPIC)
    axes.axhline(level, color=myopic.colour, linestyle="--", linewidth=1.3, label=f"{myopic.label} solver")
    axes.set(xlabel="CPU-seconds of training")
    axes.set_xlim(left=0.0)


def _draw_speeds(axes: Axes, summary: pd.DataFrame) -> None:
    rows = summary[summary["method"].isin(METHODS)].iloc[::-1]
    speeds, slowest, fastest = (rows[f"steps_per_cpu_second{end}"] for end in ("", "_min", "_max"))
    styles = [STYLES[method] for method in rows["method"]]
    whiskers = np.abs([slowest - speeds, fastest - speeds])
    colours = [style.colour for style in styles]
    axes.barh(range(len(rows)), speeds, xerr=whiskers, color=colours, height=0.65, capsize=3)
    for place, (_, row) in enumerate(rows.iterrows()):
        text = f"{row['steps_per_cpu_second']:,.0f}"
        if row["method"] != AGENT:
            text += f"\nours: {row['agent_times_speed']:.2f} ×"
        right = row["steps_per_cpu_second_max"] + 0.03 * speeds.max()
        axes.text(right, place, text, va="center", ha="left", fontsize=9)
    axes.set_xlim(right=1.45 * float(fastest.max()))
    axes.set_yticks(range(len(rows)), [style.label.replace(", ", ",\n").replace(" M", "\nM") for style in styles])
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set(title="speed, from end to end", xlabel="steps per CPU-second")


# ------------------------------------------------------------------------------------------------- decision time


def plot_decision_times(times: pd.DataFrame) -> Figure:
    """Draw Fig. 6 of the paper: decision time by pipeline size, and the cycle total H as a ratio to the agent's.

    Args:
        times: table of :func:`opd.study.benchmarks.decision_time.compare_decision_times`.

    Returns:
        The figure, not saved.
    """
    places, sizes = _groups(times, ["stages", "variants"])
    times = times.assign(place=places)[times["skipped"] == ""]
    names = ordered(times["policy"])
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.8), layout="constrained")
    for number, name in enumerate(names):
        rows, style = times[times["policy"] == name], policy_style(name)
        aside = _aside(rows["place"], number, len(names), 0.07)
        spread = np.array([np.zeros(len(rows)), (rows["p99_ms"] - rows["median_ms"]).clip(lower=0.0)])
        look = dict(color=style.colour, marker=style.marker, linewidth=1.4)
        left.errorbar(aside, rows["median_ms"], yerr=spread, capsize=4, elinewidth=0.9, label=style.label, **look)
        middle.plot(aside, rows["decision_ms"], **look)
        if name != AGENT:
            right.plot(aside, rows["total_ratio"], **look)
    agent = times[times["policy"] == AGENT]
    middle.plot(agent["place"], agent["forecast_ms"], color="0.4", linestyle=":", label="the forecast alone")
    right.axhline(1.0, color=policy_style(AGENT).colour, linewidth=1.4)
    _label_sizes(left, sizes, "milliseconds", "Forecast and decision:\nmedian, whisker to the 99th percentile")
    _label_sizes(middle, sizes, "milliseconds", "Decision alone: median")
    title = "Total of a cycle (H), ratio to the agent:\nabove 1 the agent is faster"
    _label_sizes(right, sizes, "ratio to the agent", title)
    right.set_ylim(bottom=0.5)
    legend_below(figure, left, middle)
    return figure


def _label_sizes(axes: Axes, sizes: Sequence[tuple], unit: str, title: str) -> None:
    """Label an axis of pipeline sizes and a logarithmic one."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(plt.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xticks(range(len(sizes)), [f"{stages}×{variants}" for stages, variants in sizes])
    axes.set(xlabel="stages × variants a stage", ylabel=unit, title=title)
    axes.grid(axis="y", which="both", alpha=0.25)
