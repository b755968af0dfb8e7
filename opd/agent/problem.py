"""The problem an agent is trained on: a pipeline, its objective, its workloads and its expert."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from opd.agent.parameters import TrainingParameters
from opd.measurement import SimulationParameters
from opd.objective import Weights
from opd.pipeline import Pipeline
from opd.simulator.environment import PipelineVectorEnv
from opd.solvers import IpaParameters, ipa_table, myopic_table
from opd.workload.forecast import Forecaster
from opd.workload.trace import Trace, Workload, burst_starts

Configure = Callable[[np.ndarray], np.ndarray]
"""A policy as training sees it: states (E, S) in, configurations (E, N, 3) out."""


class Problem(NamedTuple):
    """Everything a training run learns from.

    Attributes:
        pipeline: the pipeline to configure, N tasks.
        weights: of the reward.
        simulation: parameters of the simulator.
        training: workload of the training days.
        validation: workload of the validation days.
        training_bursts: decisions of ``training`` at which the load jumps.
        validation_bursts: decisions of ``validation`` at which the load jumps.
        expert: (L + 1, N, 3) the expert's configuration for every whole load 0..L.
        reference: (L + 1, N, 3) IPA's; a checkpoint that drops more requests than IPA is penalised.
    """

    pipeline: Pipeline
    weights: Weights
    simulation: SimulationParameters
    training: Workload
    validation: Workload
    training_bursts: np.ndarray
    validation_bursts: np.ndarray
    expert: np.ndarray
    reference: np.ndarray


def agent_weights(weights: Weights, changes: Mapping[str, float | Mapping[str, float]], pipeline: str) -> Weights:
    """The weights an agent is trained with: some replaced, by one number or by one for each pipeline.

    Raises:
        ValueError: if a weight is unknown, or has no number for this pipeline.
    """
    known = asdict(weights)
    for name, change in changes.items():
        if name not in known:
            raise ValueError(f"unknown weight {name!r}; there are {', '.join(known)}")
        if isinstance(change, Mapping):
            if pipeline not in change:
                raise ValueError(f"weight {name!r} has no value for pipeline {pipeline!r}, only for {list(change)}")
            change = change[pipeline]
        known[name] = change
    return Weights(**known)


def expert_table(
    pipeline: Pipeline, weights: Weights, simulation: SimulationParameters, expert: str, max_load: int
) -> np.ndarray:
    """(max_load + 1, N, 3) an expert's configuration for every whole load.

    The clairvoyant expert has the table of the myopic one and looks up the true load instead of the forecast.
    """
    if expert in ("myopic", "clairvoyant"):
        return myopic_table(pipeline, weights, max_load, simulation.batch_timeout)
    return ipa_table(pipeline, IpaParameters.from_weights(weights), max_load)


def build_problem(
    pipeline: Pipeline,
    trace: Trace,
    forecaster: Forecaster,
    weights: Weights,
    simulation: SimulationParameters,
    parameters: TrainingParameters,
) -> Problem:
    """Workloads of the training and validation splits with their bursts, and the tables of expert and reference."""
    training, validation = (
        Workload.of(trace, split, simulation.interval, forecaster.predict_many) for split in ("train", "validation")
    )
    training_bursts, validation_bursts = (
        (burst_starts(trace, split) - trace.split(split).start) // simulation.interval
        for split in ("train", "validation")
    )
    max_load = int(max(training.forecasts.max(), validation.forecasts.max(), trace.counts.max()))
    return Problem(
        pipeline,
        weights,
        simulation,
        training,
        validation,
        training_bursts,
        validation_bursts,
        expert_table(pipeline, weights, simulation, parameters.expert, max_load),
        ipa_table(pipeline, IpaParameters(), max_load),
    )


def look_up(table: np.ndarray, loads: np.ndarray) -> np.ndarray:
    """(E, N, 3) configurations of a table by whole load, for loads (E,) rounded up and limited to the table."""
    return table[np.clip(np.ceil(loads - 1e-6).astype(np.int64), 0, len(table) - 1)]


def table_policy(table: np.ndarray) -> Configure:
    """The policy that looks up the predicted load in a table by whole load."""
    return lambda states: look_up(table, states[:, 1])


def begin_episodes(
    problem: Problem, workload: Workload, bursts: np.ndarray, burst_episodes: int, num_envs: int, length: int, seed: Any
) -> PipelineVectorEnv:
    """New episodes at random decisions of a workload, running what the expert chooses for the load of that moment.

    Args:
        problem: gives pipeline, reward, simulation and expert.
        workload: counts and forecasts.
        bursts: decisions at which the load jumps.
        burst_episodes: number of episodes, the first ones, that begin shortly before a burst.
        num_envs: number of all episodes, E.
        length: decisions that an episode will last.
        seed: of the beginnings, the arrivals and the service noise.

    Raises:
        ValueError: if the workload is too short.
    """
    generator = np.random.default_rng(seed)
    simulation_seed = int(generator.integers(2**31))
    latest = workload.decisions - length
    if latest < 2:
        raise ValueError(f"a workload of {workload.decisions} decisions is too short for episodes of {length}")
    decisions = generator.integers(1, latest, size=num_envs)
    usable = bursts[bursts < latest]
    if len(usable):
        lead = generator.integers(1, max(length // 2, 1), size=burst_episodes, endpoint=True)
        decisions[:burst_episodes] = np.maximum(generator.choice(usable, size=burst_episodes) - lead, 1)
    envs = PipelineVectorEnv(
        problem.pipeline,
        workload,
        problem.weights,
        problem.simulation,
        episode_length=length,
        num_envs=num_envs,
        seed=simulation_seed,
    )
    load = workload.windows(decisions - 1).mean(axis=1)
    envs.begin(np.arange(num_envs), decisions, look_up(problem.expert, load))
    return envs
