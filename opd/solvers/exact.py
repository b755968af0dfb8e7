"""The exact solvers of an objective: what maximises its reward, and what solves IPA's problem for it.

For a service level they plan with the percentile of its latency, see :mod:`opd.solvers.service_level`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np

from opd.measurement import SimulationParameters
from opd.objective import Objective
from opd.pipeline import Configuration, Pipeline, ServiceLevel
from opd.solvers.ipa import IpaParameters, ipa_dynamic_program
from opd.solvers.myopic import myopic, predicted_reward
from opd.solvers.service_level import best_for_level, ipa_for_level, predicted_service_reward

Solve = Callable[[Pipeline, float], Configuration]
"""A solver: the configuration of a pipeline for a load in requests/s."""

Expert = Literal["myopic", "ipa", "clairvoyant", "lookahead"]
"""What an agent learns from."""


def solver_for(objective: Objective, simulation: SimulationParameters) -> Solve:
    """The myopic solver: the highest reward of a single interval."""
    if isinstance(objective, ServiceLevel):
        return partial(best_for_level, level=objective, simulation=simulation)
    return partial(myopic, weights=objective, batch_timeout=simulation.batch_timeout)


def predicted_value(
    pipeline: Pipeline,
    configuration: Configuration,
    load: float,
    objective: Objective,
    simulation: SimulationParameters,
) -> float:
    """The reward that :func:`solver_for` maximises, of one configuration under a steady load in requests/s."""
    if isinstance(objective, ServiceLevel):
        return predicted_service_reward(pipeline, configuration, load, objective, simulation)
    return predicted_reward(pipeline, configuration, load, objective, simulation.batch_timeout)


def ipa_solver_for(objective: Objective, simulation: SimulationParameters, parameters: IpaParameters) -> Solve:
    """IPA by dynamic programming, with the weights of ``parameters``."""
    if isinstance(objective, ServiceLevel):
        return partial(ipa_for_level, level=objective, simulation=simulation, parameters=parameters)
    return partial(ipa_dynamic_program, parameters=parameters)


def expert_solver(expert: Expert, objective: Objective, simulation: SimulationParameters, tasks: int) -> Solve:
    """The solver that an agent learns from, and that decides where the agent cannot.

    Args:
        expert: ``clairvoyant`` is the myopic solver, which is told the true load. ``lookahead`` is a planner; where a
            solver is needed, the myopic one stands for it.
        objective: of the agent; IPA takes its weights from it.
        simulation: behaviour of the device.
        tasks: number of tasks of the pipeline.
    """
    if expert == "ipa":
        return ipa_solver_for(objective, simulation, IpaParameters.from_objective(objective, tasks))
    return solver_for(objective, simulation)


def solution_table(pipeline: Pipeline, solve: Solve, max_load: int) -> np.ndarray:
    """(max_load + 1, N, 3) configurations for the loads 0..max_load, to look up by the rounded load."""
    return np.array([solve(pipeline, float(load)) for load in range(max_load + 1)])
