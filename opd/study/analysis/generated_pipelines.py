"""Policies on generated pipelines that nobody has seen: how often is one above another, and how far from the bound?

Every pipeline has its own objective and its own load: the trace divided by so much that its busiest second is as busy
as the pipeline asks. It runs through one cycle of the test split; the cycles take turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from opd.control import policy_label
from opd.profiling.generated import FIRST_UNSEEN, Range, generate_pipeline
from opd.study.evaluation.cycles import Setting, cycle_bound, cycle_summary, run_cycle
from opd.study.plots.style import legend_below, ordered, policy_style, symmetric_logarithmic
from opd.study.report.files import markdown_table
from opd.workload.rescaled import RescaledForecaster
from opd.workload.trace import Cycle

COLUMNS = ["pipeline", "stages", "variants", "range", "policy", "seed", "reward", "bound", "dropped"]

REFERENCE = "myopic-backlog"
"""Policy that the others are compared with."""


class GeneratedCell(NamedTuple):
    """A pipeline to run: seed and range that generate it, its cycle, and the policies and seeds of its runs."""

    number: int
    range: Range
    cycle: Cycle
    runs: tuple[tuple[str, int], ...]

    @property
    def key(self) -> dict[str, str]:
        """The name of the pipeline."""
        return {"pipeline": f"generated-{self.range}-{self.number}"}


def generated_cells(
    numbers: Mapping[Range, int], cycles: Sequence[Cycle], policies: Sequence[str], seeds: Sequence[int]
) -> list[GeneratedCell]:
    """List the pipelines to run.

    Args:
        numbers: of pipelines, by range.
        cycles: of load, which take turns.
        policies: run on every pipeline.
        seeds: of the requests.
    """
    runs = tuple((policy, seed) for policy in policies for seed in seeds)
    return [
        GeneratedCell(FIRST_UNSEEN + number, where, cycles[number % len(cycles)], runs)
        for where, many in numbers.items()
        for number in range(many)
    ]


def own_setting(setting: Setting, number: int, range: Range) -> tuple[Setting, Any]:
    """The setting of a generated pipeline, with its load, forecasts and objective, and the pipeline itself."""
    generated = generate_pipeline(number, range)
    trace = setting.trace
    damping = generated.damping(int(trace.recorded[trace.split("train")].max()))
    forecaster: Any = RescaledForecaster(setting.forecaster, damping / trace.damping)
    own = replace(setting, trace=replace(trace, damping=damping), forecaster=forecaster, objective=generated.objective)
    return own, generated.pipeline


def run_generated(setting: Setting, cell: GeneratedCell) -> list[dict[str, Any]]:
    """Run all policies of a cell; return rows of :data:`COLUMNS`. The objective of the setting is not used."""
    own, pipeline = own_setting(setting, cell.number, cell.range)
    variants = max(len(task.variants) for task in pipeline.tasks)
    same = {"pipeline": pipeline.name, "stages": len(pipeline.tasks), "variants": variants, "range": cell.range}
    bound = cycle_bound(own, (pipeline, cell.cycle))
    rows = []
    for policy, seed in cell.runs:
        summary = cycle_summary(run_cycle(pipeline, own.policy(policy, pipeline, seed), cell.cycle, seed, own))
        figures = {"reward": summary["reward"], "bound": bound, "dropped": summary["dropped"]}
        rows.append(same | {"policy": policy_label(policy), "seed": seed} | figures)
    return rows


# ------------------------------------------------------------------------------------------------------------ findings


def leads(rows: pd.DataFrame) -> pd.DataFrame:
    """Compare every policy with the reference, pipeline by pipeline.

    Returns:
        Columns pipeline, range, policy, ``lead`` (mean reward minus that of :data:`REFERENCE`, relative to the size of
        the latter) and ``dropped`` (requests in a cycle, mean over the seeds).
    """
    means = rows.groupby(["pipeline", "range", "policy"], sort=False)[["reward", "dropped"]].mean().reset_index()
    reference = means[means["policy"] == REFERENCE].set_index("pipeline")["reward"]
    known = means["pipeline"].map(reference)
    means["lead"] = (means["reward"] - known) / known.abs().clip(lower=1e-9)
    return means[["pipeline", "range", "policy", "lead", "dropped"]]


def summarise_generated(rows: pd.DataFrame) -> pd.DataFrame:
    """Summarise each policy in each range.

    Returns:
        Columns range, policy, ``pipelines``, ``at or above`` (share of them with at least the reward of the reference),
        ``lead`` (median, in percent of the reference's reward), ``worst`` (lowest lead), ``of bound`` (median reward in
        percent of the bound, where there is one and it is positive) and ``dropped`` (mean requests in a cycle).
    """
    bounded = rows[rows["bound"] > 0.0]
    share = (100.0 * bounded["reward"] / bounded["bound"]).groupby([bounded["range"], bounded["policy"]]).median()
    lines = []
    for (where, policy), part in leads(rows).groupby(["range", "policy"], sort=False):
        lines.append(
            {
                "range": where,
                "policy": policy,
                "pipelines": len(part),
                "at or above": float((part["lead"] >= -1e-9).mean()),
                "lead": 100.0 * float(part["lead"].median()),
                "worst": 100.0 * float(part["lead"].min()),
                "of bound": float(share.get((where, policy), np.nan)),
                "dropped": float(part["dropped"].mean()),
            }
        )
    return pd.DataFrame(lines)


def generated_findings(rows: pd.DataFrame) -> dict[str, str]:
    """The table of every range, under its heading."""
    summary = summarise_generated(rows)
    return {
        f"{str(where).capitalize()} of what training draws from": markdown_table(part.drop(columns="range"))
        for where, part in summary.groupby("range", sort=False)
    }


def plot_leads(rows: pd.DataFrame, source: str) -> Figure:
    """Draw for every range the share of pipelines up to each lead over the reference, a line a policy."""
    compared = leads(rows)
    ranges = list(dict.fromkeys(compared["range"]))
    figure, grid = plt.subplots(
        1, len(ranges), figsize=(1.0 + 5.5 * len(ranges), 4.2), layout="constrained", sharey=True, squeeze=False
    )
    figure.suptitle(f"Generated pipelines, {source}")
    for axes, where in zip(grid[0], ranges, strict=True):
        here = compared[compared["range"] == where]
        for policy in ordered(set(here["policy"]) - {REFERENCE}):
            style, values = policy_style(policy), np.sort(100.0 * here.loc[here["policy"] == policy, "lead"])
            axes.step(values, np.arange(1, len(values) + 1) / len(values), color=style.colour, label=style.label)
        axes.axvline(0.0, color="0.5", linewidth=1)
        label = f"reward relative to {policy_style(REFERENCE).label}, %"
        axes.set(title=f"{where}: {here['pipeline'].nunique()} pipelines", xlabel=label)
        symmetric_logarithmic(axes, linear=0.1)
    grid[0, 0].set_ylabel("share of pipelines up to this")
    legend_below(figure, *grid[0])
    return figure
