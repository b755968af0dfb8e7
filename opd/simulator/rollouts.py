"""Rollouts: candidate configurations against futures, simulated from the present state of a pipeline."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from opd.measurement import Interval, SimulationParameters, StageState
from opd.pipeline import Pipeline
from opd.simulator import kernel
from opd.simulator.simulator import blank_interval, place_stages, roomy_state

PLANNED_LOAD = 1.1
"""Load that the later intervals of a rollout are planned for, in terms of the mean that comes in them. A solver that
knows the mean needs little reserve; with the largest second, as under a forecast, it would run more than it needs."""


class Continuation(NamedTuple):
    """Configurations of the later intervals of a rollout, by load.

    Attributes:
        loads: (L,) requests/s, ascending.
        table: (L, N, 3) the configuration for each of them.
    """

    loads: np.ndarray
    table: np.ndarray


class Arrivals(NamedTuple):
    """The requests of F futures of H intervals.

    Attributes:
        times: (F, M) ascending, in seconds from now, infinite after the last.
        loads: (F, H) requests/s that each interval is planned for.
    """

    times: np.ndarray
    loads: np.ndarray


class Rollouts(NamedTuple):
    """What came of C candidates in F futures of H intervals.

    Attributes:
        configurations: (C, F, H, N, 3) what ran.
        interval: the measurements, with leading axes (C, F, H).
    """

    configurations: np.ndarray
    interval: Interval


def draw_arrivals(counts: np.ndarray, interval: int, generator: np.random.Generator) -> Arrivals:
    """Spread the requests of each second uniformly over it.

    Args:
        counts: (F, T) requests of each second of each future, integers; H = T // interval.
        interval: seconds of an interval.
        generator: of the times.
    """
    futures, seconds = counts.shape
    largest = int(counts.sum(axis=1).max(initial=0))
    times = np.full((futures, largest + 1), np.inf)
    for f, row in enumerate(counts):
        whole = np.repeat(np.arange(seconds, dtype=float), row)
        times[f, : len(whole)] = np.sort(whole + generator.random(len(whole)))
    means = counts[:, : seconds - seconds % interval].reshape(futures, -1, interval).mean(axis=2)
    return Arrivals(times, PLANNED_LOAD * means)


class RolloutSimulator:
    """Simulates rollouts of one pipeline.

    Args:
        pipeline: the pipeline, N tasks.
        parameters: behaviour of the device; rollouts take mean service times.
        max_rate: largest number of requests in any one second of a future.
    """

    def __init__(self, pipeline: Pipeline, parameters: SimulationParameters, max_rate: int) -> None:
        self.pipeline, self.parameters, self.max_rate = pipeline, parameters, max_rate
        self._present = roomy_state(pipeline, parameters, 1, max_rate)
        self._scratch = roomy_state(pipeline, parameters, 1, max_rate)
        self._interval = blank_interval((1,), len(pipeline.tasks))
        self._factors = np.ones(1)
        self._generator = np.random.default_rng(0)

    def place(self, stages: tuple[StageState, ...]) -> None:
        """Set the state that rollouts begin with.

        Raises:
            ValueError: if more is under way than there is room for.
        """
        place_stages(self._present, stages)

    def run(self, candidates: np.ndarray, arrivals: Arrivals, continuation: Continuation) -> Rollouts:
        """Run candidates (C, N, 3) against all futures.

        Raises:
            RuntimeError: if a queue is full.
        """
        p, tasks = self.parameters, len(self.pipeline.tasks)
        shape = (len(candidates), *arrivals.loads.shape)
        record = blank_interval(shape, tasks)
        chosen = np.zeros((*shape, tasks, 3), dtype=np.int64)
        room = kernel.roll_out(
            self._present,
            self._scratch,
            candidates,
            arrivals.times,
            arrivals.loads,
            continuation.table,
            continuation.loads,
            self.pipeline.tables,
            float(p.interval),
            p.batch_timeout,
            p.drop_after,
            self.pipeline.service_level.seconds,
            self._factors,
            self._interval,
            record,
            chosen,
            self._generator,
        )
        if not room:
            raise RuntimeError(f"a queue of pipeline {self.pipeline.name!r} is full at {self.max_rate} requests/s")
        return Rollouts(chosen, record)
