"""Figures of evaluation and decision time (Figs. 4 to 6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from opd.control import AGENT
from opd.objective import Objective
from opd.study.evaluation.cycles import shown_cycles
from opd.study.plots.labels import draw_named_points
from opd.study.plots.service import ServiceMeasure, service_measure
from opd.study.plots.style import (
    legend_below,
    ordered,
    padded_limits,
    panel_grid,
    plain_numbers,
    policy_style,
    save_figure,
    short_label,
)

_PAPER_POLICIES = ("random", "greedy", "ipa")
"""Baselines of Figs. 4 and 5."""

_REFERENCES = ("myopic", "myopic-backlog")
"""Policies that are shown where there is no agent and no policy of a user."""

_LINE_WIDTH, _LINE_DISTANCE = 1.2, 1.4
"""Points; lines that coincide are drawn side by side at this distance."""


def plot_timelines(
    timelines: pd.DataFrame,
    pipeline: str,
    label: str,
    path: str | Path,
    objective: Objective,
    extra: Sequence[str] = (AGENT,),
) -> Figure:
    """Draw Fig. 4 of the paper: load, cost and service of every policy over a cycle, one column a workload.

    The random policy is left out: its changes in every interval would cover the others.

    Args:
        timelines: rows of :func:`opd.study.evaluation.cycles.timeline` with pipeline, cycle and policy.
        pipeline: the one to show.
        label: of the trace, for the title.
        path: image file to write.
        objective: of the runs; it says what service is (:func:`opd.study.plots.service.service_measure`).
        extra: policies shown in addition to the paper's baselines.
    """
    measure = service_measure(objective)
    rows = _with_service(timelines[timelines["pipeline"] == pipeline], measure)
    cycles = list(dict.fromkeys(rows["cycle"]))
    policies = [name for name in _shown_policies(rows, extra) if name != "random"]
    policies.sort(key=AGENT.__eq__)  # the agent is drawn last, on top of the others
    figure, grid = plt.subplots(
        3, len(cycles), figsize=(13, 8), sharex=True, sharey="row", layout="constrained", squeeze=False,
        height_ratios=(1, 2, 2),
    )  # fmt: skip
    figure.suptitle(f"Pipeline {pipeline}: cost and {measure.name} over time, {label}")
    for cycle, column in zip(cycles, grid.T, strict=True):
        column[0].set_title(cycle)
        _draw_cycle(column, rows[rows["cycle"] == cycle], policies)
    highest = np.nanmax(rows[["load", "predicted_load"]].to_numpy())  # live intervals may be unmeasured
    grid[0, 0].set(ylabel="load\n(requests/s)", ylim=(0, 1.08 * highest))
    shown = rows[rows["policy"].isin(policies)]
    grid[1, 0].set(ylabel="cost (CPU cores)", ylim=padded_limits(shown["cost"]))
    goal = [] if measure.goal is None else [measure.goal]
    grid[2, 0].set(ylabel=measure.axis, ylim=padded_limits([*shown["service"], *goal]))
    for axes in grid[2]:
        _draw_goal(axes, measure)
    legend_below(figure, grid[1, 0], grid[0, 0], grid[2, 0])
    return save_figure(figure, path)


def _with_service(rows: pd.DataFrame, measure: ServiceMeasure) -> pd.DataFrame:
    """Add the column ``service``, in the unit of the axis."""
    return rows.assign(service=measure.scale * rows[measure.column])


def _draw_goal(axes: Axes, measure: ServiceMeasure) -> None:
    """Draw a line at what the objective asks for, if it asks for a figure."""
    if measure.goal is not None:
        axes.axhline(measure.goal, color="0.2", linestyle="--", linewidth=0.9, label="objective")


def _shown_policies(rows: pd.DataFrame, extra: Sequence[str]) -> list[str]:
    """The paper's baselines, and ``extra`` policies or, if none of them ran, the references."""
    present = set(rows["policy"])
    return ordered({*_PAPER_POLICIES, *(set(extra) & present or _REFERENCES)} & present)


def _draw_cycle(column: Sequence[Axes], rows: pd.DataFrame, policies: Sequence[str]) -> None:
    """Draw load, cost and service of one cycle; lines that coincide run side by side, a little apart on paper."""
    load, cost, service = column
    first = rows[rows["policy"] == rows["policy"].iloc[0]]
    load.fill_between(first["time"], first["load"], step="post", color="0.8", label="load, mean per interval")
    load.step(
        first["time"], first["predicted_load"], where="post", color="0.2", linewidth=0.9, label="forecast maximum"
    )
    inches = column[0].get_figure(root=True).dpi_scale_trans  # type: ignore[union-attr]
    for number, policy in enumerate(policies):
        style, run = policy_style(policy), rows[rows["policy"] == policy]
        aside = _LINE_DISTANCE / 72.0 * (number - (len(policies) - 1) / 2)
        for axes, quantity in ((cost, "cost"), (service, "service")):
            apart = axes.transData + ScaledTranslation(aside, aside, inches)
            look: dict[str, Any] = dict(color=style.colour, linewidth=_LINE_WIDTH, transform=apart, label=style.label)
            axes.step(run["time"], run[quantity], where="post", **look)
    service.set(xlabel="time in the cycle (s)", xlim=padded_limits(first["time"], 0.03))


def plot_loads(
    evaluation: pd.DataFrame,
    pipeline: str,
    label: str,
    path: str | Path,
    objective: Objective,
    extra: Sequence[str] = (AGENT,),
) -> Figure:
    """Draw Fig. 5 of the paper: mean cost and service of every policy under the three workloads.

    Args:
        evaluation: the results, columns of :data:`opd.study.evaluation.cycles.COLUMNS`.
        pipeline: the one to show.
        label: of the trace, for the title.
        path: image file to write.
        objective: of the runs; it says what service is.
        extra: policies shown in addition to the paper's baselines.
    """
    measure = service_measure(objective)
    rows = _with_service(evaluation[evaluation["pipeline"] == pipeline], measure)
    cycles = shown_cycles(rows)
    policies = _shown_policies(rows, extra)
    figure, grid = plt.subplots(
        2, len(cycles), figsize=(13, 6.5), sharey="row", sharex=True, layout="constrained", squeeze=False
    )
    figure.suptitle(f"Pipeline {pipeline}: mean cost and {measure.name} of a cycle, {label}")
    for cycle, column in zip(cycles, grid.T, strict=True):
        by_policy = rows[rows["cycle"] == cycle].groupby("policy")[["cost", "service"]]
        mean, low, high = (getattr(by_policy, name)().loc[policies] for name in ("mean", "min", "max"))
        column[0].set_title(cycle)
        for axes, quantity in zip(column, ("cost", "service"), strict=True):
            # Rounding can put the mean of equal figures a little outside of them.
            spread = np.array([mean[quantity] - low[quantity], high[quantity] - mean[quantity]]).clip(min=0.0)
            bars = axes.bar(
                [short_label(policy).replace(" ", "\n") for policy in policies],
                mean[quantity],
                yerr=spread if rows["seed"].nunique() > 1 else None,
                color=[policy_style(policy).colour for policy in policies],
                capsize=3,
            )
            axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=9)
            axes.margins(y=0.12)
        _draw_goal(column[1], measure)
    grid[0, 0].set_ylabel("mean cost (CPU cores)")
    grid[1, 0].set_ylabel(f"mean {measure.axis}")
    return save_figure(figure, path)


def plot_plane(evaluation: pd.DataFrame, label: str, path: str | Path, objective: Objective) -> Figure:
    """Draw mean service against mean cost of every policy over all cycles and seeds, one panel a pipeline.

    Markers that coincide are set apart. The random policy is far from the others; its place is given as text.

    Args:
        evaluation: the results, columns of :data:`opd.study.evaluation.cycles.COLUMNS`.
        label: of the trace, for the title.
        path: image file to write.
        objective: of the runs; it says what service is.
    """
    measure = service_measure(objective)
    title = f"Mean {measure.name} and cost over all cycles\n{label}"
    figure, panels = panel_grid(evaluation["pipeline"], 4.4, 3.4, title)
    all_means = _with_service(evaluation, measure).groupby(["pipeline", "policy"])[["cost", "service"]].mean()
    for pipeline, axes in panels.items():
        means = all_means.loc[pipeline]
        shown = means.drop(index="random", errors="ignore")
        _draw_goal(axes, measure)
        axes.set(ylabel=f"mean {measure.axis}", xlim=padded_limits(shown["cost"], 0.2))
        axes.set_ylim(padded_limits(shown["service"], 0.15, least=1e-3))
        note = ""
        if "random" in means.index:
            cost, service = means.loc["random"]
            note = f"\nrandom, not shown: {cost:.1f} cores, {measure.value.format(service)}"
        axes.set_xlabel("mean cost (CPU cores)" + note)
    plain_numbers(figure)  # their width counts in the layout
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the names are placed for this layout
    for pipeline, axes in panels.items():
        means = all_means.loc[pipeline]
        policies = sorted(set(means.index) - {"random"}, key=lambda name: (name != AGENT, name))  # it keeps its place
        styles, names = [policy_style(name) for name in policies], [short_label(name) for name in policies]
        draw_named_points(axes, means.loc[policies].to_numpy(), styles, names)
    return save_figure(figure, path)


def plot_differences(
    evaluation: pd.DataFrame,
    label: str,
    path: str | Path,
    objective: Objective,
    policy: str = AGENT,
    reference: str = "myopic",
) -> Figure:
    """Draw the gain of a policy over another in each cycle: one point a cycle and seed, one row a pipeline.

    Args:
        evaluation: the results, columns of :data:`opd.study.evaluation.cycles.COLUMNS`.
        label: of the trace, for the title.
        path: image file to write.
        objective: of the runs; it gives the reward its unit.
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
        xlabel=f"mean {service_measure(objective).reward} per decision: {style.label} minus "
        f"{policy_style(reference).label}",
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
    legend_below(figure, axes, columns=3)
    return save_figure(figure, path)
