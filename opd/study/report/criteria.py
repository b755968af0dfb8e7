"""The acceptance criteria of the agents."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from opd.control import AGENT
from opd.study.report.tables import FRUGAL


class Criterion(NamedTuple):
    """One criterion on one pipeline: ``value`` must be at least (or at most) ``bound``."""

    pipeline: str
    policy: str
    quantity: str
    relation: str
    reference: str
    value: float
    bound: float

    @property
    def met(self) -> bool:
        """Whether the criterion is met, exactly, without a tolerance."""
        return self.value >= self.bound if self.relation == "≥" else self.value <= self.bound


def criteria(evaluation: pd.DataFrame) -> list[Criterion]:
    """Evaluate the acceptance criteria on every pipeline, on means over cycles and seeds.

    The agent: at least the reward of the myopic solver, at least the QoS of IPA, and no cycle of any seed in which it
    drops more requests than IPA. The frugal agent: at least the QoS of IPA at no more than its cost. Criteria with a
    policy that was not run are omitted.
    """
    found: list[Criterion] = []
    for pipeline, rows in evaluation.groupby("pipeline", sort=False):
        mean = {str(name): of_policy[["reward", "qos", "cost"]].mean() for name, of_policy in rows.groupby("policy")}
        for policy, quantity, relation, reference in (
            (AGENT, "reward", "≥", "myopic"),
            (AGENT, "qos", "≥", "ipa"),
            (FRUGAL, "qos", "≥", "ipa"),
            (FRUGAL, "cost", "≤", "ipa"),
        ):
            if {policy, reference} <= set(mean):
                value, bound = float(mean[policy][quantity]), float(mean[reference][quantity])
                found.append(Criterion(str(pipeline), policy, quantity, relation, reference, value, bound))
            if (policy, quantity) == (AGENT, "qos") and {AGENT, "ipa"} <= set(mean):
                worse = float(len(cycles_with_more_drops(rows, AGENT, "ipa")))
                found.append(Criterion(str(pipeline), AGENT, "cycles with more drops", "≤", "ipa", worse, 0.0))
    return found


def cycles_with_more_drops(rows: pd.DataFrame, policy: str, reference: str) -> pd.DataFrame:
    """Cycles and seeds of one pipeline in which ``policy`` dropped more requests, with both numbers."""
    dropped = rows.pivot(index=["cycle", "seed"], columns="policy", values="dropped")[[policy, reference]]
    return dropped[dropped[policy] > dropped[reference]].reset_index()
