"""Figures of the profiles: latency and throughput, the accuracy-cost frontier, and a comparison of two machines.

Each is saved, closed and returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from opd.pipeline import Pipeline
from opd.solvers.knapsack import best_by_cores
from opd.solvers.options import replicas_needed, stage_options
from opd.study.plots.style import PALETTE, label_decades, legend_below, save_figure, variant_colours

_MARKERS = "osD^vP"


def plot_latency(table: pd.DataFrame, tasks: Sequence[str], path: str | Path, cores: int = 1) -> Figure:
    """Draw latency and throughput against the batch size, one column a task and one line a variant.

    Args:
        table: profiles, as :func:`opd.profiling.profiles.load_profiles` gives them.
        tasks: the columns.
        path: image file to write.
        cores: core count to show.
    """
    figure, axes = plt.subplots(
        2, len(tasks), figsize=(4.6 * len(tasks), 6.4), sharex="col", squeeze=False, layout="constrained"
    )
    figure.suptitle(f"One replica on {cores} core{'s' if cores > 1 else ''}")
    for task, (latency, throughput) in zip(tasks, axes.T, strict=True):
        rows = table[(table["task"] == task) & (table["cores"] == cores)]
        colours = variant_colours(rows["variant"].nunique())
        for index, (variant, group) in enumerate(rows.groupby("variant", sort=False)):
            style = dict(color=colours[index], marker=_MARKERS[index % len(_MARKERS)], label=variant)
            tail = np.vstack([np.zeros(len(group)), (group["latency_p99"] - group["latency_mean"]).clip(lower=0.0)])
            latency.errorbar(group["batch_size"], group["latency_mean"], yerr=tail, capsize=2, **style)
            throughput.plot(group["batch_size"], group["batch_size"] / group["latency_mean"], **style)
        for panel in (latency, throughput):
            sizes = sorted(rows["batch_size"].unique())
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            label_decades(panel.yaxis)
            panel.set_xticks(sizes, [str(size) for size in sizes])
            panel.grid(True, which="major", alpha=0.3)
        latency.set_title(task)
        throughput.set_xlabel("batch size (requests per call)")
        throughput.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False)
    axes[0, 0].set_ylabel("latency per call (s), bar to p99")
    axes[1, 0].set_ylabel("throughput (requests/s)")
    return save_figure(figure, path)


def accuracy_by_cores(pipeline: Pipeline, load: float) -> np.ndarray:
    """Highest summed accuracy (Eq. 1) of any configuration that carries ``load`` within a number of cores.

    Exact: of all variants and batch sizes, each with the fewest replicas that reach the load.

    Args:
        pipeline: the pipeline.
        load: requests/s.

    Returns:
        (W_max + 1,) summed accuracy for 0..W_max cores, minus infinity where nothing carries the load.
    """
    options = stage_options(pipeline)
    replicas = replicas_needed(options.throughput, load, pipeline.max_replicas, False)
    cores = np.where(replicas > 0, replicas * options.cores, pipeline.capacity + 1)
    value, _ = best_by_cores(cores, options.accuracy, pipeline.capacity)
    return value[0]


def plot_accuracy_frontier(
    pipelines: Sequence[Pipeline], path: str | Path, loads: Sequence[float] = (5.0, 10.0, 30.0)
) -> Figure:
    """Draw the highest summed accuracy against the cores it needs, a panel for each pipeline.

    Args:
        pipelines: the panels.
        path: image file to write.
        loads: requests/s, a line each.
    """
    figure, axes = plt.subplots(
        1, len(pipelines), figsize=(3.2 * len(pipelines), 3.8), layout="constrained", squeeze=False
    )
    for panel, pipeline in zip(axes[0], pipelines, strict=True):
        for width, colour, load in zip(range(len(loads), 0, -1), PALETTE, loads, strict=False):
            best = accuracy_by_cores(pipeline, load)
            reached = np.isfinite(best)
            line = {"color": colour, "label": f"{load:g} requests/s", "linewidth": 2.0 * width}  # lines may coincide
            panel.step(np.flatnonzero(reached), best[reached], where="post", **line)
        panel.axvline(pipeline.capacity, color="0.4", linestyle=":", label="capacity")
        panel.set(title=pipeline.name, xlabel="cores", xlim=(0, 1.04 * pipeline.capacity))
        panel.grid(True, alpha=0.3)
    axes[0, 0].set_ylabel("highest summed accuracy")
    legend_below(figure, axes[0, 0], columns=None if len(pipelines) > 1 else 2)
    return save_figure(figure, path)


def plot_comparison(comparison: pd.DataFrame, path: str | Path) -> Figure:
    """Compare this machine with the reference: latencies of the same cells, and the distribution of the ratio by task.

    Args:
        comparison: result of :func:`opd.profiling.profiles.compare_latencies`.
        path: image file to write.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    tasks = list(dict.fromkeys(comparison["task"]))
    for colour, marker, task in zip(PALETTE, _MARKERS, tasks, strict=False):
        rows = comparison[comparison["task"] == task]
        left.scatter(rows["reference"], rows["measured"], color=colour, marker=marker, s=28, alpha=0.8, label=task)
    latencies = comparison[["reference", "measured"]].to_numpy()
    ends = [0.8 * latencies.min(), 1.25 * latencies.max()]
    left.plot(ends, ends, color="0.4", linestyle=":", label="equal")
    left.set(
        xscale="log", yscale="log", xlabel="latency in the reference table (s)", ylabel="latency measured here (s)"
    )
    sns.stripplot(
        comparison.assign(cell=comparison["task"] + "\n" + comparison["cores"].astype(str) + " core(s)"),
        x="cell", y="ratio", hue="task", palette=PALETTE[: len(tasks)], legend=False, ax=right,
    )  # fmt: skip
    right.axhline(1.0, color="0.4", linestyle=":")
    median = comparison["ratio"].median()
    right.axhline(median, color="0.1", label=f"median ratio {median:.2f}")
    highest = max(1.0, comparison["ratio"].max())
    right.set(xlabel="", ylabel="latency here / latency in the reference table", ylim=(0, 1.1 * highest))
    legend_below(figure, left, right)
    return save_figure(figure, path)
