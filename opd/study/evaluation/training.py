"""Training runs: their curves, the checkpoints that were kept, and solvers on the same episodes."""

from __future__ import annotations

from typing import Any

import pandas as pd

from opd.agent.problem import Problem, TrainingParameters, expert_table, table_policy
from opd.agent.rollout import Validation, validate


def validation_references(problem: Problem, parameters: TrainingParameters) -> dict[str, Validation]:
    """Evaluate the myopic solver and IPA on the episodes that select checkpoints."""
    largest = len(problem.reference) - 1
    myopic = expert_table(problem.pipeline, problem.weights, problem.simulation, "myopic", largest)
    return {
        name: validate(problem, parameters, table_policy(table))
        for name, table in (("myopic", myopic), ("ipa", problem.reference))
    }


def training_summary(curves: pd.DataFrame) -> list[dict[str, Any]]:
    """Return, for every agent and seed, the validation of the checkpoint that was kept and its update."""
    validated = curves.dropna(subset="validation/selection").reset_index(drop=True)
    best = validated.loc[validated.groupby(["policy", "seed"])["validation/selection"].idxmax()]
    columns = {"validation/reward": "reward", "validation/dropped": "dropped", "validation/selection": "selection"}
    table = best.rename(columns=columns)[["policy", "seed", "update", *columns.values()]]
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
