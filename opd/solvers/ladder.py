"""Rungs of a ladder: the configurations that a solver finds for growing loads, in the order of what they carry."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from opd.objective import profiled_throughput, throughput
from opd.pipeline import Configuration, Pipeline
from opd.profiling.attainable import attainable_load
from opd.solvers.exact import Solve

LOADS = 128
"""Number of loads, evenly spaced up to the largest that the device carries, for which the rungs are solved."""


@dataclass(frozen=True)
class Ladder:
    """Configurations in the order of their throughput; a higher one costs more until the device has no more cores.

    Attributes:
        rungs: the configurations, K of them.
    """

    rungs: tuple[Configuration, ...]

    def throughput(self, pipeline: Pipeline) -> np.ndarray:
        """(K,) requests/s of each rung with the latencies of a pipeline; increasing with those it was built from."""
        return profiled_throughput(pipeline, np.array(self.rungs)).min(axis=1)

    def position(self, configuration: Configuration) -> int | None:
        """Position of a configuration, or None if it is no rung."""
        return self.rungs.index(configuration) if configuration in self.rungs else None


def lowest_carrying(throughput: np.ndarray, load: float) -> int:
    """Position of the first rung whose throughput (K,) reaches a load in requests/s; the fastest one if none does."""
    enough = np.flatnonzero(throughput >= load)
    return int(enough[0] if len(enough) else throughput.argmax())


def build_ladder(pipeline: Pipeline, solve: Solve) -> Ladder:
    """Solve for loads from 0 to the largest that the device carries, and keep each configuration that carries more.

    Args:
        pipeline: the pipeline.
        solve: a solver, such as :func:`opd.solvers.myopic` with its weights.
    """
    rungs: list[Configuration] = []
    carried = -np.inf
    for load in np.linspace(0.0, attainable_load(pipeline, sys.float_info.max), LOADS):
        configuration = solve(pipeline, float(load))
        rate = throughput(pipeline, configuration)
        if rate > carried:
            rungs.append(configuration)
            carried = rate
    return Ladder(tuple(rungs))
