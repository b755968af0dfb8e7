"""Pipelines in simpy and plain Python objects: a reference for the simulator and a peer to measure it against.

:class:`ReferenceSimulator` follows the same description and shares none of the method: here every arrival, batch, age
limit and start-up is an event on one clock, and all stages live at the same time. Service times are the profiled
ones, without noise. It is written to be a worthy opponent, with few events a request: a batch is one timeout, a
queue is looked at only when something can have changed, and one process watches the age of all requests.

:func:`simulate_queues` is the textbook's model of the simplest case, a ``simpy.Resource`` a stage.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import simpy
from simpy.events import EventPriority

from opd.measurement import SimulationParameters
from opd.pipeline import Configuration, Pipeline, StageConfiguration, Task, Variant

Process = Generator[simpy.Event, object, None]

ROUNDING = 1e-9
"""Seconds within which two instants are one: simpy takes delays, so its clock rounds."""

AFTER_ALL_ELSE = EventPriority(2)
"""Priority of an event that comes last among those of one instant; simpy itself uses 0 and 1."""


@dataclass(eq=False, slots=True)
class Request:
    """A request, with the time it entered the pipeline, the time it joined its present queue, and where it waits."""

    birth: float
    joined: float
    queue: Stage | None = None
    finished: bool = False


@dataclass(eq=False)
class Replica:
    """A replica that serves from ``ready`` until it ``leaves``; ``seconds`` a batch, by its size."""

    variant: Variant
    seconds: list[float]
    ready: float
    idle_from: float
    leaves: float = np.inf


@dataclass
class StageRecord:
    """What one stage did in one interval; ``overtaken`` requests joined after a younger one."""

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


class LastOfInstant(simpy.Event):
    """An event at this instant, after all others of it."""

    def __init__(self, clock: simpy.Environment, action: Callable[[simpy.Event], None]) -> None:
        super().__init__(clock)
        self.callbacks = [action]
        self._ok, self._value = True, None
        clock.schedule(self, AFTER_ALL_ELSE)


class Stage:
    """One task: a queue, its replicas and the handing of batches to them."""

    def __init__(
        self,
        clock: simpy.Environment,
        task: Task,
        max_batch_size: int,
        parameters: SimulationParameters,
        deliver: Callable[[list[Request]], None],
    ) -> None:
        self.clock = clock
        self.task = task
        self.parameters = parameters
        self.deliver = deliver
        self.waiting: deque[Request] = deque()
        self.replicas: list[Replica] = []
        self.in_service = 0
        self.record = StageRecord()
        sizes = range(1, max_batch_size + 1)
        # Profiled times by variant and batch size; entry 0 keeps the size as the index.
        self._seconds = [[0.0, *(variant.service_time(size) for size in sizes)] for variant in task.variants]
        self._will_look = False
        self._look_at = -np.inf
        self._youngest = -np.inf

    def start(self, configuration: StageConfiguration) -> None:
        """Begin with all replicas ready."""
        self._select(configuration)
        self.replicas = self._new_replicas(configuration.replicas, 0.0)

    def reconfigure(self, configuration: StageConfiguration) -> None:
        """Move to ``configuration`` at this instant."""
        now = self.clock.now
        self._select(configuration)
        present = [replica for replica in self.replicas if replica.leaves > now + ROUNDING]
        started = [replica for replica in present if replica.ready <= now + ROUNDING]
        wanted = [replica for replica in started if replica.variant is self.variant]
        wanted += [replica for replica in present if replica.variant is self.variant and replica not in started]
        kept = wanted[: configuration.replicas]
        new = self._new_replicas(configuration.replicas - len(kept), now + self.variant.startup_time)
        complete = max([now] + [replica.ready for replica in kept + new])
        for replica in kept:
            replica.leaves = np.inf
        bridging = [replica for replica in started if replica.variant is not self.variant]
        for replica in bridging:
            replica.leaves = complete
        self.replicas = [replica for replica in present if replica in kept or replica in bridging] + new
        if new:
            self._in(self.variant.startup_time, self.look)
        self.look()

    def join(self, requests: list[Request]) -> None:
        """Put requests into the queue, in order, unless they are too old already."""
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
        self.look()

    def drop(self, request: Request) -> None:
        """Give up a request that waits here."""
        self.waiting.remove(request)
        request.finished = True
        self.record.dropped += 1
        self.record.left += 1
        self.record.seconds += self.clock.now - request.joined
        self.look()

    def look(self) -> None:
        """Have the queue looked at once everything of this instant has happened."""
        if self.waiting and not self._will_look:
            self._will_look = True
            LastOfInstant(self.clock, self._hand_out)

    def ready_throughput(self, start: float, end: float) -> float:
        """Requests/s of the replicas, each for the share of the interval in which it was ready."""
        return sum(
            max(0.0, min(replica.leaves, end) - max(replica.ready, start))
            / (end - start)
            * (self.batch_size / replica.seconds[self.batch_size])
            for replica in self.replicas
        )

    def _select(self, configuration: StageConfiguration) -> None:
        self.variant = self.task.variants[configuration.variant]
        self.seconds = self._seconds[configuration.variant]
        self.batch_size = configuration.batch_size

    def _new_replicas(self, count: int, ready: float) -> list[Replica]:
        return [Replica(self.variant, self.seconds, ready, ready) for _ in range(count)]

    def _in(self, delay: float, action: Callable[[], None]) -> None:
        timer = self.clock.timeout(delay)
        assert timer.callbacks is not None
        timer.callbacks.append(lambda _: action())

    def _idle_replica(self) -> Replica | None:
        """The one that has been idle longest; ``idle_from`` is never before ``ready``."""
        now = self.clock.now + ROUNDING
        best = None
        for replica in self.replicas:
            if replica.idle_from <= now < replica.leaves and (best is None or replica.idle_from < best.idle_from):
                best = replica
        return best

    def _hand_out(self, _: simpy.Event) -> None:
        self._will_look = False
        while self.waiting and (replica := self._idle_replica()):
            if len(self.waiting) < self.batch_size:
                due = self.waiting[0].joined + self.parameters.batch_timeout
                if self.clock.now + ROUNDING < due:
                    self._look_again(due)
                    return
            self._serve(replica, min(self.batch_size, len(self.waiting)))

    def _look_again(self, due: float) -> None:
        """Look at the queue when its oldest request is due; one timer is enough for one instant."""
        if due != self._look_at:
            self._look_at = due
            self._in(due - self.clock.now, self.look)

    def _serve(self, replica: Replica, size: int) -> None:
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
        self._in(seconds, partial(self._finish, batch))

    def _finish(self, batch: list[Request]) -> None:
        self.in_service -= len(batch)
        self.deliver(batch)
        self.look()


class ReferenceSimulator:
    """One pipeline, started on ``configuration`` at time 0 and stepped by intervals.

    Args:
        pipeline: the pipeline to simulate.
        parameters: how the device behaves; service times have no noise here whatever they say.
        configuration: what runs at the start, all replicas ready.
    """

    def __init__(self, pipeline: Pipeline, parameters: SimulationParameters, configuration: Configuration) -> None:
        self.clock = simpy.Environment()
        self.parameters = parameters
        self.finished: list[float] = []
        # In order of birth, so that the first is the next that can become too old.
        self.unfinished: deque[Request] = deque()
        self._someone_came = self.clock.event()
        deliver: Callable[[list[Request]], None] = self._finish
        stages: list[Stage] = []
        for task in reversed(pipeline.tasks):
            stages.append(Stage(self.clock, task, pipeline.max_batch_size, parameters, deliver))
            deliver = stages[-1].join
        self.stages = stages[::-1]
        for stage, choice in zip(self.stages, configuration, strict=True):
            stage.start(choice)
        self.clock.process(self._watch_age())

    def step(self, configuration: Configuration, times: np.ndarray) -> IntervalRecord:
        """Apply ``configuration``, let requests arrive and run to the end of the interval.

        Args:
            configuration: what runs in the interval.
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
        record = IntervalRecord(len(times), self.finished)
        for stage in self.stages:
            done = stage.record
            record.stages.append(done)
            record.queue.append(len(stage.waiting))
            record.ready_throughput.append(stage.ready_throughput(start, end))
            record.task_latency.append(done.seconds / done.left if done.left else stage.seconds[1])
            record.inside += len(stage.waiting) + stage.in_service
        return record

    def _arrive(self, times: list[float]) -> Process:
        first = self.stages[0]
        for time in times:
            yield self.clock.timeout(max(0.0, time - self.clock.now))
            request = Request(time, time)
            self.unfinished.append(request)
            if not self._someone_came.triggered:
                self._someone_came.succeed()
            first.join([request])

    def _watch_age(self) -> Process:
        """Drop requests that wait when they reach the age limit; what is in service is judged when it joins a queue."""
        limit = self.parameters.drop_after
        while True:
            while self.unfinished and self._needs_no_watch(self.unfinished[0]):
                request = self.unfinished.popleft()
                if request.queue:
                    request.queue.drop(request)
            if self.unfinished:
                yield self.clock.timeout(self.unfinished[0].birth + limit - self.clock.now)
            else:
                self._someone_came = self.clock.event()
                yield self._someone_came

    def _needs_no_watch(self, request: Request) -> bool:
        return request.finished or request.birth + self.parameters.drop_after <= self.clock.now + ROUNDING

    def _finish(self, requests: list[Request]) -> None:
        now = self.clock.now
        for request in requests:
            request.finished = True
            self.finished.append(now - request.birth)


def simulate_queues(pipeline: Pipeline, configuration: Configuration, times: np.ndarray, end: float) -> np.ndarray:
    """The textbook's model: a ``simpy.Resource`` a stage, a process a request; no batches, no age limit, no change.

    Args:
        pipeline: the pipeline to simulate.
        configuration: what runs throughout, all replicas ready; batch sizes count as 1.
        times: (M,) arrivals in seconds, ascending.
        end: seconds at which the simulation stops.

    Returns:
        (M,) seconds from arrival to completion, NaN for requests that are not through at the end.
    """
    clock = simpy.Environment()
    stages = [
        (simpy.Resource(clock, stage.replicas), variant.service_time(1))
        for variant, stage in pipeline.selected(configuration)
    ]
    latencies = [np.nan] * len(times)

    def visit(number: int, birth: float) -> Process:
        for replicas, seconds in stages:
            with replicas.request() as turn:
                yield turn
                yield clock.timeout(seconds)
        latencies[number] = clock.now - birth

    def arrive() -> Process:
        for number, time in enumerate(times.tolist()):
            yield clock.timeout(time - clock.now)
            clock.process(visit(number, time))

    clock.process(arrive())
    clock.run(until=end)
    return np.array(latencies)
