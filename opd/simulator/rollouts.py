"""Rollouts: candidate configurations against futures, simulated from the present state of a pipeline."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from opd.measurement import Interval, SimulationParameters, StageState
from opd.pipeline import Pipeline
from opd.simulator import kernel
from opd.simulator.simulator import blank_interval, device_of, empty_state, most_replicas, place_stages

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

    def part(self, first: int, last: int) -> Arrivals:
        """The futures from number ``first`` up to ``last``, that one excluded."""
        return Arrivals(self.times[first:last], self.loads[first:last])


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
        parameters: behaviour of the device.
    """

    def __init__(self, pipeline: Pipeline, parameters: SimulationParameters) -> None:
        self._pipeline, self._device = pipeline, device_of(pipeline, parameters)
        self._interval = blank_interval((1,), len(pipeline.tasks))
        self._make_room(1)

    def _make_room(self, requests: int) -> None:
        """Make queues of ``requests`` places or more."""
        shape = len(self._pipeline.tasks), requests, most_replicas(self._pipeline)
        self._present, self._scratch = empty_state(1, *shape), empty_state(1, *shape)

    def place(self, stages: tuple[StageState, ...], arrivals: Arrivals) -> None:
        """Set the state that rollouts begin with, with room for what arrives in them."""
        present = sum(len(stage.waiting) + len(stage.in_service) for stage in stages)
        needed = present + arrivals.times.shape[1]
        if needed > self._present.queue_time.shape[2]:
            self._make_room(2 * needed)
        place_stages(self._present, stages)

    def run(
        self, candidates: np.ndarray, arrivals: Arrivals, continuation: Continuation, generator: np.random.Generator
    ) -> Rollouts:
        """Run candidates (C, N, 3) against all futures; the generator draws service times."""
        tasks = len(self._pipeline.tasks)
        shape = (len(candidates), *arrivals.loads.shape)
        record, chosen = blank_interval(shape, tasks), np.zeros((*shape, tasks, 3), dtype=np.int64)
        kernel.roll_out(
            self._present,
            self._scratch,
            candidates,
            arrivals,
            continuation,
            self._pipeline.tables,
            self._device,
            self._interval,
            record,
            chosen,
            generator,
        )
        return Rollouts(chosen, record)
