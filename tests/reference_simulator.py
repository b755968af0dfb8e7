"""A second simulation of a pipeline, in simpy and plain Python objects, to judge ``opd.simulation`` by.

It follows the same description and shares none of the method: here every arrival, batch, age limit and
start-up is an event on one clock, and all stages live at the same time. Service times are the
profiled ones, without noise.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import simpy

from opd.pipeline import Configuration, Pipeline, StageConfiguration, Task, Variant
from opd.simulation import SimulationParameters

Process = Generator[simpy.Event, object, None]

ROUNDING = 1e-9
"""Seconds within which two instants are one: simpy takes delays, so its clock rounds."""


@dataclass(eq=False)
class Request:
    """A request, with the time it entered the pipeline and the time it joined its present queue."""

    birth: float
    joined: float


@dataclass(eq=False)
class Replica:
    """A replica that serves from ``ready`` until it ``leaves``."""

    variant: Variant
    ready: float
    idle_from: float
    leaves: float = np.inf

    def is_idle(self, now: float) -> bool:
        """Whether it could take a batch."""
        return max(self.ready, self.idle_from) <= now + ROUNDING and now + ROUNDING < self.leaves


@dataclass
class StageRecord:
    """What one stage did in one interval."""

    left: int = 0
    seconds: float = 0.0
    dropped: int = 0
    partial_batches: int = 0
    overtaken: int = 0
    served_by_previous_variant: int = 0


@dataclass
class IntervalRecord:
    """What the whole pipeline did in one interval; ``inside`` is what was accepted and has no answer yet."""

    offered: int
    latencies: list[float] = field(default_factory=list)
    stages: list[StageRecord] = field(default_factory=list)
    queue: list[int] = field(default_factory=list)
    ready_throughput: list[float] = field(default_factory=list)
    task_latency: list[float] = field(default_factory=list)
    inside: int = 0

    @property
    def dropped(self) -> int:
        """Requests given up for their age."""
        return sum(stage.dropped for stage in self.stages)

    @property
    def latency_mean(self) -> float:
        """Mean seconds from arrival to completion, 0 if nothing completed."""
        return float(np.mean(self.latencies)) if self.latencies else 0.0

    @property
    def latency_p99(self) -> float:
        """The smallest latency that at least 99 % of the requests do not exceed, 0 if nothing completed."""
        ordered = sorted(self.latencies)
        enough = (place for place in range(1, len(ordered) + 1) if 100 * place >= 99 * len(ordered))
        return ordered[next(enough) - 1] if ordered else 0.0


class Stage:
    """One task: a queue, its replicas and the process that hands batches to them."""

    def __init__(
        self,
        clock: simpy.Environment,
        task: Task,
        parameters: SimulationParameters,
        deliver: Callable[[list[Request]], None],
    ) -> None:
        self.clock = clock
        self.task = task
        self.parameters = parameters
        self.deliver = deliver
        self.waiting: list[Request] = []
        self.replicas: list[Replica] = []
        self.in_service = 0
        self.record = StageRecord()
        self._changed = clock.event()
        clock.process(self._work_off())

    def start(self, configuration: StageConfiguration) -> None:
        """Begin with all replicas ready."""
        self._select(configuration)
        self.replicas = [Replica(self.variant, 0.0, 0.0) for _ in range(configuration.replicas)]

    def reconfigure(self, configuration: StageConfiguration) -> None:
        """Move to ``configuration`` at this instant."""
        now = self.clock.now
        self._select(configuration)
        present = [replica for replica in self.replicas if replica.leaves > now + ROUNDING]
        started = [replica for replica in present if replica.ready <= now + ROUNDING]
        wanted = [replica for replica in started if replica.variant is self.variant]
        wanted += [replica for replica in present if replica.variant is self.variant and replica not in started]
        kept = wanted[: configuration.replicas]
        ready = now + self.variant.startup_time
        new = [Replica(self.variant, ready, ready) for _ in range(configuration.replicas - len(kept))]
        complete = max([now] + [replica.ready for replica in kept + new])
        for replica in kept:
            replica.leaves = np.inf
        bridging = [replica for replica in started if replica.variant is not self.variant]
        for replica in bridging:
            replica.leaves = complete
        self.replicas = [replica for replica in present if replica in kept or replica in bridging] + new
        for replica in new:
            self._notify_in(replica.ready - now)
        self.notify()

    def join(self, requests: Iterable[Request]) -> None:
        """Put requests into the queue, in order, unless they are too old already."""
        limit = self.parameters.drop_after
        for request in requests:
            request.joined = self.clock.now
            self.record.overtaken += any(request.birth < other.birth for other in self.waiting)
            self.waiting.append(request)
            age = self.clock.now - request.birth
            if age > limit:
                self._drop(request)
            else:
                self._in(limit - age, partial(self._drop, request))
                self._notify_in(self.parameters.batch_timeout)
        self.notify()

    def notify(self) -> None:
        """Have the queue looked at again once everything of this instant has happened."""
        if not self._changed.triggered:
            self._changed.succeed()

    def ready_throughput(self, start: float, end: float) -> float:
        """Requests/s of the replicas, each for the share of the interval in which it was ready."""
        return sum(
            max(0.0, min(replica.leaves, end) - max(replica.ready, start))
            / (end - start)
            * replica.variant.throughput(self.batch_size)
            for replica in self.replicas
        )

    def _select(self, configuration: StageConfiguration) -> None:
        self.variant = self.task.variants[configuration.variant]
        self.batch_size = configuration.batch_size

    def _in(self, delay: float, action: Callable[[], None]) -> None:
        timer = self.clock.timeout(delay)
        assert timer.callbacks is not None
        timer.callbacks.append(lambda _: action())

    def _notify_in(self, delay: float) -> None:
        self._in(delay, self.notify)

    def _drop(self, request: Request) -> None:
        if request in self.waiting:
            self.waiting.remove(request)
            self.record.dropped += 1
            self.record.left += 1
            self.record.seconds += self.clock.now - request.joined
            self.notify()

    def _work_off(self) -> Process:
        while True:
            yield self._changed
            self._changed = self.clock.event()
            yield self.clock.timeout(0)
            self._hand_out()

    def _hand_out(self) -> None:
        now = self.clock.now
        while self.waiting:
            oldest_is_due = now + ROUNDING >= self.waiting[0].joined + self.parameters.batch_timeout
            idle = [replica for replica in self.replicas if replica.is_idle(now)]
            if not idle or not (oldest_is_due or len(self.waiting) >= self.batch_size):
                return
            replica = min(idle, key=lambda candidate: candidate.idle_from)
            batch, self.waiting = self.waiting[: self.batch_size], self.waiting[self.batch_size :]
            seconds = replica.variant.service_time(len(batch))
            replica.idle_from = now + seconds
            self.in_service += len(batch)
            self.record.left += len(batch)
            self.record.seconds += sum(now + seconds - request.joined for request in batch)
            self.record.partial_batches += len(batch) < self.batch_size
            self.record.served_by_previous_variant += replica.variant is not self.variant
            self.clock.process(self._serve(batch, seconds))

    def _serve(self, batch: list[Request], seconds: float) -> Process:
        yield self.clock.timeout(seconds)
        self.in_service -= len(batch)
        self.deliver(batch)
        self.notify()


class ReferenceSimulator:
    """One pipeline, started on ``configuration`` at time 0 and stepped by intervals."""

    def __init__(self, pipeline: Pipeline, parameters: SimulationParameters, configuration: Configuration) -> None:
        self.clock = simpy.Environment()
        self.parameters = parameters
        self.finished: list[float] = []
        deliver: Callable[[list[Request]], None] = self._finish
        stages: list[Stage] = []
        for task in reversed(pipeline.tasks):
            stages.append(Stage(self.clock, task, parameters, deliver))
            deliver = stages[-1].join
        self.stages = stages[::-1]
        for stage, choice in zip(self.stages, configuration, strict=True):
            stage.start(choice)

    def step(self, configuration: Configuration, times: np.ndarray) -> IntervalRecord:
        """Apply ``configuration``, let requests arrive at ``times`` and run to the end of the interval."""
        start = self.clock.now
        end = start + self.parameters.interval
        self.finished = []
        for stage, choice in zip(self.stages, configuration, strict=True):
            stage.record = StageRecord()
            stage.reconfigure(choice)
        self.clock.process(self._arrive(times.tolist()))
        self.clock.run(until=end)
        record = IntervalRecord(len(times), self.finished)
        for stage in self.stages:
            done = stage.record
            record.stages.append(done)
            record.queue.append(len(stage.waiting))
            record.ready_throughput.append(stage.ready_throughput(start, end))
            record.task_latency.append(done.seconds / done.left if done.left else stage.variant.service_time(1))
            record.inside += len(stage.waiting) + stage.in_service
        return record

    def _arrive(self, times: list[float]) -> Process:
        for time in times:
            yield self.clock.timeout(max(0.0, time - self.clock.now))
            self.stages[0].join([Request(time, time)])

    def _finish(self, requests: list[Request]) -> None:
        self.finished.extend(self.clock.now - request.birth for request in requests)
