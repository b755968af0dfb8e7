"""Pipelines in simpy and plain Python objects: a reference for our simulator, and a peer for its speed.

:class:`ReferenceSimulator` follows the same specification with another method: every arrival, batch, age limit and
start-up is an event on one clock, and all stages run at the same time. Service times are the profiled ones, without
noise. It is written to be fast, with few events per request: a batch is one timeout, a queue is checked only when
something may have changed, and one process watches the age of all requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import simpy
from simpy.events import EventPriority

from opd.measurement import SimulationParameters
from opd.pipeline import Configuration, Pipeline, StageConfiguration, Task, Variant

Process = Generator[simpy.Event, object, None]

ROUNDING = 1e-9
"""Seconds within which two instants are equal: simpy adds up delays, so its clock rounds."""

AFTER_ALL_ELSE = EventPriority(2)
"""Priority of an event that comes last at its instant; simpy itself uses 0 and 1."""


@dataclass(eq=False, slots=True)
class Request:
    """A request: when it entered the pipeline, when it joined its current queue, and which queue that is."""

    birth: float
    joined: float
    queue: Stage | None = None
    finished: bool = False


@dataclass(eq=False)
class SimulatedReplica:
    """A replica that serves from ``ready`` until it ``leaves``, with ``seconds`` per batch by batch size."""

    variant: Variant
    seconds: list[float]
    ready: float
    idle_from: float
    leaves: float = np.inf


@dataclass
class StageRecord:
    """Measurements of one stage in one interval; ``overtaken`` requests joined after a younger one.

    ``seconds`` is the sum over the requests that ``left``. The last four are known at the end of the interval.
    """

    left: int = 0
    seconds: float = 0.0
    dropped: int = 0
    partial_batches: int = 0
    overtaken: int = 0
    served_by_previous_variant: int = 0
    queue: int = 0
    in_service: int = 0
    latency: float = 0.0
    ready_throughput: float = 0.0


class IntervalRecord(NamedTuple):
    """Measurements of the pipeline in one interval: requests offered, latencies in seconds, and every stage."""

    offered: int
    latencies: list[float]
    stages: list[StageRecord]

    @property
    def dropped(self) -> int:
        """Requests given up for their age."""
        return sum(stage.dropped for stage in self.stages)

    @property
    def latency_mean(self) -> float:
        """Mean seconds from arrival to completion, 0 if nothing completed."""
        return float(np.mean(self.latencies)) if self.latencies else 0.0


class Stage:
    """One task: a queue, its replicas, which are all ready at the start, and the dispatch of batches to them."""

    def __init__(
        self,
        clock: simpy.Environment,
        task: Task,
        max_batch_size: int,
        configuration: StageConfiguration,
        parameters: SimulationParameters,
        deliver: Callable[[list[Request]], None],
    ) -> None:
        self.clock = clock
        self.task = task
        self.parameters = parameters
        self.deliver = deliver
        self.waiting: deque[Request] = deque()
        self.in_service = 0
        self.record = StageRecord()
        sizes = range(1, max_batch_size + 1)
        # Profiled times by variant and batch size; entry 0 keeps the size as the index.
        self._seconds = [[0.0, *(variant.service_time(size) for size in sizes)] for variant in task.variants]
        self._check_pending = False
        self._next_check = -np.inf
        self._youngest = -np.inf
        self._select(configuration)
        self.replicas = self._new_replicas(configuration.replicas, 0.0)

    def reconfigure(self, configuration: StageConfiguration) -> None:
        """Move to ``configuration`` at this instant."""
        now = self.clock.now
        self._select(configuration)
        present = [replica for replica in self.replicas if replica.leaves > now + ROUNDING]
        started = [replica for replica in present if replica.ready <= now + ROUNDING]
        started_first = started + [replica for replica in present if replica not in started]
        kept = [replica for replica in started_first if replica.variant is self.variant][: configuration.replicas]
        new = self._new_replicas(configuration.replicas - len(kept), now + self.variant.startup_time)
        complete = max([now] + [replica.ready for replica in kept + new])
        for replica in kept:
            replica.leaves = np.inf
        bridging = [replica for replica in started if replica.variant is not self.variant]
        for replica in bridging:
            replica.leaves = complete
        self.replicas = [replica for replica in present if replica in kept or replica in bridging] + new
        if new:
            self._after(self.variant.startup_time, self.check)
        self.check()

    def join(self, requests: list[Request]) -> None:
        """Add requests to the queue, in order, unless they are already too old."""
        now, record = self.clock.now, self.record
        oldest_birth = now - self.parameters.drop_after
        for request in requests:
            if request.birth < oldest_birth:
                request.finished = True
                record.dropped += 1
                record.left += 1
                continue
            request.joined = now
            request.queue = self
            if request.birth < self._youngest:
                record.overtaken += 1
            else:
                self._youngest = request.birth
            self.waiting.append(request)
        self.check()

    def drop(self, request: Request) -> None:
        """Drop a request that waits here."""
        self.waiting.remove(request)
        request.finished = True
        self.record.dropped += 1
        self.record.left += 1
        self.record.seconds += self.clock.now - request.joined
        self.check()

    def check(self) -> None:
        """Schedule a check of the queue after all other events of this instant."""
        if self.waiting and not self._check_pending:
            self._check_pending = True
            last = simpy.Event(self.clock)
            last.callbacks = [self._dispatch]
            last._ok, last._value = True, None
            self.clock.schedule(last, AFTER_ALL_ELSE)

    def complete_record(self, start: float, end: float) -> StageRecord:
        """Complete the record of an interval; a replica's throughput counts for the share in which it was ready."""
        record = self.record
        record.queue, record.in_service = len(self.waiting), self.in_service
        record.latency = record.seconds / record.left if record.left else self.seconds[1]
        record.ready_throughput = sum(
            max(0.0, min(replica.leaves, end) - max(replica.ready, start))
            / (end - start)
            * (self.batch_size / replica.seconds[self.batch_size])
            for replica in self.replicas
        )
        return record

    def _select(self, configuration: StageConfiguration) -> None:
        self.variant = self.task.variants[configuration.variant]
        self.seconds = self._seconds[configuration.variant]
        self.batch_size = configuration.batch_size

    def _new_replicas(self, count: int, ready: float) -> list[SimulatedReplica]:
        return [SimulatedReplica(self.variant, self.seconds, ready, ready) for _ in range(count)]

    def _after(self, delay: float, action: Callable[[], None]) -> None:
        timer = self.clock.timeout(delay)
        assert timer.callbacks is not None
        timer.callbacks.append(lambda _: action())

    def _idle_replica(self) -> SimulatedReplica | None:
        """The replica that has been idle longest; ``idle_from`` is never before ``ready``."""
        now = self.clock.now + ROUNDING
        best = None
        for replica in self.replicas:
            if replica.idle_from <= now < replica.leaves and (best is None or replica.idle_from < best.idle_from):
                best = replica
        return best

    def _dispatch(self, _: simpy.Event) -> None:
        self._check_pending = False
        while self.waiting and (replica := self._idle_replica()):
            if len(self.waiting) < self.batch_size:
                due = self.waiting[0].joined + self.parameters.batch_timeout
                if self.clock.now + ROUNDING < due:
                    if due != self._next_check:  # one timer is enough per instant
                        self._next_check = due
                        self._after(due - self.clock.now, self.check)
                    return
            self._serve(replica, min(self.batch_size, len(self.waiting)))

    def _serve(self, replica: SimulatedReplica, size: int) -> None:
        now, record = self.clock.now, self.record
        seconds = replica.seconds[size]
        batch = [self.waiting.popleft() for _ in range(size)]
        for request in batch:
            request.queue = None
            record.seconds += now + seconds - request.joined
        replica.idle_from = now + seconds
        self.in_service += size
        record.left += size
        record.partial_batches += size < self.batch_size
        record.served_by_previous_variant += replica.variant is not self.variant
        self._after(seconds, partial(self._finish, batch))

    def _finish(self, batch: list[Request]) -> None:
        self.in_service -= len(batch)
        self.deliver(batch)
        self.check()


class ReferenceSimulator:
    """One pipeline, started on ``configuration`` at time 0 and stepped by intervals.

    Args:
        pipeline: the pipeline to simulate.
        parameters: behaviour of the device, without its service noise.
        configuration: running at the start, with all replicas ready.
    """

    def __init__(self, pipeline: Pipeline, parameters: SimulationParameters, configuration: Configuration) -> None:
        self.clock = simpy.Environment()
        self.parameters = parameters
        self.finished: list[float] = []
        # By age, so that the first one is the next to become too old.
        self.unfinished: deque[Request] = deque()
        self._arrival = self.clock.event()
        deliver: Callable[[list[Request]], None] = self._finish
        self.stages: list[Stage] = []
        for task, choice in zip(pipeline.tasks[::-1], configuration[::-1], strict=True):
            self.stages.insert(0, Stage(self.clock, task, pipeline.max_batch_size, choice, parameters, deliver))
            deliver = self.stages[0].join
        self.clock.process(self._watch_age())

    def step(self, configuration: Configuration, times: np.ndarray) -> IntervalRecord:
        """Apply ``configuration``, let requests arrive and run to the end of the interval.

        Args:
            configuration: for the interval.
            times: (M,) seconds since time 0, ascending, within the interval.
        """
        start = self.clock.now
        end = start + self.parameters.interval
        self.finished = []
        for stage, choice in zip(self.stages, configuration, strict=True):
            stage.record = StageRecord()
            stage.reconfigure(choice)
        self.clock.process(self._arrive(times.tolist()))
        self.clock.run(until=end)
        return IntervalRecord(len(times), self.finished, [stage.complete_record(start, end) for stage in self.stages])

    def _arrive(self, times: list[float]) -> Process:
        first = self.stages[0]
        for time in times:
            yield self.clock.timeout(max(0.0, time - self.clock.now))
            request = Request(time, time)
            self.unfinished.append(request)
            if not self._arrival.triggered:
                self._arrival.succeed()
            first.join([request])

    def _watch_age(self) -> Process:
        """Drop waiting requests at the age limit; requests in service are checked when they join the next queue."""
        limit = self.parameters.drop_after
        while True:
            now = self.clock.now + ROUNDING
            while self.unfinished and (self.unfinished[0].finished or self.unfinished[0].birth + limit <= now):
                request = self.unfinished.popleft()
                if request.queue:
                    request.queue.drop(request)
            if self.unfinished:
                yield self.clock.timeout(self.unfinished[0].birth + limit - self.clock.now)
            else:
                self._arrival = self.clock.event()
                yield self._arrival

    def _finish(self, requests: list[Request]) -> None:
        now = self.clock.now
        for request in requests:
            request.finished = True
            self.finished.append(now - request.birth)
