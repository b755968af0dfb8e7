"""What is worth knowing of training runs: their curves, what was kept, and what solvers reach in the same episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from opd.agent.training import Problem, TrainingParameters, Validation, expert_table, look_up, read_metrics, validate


def training_curve(folder: Path, parameters: TrainingParameters) -> pd.DataFrame:
    """The metrics of one training run, one row an update; validation columns are empty where there was none."""
    metrics = read_metrics(folder)
    trained = metrics[metrics["train/loss"].notna()]
    trained = trained.assign(update=trained["step"] + 1)
    validated = metrics[metrics["validation/reward"].notna()]
    validated = validated.assign(update=(validated["epoch"] + 1) * parameters.validate_every)
    figures = [column for column in metrics if str(column).startswith("validation/")]
    curve = trained.drop(columns=[*figures, "epoch", "step"]).merge(validated[["update", *figures]], "left", "update")
    return curve.astype({"update": int}).sort_values("update", ignore_index=True)


def validation_references(problem: Problem, parameters: TrainingParameters) -> dict[str, Validation]:
    """What the myopic solver and IPA reach on the episodes on which checkpoints compete."""
    largest = len(problem.reference) - 1
    myopic = expert_table(problem.pipeline, problem.weights, problem.simulation, "myopic", largest)
    return {
        name: validate(problem, parameters, lambda states, table=table: look_up(table, states[:, 1]))  # type: ignore[misc]
        for name, table in (("myopic", myopic), ("ipa", problem.reference))
    }


def training_summary(curves: pd.DataFrame) -> list[dict[str, Any]]:
    """For every agent and seed the validation of the checkpoint that was kept, and after which update it was."""
    validated = curves.dropna(subset="validation/selection").reset_index(drop=True)
    best = validated.loc[validated.groupby(["policy", "seed"])["validation/selection"].idxmax()]
    columns = {"validation/reward": "reward", "validation/dropped": "dropped", "validation/selection": "selection"}
    table = best.rename(columns=columns)[["policy", "seed", "update", *columns.values()]]
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
