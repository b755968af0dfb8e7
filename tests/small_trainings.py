"""Problems and parameters of trainings that take a second."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from small_pipelines import ocr_pipeline, steady_workload, varying_workload

from opd.agent.single.ppo import PPOTrainer
from opd.agent.single.problem import Problem, TrainingParameters, expert_table
from opd.measurement import SimulationParameters
from opd.objective import Weights
from opd.pipeline import Pipeline, ServiceLevel, Task, Variant
from opd.workload.forecast import ForecastParameters

WEIGHTS = Weights()
QUIET = SimulationParameters(service_noise=0.0)
SHORT = TrainingParameters(
    updates=4,
    num_envs=8,
    rollout_steps=8,
    epochs=2,
    minibatch_size=32,
    width=16,
    blocks=1,
    cloning_steps=20,
    validate_every=2,
    validation_episodes=4,
    validation_decisions=5,
)

BARELY = ForecastParameters(hidden_size=4, epochs=1, train_windows=200)
"""Of a forecaster that hardly learns."""


def problem_for(pipeline=None, workload=None, expert="myopic", bursts=(30, 90), objective=WEIGHTS) -> Problem:
    """A problem whose training and validation days are the same, and whose reference is its expert."""
    pipeline, workload = pipeline or ocr_pipeline(), workload or varying_workload()
    table = expert_table(pipeline, objective, QUIET, expert, 30)
    both = np.array(bursts, dtype=np.int64)
    return Problem(pipeline, objective, QUIET, workload, workload, both, both, table, table)


def overloaded_problem() -> Problem:
    """Five requests/s for a single variant and replica that serves one."""
    slow = Pipeline("slow", (Task("only", (Variant("slow", 0.5, 1, {1: 1.0}, 1.0),)),), 1, 1, 1, ServiceLevel(1.0))
    return problem_for(slow, steady_workload(5), bursts=())


def trainer_for(seed=0, problem=None, **changes) -> PPOTrainer:
    """A trainer that is ready for its first update."""
    trainer = PPOTrainer(problem or problem_for(), replace(SHORT, **changes), seed)
    trainer.prepare()
    return trainer


def weights_of(network) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_same_weights(one, other) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
