"""Budgets of the benchmarks: the full measurement (:data:`FULL`), or a smoke test (:data:`SMOKE`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opd.study.evaluation.decision_time import SIZES

SMOKE_TRAINING: dict[str, Any] = {
    "updates": 2,
    "num_envs": 4,
    "rollout_steps": 8,
    "epochs": 2,
    "minibatch_size": 16,
    "width": 16,
    "blocks": 1,
    "cloning_steps": 5,
    "validate_every": 1,
    "validation_episodes": 4,
    "validation_decisions": 5,
}
"""Training parameters that only show that everything runs."""


@dataclass(frozen=True)
class SimulatorBudget:
    """Budget of the simulator benchmark.

    Attributes:
        intervals: decisions of 10 s that every simulator of requests runs.
        copies: episodes that opd simulates together, compared with simpy and ciw.
        batches: numbers of episodes stepped together, for environment steps.
        steps: environment steps in one measurement, over all episodes.
        single_steps: the same where episodes are not stepped together.
        repetitions: of every measurement; the median counts.
    """

    intervals: int = 120
    copies: int = 256
    batches: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    steps: int = 20_480
    single_steps: int = 1200
    repetitions: int = 7


@dataclass(frozen=True)
class TrainingBudget:
    """Budget of the training benchmark; 163,840 steps per run by default.

    Attributes:
        seeds: one training run of every method each.
        changes: departures from ``training`` of ``params.yaml``.
        test_episodes: episodes of the test days; half of them begin before bursts and do not count for the reward.
        test_decisions: decisions in each; 120 are the 1200 s of the paper.
        workers: processes; more than there are cores would slow down all of them.
    """

    seeds: tuple[int, ...] = (0, 1)
    changes: Mapping[str, Any] = field(default_factory=dict)
    test_episodes: int = 128
    test_decisions: int = 120
    workers: int = 2


@dataclass(frozen=True)
class DecisionBudget:
    """Budget of the decision-time benchmark.

    Attributes:
        sizes: stages and variants of each pipeline.
        decisions: in a cycle; 120 are the paper's.
        repetitions: cycles of every policy but the slow ones; all their decisions count.
    """

    sizes: Sequence[tuple[int, int]] = SIZES
    decisions: int = 120
    repetitions: int = 5


@dataclass(frozen=True)
class Budget:
    """Budgets of all benchmarks."""

    simulator: SimulatorBudget = SimulatorBudget()
    training: TrainingBudget = TrainingBudget()
    decision_time: DecisionBudget = DecisionBudget()


FULL = Budget()
SMOKE = Budget(
    SimulatorBudget(intervals=6, copies=8, batches=(1, 16), steps=64, single_steps=16, repetitions=2),
    TrainingBudget(seeds=(0,), changes=SMOKE_TRAINING, test_episodes=4, test_decisions=5, workers=1),
    DecisionBudget(sizes=((2, 5), (3, 6)), decisions=6, repetitions=1),
)
