"""The arbiter: one device, several pipelines, and who gets which of its cores in the next interval.

The value of w cores to a pipeline is the mean reward of an interval, less what dropped requests cost, if it ran its
solver's best configuration within them from now on. It is found by rollouts from the present state: a pipeline that
loses cores pays for the queue that grows, one that gains them waits for replicas to start. Reward that is predicted
for a steady load knows neither; divided by it, pipelines took the cores from each other again every other interval.

The arbiter gives the cores so that the sum of the values is highest, which is a multiple-choice knapsack: one number of
cores for each pipeline, solved exactly by dynamic programming. Replicas take whole cores, so whole cores are the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from opd.control.policies import PerDevice
from opd.measurement import Observation, SimulationParameters, backlog, idle_observation, planned_load
from opd.objective import Objective
from opd.pipeline import InfeasibleError, Pipeline, as_array, used_cores
from opd.planner.lookahead import intervals_to_serve, returns
from opd.planner.present import present_stages
from opd.simulator.rollouts import Continuation, RolloutSimulator, draw_arrivals
from opd.solvers.exact import Solve, solver_for
from opd.solvers.knapsack import best_by_cores, follow_choice
from opd.workload.futures import Futures, RecentFutures

FUTURES = 8
"""Loads that may come, in which all numbers of cores are tried."""

INTERVALS = 2
"""Length of a rollout at least; more where replicas start slowly."""


def best_within_cores(pipeline: Pipeline, solve: Solve, load: float) -> np.ndarray:
    """(M, N, 3) the solver's different configurations for a load within every number of cores, the fewest first."""
    found, cores = [], pipeline.capacity
    while cores >= pipeline.smallest_cores:
        best = solve(replace(pipeline, capacity=cores), load)
        found.append(as_array(best))
        cores = int(used_cores(pipeline, best)) - 1  # what is best within more cores is best wherever it fits
    return np.array(found[::-1])


class CoreValues:
    """The values of cores to one pipeline.

    Args:
        pipeline: its capacity is the most that it can be given.
        objective: of its reward.
        simulation: behaviour of the device.
        futures: source of loads that may come.
        seed: of what is drawn.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        objective: Objective,
        simulation: SimulationParameters,
        futures: Futures | None = None,
        seed: int = 0,
    ) -> None:
        self.pipeline, self._objective, self._simulation = pipeline, objective, simulation
        self._futures, self._generator = futures or RecentFutures(), np.random.default_rng(seed)
        self._solve = solver_for(objective, simulation)
        self._devices: PerDevice[Pipeline] = PerDevice(pipeline, lambda present: present)

    def curve(self, observation: Observation, generator: np.random.Generator | None = None) -> np.ndarray:
        """(W + 1,) the value of 0..W cores; minus infinity below the smallest configuration.

        All are tried in the same loads, and with the configurations for the load that is planned for and what waits.

        Args:
            observation: of the pipeline, with the forecast.
            generator: of what is drawn, in place of that of the seed.
        """
        present = self._devices.now(replace(observation, available_cores=np.inf))
        load = planned_load(observation) + backlog(observation, self._simulation.interval)
        configurations = best_within_cores(present, self._solve, load)
        worth = self._held(present, observation, configurations, generator or self._generator)
        values = np.full(present.capacity + 1, -np.inf)
        for cores, value in zip(used_cores(present, configurations).astype(int).tolist(), worth, strict=True):
            values[cores:] = value
        return values

    def _held(
        self, present: Pipeline, observation: Observation, configurations: np.ndarray, generator: np.random.Generator
    ) -> list[float]:
        """What each of (M, N, 3) configurations is worth if it runs from now on."""
        seconds = self._simulation.interval
        length = seconds * intervals_to_serve(present, self._simulation, INTERVALS)
        loads = self._futures.sample(observation.history, observation.predicted_load, FUTURES, length, generator)
        arrivals, rollouts = draw_arrivals(loads, seconds, generator), RolloutSimulator(present, self._simulation)
        rollouts.place(present_stages(present, observation), arrivals)
        worth = []
        for one in configurations[:, None]:
            ran, interval = rollouts.run(one, arrivals, Continuation(np.zeros(1), one), generator)
            worth.append(float(returns(present, self._objective, ran, interval, seconds).mean()))
        return worth


class Arbiter:
    """Divides the cores of a device among pipelines in every interval.

    Args:
        values: of cores to each pipeline.
        capacity: W_max, cores of the device.

    Raises:
        InfeasibleError: if the smallest configurations together do not fit.
    """

    def __init__(self, values: Sequence[CoreValues], capacity: int) -> None:
        limits_on([each.pipeline for each in values], capacity)
        self._values, self.capacity = tuple(values), capacity

    def warm_up(self) -> None:
        """Compile what divisions need; later ones are as if this had not been called."""
        curves = [each.curve(idle_observation(each.pipeline), np.random.default_rng(0)) for each in self._values]
        best_division(curves, self.capacity)

    def divide(self, observations: Sequence[Observation | None], used: Sequence[int]) -> list[int]:
        """Give each pipeline its cores, and of those that are then left what its solver would still use.

        Args:
            observations: of each pipeline, with the forecast; None where nothing was observed.
            used: cores that each runs on, which it keeps where nothing was observed.
        """
        curves = [
            _keeping(cores) if seen is None else values.curve(seen)
            for values, seen, cores in zip(self._values, observations, used, strict=True)
        ]
        shares = best_division(curves, self.capacity)
        most = [len(curve) - 1 for curve in curves]
        wanted = [int(np.flatnonzero(curve != curve[-1])[-1]) + 1 for curve in curves]
        for _ in range(self.capacity - sum(shares)):  # what is worth nothing in the mean may still help a policy
            able = [n for n, share in enumerate(shares) if share < most[n]]
            if able:
                shares[max(able, key=lambda n: wanted[n] - shares[n])] += 1
        return shares


def limits_on(pipelines: Sequence[Pipeline], capacity: int) -> list[int]:
    """The most cores of a device that each pipeline can get: the others need their smallest configurations.

    Raises:
        InfeasibleError: if the smallest configurations together do not fit.
    """
    smallest = [pipeline.smallest_cores for pipeline in pipelines]
    spare = capacity - sum(smallest)
    if spare < 0:
        names = ", ".join(f"{p.name} {cores}" for p, cores in zip(pipelines, smallest, strict=True))
        raise InfeasibleError(
            f"the smallest configurations need {sum(smallest)} cores ({names}), the device has {capacity}; serve "
            "fewer pipelines on it, or add smaller variants"
        )
    return [min(pipeline.capacity, own + spare) for pipeline, own in zip(pipelines, smallest, strict=True)]


def _keeping(cores: int) -> np.ndarray:
    """The curve of a pipeline that stays on its cores."""
    values = np.full(cores + 1, -np.inf)
    values[cores] = 0.0
    return values


def best_division(curves: Sequence[np.ndarray], capacity: int) -> list[int]:
    """Cores for each pipeline with the highest sum of values, the fewest that reach it.

    Args:
        curves: (W + 1,) value of 0..W cores to each pipeline, of any length; minus infinity for what cannot be.
        capacity: cores to divide.

    Raises:
        InfeasibleError: if nothing fits.
    """
    options = max(len(curve) for curve in curves)
    score = np.full((len(curves), options), -np.inf)
    for row, curve in zip(score, curves, strict=True):
        row[: len(curve)] = curve
    cores = np.tile(np.arange(options, dtype=np.int64), (len(curves), 1))
    cores = np.where(np.isfinite(score), cores, capacity + 1)
    value, choice = best_by_cores(cores, score, capacity)
    if value[0, capacity] == -np.inf:
        raise InfeasibleError(f"what runs and the smallest configurations of the others exceed {capacity} cores")
    return [int(each) for each in follow_choice(cores, choice)]
