"""The figure of :mod:`opd.study.benchmarks.training`: reward and speed per CPU-second of training."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from opd.study.benchmarks.training import METHODS
from opd.study.benchmarks.training_summary import MYOPIC
from opd.study.plots.style import PALETTE, Style, legend_below, policy_style

STYLES = {
    "agent": Style("ours", PALETTE[0], "o"),
    "agent-unaided": Style("ours, without imitation", PALETTE[9], "s"),
    "ppo": Style("SB3 PPO", PALETTE[3], "^"),
    "maskable-ppo": Style("sb3-contrib MaskablePPO", PALETTE[2], "v"),
    "ppo-batched": Style("SB3 PPO, batched", PALETTE[1], "<"),
    "maskable-ppo-batched": Style("sb3-contrib MaskablePPO, batched", PALETTE[5], ">"),
}


def plot_training_speed(summary: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Draw reward over CPU-seconds, whole and close to the solver, and the speed of each method.

    A line is a seed. A bar is the mean of the seeds, its whisker the slowest and the fastest of them.

    Args:
        summary: of :func:`opd.study.benchmarks.training.measure_training`; reward as in Eq. 7.
        curves: of the same.

    Returns:
        The figure, not saved.
    """
    figure, (whole, close, speed) = plt.subplots(
        1, 3, figsize=(14, 4.6), layout="constrained", width_ratios=(1.2, 1.2, 1.0)
    )
    level = float(summary.loc[summary["method"] == MYOPIC, "final_reward"].iloc[0])
    for axes in (whole, close):
        _draw_curves(axes, curves, level)
    whole.set(title="from the first step", ylabel="reward of the greedy policy in validation (Eq. 7)")
    close.set(title="close to the myopic solver")
    _fit_upper_half(close, curves["reward"], level)
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


def _fit_upper_half(axes: Axes, rewards: pd.Series, level: float) -> None:
    """Fit the y axis to the upper half of all evaluations."""
    top = max(float(rewards.max()), level)
    low = min(float(np.nanquantile(rewards, 0.5)), level)
    margin = 0.08 * (top - low) or 0.1
    axes.set_ylim(low - margin, top + margin)


def _draw_speeds(axes: Axes, summary: pd.DataFrame) -> None:
    rows = summary[summary["method"].isin(METHODS)].iloc[::-1]
    places = np.arange(len(rows))
    speeds = rows["steps_per_cpu_second"].to_numpy()
    whiskers = np.abs(rows[["steps_per_cpu_second_min", "steps_per_cpu_second_max"]].to_numpy().T - speeds)
    colours = [STYLES[method].colour for method in rows["method"]]
    axes.barh(places, speeds, xerr=whiskers, color=colours, height=0.65, capsize=3)
    for place, (_, row) in enumerate(rows.iterrows()):
        text = f"{row['steps_per_cpu_second']:,.0f}"
        if row["method"] != "agent" and "agent_times_speed" in row:
            text += f"\nours: {row['agent_times_speed']:.2f} ×"
        right = row["steps_per_cpu_second_max"] + 0.03 * speeds.max()
        axes.text(right, place, text, va="center", ha="left", fontsize=9)
    axes.set_xlim(right=1.45 * float(np.max(rows["steps_per_cpu_second_max"])))
    axes.set_yticks(
        places, [STYLES[method].label.replace(", ", ",\n").replace(" M", "\nM") for method in rows["method"]]
    )
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set(title="speed, from end to end", xlabel="steps per CPU-second")
