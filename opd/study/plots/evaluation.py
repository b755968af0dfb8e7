"""Figures of evaluation and decision time (Figs. 4 to 6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from opd.study.evaluation.cycles import shown_cycles
from opd.study.plots.style import legend_below, ordered, panel_grid, policy_style, save_figure

_PAPER_POLICIES = ("random", "greedy", "ipa")
"""Baselines of Figs. 4 and 5."""


def plot_timelines(
    timelines: pd.DataFrame, pipeline: str, label: str, path: str | Path, extra: Sequence[str] = ("agent",)
) -> Figure:
    """Draw Fig. 4 of the paper: load, cost and QoS of every policy over a cycle, one column a workload.

    Args:
        timelines: rows of :func:`opd.study.evaluation.cycles.timeline` with pipeline, cycle and policy.
        pipeline: the one to show.
        label: of the trace, for the title.
        path: image file to write.
        extra: policies shown in addition to the paper's baselines.
    """
    rows = timelines[timelines["pipeline"] == pipeline]
    cycles = list(dict.fromkeys(rows["cycle"]))
    policies = ordered({*_PAPER_POLICIES, *extra} & set(rows["policy"]))
    figure, grid = plt.subplots(
        3, len(cycles), figsize=(13, 8), sharex=True, sharey="row", layout="constrained", squeeze=False,
        height_ratios=(1, 2, 2),
    )  # fmt: skip
    figure.suptitle(f"Pipeline {pipeline}: cost and QoS over time, {label}")
    for cycle, (load, cost, qos) in zip(cycles, grid.T, strict=True):
        here = rows[rows["cycle"] == cycle]
        load.set_title(cycle)
        first = here[here["policy"] == here["policy"].iloc[0]]
        load.fill_between(first["time"], first["load"], step="post", color="0.8", label="offered, mean per interval")
        load.step(
            first["time"], first["predicted_load"], where="post", color="0.2", linewidth=0.9, label="forecast maximum"
        )
        for number, policy in enumerate(policies):
            style, run = policy_style(policy), here[here["policy"] == policy]
            width = 1.0 + 0.5 * (len(policies) - 1 - number)  # so that coinciding lines stay visible
            look = {"alpha": 0.35, "linewidth": 0.8} if policy == "random" else {"linewidth": width}
            for axes, column in ((cost, "cost"), (qos, "qos")):
                axes.step(run["time"], run[column], where="post", color=style.colour, label=style.label, **look)
        qos.set_xlabel("time in the cycle (s)")
    highest = rows[["load", "predicted_load"]].to_numpy().max()
    grid[0, 0].set(ylabel="load\n(requests/s)", ylim=(0, 1.08 * highest))
    grid[0, 0].legend(fontsize=8, loc="upper left")
    sensible = rows[rows["policy"].isin(policies) & (rows["policy"] != "random")]  # random is cut off
    for axes, column, name in ((grid[1, 0], "cost", "cost (CPU cores)"), (grid[2, 0], "qos", "QoS (Eq. 3)")):
        low, high = sensible[column].min(), sensible[column].max()
        space = 0.08 * max(high - low, 1e-9)
        axes.set(ylabel=name, ylim=(low - space, high + space))
    legend_below(figure, grid[1, 0], columns=len(policies))
    return save_figure(figure, path)


def plot_loads(
    evaluation: pd.DataFrame, pipeline: str, label: str, path: str | Path, extra: Sequence[str] = ("agent",)
) -> Figure:
    """Draw Fig. 5 of the paper: mean cost and QoS of every policy under the three workloads.

    Args:
        evaluation: the results, columns of :data:`opd.study.evaluation.cycles.COLUMNS`.
        pipeline: the one to show.
        label: of the trace, for the title.
        path: image file to write.
        extra: policies shown in addition to the paper's baselines.
    """
    rows = evaluation[evaluation["pipeline"] == pipeline]
    cycles = shown_cycles(rows)
    policies = ordered({*_PAPER_POLICIES, *extra} & set(rows["policy"]))
    figure, grid = plt.subplots(
        2, len(cycles), figsize=(13, 6.5), sharey="row", sharex=True, layout="constrained", squeeze=False
    )
    figure.suptitle(f"Pipeline {pipeline}: mean cost and QoS of a cycle, {label}")
    for cycle, column in zip(cycles, grid.T, strict=True):
        by_policy = rows[rows["cycle"] == cycle].groupby("policy")[["cost", "qos"]]
        mean, low, high = (getattr(by_policy, name)().loc[policies] for name in ("mean", "min", "max"))
        column[0].set_title(cycle)
        for axes, quantity in zip(column, ("cost", "qos"), strict=True):
            # Rounding can put the mean of equal figures a little outside of them.
            spread = np.array([mean[quantity] - low[quantity], high[quantity] - mean[quantity]]).clip(min=0.0)
            bars = axes.bar(
                [policy_style(policy).label for policy in policies],
                mean[quantity],
                yerr=spread if rows["seed"].nunique() > 1 else None,
                color=[policy_style(policy).colour for policy in policies],
                capsize=3,
            )
            axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=9)
            axes.margins(y=0.12)
    grid[0, 0].set_ylabel("mean cost (CPU cores)")
    grid[1, 0].set_ylabel("mean QoS (Eq. 3)")
    return save_figure(figure, path)


def plot_plane(evaluation: pd.DataFrame, label: str, path: str | Path) -> Figure:
    """Draw mean QoS against mean cost of every policy over all cycles and seeds, one panel a pipeline.

    The random policy is far from the others; its place is given as text.

    Args:
        evaluation: the results, columns of :data:`opd.study.evaluation.cycles.COLUMNS`.
        label: of the trace, for the title.
        path: image file to write.
    """
    figure, panels = panel_grid(evaluation["pipeline"], 4.2, 3.3, f"Mean QoS and cost over all cycles\n{label}")
    for pipeline, axes in panels.items():
        means = evaluation[evaluation["pipeline"] == pipeline].groupby("policy")[["cost", "qos"]].mean()
        for policy in ordered(set(means.index) - {"random"}):
            style = policy_style(policy)
            size = 130 if style.marker == "*" else 60
            cost, qos = means["cost"][policy], means["qos"][policy]
            axes.scatter(cost, qos, color=style.colour, marker=style.marker, s=size, label=style.label)
        axes.set(xlabel="mean cost (CPU cores)", ylabel="mean QoS (Eq. 3)")
        axes.margins(0.12)
        if "random" in means.index:
            where = "random: {cost:.1f} cores, QoS {qos:.1f} (not shown)".format(**means.loc["random"])
            axes.annotate(where, (0.98, 0.03), xycoords="axes fraction", ha="right", fontsize=8, color="0.35")
    legend_below(figure, axes, columns=3)
    return save_figure(figure, path)


def plot_differences(
    evaluation: pd.DataFrame, label: str, path: str | Path, policy: str = "agent", reference: str = "myopic"
) -> Figure:
    """Draw the gain of a policy over another in each cycle: one point a cycle and seed, one row a pipeline.

    Args:
        evaluation: the results, columns of :data:`opd.study.evaluation.cycles.COLUMNS`.
        label: of the trace, for the title.
        path: image file to write.
        policy: the policy that gains.
        reference: the policy that it is compared with.
    """
    rewards = evaluation.pivot(index=["pipeline", "cycle", "seed"], columns="policy", values="reward")
    gains = rewards[policy] - rewards[reference]
    pipelines = list(dict.fromkeys(evaluation["pipeline"]))
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.6 * len(pipelines)), layout="constrained")
    style = policy_style(policy)
    for place, pipeline in enumerate(pipelines):
        values = gains[pipeline].to_numpy()
        spread = place + 0.25 * np.linspace(-1.0, 1.0, len(values)) if len(values) > 1 else [place]
        one, mean = ("a cycle and seed", "mean") if place == 0 else ("", "")
        axes.scatter(values, spread, color=style.colour, alpha=0.5, s=22, linewidths=0, label=one)
        axes.scatter(values.mean(), place, color="black", marker="|", s=320, linewidths=2.5, label=mean)
    axes.axvline(0.0, color="0.4", linewidth=1)
    axes.set_yticks(range(len(pipelines)), pipelines)
    axes.invert_yaxis()
    axes.set(
        xlabel=f"mean reward per decision: {style.label} minus {policy_style(reference).label}",
        title=f"Gain by cycle: {label}",
    )
    legend_below(figure, axes, columns=2)
    return save_figure(figure, path)


def plot_decision_time(times: pd.DataFrame, path: str | Path) -> Figure:
    """Draw Fig. 6 of the paper: median decision time by pipeline size, with the 99th percentile, on a log scale.

    Args:
        times: table of :func:`opd.study.evaluation.decision_time.measure_decision_times`.
        path: image file to write.
    """
    size = times["stages"].astype(str) + "×" + times["variants"].astype(str)
    sizes = list(size.unique())
    policies = ordered(times["policy"])
    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    for number, policy in enumerate(policies):
        rows, style = times[times["policy"] == policy], policy_style(policy)
        axes.errorbar(
            size[rows.index].map(sizes.index) + 0.06 * (number - (len(policies) - 1) / 2),
            rows["median_ms"],
            yerr=np.array([np.zeros(len(rows)), rows["p99_ms"] - rows["median_ms"]]),
            color=style.colour, marker=style.marker, capsize=4, linewidth=1.4, elinewidth=0.9, label=style.label,
        )  # fmt: skip
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set(
        xlabel="synthetic pipeline (stages × variants per stage)",
        ylabel="decision time (ms)",
        title="Time per decision: median, whisker to the 99th percentile",
        yscale="log",
    )
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(axis="y", which="both", alpha=0.25)
    legend_below(figure, axes, columns=len(policies))
    return save_figure(figure, path)
