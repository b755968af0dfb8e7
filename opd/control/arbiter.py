"""The arbiter: one device, several pipelines, and who gets which of its cores in the next interval.

The value of w cores to a pipeline is the highest reward that its solver predicts within them, for the load that is
planned for. The arbiter gives the cores so that the sum of the values is highest, which is a multiple-choice knapsack:
one number of cores for each pipeline, solved exactly by dynamic programming. Replicas take whole cores, so whole cores
are the grid. Loads are rounded up to whole requests/s, which lets values be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from opd.control.policies import present_pipeline
from opd.measurement import Observation, SimulationParameters, backlog, planned_load
from opd.objective import Objective
from opd.pipeline import InfeasibleError, Pipeline, used_cores
from opd.solvers.exact import predicted_value, solver_for
from opd.solvers.knapsack import best_by_cores, follow_choice

KEPT_CURVES = 512
"""Curves that are kept for a pipeline on a device; older ones are computed again."""


class CoreValues:
    """The values of cores to one pipeline.

    Args:
        pipeline: its capacity is the most that it can be given.
        objective: of its reward.
        simulation: behaviour of the device.
    """

    def __init__(self, pipeline: Pipeline, objective: Objective, simulation: SimulationParameters) -> None:
        self._pipeline, self._objective, self._simulation = pipeline, objective, simulation
        self._solve = solver_for(objective, simulation)
        self._smallest = int(used_cores(pipeline, pipeline.smallest_configuration()))
        self._kept: dict[int, np.ndarray] = {}

    def curve(self, load: float) -> np.ndarray:
        """(W + 1,) the highest predicted reward within 0..W cores at a load.

        It is minus infinity below the smallest configuration, and never falls.
        """
        key = int(np.ceil(load))
        if key not in self._kept:
            if len(self._kept) >= KEPT_CURVES:
                self._kept.clear()
            self._kept[key] = self._computed(float(key))
        return self._kept[key]

    def _computed(self, load: float) -> np.ndarray:
        values = np.full(self._pipeline.capacity + 1, -np.inf)
        cores = self._pipeline.capacity
        while cores >= self._smallest:
            best = self._solve(replace(self._pipeline, capacity=cores), load)
            used = int(used_cores(self._pipeline, best))
            # What is best within more cores is best wherever it fits.
            values[used : cores + 1] = predicted_value(self._pipeline, best, load, self._objective, self._simulation)
            cores = used - 1
        return np.maximum.accumulate(values)


class Arbiter:
    """Divides the cores of a device among pipelines, every interval anew.

    Args:
        pipelines: that share the device.
        objectives: of their rewards, which are added up.
        simulation: behaviour of the device.
        capacity: W_max, cores of the device.

    Raises:
        InfeasibleError: if the smallest configurations together do not fit.
    """

    def __init__(
        self,
        pipelines: Sequence[Pipeline],
        objectives: Sequence[Objective],
        simulation: SimulationParameters,
        capacity: int,
    ) -> None:
        limits_on(pipelines, capacity)
        self._pipelines, self._objectives, self._simulation = tuple(pipelines), tuple(objectives), simulation
        self.capacity = capacity
        self._values: list[dict[bytes, CoreValues]] = [{} for _ in pipelines]

    def divide(self, observations: Sequence[Observation | None], used: Sequence[int]) -> list[int]:
        """Give each pipeline its cores, and an even part of those that are worth nothing to any.

        Args:
            observations: of each pipeline, with the forecast; None where nothing was observed.
            used: cores that each runs on, which it keeps where nothing was observed.
        """
        curves = [
            _keeping(cores) if seen is None else self._curve(n, seen)
            for n, (seen, cores) in enumerate(zip(observations, used, strict=True))
        ]
        shares = best_division(curves, self.capacity)
        deciding = [n for n, seen in enumerate(observations) if seen is not None]
        spare = self.capacity - sum(shares)
        for place, n in enumerate(deciding):  # what no solver values may still help a policy
            given = spare // len(deciding) + (place < spare % len(deciding))
            shares[n] = min(shares[n] + given, self._pipelines[n].capacity)
        return shares

    def _curve(self, n: int, seen: Observation) -> np.ndarray:
        known = seen.calibration
        key = b"" if known is None else known.factor.round(2).tobytes() + known.slope.round(2).tobytes()
        if key not in self._values[n]:
            present = present_pipeline(self._pipelines[n], replace(seen, available_cores=np.inf))
            self._values[n] = {key: CoreValues(present, self._objectives[n], self._simulation)}
        load = planned_load(seen) + backlog(seen, self._simulation.interval)
        return self._values[n][key].curve(load)


def limits_on(pipelines: Sequence[Pipeline], capacity: int) -> list[int]:
    """The most cores of a device that each pipeline can get: the others need their smallest configurations.

    Raises:
        InfeasibleError: if the smallest configurations together do not fit.
    """
    smallest = [int(used_cores(pipeline, pipeline.smallest_configuration())) for pipeline in pipelines]
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
