"""A small study to test with: a training problem, a trace of waves, and a setting for evaluations on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from small_pipelines import ocr_pipeline, varying_workload

from opd.agent.single.network import ActorCritic
from opd.agent.single.problem import Problem, TrainingParameters, expert_table
from opd.measurement import SimulationParameters, state_names
from opd.objective import Weights
from opd.pipeline import Pipeline, as_array
from opd.simulator.environment import PipelineVectorEnv
from opd.solvers import IpaParameters
from opd.study.benchmarks.budgets import SMOKE_TRAINING
from opd.study.evaluation.cycles import Setting
from opd.workload.forecast import RecentMaximum
from opd.workload.trace import Cycle, Trace

WEIGHTS, SIMULATION = Weights(), SimulationParameters()
PARAMETERS = TrainingParameters(**SMOKE_TRAINING)
CYCLE = Cycle("waves", 20_000)
FEASIBLE, TOO_LARGE = [[1, 2, 2], [0, 3, 1]], [[1, 3, 1], [2, 3, 1]]
"""Configurations of the small pipeline with 7 and 18 of its 8 cores."""


def small_problem() -> Problem:
    pipeline, workload = ocr_pipeline(), varying_workload()
    table = expert_table(pipeline, WEIGHTS, SIMULATION, "myopic", 30)
    bursts = np.array([30, 90])
    return Problem(pipeline, WEIGHTS, SIMULATION, workload, workload, bursts, bursts, table, table)


def waves(name: str = "waves", level: float = 8.0, damping: int = 1) -> Trace:
    """Six hours of Poisson counts with a rate that swings by 5 requests/s around ``level``."""
    seconds = np.arange(6 * 3600)
    counts = np.random.default_rng(0).poisson(damping * (level + 5.0 * np.sin(seconds / 120.0)))
    return Trace(name, counts, seconds, damping=damping)


def setting_on(
    trace: Trace, agents: Mapping[tuple[str, str, int], Path], forecaster: RecentMaximum | None = None
) -> Setting:
    """The setting of an evaluation, by default with the largest load of the last 20 s as forecast."""
    forecaster = forecaster or RecentMaximum()
    return Setting(trace, forecaster, WEIGHTS, SIMULATION, IpaParameters(), agents)  # type: ignore[arg-type]


def some_states(number: int = 50, seed: int = 0) -> torch.Tensor:
    """States of the small pipeline with all of its cores available."""
    inputs = len(state_names(ocr_pipeline()))
    states = np.random.default_rng(seed).uniform(0.0, 8.0, (number, inputs)).astype(np.float32)
    states[:, 0] = 8.0
    return torch.as_tensor(states)


def lively(network: ActorCritic) -> ActorCritic:
    """The same network with heads that distinguish states and options, which they hardly do at first."""
    torch.manual_seed(1)
    with torch.no_grad():
        network.head_weight.normal_(0.0, 0.5)
    return network


def begun_episodes(pipeline: Pipeline) -> PipelineVectorEnv:
    """Two episodes that run the smallest configuration."""
    episodes = PipelineVectorEnv(pipeline, varying_workload(), WEIGHTS, SIMULATION, num_envs=2, seed=11)
    smallest = as_array(pipeline.smallest_configuration())
    episodes.begin(np.arange(2), np.array([20, 40]), np.stack([smallest, smallest]))
    return episodes
