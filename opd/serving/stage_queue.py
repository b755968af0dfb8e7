"""The queue of one stage: central, first in first out, in front of all replicas of the stage.

The same rule as in the simulator: the replica that has been idle longest takes a batch when ``batch_size`` requests
wait or the oldest has waited ``batch_timeout``; a request older than ``drop_after`` is given up. Everything is decided
in one plain function that runs whenever something happens (a request joins, a replica becomes idle, a timer ends), so
there is no coroutine forming a batch that a cancelled request could take with it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import grpc
from pydantic import Field

from opd.documents import DocumentModel
from opd.serving import metrics
from opd.serving.protocol import (
    COMPLETED,
    DROPPED,
    FAILED,
    OUTCOMES,
    REJECTED,
    MalformedRequestError,
    QueueFullError,
    ReplicaFailedError,
    ServingError,
    TooOldError,
)

logger = logging.getLogger(__name__)

PROBE_SECONDS = 0.5
"""Between two looks at whether a replica that failed answers again."""

# A replica that is gone or hangs; anything else is an answer of the model about what it was sent.
_GONE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}


class StageSettings(DocumentModel):
    """How a stage forms batches."""

    batch_size: int = Field(default=1, ge=1)
    """Requests in one call to a replica."""

    batch_timeout: float = Field(default=0.25, ge=0.0)
    """Seconds the oldest request waits for its batch to fill."""

    drop_after: float = Field(default=10.0, ge=0.0)
    """Age in seconds at which a waiting request is dropped."""

    max_queue: int = Field(default=1000, ge=1)
    """Requests that may wait; the next one is rejected."""

    call_timeout: float = Field(default=10.0, ge=0.0)
    """Seconds a replica may take for a batch before it counts as failed."""

    @property
    def request_seconds(self) -> float:
        """The longest that a request lives: it is not given up yet when a replica takes it, which then finishes it."""
        return self.drop_after + self.call_timeout


class Server(Protocol):
    """Whatever answers batches: :class:`opd.serving.client.Client`."""

    async def infer(self, payloads: Sequence[bytes], age: float, timeout: float) -> list[bytes]:
        """One answer to each payload."""
        ...

    async def ready(self, timeout: float) -> bool:
        """Whether it takes requests."""
        ...

    async def close(self) -> None:
        """Let go of it."""
        ...


class ReplicaEndpoint(NamedTuple):
    """Where a replica is: its name, the variant it runs and the ``host:port`` of its gRPC endpoint."""

    name: str
    variant: str
    address: str


@dataclass(eq=False)
class Replica:
    """One server of the stage's variant.

    Attributes:
        place: where it is.
        server: how to call it.
        serving: requests in its hands.
        retired: it gets no more work.
        failed: it did not answer and gets no work until it does.
    """

    place: ReplicaEndpoint
    server: Server
    serving: int = 0
    retired: bool = False
    failed: bool = False


@dataclass(eq=False)
class _Request:
    payload: bytes
    born: float
    joined: float
    expires: float
    answer: asyncio.Future[bytes] = field(repr=False)
    tried: bool = False


class StageQueue:
    """The queue and the replicas behind it, within one event loop.

    Args:
        pipeline: its name, for the metrics.
        task: likewise.
        settings: how batches form.
        connect: makes the :class:`Server` at an address.
    """

    def __init__(self, pipeline: str, task: str, settings: StageSettings, connect: Callable[[str], Server]) -> None:
        self.settings = settings
        self._connect = connect
        self._labels = (pipeline, task)
        self._waiting: deque[_Request] = deque()
        self._oldest_expires = math.inf  # nobody who waits reaches the age limit before
        self._replicas: list[Replica] = []
        self._variants: set[str] = set()
        self._idle: deque[Replica] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # A series that nobody has counted is absent, which must not be mistaken for a load of zero.
        metrics.stage_requests.labels(*self._labels)
        metrics.stage_latency.labels(*self._labels)
        metrics.stage_queue.labels(*self._labels)
        for outcome in OUTCOMES:
            metrics.stage_answers.labels(*self._labels, outcome)

    async def submit(self, payload: bytes, age: float = 0.0) -> bytes:
        """Wait for the answer to one request.

        Args:
            payload: what the model gets.
            age: seconds since the request entered the pipeline.

        Raises:
            QueueFullError: if too many wait already.
            TooOldError: if it was given up for its age.
            MalformedRequestError: if the model refused it.
            ReplicaFailedError: if two replicas failed with it.
            ServingError: if the model failed on it.
        """
        metrics.stage_requests.labels(*self._labels).inc()
        if len(self._waiting) >= self.settings.max_queue:
            self._count(REJECTED)
            raise QueueFullError(
                f"stage {self._labels[1]!r}: {len(self._waiting)} requests wait, the limit is "
                f"{self.settings.max_queue}; send less, or configure more replicas"
            )
        loop = asyncio.get_running_loop()
        now = loop.time()
        born = now - age
        request = _Request(payload, born, now, born + self.settings.drop_after, loop.create_future())
        self._waiting.append(request)
        self._watch_age(request)
        self._dispatch()
        try:
            return await request.answer
        except asyncio.CancelledError:  # the caller has gone; in a replica's hands it is finished all the same
            if request in self._waiting:
                self._waiting.remove(request)
                self._count(FAILED)
            raise

    def configure(self, batch_size: int, places: Collection[ReplicaEndpoint]) -> None:
        """Serve from now on with these replicas and this batch size; requests that wait or run stay.

        Args:
            batch_size: requests a replica takes at once.
            places: of all replicas. One that is known stays as it is, one that is no longer named finishes its batch
                and is let go.

        Raises:
            ValueError: if the batch size is below 1.
        """
        self.settings = StageSettings(**{**self.settings.model_dump(), "batch_size": batch_size})
        known = {replica.place: replica for replica in self._replicas if not replica.retired}
        for place in known.keys() - set(places):
            self._retire(known[place])
        for place in dict.fromkeys(places):
            if place not in known:
                self._replicas.append(Replica(place, self._connect(place.address)))
                self._idle.append(self._replicas[-1])
        self._count_replicas()
        self._dispatch()

    def status(self) -> dict[str, Any]:
        """What there is: batch size, requests waiting, and every replica that serves or finishes its last batch."""
        return {
            "batch_size": self.settings.batch_size,
            "waiting": len(self._waiting),
            "replicas": [
                {**r.place._asdict(), "serving": r.serving, "retired": r.retired, "failed": r.failed}
                for r in self._replicas
            ],
        }

    # ------------------------------------------------------------------------------------------ who takes what

    def _dispatch(self) -> None:
        """Give work to every idle replica for which there is a batch, and set the timer for what comes next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._give_up_old(now)
        while self._waiting and self._idle:
            size = self._size_of_next()
            due = self._waiting[0].joined + self.settings.batch_timeout
            if len(self._waiting) < size and now < due:
                break
            self._begin(self._idle.popleft(), self._take_batch(size, now))
        metrics.stage_queue.labels(*self._labels).set(len(self._waiting))
        if self._waiting:
            due = self._waiting[0].joined + self.settings.batch_timeout if self._idle else math.inf
            self._timer = loop.call_at(min(due, self._oldest_expires), self._dispatch)

    def _watch_age(self, request: _Request) -> None:
        self._oldest_expires = min(self._oldest_expires, request.expires)

    def _give_up_old(self, now: float) -> None:
        """Give up whoever has reached the age limit, wherever it waits: ages need not be in the order of the queue."""
        # The very figure that the timer is set to: by another sum, rounding could find one too young for ever.
        if now < self._oldest_expires:
            return
        everyone, self._waiting, self._oldest_expires = self._waiting, deque(), math.inf
        for request in everyone:
            if now < request.expires:
                self._waiting.append(request)
                self._watch_age(request)
            else:
                self._fail(request, TooOldError(f"waited longer than {self.settings.drop_after:g} s in the pipeline"))

    def _size_of_next(self) -> int:
        # What a replica failed with is tried again alone: if it was the cause, it takes no neighbour with it.
        return 1 if self._waiting[0].tried else self.settings.batch_size

    def _take_batch(self, size: int, now: float) -> list[_Request]:
        batch = [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))]
        for request in batch:
            metrics.stage_wait.labels(*self._labels).observe(now - request.joined)
        return batch

    def _begin(self, replica: Replica, batch: list[_Request]) -> None:
        replica.serving = len(batch)
        self._spawn(self._serve(replica, batch))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._tasks.discard)

    # ---------------------------------------------------------------------------------------------- serving

    async def _serve(self, replica: Replica, batch: list[_Request]) -> None:
        try:
            await self._call(replica, batch)
        except Exception as error:  # whatever it was, nobody may be left without an answer
            logger.exception("stage %s: replica %s", self._labels[1], replica.place.name)
            for request in batch:
                self._fail(request, ServingError(f"the stage failed: {error}"))
        replica.serving = 0
        if replica.retired:
            self._let_go(replica)
        elif not replica.failed:
            self._idle.append(replica)
        self._dispatch()

    async def _call(self, replica: Replica, batch: list[_Request]) -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        payloads = [request.payload for request in batch]
        try:
            answers = await replica.server.infer(payloads, begin - batch[0].born, self.settings.call_timeout)
        except grpc.aio.AioRpcError as error:
            await self._recover(replica, batch, error)
            return
        now = loop.time()
        metrics.stage_service.labels(*self._labels, replica.place.variant).observe(now - begin)
        metrics.stage_batch.labels(*self._labels).observe(len(batch))
        if len(answers) != len(batch):
            raise ServingError(f"replica {replica.place.name!r} gave {len(answers)} answers to {len(batch)} requests")
        for request, answer in zip(batch, answers, strict=True):
            if not request.answer.done():
                request.answer.set_result(answer)
            metrics.stage_latency.labels(*self._labels).observe(now - request.joined)
            self._count(COMPLETED)

    async def _recover(self, replica: Replica, batch: list[_Request], error: grpc.aio.AioRpcError) -> None:
        code, details = error.code(), error.details() or ""
        if code in _GONE:
            self._try_elsewhere(replica, batch, details)
        elif len(batch) > 1:
            # One bad payload must not fail its neighbours.
            for place, request in enumerate(batch):
                if replica.failed:
                    self._try_elsewhere(replica, batch[place:], details)
                    return
                await self._call(replica, [request])
        elif code == grpc.StatusCode.INVALID_ARGUMENT:
            self._fail(batch[0], MalformedRequestError(details))
        else:
            self._fail(batch[0], ServingError(f"the model failed ({code.name}): {details}"))

    def _try_elsewhere(self, replica: Replica, batch: list[_Request], details: str) -> None:
        logger.warning("stage %s: replica %s does not answer: %s", self._labels[1], replica.place.name, details)
        if not replica.failed and not replica.retired:
            replica.failed = True
            self._count_replicas()
            self._spawn(self._wait_until_it_answers(replica))
        for request in reversed(batch):
            if request.tried:
                self._fail(request, ReplicaFailedError(f"two replicas failed with this request; the last: {details}"))
            else:
                request.tried = True
                metrics.stage_retries.labels(*self._labels).inc()
                self._waiting.appendleft(request)
                self._watch_age(request)

    async def _wait_until_it_answers(self, replica: Replica) -> None:
        while not replica.retired:
            if await self._answers(replica):
                replica.failed = False
                self._idle.append(replica)
                self._count_replicas()
                self._dispatch()
                return
            await asyncio.sleep(PROBE_SECONDS)

    async def _answers(self, replica: Replica) -> bool:
        # It may be retired while it is asked.
        return not replica.serving and await replica.server.ready(PROBE_SECONDS) and not replica.retired

    # --------------------------------------------------------------------------------------------- replicas

    def _retire(self, replica: Replica) -> None:
        replica.retired = True
        if replica in self._idle:
            self._idle.remove(replica)
        if not replica.serving:
            self._let_go(replica)

    def _let_go(self, replica: Replica) -> None:
        self._replicas.remove(replica)
        self._spawn(replica.server.close())

    def _count_replicas(self) -> None:
        working = Counter(r.place.variant for r in self._replicas if not (r.retired or r.failed))
        self._variants |= set(working)
        for variant in self._variants:
            metrics.stage_replicas.labels(*self._labels, variant).set(working[variant])

    # -------------------------------------------------------------------------------------------- outcomes

    def _fail(self, request: _Request, error: ServingError) -> None:
        if request.answer.done():
            return
        request.answer.set_exception(error)
        self._count(DROPPED if isinstance(error, TooOldError) else FAILED)

    def _count(self, outcome: str) -> None:
        metrics.stage_answers.labels(*self._labels, outcome).inc()
