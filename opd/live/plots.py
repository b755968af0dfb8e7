"""Figures of live evaluations: timelines of the runs, and predicted against measured performance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from opd.study.plots.style import PALETTE, Style, ordered, policy_style, save_figure

MARKERS = "osv^DPX*<>hp"
"""One per configuration."""


def plot_live_timelines(timelines: pd.DataFrame, tasks: Sequence[str], title: str, path: str | Path) -> Figure:
    """Plot load, forecast, cost, latency and the configuration of every stage over time, one column per policy.

    Args:
        timelines: of :func:`opd.live.summaries.live_timeline`, with column ``policy``.
        tasks: names of the pipeline's tasks, in order.
        title: of the figure.
        path: image file to write.
    """
    policies = ordered(timelines["policy"])
    rows = 3 + len(tasks)
    figure, grid = plt.subplots(
        rows, len(policies), figsize=(4.6 * len(policies), 2.1 * rows), sharex=True, sharey="row",
        layout="constrained", squeeze=False,
    )  # fmt: skip
    figure.suptitle(title)
    for policy, column in zip(policies, grid.T, strict=True):
        run, style = timelines[timelines["policy"] == policy], _style(policy)
        edges = _edges(run["time"].to_numpy())
        column[0].set_title(style.label)
        column[0].stairs(run["load"], edges, color="0.3", baseline=None, label="measured load")
        column[0].stairs(
            run["predicted_load"], edges, color=PALETTE[3], baseline=None, ls="--", label="forecast maximum"
        )
        column[1].stairs(run["cost"], edges, color=style.colour, baseline=None, lw=1.8)
        column[2].stairs(1e3 * run["latency_mean"], edges, color=style.colour, baseline=None, lw=1.8, label="mean")
        column[2].stairs(1e3 * run["latency_p99"], edges, color=style.colour, baseline=None, ls=":", label="p99")
        for axes, task in zip(column[3:], tasks, strict=True):
            _draw_stage(axes, run, task, sorted(timelines[f"{task}.variant"].unique()))
            axes.set_ylim(0, 1.7 * timelines[f"{task}.replicas"].max())
        column[-1].set_xlabel("time (s)")
    labels = ("load\n(requests/s)", "cost (CPU cores)", "latency (ms)", *(f"{task}\n(replicas)" for task in tasks))
    for axes, label in zip(grid[:, 0], labels, strict=True):
        axes.set_ylabel(label)
    grid[0, 0].set_ylim(0, 1.4 * np.nanmax(timelines[["load", "predicted_load"]]))
    grid[1, 0].set_ylim(0, 1.2 * timelines["cost"].max())
    _plain_logarithmic(grid[2, 0])
    grid[0, 0].legend(fontsize=8, loc="upper left", ncols=2)
    grid[2, 0].legend(fontsize=8, loc="upper left", ncols=2)
    return save_figure(figure, path)


def _style(policy: str) -> Style:
    return Style("schedule (fixed)", "0.4", "o") if policy == "schedule" else policy_style(policy)


def _edges(times: np.ndarray) -> np.ndarray:
    """Start of every interval, and end of the last one."""
    return np.append(times, times[-1] + (times[1] - times[0] if len(times) > 1 else 1.0))


def _plain_logarithmic(axes: Axes, which: str = "y") -> None:
    axes.set(**{f"{name}scale": "log" for name in which})
    for name in which:
        side = {"x": axes.xaxis, "y": axes.yaxis}[name]
        side.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        side.set_major_formatter(ScalarFormatter())
        side.set_minor_formatter(NullFormatter())


def _draw_stage(axes: Axes, run: pd.DataFrame, task: str, variants: Sequence[str]) -> None:
    """Draw replicas as steps, coloured by variant and labelled with the batch size at every change."""
    edges = _edges(run["time"].to_numpy())
    before = None
    for place, row in enumerate(run.to_dict("records")):
        variant, replicas, batch_size = (row[f"{task}.{field}"] for field in ("variant", "replicas", "batch_size"))
        colour = PALETTE[variants.index(variant)]
        axes.fill_between(edges[place : place + 2], 0, replicas, color=colour, lw=0)
        if (variant, replicas, batch_size) != before:
            axes.annotate(f"b{batch_size}", (edges[place], replicas), fontsize=7, va="bottom")
        before = (variant, replicas, batch_size)
    used = [variant for variant in variants if variant in set(run[f"{task}.variant"])]
    handles = [plt.Rectangle((0, 0), 1, 1, color=PALETTE[variants.index(variant)]) for variant in used]
    axes.legend(handles, used, fontsize=7, loc="upper left", ncols=2, frameon=False)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


_PREDICTIONS = {"calibrated": ("0.0", "--"), "profiled": ("0.55", ":")}
"""Colour and line style of each prediction."""


def plot_replay(replays: pd.DataFrame, path: str | Path) -> Figure:
    """Plot measured and predicted mean latency of every interval of the closed loop, one panel per policy.

    Args:
        replays: of :func:`opd.live.replay.replay`, with column ``policy``; predictions are ``profiled`` and, where it
            exists, ``calibrated``.
        path: image file to write.
    """
    policies = ordered(replays["policy"])
    figure, grid = plt.subplots(
        1, len(policies), figsize=(4.6 * len(policies), 3.6), sharey=True, layout="constrained", squeeze=False
    )
    figure.suptitle("Closed loop: mean latency per interval")
    for axes, policy in zip(grid[0], policies, strict=True):
        run, style = replays[replays["policy"] == policy], _style(policy)
        edges = _edges(run["time"].to_numpy())
        axes.stairs(1e3 * run["measured"], edges, color=style.colour, baseline=None, lw=1.8, label="measured")
        for name, (colour, line) in _PREDICTIONS.items():
            if name in run:
                values = 1e3 * run[name]
                axes.stairs(values, edges, color=colour, baseline=None, lw=1.4, ls=line, label=f"predicted, {name}")
        axes.set(title=style.label, xlabel="time (s)")
        _plain_logarithmic(axes)
    (_, *handles), names = grid[0, 0].get_legend_handles_labels()
    measured = plt.Line2D([], [], color="0.3", lw=1.8)  # grey: it stands for every policy
    figure.legend([measured, *handles], names, loc="outside lower center", ncols=3, frameon=False)
    grid[0, 0].set_ylabel("mean latency (ms)")
    return save_figure(figure, path)


def plot_fidelity(table: pd.DataFrame, path: str | Path) -> Figure:
    """Plot predicted against measured throughput, mean and p95 latency; a marker per configuration, a colour per load.

    Args:
        table: of :func:`opd.live.fidelity.measure_fidelity`.
        path: image file to write.
    """
    panels = (
        ("throughput", 1.0, 0.05, "throughput (requests/s)"),
        ("latency_mean", 1e3, 0.15, "mean latency (ms)"),
        ("latency_p95", 1e3, 0.15, "p95 latency (ms)"),
    )
    configurations, loads = list(dict.fromkeys(table["configuration"])), sorted(table["load"].unique())
    figure, grid = plt.subplots(1, len(panels), figsize=(14, 5.4), layout="constrained")
    figure.suptitle("Fidelity: predicted and measured performance")
    for axes, (name, unit, band, label) in zip(grid, panels, strict=True):
        predicted, measured = unit * table[f"{name}_predicted"], unit * table[f"{name}_measured"]
        ends = np.array([0.8 * min(predicted.min(), measured.min()), 1.25 * max(predicted.max(), measured.max())])
        axes.plot(ends, ends, color="0.5", lw=0.8)
        axes.fill_between(ends, (1 - band) * ends, (1 + band) * ends, color="0.9", label=f"within {band:.0%}")
        for row, x, y in zip(table.to_dict("records"), predicted, measured, strict=True):
            marker = MARKERS[configurations.index(row["configuration"]) % len(MARKERS)]
            axes.plot(x, y, marker, ms=7, color=PALETTE[loads.index(row["load"])], mfc="none", mew=1.5)
        _plain_logarithmic(axes, "xy")
        axes.set(xlabel=f"predicted {label}", ylabel=f"measured {label}", xlim=ends, ylim=ends)
        axes.legend(loc="upper left", fontsize=8)
    handles = [
        plt.Line2D([], [], color="0.3", ls="", marker=MARKERS[k % len(MARKERS)], mfc="none")
        for k in range(len(configurations))
    ]
    handles += [plt.Line2D([], [], color=PALETTE[k], lw=4) for k in range(len(loads))]
    names = [*configurations, *(f"{load:g} requests/s" for load in loads)]
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return save_figure(figure, path)
