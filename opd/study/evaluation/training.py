"""Training runs: their curves (Fig. 7), what was kept of them, and solvers on the same episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from opd.agent.single.jobs import Job
from opd.agent.single.ppo import read_metrics
from opd.agent.single.problem import Problem, TrainingParameters, expert_table, table_policy
from opd.agent.single.rollout import Validation, validate
from opd.study.plots.style import legend_below, ordered, policy_style, save_figure

_CURVES = {
    "train/loss": "training loss (Eq. 11)",
    "train/value_loss": "value loss",
    "rollout/reward": "mean reward per decision\nin training episodes",
    "validation/reward": "mean reward per decision\nin validation",
    "validation/dropped": "dropped requests\nin validation",
}


def validation_references(problem: Problem, parameters: TrainingParameters) -> dict[str, Validation]:
    """Evaluate the myopic solver and IPA on the episodes that select checkpoints."""
    largest = len(problem.reference) - 1
    myopic = expert_table(problem.pipeline, problem.objective, problem.simulation, "myopic", largest)
    return {
        name: validate(problem, parameters, table_policy(table))
        for name, table in (("myopic", myopic), ("ipa", problem.reference))
    }


def training_curves(jobs: Sequence[Job], pipeline: str) -> pd.DataFrame:
    """Return every metric of every update of finished jobs, with pipeline, policy and seed; empty without jobs."""
    keys = ["pipeline", "policy", "seed", "update"]
    tables = [read_metrics(job.folder).assign(pipeline=pipeline, policy=job.policy, seed=job.seed) for job in jobs]
    return pd.concat(tables).set_index(keys).reset_index() if tables else pd.DataFrame(columns=keys)


def tuning_summary(curves: pd.DataFrame) -> list[dict[str, Any]]:
    """Return, for every tuned agent and seed, the update that was kept, its validation, and that before tuning."""
    rows = []
    for (policy, seed), run in curves.groupby(["policy", "seed"], sort=False):
        best = run.iloc[int(np.argmax(run["validation"]))]
        kept = {"update": int(best["update"]), "selection": float(best["validation"])}
        rows.append({"policy": policy, "seed": seed} | kept | {"untuned": float(run["validation"].iloc[0])})
    return rows


def plot_tuning(curves: pd.DataFrame, title: str, path: str | Path) -> Figure:
    """Draw the validation of fine-tuning by update, relative to the agent before it; rings mark what was kept.

    Args:
        curves: of :meth:`opd.agent.tuning.TuningJob.curve`, one below the other.
        title: of the figure.
        path: image file to write.
    """
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    axes.axhline(0.0, color="0.4", linestyle="--", linewidth=1.3, label="before tuning")
    for policy in ordered(curves["policy"]):
        style, seeds = policy_style(policy), curves[curves["policy"] == policy].groupby("seed")
        for number, (_, run) in enumerate(seeds):
            gain = run["validation"] - run["validation"].iloc[0]
            axes.plot(
                run["update"], gain, color=style.colour, marker="o", ms=3, lw=1, label="" if number else style.label
            )
            best = int(np.argmax(gain))
            axes.plot(run["update"].iloc[best], gain.iloc[best], marker="o", ms=9, mfc="none", color=style.colour)
    axes.set(xlabel="update", ylabel="gain of reward per decision\nin validation", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, axes)
    return save_figure(figure, path)


def training_summary(curves: pd.DataFrame) -> list[dict[str, Any]]:
    """Return, for every agent and seed, the validation of the checkpoint that was kept and its update."""
    if curves.empty:
        return []
    validated = curves.dropna(subset="validation/selection").reset_index(drop=True)
    best = validated.loc[validated.groupby(["policy", "seed"])["validation/selection"].idxmax()]
    columns = {"validation/reward": "reward", "validation/dropped": "dropped", "validation/selection": "selection"}
    table = best.rename(columns=columns)[["policy", "seed", "update", *columns.values()]]
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def plot_training(
    curves: pd.DataFrame, references: Mapping[str, Mapping[str, Mapping[str, float]]], title: str, path: str | Path
) -> Figure:
    """Draw Fig. 7 of the paper: losses and reward by update, and the validation; one row an agent.

    A line is a seed, a ring its checkpoint that was kept.

    Args:
        curves: columns policy, seed, update and the metrics of :func:`opd.agent.single.ppo.read_metrics`.
        references: by agent and by baseline, its ``reward`` and ``dropped`` on the same validation episodes.
        title: of the figure.
        path: image file to write.
    """
    policies = ordered(curves["policy"])
    figure, grid = plt.subplots(
        len(policies), len(_CURVES), figsize=(16, 0.9 + 2.9 * len(policies)), layout="constrained", squeeze=False
    )
    figure.suptitle(title)
    for policy, row in zip(policies, grid, strict=True):
        colour = policy_style(policy).colour
        for axes, (metric, label) in zip(row, _CURVES.items(), strict=True):
            validates = metric.startswith("validation")
            for seed, run in curves[curves["policy"] == policy].groupby("seed"):
                run = run.dropna(subset=metric)
                marker = "o" if validates else ""
                name = policy if seed == curves["seed"].min() else None
                axes.plot(run["update"], run[metric], marker=marker, ms=3, lw=1, color=colour, alpha=0.8, label=name)
                if validates:
                    best = run[run["validation/selection"] == run["validation/selection"].max()].iloc[:1]
                    axes.plot(best["update"], best[metric], marker="o", ms=9, mfc="none", color=colour)
            axes.set(ylabel=label, xlabel="update")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.margins(y=0.1)
        for baseline, values in references[policy].items():
            style = policy_style(baseline)
            for axes, value in ((row[3], values["reward"]), (row[4], values["dropped"])):
                axes.axhline(value, color=style.colour, linestyle="--", linewidth=1.3, label=style.label)
        row[4].set_ylim(-0.05 * row[4].get_ylim()[1], max(1.0, row[4].get_ylim()[1]))
    legend_below(figure, *grid[:, 3])
    return save_figure(figure, path)
