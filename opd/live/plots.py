"""Figures of live evaluations: timelines of the runs, and predicted against measured performance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from opd.study.plots.style import (
    PALETTE,
    Style,
    label_decades,
    legend_below,
    ordered,
    padded_limits,
    panel_grid,
    policy_style,
    save_figure,
    short_label,
    variant_colours,
)


def _style(policy: str) -> Style:
    return Style("schedule (fixed)", "0.4", "o") if policy == "schedule" else policy_style(policy)


GAP_SECONDS = 0.05
"""Shortest time between two intervals that is left blank; a configuration was changing in it."""


def _draw(axes: Axes, run: pd.DataFrame, values: pd.Series, **look: Any) -> None:
    """Draw one value per interval as a step that lasts as long as the interval; between intervals there is none."""
    edges, heights = [float(run["time"].iloc[0])], []
    for begin, seconds, value in zip(run["time"], run["seconds"], values, strict=True):
        if begin - edges[-1] > GAP_SECONDS:
            edges.append(begin)
            heights.append(np.nan)
        edges.append(begin + seconds)
        heights.append(value)
    axes.stairs(heights, edges, **{"baseline": None, "lw": 1.8, **look})


def _columns(table: pd.DataFrame, rows: int, height: float) -> tuple[Figure, np.ndarray, list[str]]:
    """Make a figure with one column per policy, and return its axes and the policies."""
    policies = ordered(table["policy"])
    size = (4.6 * len(policies), height)
    figure, grid = plt.subplots(
        rows, len(policies), figsize=size, sharex=True, sharey="row", layout="constrained", squeeze=False
    )
    for policy, axes in zip(policies, grid[0], strict=True):
        axes.set_title(_style(policy).label)
    for axes in grid[-1]:
        axes.set_xlabel("time (s)")
    return figure, grid, policies


def plot_live_timelines(timelines: pd.DataFrame, tasks: Sequence[str], title: str, path: str | Path) -> Figure:
    """Plot load, forecast, cost, latency and the configuration of every stage over time, one column per policy.

    Args:
        timelines: of :func:`opd.live.runs.live_timeline`, with column ``policy``.
        tasks: names of the pipeline's tasks, in order.
        title: of the figure.
        path: image file to write.
    """
    rows = 3 + len(tasks)
    figure, grid, policies = _columns(timelines, rows, 2.1 * rows)
    figure.suptitle(title)
    for policy, (load, cost, latency, *stages) in zip(policies, grid.T, strict=True):
        run, colour = timelines[timelines["policy"] == policy], _style(policy).colour
        _draw(load, run, run["load"], color="0.3", lw=1.5, label="measured load")
        _draw(load, run, run["predicted_load"], color=PALETTE[3], lw=1.5, ls="--", label="forecast maximum")
        _draw(cost, run, run["cost"], color=colour)
        _draw(latency, run, 1e3 * run["latency_mean"], color=colour, label="mean")
        _draw(latency, run, 1e3 * run["latency_p99"], color=colour, ls=":", label="p99")
        for axes, task in zip(stages, tasks, strict=True):
            _draw_stage(axes, run, task, sorted(timelines[f"{task}.variant"].unique()))
            axes.set_ylim(0, 1.7 * timelines[f"{task}.replicas"].max())
    labels = ("load\n(requests/s)", "cost (CPU cores)", "latency (ms)", *(f"{task}\n(replicas)" for task in tasks))
    for axes, label in zip(grid[:, 0], labels, strict=True):
        axes.set_ylabel(label)
    grid[0, 0].set_ylim(0, 1.4 * np.nanmax(timelines[["load", "predicted_load"]]))
    grid[1, 0].set_ylim(0, 1.2 * timelines["cost"].max())
    grid[2, 0].set_yscale("log")
    label_decades(grid[2, 0].yaxis)
    for axes in (grid[0, 0], grid[2, 0]):
        axes.legend(fontsize=8, loc="upper left", ncols=2)
    return save_figure(figure, path)


def _draw_stage(axes: Axes, run: pd.DataFrame, task: str, variants: Sequence[str]) -> None:
    """Draw replicas as steps, coloured by variant and labelled with the batch size at every change."""
    for variant, colour in zip(variants, variant_colours(len(variants)), strict=True):
        replicas = run[f"{task}.replicas"].where(run[f"{task}.variant"] == variant, 0)
        if replicas.any():
            _draw(axes, run, replicas, fill=True, baseline=0, color=colour, lw=0, label=variant)
    stage = run[[f"{task}.{field}" for field in ("variant", "replicas", "batch_size")]]
    changed = (stage != stage.shift()).any(axis=1)
    for begin, (_, top, batch_size) in zip(run.loc[changed, "time"], stage[changed].to_numpy(), strict=True):
        axes.annotate(f"b{batch_size}", (begin, top), fontsize=7, va="bottom")
    axes.legend(fontsize=7, loc="upper left", ncols=2, frameon=False)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def plot_replay(replays: pd.DataFrame, path: str | Path) -> Figure:
    """Plot measured and predicted mean latency of every interval of the closed loop, one panel per policy.

    Args:
        replays: of :func:`opd.live.fidelity.replay`, with column ``policy``; predictions are ``profiled`` and, where
            it exists, ``calibrated``.
        path: image file to write.
    """
    figure, grid, policies = _columns(replays, 1, 3.6)
    figure.suptitle("Closed loop: mean latency per interval")
    for policy, axes in zip(policies, grid[0], strict=True):
        run = replays[replays["policy"] == policy]
        _draw(axes, run, 1e3 * run["measured"], color=PALETTE[0], label="measured")
        for name, colour, line in (("calibrated", "0.0", "--"), ("profiled", "0.55", ":")):
            if name in run:
                _draw(axes, run, 1e3 * run[name], color=colour, lw=1.4, ls=line, label=f"predicted, {name}")
        axes.set_yscale("log")
        label_decades(axes.yaxis)
    legend_below(figure, grid[0, 0])
    grid[0, 0].set_ylabel("mean latency (ms)")
    return save_figure(figure, path)


def plot_fidelity(table: pd.DataFrame, path: str | Path) -> Figure:
    """Plot predicted against measured throughput and latency: a marker a configuration, a colour a utilisation.

    Args:
        table: of :func:`opd.live.fidelity.measure_fidelity`.
        path: image file to write.
    """
    panels = (
        ("throughput", 1.0, 0.05, "throughput (requests/s)"),
        ("latency_mean", 1e3, 0.15, "mean latency (ms)"),
        ("latency_p95", 1e3, 0.15, "p95 latency (ms)"),
    )
    loads = table["utilisation"].map("{:.0%} utilisation".format)
    figure, grid = plt.subplots(1, len(panels), figsize=(14, 5.4), layout="constrained")
    figure.suptitle("Fidelity: predicted and measured performance")
    for axes, (name, unit, band, label) in zip(grid, panels, strict=True):
        predicted, measured = unit * table[f"{name}_predicted"], unit * table[f"{name}_measured"]
        sns.scatterplot(
            x=predicted, y=measured, hue=loads, style=table["configuration"], palette=PALETTE[: loads.nunique()],
            s=60, legend="full" if axes is grid[0] else False, ax=axes,
        )  # fmt: skip
        if axes is grid[0]:
            legend_below(figure, axes, columns=3)
        ends = np.array([0.8 * min(predicted.min(), measured.min()), 1.25 * max(predicted.max(), measured.max())])
        axes.plot(ends, ends, color="0.5", lw=0.8)
        within = axes.fill_between(ends, (1 - band) * ends, (1 + band) * ends, color="0.9", zorder=0)
        axes.legend([within], [f"within {band:.0%}"], loc="upper left", fontsize=8)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        axes.set(xlabel=f"predicted {label}", ylabel=f"measured {label}")
        for axis in (axes.xaxis, axes.yaxis):
            label_decades(axis)
    return save_figure(figure, path)


_LOAD_MARKERS = ("v", "o", "^", "s", "D", "P")
"""Of loads, in their order, where colours are those of policies."""


def plot_predicted(table: pd.DataFrame, title: str, path: str | Path) -> Figure:
    """Plot measured over predicted QoS, cost and p95 latency of every run; a colour a policy, a marker a load.

    Args:
        table: of :func:`opd.live.study.study_table`.
        title: of the figure.
        path: image file to write.
    """
    panels = (("qos", "QoS (Eq. 3)"), ("cost", "cost (CPU cores)"), ("latency_p95", "p95 latency (s)"))
    figure, grid = plt.subplots(1, len(panels), figsize=(14, 5.4), layout="constrained")
    figure.suptitle(title)
    for axes, (name, label) in zip(grid, panels, strict=True):
        _scatter(axes, table, f"predicted_{name}", name)
        figures = table[[name, f"predicted_{name}"]].to_numpy()
        ends = padded_limits(figures)
        if name == "latency_p95":
            axes.set(xscale="log", yscale="log")
            ends = 0.8 * np.nanmin(figures), 1.25 * np.nanmax(figures)
            for axis in (axes.xaxis, axes.yaxis):
                label_decades(axis)
        axes.plot(ends, ends, color="0.5", lw=0.8, zorder=0)
        axes.set(xlabel=f"predicted {label}", ylabel=f"measured {label}", xlim=ends, ylim=ends)
    _policy_and_load_legend(figure, table)
    return save_figure(figure, path)


def plot_decision_seconds(table: pd.DataFrame, title: str, path: str | Path) -> Figure:
    """Plot H, the seconds that a policy spent deciding in a run, one panel a pipeline, a marker a load.

    Args:
        table: of :func:`opd.live.study.study_table`.
        title: of the figure.
        path: image file to write.
    """
    figure, panels = panel_grid(table["pipeline"], 5.0, 3.6, title)
    for pipeline, axes in panels.items():
        rows = table[table["pipeline"] == pipeline]
        policies = ordered(rows["policy"])
        places = rows["policy"].map(policies.index)
        _scatter(axes, rows.assign(place=places), "decision_time", "place")
        axes.set_yticks(range(len(policies)), [short_label(policy) for policy in policies])
        axes.invert_yaxis()
        axes.set(xscale="log", xlabel="decision time H (s in a run)")
        label_decades(axes.xaxis)
        axes.grid(axis="x", alpha=0.25)
    _policy_and_load_legend(figure, table, policies=False)
    return save_figure(figure, path)


def _markers(table: pd.DataFrame) -> dict[str, str]:
    return dict(zip(dict.fromkeys(table["load"]), _LOAD_MARKERS, strict=False))


def _scatter(axes: Axes, table: pd.DataFrame, x: str, y: str) -> None:
    """Draw a point a run."""
    markers = _markers(table)
    for (policy, load), rows in table.groupby(["policy", "load"], sort=False):
        look: dict[str, Any] = dict(color=_style(str(policy)).colour, marker=markers[str(load)], s=46)
        axes.scatter(rows[x], rows[y], edgecolors="white", linewidths=0.5, **look)


def _policy_and_load_legend(figure: Figure, table: pd.DataFrame, policies: bool = True) -> None:
    """Explain colours and markers in one line below the figure."""
    shown = ordered(table["policy"]) if policies else []
    handles = [Line2D([], [], ls="", marker="o", color=_style(name).colour, label=_style(name).label) for name in shown]
    handles += [Line2D([], [], ls="", marker=each, color="0.4", label=load) for load, each in _markers(table).items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
