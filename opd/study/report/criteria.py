"""The acceptance criteria of the agents."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from opd.control import AGENT
from opd.study.report.tables import FRUGAL


class Criterion(NamedTuple):
    """One demand on one pipeline: ``value`` shall be at least (or at most) ``bound``."""

    pipeline: str
    policy: str
    quantity: str
    relation: str
    reference: str
    value: float
    bound: float

    @property
    def met(self) -> bool:
        """Whether it is; exactly, with no tolerance."""
        return self.value >= self.bound if self.relation == "≥" else self.value <= self.bound


def criteria(evaluation: pd.DataFrame) -> list[Criterion]:
    """What the agents shall reach in every pipeline, on the mean over cycles and seeds.

    The agent: the reward of the myopic solver, the QoS of IPA, and no cycle of any seed in which it drops more
    requests than IPA. The frugal agent: the QoS of IPA at no more than its cost. Demands on, or against, a policy
    that was not run are left out.
    """
    demands: list[Criterion] = []
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
                demands.append(Criterion(str(pipeline), policy, quantity, relation, reference, value, bound))
            if (policy, quantity) == (AGENT, "qos") and {AGENT, "ipa"} <= set(mean):
                worse = float(len(cycles_with_more_drops(rows, AGENT, "ipa")))
                demands.append(Criterion(str(pipeline), AGENT, "cycles with more drops", "≤", "ipa", worse, 0.0))
    return demands


def cycles_with_more_drops(rows: pd.DataFrame, policy: str, reference: str) -> pd.DataFrame:
    """Cycles and seeds of one pipeline in which ``policy`` dropped more requests, with both numbers."""
    dropped = rows.pivot(index=["cycle", "seed"], columns="policy", values="dropped")[[policy, reference]]
    return dropped[dropped[policy] > dropped[reference]].reset_index()
