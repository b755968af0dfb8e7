"""The six pipelines with a service level in place of weights: who keeps it, and with how many cores?

The policies that know an objective plan for it; no agent was trained for these pipelines or levels. The latency asked
of a pipeline is a multiple of the shortest that its device can plan for, so no level is out of reach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from opd.control import AGENT, policy_label
from opd.measurement import SimulationParameters
from opd.pipeline import Pipeline, ServiceLevel
from opd.solvers.service_level import level_options, shortest_latency
from opd.study.evaluation.cycles import Setting, cycle_summary, run_cycle
from opd.study.plots.style import legend_below, ordered, panel_grid, policy_style
from opd.study.report.files import markdown_table
from opd.workload.trace import Cycle

FIGURES = ["within", "cost", "accuracy", "reward", "dropped"]
"""Of a run: share of requests in time, cores, accuracy, reward in cores, and dropped requests."""

COLUMNS = ["pipeline", "seconds", "cycle", "policy", "seed", *FIGURES]

SOLVERS = ("greedy", "ipa", "myopic", "myopic-backlog")
"""Exact solvers for a forecast load, with which the agent is compared."""

PERCENTILE = 95.0


class LevelCell(NamedTuple):
    """A cycle to run: a pipeline with its service level, and the policies and seeds of its runs."""

    pipeline: Pipeline
    cycle: Cycle
    runs: tuple[tuple[str, int], ...]

    @property
    def key(self) -> dict[str, Any]:
        """Pipeline, latency and cycle."""
        seconds = self.pipeline.service_level.seconds
        return {"pipeline": self.pipeline.name, "seconds": seconds, "cycle": self.cycle.name}


def with_level(
    pipeline: Pipeline, load: float, slack: float, accuracy_weight: float, simulation: SimulationParameters
) -> Pipeline:
    """Ask a service level of a pipeline.

    Args:
        pipeline: to ask it of.
        load: requests/s for which the shortest latency is planned.
        slack: times the shortest latency that 95 % of the requests may take.
        accuracy_weight: cores that +1.00 of mean accuracy is worth.
        simulation: behaviour of the device.

    Raises:
        ValueError: if the device does not carry the load.
    """
    options = level_options(pipeline, load, simulation)
    shortest, _ = shortest_latency(options, pipeline.capacity, PERCENTILE, 1.0)
    if shortest == float("inf"):
        raise ValueError(f"pipeline {pipeline.name!r}: {pipeline.capacity} cores do not carry {load:.3g} requests/s")
    level = ServiceLevel(round(slack * shortest, 2), PERCENTILE, accuracy_weight=accuracy_weight)
    return replace(pipeline, service_level=level)


def level_cells(
    pipelines: Sequence[Pipeline], cycles: Sequence[Cycle], policies: Sequence[str], seeds: Sequence[int]
) -> list[LevelCell]:
    """List the cycles to run, every policy with every seed in each."""
    runs = tuple((policy, seed) for policy in policies for seed in seeds)
    return [LevelCell(pipeline, cycle, runs) for pipeline in pipelines for cycle in cycles]


def run_level(setting: Setting, cell: LevelCell) -> list[dict[str, Any]]:
    """Run all policies of a cell; return rows of :data:`COLUMNS`. The objective of the setting is not used."""
    pipeline, own = cell.pipeline, replace(setting, objective=cell.pipeline.service_level)
    rows = []
    for policy, seed in cell.runs:
        summary = cycle_summary(run_cycle(pipeline, own.policy(policy, pipeline, seed), cell.cycle, seed, own))
        name = {"policy": policy_label(policy), "seed": seed}
        rows.append(cell.key | name | {figure: summary[figure] for figure in FIGURES})
    return rows


# ------------------------------------------------------------------------------------------------------------ findings


def summarise_levels(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over cycles and seeds: columns pipeline, seconds, policy, those of :data:`FIGURES`, and ``kept``.

    ``kept`` is the share of the cycles in which the level was kept.
    """
    kept = (rows["within"] >= PERCENTILE / 100.0).astype(float)
    groups = rows.assign(kept=kept).groupby(["pipeline", "seconds", "policy"], sort=False)
    return groups[[*FIGURES, "kept"]].mean().reset_index()


def beside_best_solver(summary: pd.DataFrame, policy: str = AGENT) -> pd.DataFrame:
    """Put a policy beside the solver of the highest reward, pipeline by pipeline.

    Args:
        summary: of :func:`summarise_levels`, with the policy and at least one of :data:`SOLVERS`.
        policy: to compare.

    Returns:
        Columns pipeline, ``solver``, ``within`` and ``cores`` of both, and ``met``: whether the policy has at least the
        share of requests in time, with no more cores.
    """
    lines: list[Mapping[str, Any]] = []
    for pipeline, part in summary.groupby("pipeline", sort=False):
        by = part.set_index("policy")
        solver = str(by.loc[[name for name in SOLVERS if name in by.index], "reward"].idxmax())
        ours, theirs = by.loc[policy], by.loc[solver]
        lines.append(
            {
                "pipeline": pipeline,
                "solver": solver,
                f"within, {policy}": ours["within"],
                "within, solver": theirs["within"],
                f"cores, {policy}": ours["cost"],
                "cores, solver": theirs["cost"],
                "met": bool(ours["within"] >= theirs["within"] and ours["cost"] <= theirs["cost"]),
            }
        )
    return pd.DataFrame(lines)


def level_findings(rows: pd.DataFrame) -> dict[str, str]:
    """Tables under their headings: the agent beside the best solver, then every policy on every pipeline."""
    summary = summarise_levels(rows)
    found = {}
    if AGENT in set(summary["policy"]):
        compared = beside_best_solver(summary)
        heading = f"At least the best solver's share in time, with no more cores: {compared['met'].sum()} of "
        found[f"{heading}{len(compared)} pipelines"] = markdown_table(compared, 3)
    for (pipeline, seconds), part in summary.groupby(["pipeline", "seconds"], sort=False):
        heading = f"{pipeline}: {PERCENTILE:g} % within {seconds:g} s"
        found[heading] = markdown_table(part.drop(columns=["pipeline", "seconds"]), 3)
    return found


def plot_levels(rows: pd.DataFrame, source: str) -> Figure:
    """Draw for every pipeline the cores of each policy and its share of requests in time, a point a policy."""
    summary = summarise_levels(rows)
    figure, panels = panel_grid(dict.fromkeys(summary["pipeline"]), 4.2, 3.6, f"Service levels, {source}")
    for name, part in summary.groupby("pipeline", sort=False):
        axes = panels[str(name)]
        for policy in ordered(part["policy"]):
            style, here = policy_style(policy), part[part["policy"] == policy]
            look: dict[str, Any] = {"color": style.colour, "marker": style.marker, "markersize": style.marker_size}
            axes.plot(here["cost"], 100.0 * here["within"], linestyle="", label=style.label, **look)
        axes.axhline(PERCENTILE, color="0.5", linewidth=1)
        axes.set(xlabel="cores", ylabel=f"requests within {part['seconds'].iloc[0]:g} s, %")
    legend_below(figure, *panels.values())
    return figure
