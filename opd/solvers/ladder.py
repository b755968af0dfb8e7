"""Rungs of a ladder: the configurations that a solver finds for growing loads, in the order of what they carry."""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from opd.objective import throughput
from opd.pipeline import Configuration, Pipeline
from opd.profiling.attainable import attainable_load

LOADS = 128
"""Number of loads, evenly spaced up to the largest that the device carries, for which the rungs are solved."""

Solve = Callable[[Pipeline, float], Configuration]
"""The configuration for a load in requests/s."""


@dataclass(frozen=True)
class Ladder:
    """Configurations in the order of their throughput; a higher one costs more until the device has no more cores.

    Attributes:
        rungs: the configurations, K of them.
        throughput: requests/s of each, increasing.
    """

    rungs: tuple[Configuration, ...]
    throughput: tuple[float, ...]

    def carrying(self, load: float) -> int:
        """Position of the lowest rung that carries a load in requests/s; the highest one if none does."""
        return min(bisect_left(self.throughput, load), len(self.rungs) - 1)

    def position(self, configuration: Configuration) -> int | None:
        """Position of a configuration, or None if it is no rung."""
        return self.rungs.index(configuration) if configuration in self.rungs else None


def build_ladder(pipeline: Pipeline, solve: Solve) -> Ladder:
    """Solve for loads from 0 to the largest that the device carries, and keep each configuration that carries more.

    Args:
        pipeline: the pipeline.
        solve: a solver, such as :func:`opd.solvers.myopic` with its weights.
    """
    rungs: list[Configuration] = []
    carried: list[float] = []
    for load in np.linspace(0.0, attainable_load(pipeline, sys.float_info.max), LOADS):
        configuration = solve(pipeline, float(load))
        rate = float(throughput(pipeline, configuration))
        if not carried or rate > carried[-1]:
            rungs.append(configuration)
            carried.append(rate)
    return Ladder(tuple(rungs), tuple(carried))
