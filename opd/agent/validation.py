"""Validation of a policy: fixed episodes of the validation days, and the score by which the best network is kept."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from opd.agent.parameters import TrainingParameters
from opd.agent.problem import Configure, Problem, begin_episodes, table_policy


class Validation(NamedTuple):
    """Means over ordinary episodes, requests dropped in all episodes, and the score that selects the best network."""

    reward: float
    qos: float
    cost: float
    dropped: float
    selection: float


def validate(
    problem: Problem, parameters: TrainingParameters, configure: Configure, tolerated_drops: float = 0.0
) -> Validation:
    """Run a policy on the validation episodes, which are the same in every call.

    Args:
        problem: gives the validation workload and its bursts.
        parameters: number and length of the episodes; half of them begin before bursts.
        configure: the policy.
        tolerated_drops: dropped requests that do not lower the selection score.
    """
    p = parameters
    bursts = p.validation_episodes // 2
    envs = begin_episodes(
        problem, problem.validation, problem.validation_bursts, bursts, p.validation_episodes, p.validation_decisions, 0
    )
    dropped = 0.0
    scores = []
    for _ in range(p.validation_decisions):
        score, interval = envs.run_interval(configure(envs.state()))
        scores.append((score.reward[bursts:], score.qos[bursts:], score.cost[bursts:]))
        dropped += float(interval.dropped.sum())
    reward, qos, cost = (float(np.mean(figures)) for figures in zip(*scores, strict=True))
    penalty = p.drop_penalty * max(0.0, dropped - tolerated_drops)
    return Validation(reward, qos, cost, dropped, reward - penalty)


def tolerated_drops(problem: Problem, parameters: TrainingParameters) -> float:
    """Requests that IPA drops in the validation episodes; a policy that drops no more is not penalised for it."""
    return validate(problem, parameters, table_policy(problem.reference)).dropped
