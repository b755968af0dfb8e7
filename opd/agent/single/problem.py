"""The training problem: a pipeline with objective, workloads and expert, and the parameters of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from opd.measurement import SimulationParameters
from opd.objective import Objective
from opd.pipeline import Pipeline
from opd.solvers import IpaParameters, ipa_dynamic_program
from opd.solvers.exact import Expert, expert_solver, solution_table
from opd.workload.forecast import Forecaster
from opd.workload.futures import Futures, RecentFutures
from opd.workload.quantile_futures import futures_of
from opd.workload.trace import Trace, Workload, burst_starts

ExpertMode = Literal["paper", "pretrain", "none"]
_Count = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True, config={"extra": "forbid", "allow_inf_nan": False})
class TrainingParameters:
    """Everything that shapes a training run.

    Attributes:
        updates: number of rollouts, each followed by ``epochs`` passes over it.
        num_envs: parallel episodes of a rollout.
        rollout_steps: decisions in each of them.
        epochs: passes over a rollout.
        minibatch_size: states in one gradient step.
        learning_rate: of Adam at the start; falls linearly to zero.
        discount: factor by which the next interval's reward counts less than this one's.
        gae_lambda: lambda of generalised advantage estimation.
        clip_range: epsilon of Eq. 12.
        value_coefficient: c_1 of Eq. 11.
        entropy_coefficient: c_2 of Eq. 11 at the start; falls linearly to zero.
        max_grad_norm: norm to which larger gradients are scaled down.
        target_kl: approximate KL divergence above which an update skips its remaining epochs.
        width: neurons of a hidden layer.
        blocks: residual blocks.
        expert: ``myopic``, ``ipa``, ``clairvoyant`` or ``lookahead``, see :mod:`opd.agent.single.imitation`.
        expert_mode: ``pretrain``, ``paper`` or ``none``, see :mod:`opd.agent.single.imitation`.
        expert_frequency: f of Alg. 2, in mode ``paper``.
        cloning_steps: gradient steps of behaviour cloning, in mode ``pretrain``.
        perturbation_share: share of demonstrated decisions that are replaced by another one when they are executed.
        demonstration_weight: of the imitation loss at the start, in mode ``pretrain``; falls linearly to zero half-way.
        burst_share: share of training episodes that begin shortly before a burst of load.
        drop_penalty: training reward lost per dropped request; reported rewards are without it.
        validate_every: updates between two validations, each of which compares the network with the best so far.
        validation_episodes: episodes of a validation, half of them begun before bursts.
        validation_decisions: decisions in each of them.

    Raises:
        ValueError: if a value is out of its range.
    """

    updates: _Count = 80
    num_envs: _Count = 32
    rollout_steps: _Count = 64
    epochs: _Count = 5
    minibatch_size: _Count = 256
    learning_rate: Annotated[float, Field(gt=0.0)] = 5e-4
    discount: _Share = 0.9
    gae_lambda: _Share = 0.9
    clip_range: float = 0.2
    value_coefficient: float = 0.5
    entropy_coefficient: float = 0.005
    max_grad_norm: float = 0.5
    target_kl: float = 0.03
    width: _Count = 128
    blocks: int = 2
    expert: Expert = "myopic"
    expert_mode: ExpertMode = "pretrain"
    expert_frequency: _Count = 5
    cloning_steps: int = 600
    perturbation_share: _Share = 0.1
    demonstration_weight: float = 0.1
    burst_share: _Share = 0.25
    drop_penalty: float = 0.05
    validate_every: _Count = 4
    validation_episodes: _Count = 64
    validation_decisions: _Count = 60

    def __post_init__(self) -> None:
        if self.updates % self.validate_every:
            raise ValueError(f"updates {self.updates} is not a multiple of validate_every {self.validate_every}")

    @property
    def total_timesteps(self) -> int:
        """Decisions of a whole run."""
        return self.updates * self.num_envs * self.rollout_steps


Configure = Callable[[np.ndarray], np.ndarray]
"""A policy as training sees it: states (E, S) in, configurations (E, N, 3) out."""


class Problem(NamedTuple):
    """Everything a training run learns from.

    Attributes:
        pipeline: the pipeline to configure, N tasks.
        objective: of the reward.
        simulation: parameters of the simulator.
        training: workload of the training days.
        validation: workload of the validation days.
        training_bursts: decisions of ``training`` at which the load jumps.
        validation_bursts: decisions of ``validation`` at which the load jumps.
        expert: (L + 1, N, 3) the expert's configuration for every whole load 0..L; where the expert is the planner, the
            myopic solver's.
        reference: (L + 1, N, 3) IPA's; a checkpoint that drops more requests than IPA is penalised.
        futures: source of the loads that the planner as an expert plans for.
    """

    pipeline: Pipeline
    objective: Objective
    simulation: SimulationParameters
    training: Workload
    validation: Workload
    training_bursts: np.ndarray
    validation_bursts: np.ndarray
    expert: np.ndarray
    reference: np.ndarray
    futures: Futures = RecentFutures()


def agent_objective(
    objective: Objective, changes: Mapping[str, float | Mapping[str, float]], pipeline: str
) -> Objective:
    """The objective an agent is trained with: some figures replaced, by one number or by one for each pipeline.

    Raises:
        ValueError: if a figure is unknown, or has no number for this pipeline.
    """
    known = asdict(objective)
    for name, change in changes.items():
        if name not in known:
            raise ValueError(f"unknown weight {name!r}; there are {', '.join(known)}")
        if isinstance(change, Mapping):
            if pipeline not in change:
                raise ValueError(f"weight {name!r} has no value for pipeline {pipeline!r}, only for {list(change)}")
            change = change[pipeline]
        known[name] = change
    return type(objective)(**known)


def expert_table(
    pipeline: Pipeline, objective: Objective, simulation: SimulationParameters, expert: Expert, max_load: int
) -> np.ndarray:
    """(max_load + 1, N, 3) an expert's configuration for every whole load."""
    return solution_table(pipeline, expert_solver(expert, objective, simulation, len(pipeline.tasks)), max_load)


def build_problem(
    pipeline: Pipeline,
    trace: Trace,
    forecaster: Forecaster,
    objective: Objective,
    simulation: SimulationParameters,
    parameters: TrainingParameters,
) -> Problem:
    """Workloads of the training and validation splits with their bursts, and what expert and reference need."""
    training, validation = (
        Workload.of(trace, split, simulation.interval, forecaster.predict_many) for split in ("train", "validation")
    )
    training_bursts, validation_bursts = (
        (burst_starts(trace, split) - trace.split(split).start) // simulation.interval
        for split in ("train", "validation")
    )
    max_load = int(max(training.forecasts.max(), validation.forecasts.max(), trace.counts.max()))
    expert = expert_table(pipeline, objective, simulation, parameters.expert, max_load)
    reference = solution_table(pipeline, partial(ipa_dynamic_program, parameters=IpaParameters()), max_load)
    bursts = training_bursts, validation_bursts
    futures = futures_of(forecaster)
    return Problem(pipeline, objective, simulation, training, validation, *bursts, expert, reference, futures)


def look_up(table: np.ndarray, loads: np.ndarray) -> np.ndarray:
    """(E, N, 3) configurations of a table by whole load, for loads (E,) rounded up and limited to the table."""
    return table[np.clip(np.ceil(loads - 1e-6).astype(np.int64), 0, len(table) - 1)]


def table_policy(table: np.ndarray) -> Configure:
    """The policy that looks up the predicted load in a table by whole load."""
    return lambda states: look_up(table, states[:, 1])
