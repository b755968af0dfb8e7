"""The queue of one stage: central, first in first out, in front of all replicas of the stage.

The rule is the simulator's: the replica that has been idle longest takes a batch when ``batch_size`` requests wait or
the oldest has waited ``batch_timeout``; a request older than ``drop_after`` is dropped. A batch ends before the first
request that cannot be joined with it, and does not wait for those behind. Everything is decided in one plain function
that runs at every event (a request joins, a replica becomes idle, a timer expires). No coroutine forms a batch, so
cancelling a request cannot take a batch with it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Coroutine, Hashable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import grpc
from mlserver.grpc.dataplane_pb2 import ModelInferRequest, ModelInferResponse

from opd.serving import metrics
from opd.serving.batching import join, rows, signature, split
from opd.serving.client import Client
from opd.serving.outcomes import COMPLETED, DROPPED, FAILED, OUTCOMES, REJECTED
from opd.serving.protocol import (
    MAX_MESSAGE_BYTES,
    MalformedRequestError,
    QueueFullError,
    ReplicaFailedError,
    ServingError,
    TooOldError,
)
from opd.serving.replicas import Replica, ReplicaEndpoint
from opd.serving.settings import StageSettings

logger = logging.getLogger(__name__)

PROBE_SECONDS = 0.5
"""Interval between two probes of a failed replica, and the timeout of a probe."""

# The replica is gone or hangs; any other status is the model's answer to its input.
_GONE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}


@dataclass(eq=False)
class QueuedRequest:
    """A request at the stage; times are those of the event loop's clock.

    Attributes:
        message: input of the model.
        born: time at which it entered the pipeline.
        joined: time at which it joined the queue.
        expires: time at which it is dropped if it still waits.
        answer: future of its answer.
        failed_with: the replica that has failed with it, if one has.
    """

    message: ModelInferRequest = field(repr=False)
    born: float
    joined: float
    expires: float
    answer: asyncio.Future[ModelInferResponse] = field(repr=False)
    failed_with: Replica | None = field(default=None, repr=False)

    @property
    def retried(self) -> bool:
        """Whether a replica has failed with it."""
        return self.failed_with is not None

    @cached_property
    def signature(self) -> Hashable:
        """What requests of one batch have in common."""
        return signature(self.message)


class StageQueue:
    """The queue of a stage and the replicas behind it, within one event loop.

    Args:
        pipeline: name of the pipeline, for the metrics.
        task: name of the task, for the metrics.
        settings: how batches are formed.
        connect: creates the client of an address.
    """

    def __init__(self, pipeline: str, task: str, settings: StageSettings, connect: Callable[[str], Client]) -> None:
        self.settings = settings
        self._connect = connect
        self._labels = (pipeline, task)
        self._waiting: deque[QueuedRequest] = deque()
        self._next_expiry = math.inf  # no later than the first expiry of a waiting request
        self._replicas: list[Replica] = []
        self._variants: set[str] = set()
        self._idle: deque[Replica] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # Without a first value a series is absent, and an absent series does not mean zero load.
        self._requests = metrics.stage_requests.labels(*self._labels)
        self._latency = metrics.stage_latency.labels(*self._labels)
        self._length = metrics.stage_queue.labels(*self._labels)
        self._waits = metrics.stage_wait.labels(*self._labels)
        self._sizes = metrics.stage_batch.labels(*self._labels)
        self._outcomes = {outcome: metrics.stage_answers.labels(*self._labels, outcome) for outcome in OUTCOMES}

    async def submit(self, message: ModelInferRequest, age: float = 0.0) -> ModelInferResponse:
        """Queue one request and wait for its answer.

        Args:
            message: input of the model, checked (:func:`opd.serving.batching.check_request`); it belongs to the queue
                from now on.
            age: seconds since the request entered the pipeline.

        Raises:
            QueueFullError: if the queue is full.
            TooOldError: if the request was dropped for its age.
            MalformedRequestError: if the model refused the request.
            ReplicaFailedError: if two replicas failed with the request.
            ServingError: if the model failed on it.
        """
        self._requests.inc()
        if len(self._waiting) >= self.settings.max_queue:
            self._count(REJECTED)
            raise QueueFullError(
                f"stage {self._labels[1]!r}: {len(self._waiting)} requests wait, the limit is "
                f"{self.settings.max_queue}; send less, or configure more replicas"
            )
        loop = asyncio.get_running_loop()
        now = loop.time()
        born = now - age
        request = QueuedRequest(message, born, now, born + self.settings.drop_after, loop.create_future())
        self._waiting.append(request)
        self._note_expiry(request)
        self._dispatch()
        try:
            return await request.answer
        except asyncio.CancelledError:  # the caller has gone; a request that a replica works on is finished anyway
            if request in self._waiting:
                self._waiting.remove(request)
                self._count(FAILED)
            raise

    def configure(self, batch_size: int, endpoints: Collection[ReplicaEndpoint]) -> None:
        """Switch to these replicas and this batch size; waiting and running requests are not affected.

        Args:
            batch_size: requests in one call to a replica.
            endpoints: all replicas. A known one stays as it is; one that is no longer listed finishes its batch and is
                removed.

        Raises:
            ValueError: if the batch size is below 1.
        """
        self.settings = StageSettings(**{**self.settings.model_dump(), "batch_size": batch_size})
        known = {replica.endpoint.identity: replica for replica in self._replicas if not replica.retired}
        wanted = {endpoint.identity: endpoint for endpoint in endpoints}
        for identity in known.keys() - wanted.keys():
            self._retire(known[identity])
        for identity, endpoint in wanted.items():
            if identity in known:
                known[identity].endpoint = endpoint
            else:
                self._replicas.append(Replica(endpoint, self._connect(endpoint.address)))
                self._idle.append(self._replicas[-1])
        self._count_replicas()
        self._dispatch()

    def status(self) -> dict[str, Any]:
        """Report batch size, waiting requests, and every replica that serves or finishes its last batch."""
        return {
            "batch_size": self.settings.batch_size,
            "waiting": len(self._waiting),
            "replicas": [
                {**asdict(r.endpoint), "serving": r.serving, "retired": r.retired, "failed": r.failed and not r.garbled}
                for r in self._replicas
            ],
        }

    # --------------------------------------------------------------------------------------------- dispatching

    def _dispatch(self) -> None:
        """Give a batch to every idle replica while one is due, and set the timer for the next decision."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._drop_expired(now)
        due = math.inf
        while self._waiting and (replica := self._next_replica()):
            size, may_grow = self._next_batch()
            due = self._waiting[0].joined + self.settings.batch_timeout
            if may_grow and now < due:
                break
            due = math.inf
            self._idle.remove(replica)
            batch = self._take_batch(size, now)
            replica.serving = len(batch)
            self._spawn(self._serve(replica, batch))
        self._length.set(len(self._waiting))
        if self._waiting:
            self._timer = loop.call_at(min(due, self._next_expiry), self._dispatch)

    def _next_replica(self) -> Replica | None:
        """Return the replica idle longest; the one that has failed with the next request only if no other works."""
        spared = self._waiting[0].failed_with
        found = next((replica for replica in self._idle if replica is not spared), None)
        if found or not self._idle:
            return found
        works = any(r is not spared and not (r.failed or r.retired) for r in self._replicas)
        return None if works else self._idle[0]

    def _next_batch(self) -> tuple[int, bool]:
        """Return the number of requests that the next batch can have now, and whether later ones could still join."""
        head = self._waiting[0]
        # A request is retried alone: if it caused the failure, no other request fails with it.
        limit = 1 if head.retried else self.settings.batch_size
        size = 1
        if limit > 1:
            total = head.message.ByteSize()
            for request in islice(self._waiting, 1, limit):
                total += request.message.ByteSize()
                if request.signature != head.signature or total > MAX_MESSAGE_BYTES:
                    return size, False
                size += 1
        return size, size < limit

    def _note_expiry(self, request: QueuedRequest) -> None:
        self._next_expiry = min(self._next_expiry, request.expires)

    def _drop_expired(self, now: float) -> None:
        """Drop requests that have reached the age limit; they need not be first in the queue."""
        # Compares with the same number that the timer is set to: another sum could round to "too young" forever.
        if now < self._next_expiry:
            return
        waiting, self._waiting, self._next_expiry = self._waiting, deque(), math.inf
        for request in waiting:
            if now < request.expires:
                self._waiting.append(request)
                self._note_expiry(request)
            else:
                self._fail(request, TooOldError(f"waited longer than {self.settings.drop_after:g} s in the pipeline"))

    def _take_batch(self, size: int, now: float) -> list[QueuedRequest]:
        batch = [self._waiting.popleft() for _ in range(size)]
        for request in batch:
            self._waits.observe(now - request.joined)
        return batch

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)  # the event loop keeps only a weak reference
        task.add_done_callback(self._tasks.discard)

    # ---------------------------------------------------------------------------------------------- serving

    async def _serve(self, replica: Replica, batch: list[QueuedRequest]) -> None:
        try:
            await self._call(replica, batch)
        except Exception as error:  # no error may leave a request without an answer
            logger.exception("stage %s: replica %s", self._labels[1], replica.endpoint.name)
            for request in batch:
                self._fail(request, ServingError(f"the stage failed: {error}"))
        replica.serving = 0
        if replica.retired:
            self._remove(replica)
        elif not replica.failed:
            self._idle.append(replica)
        self._dispatch()

    async def _call(self, replica: Replica, batch: list[QueuedRequest]) -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        request = join([queued.message for queued in batch])
        try:
            answer = await replica.client.infer(request, begin - batch[0].born, self.settings.call_timeout)
        except grpc.aio.AioRpcError as error:
            await self._recover(replica, batch, error)
            return
        now = loop.time()
        metrics.stage_service.labels(*self._labels, replica.endpoint.variant).observe(now - begin)
        self._sizes.observe(len(batch))
        metrics.stage_batches.labels(*self._labels, replica.endpoint.variant, len(batch)).inc()
        try:
            answers = split(answer, [rows(queued.message) for queued in batch], self._labels[1])
        except ServingError as error:
            self._distrust(replica, batch, error)
            return
        for queued, part in zip(batch, answers, strict=True):
            part.id = queued.message.id
            if not queued.answer.done():
                queued.answer.set_result(part)
            self._latency.observe(now - queued.joined)
            self._count(COMPLETED)

    async def _recover(self, replica: Replica, batch: list[QueuedRequest], error: grpc.aio.AioRpcError) -> None:
        code, details = error.code(), error.details() or ""
        if code in _GONE:
            self._retry_elsewhere(replica, batch, details)
        elif len(batch) > 1:
            # One bad request must not fail the others.
            for index, request in enumerate(batch):
                if replica.failed:
                    self._retry_elsewhere(replica, batch[index:], details)
                    return
                await self._call(replica, [request])
        elif code == grpc.StatusCode.INVALID_ARGUMENT:
            self._fail(batch[0], MalformedRequestError(details))
        else:
            self._fail(batch[0], ServingError(f"the model failed ({code.name}): {details}"))

    def _distrust(self, replica: Replica, batch: list[QueuedRequest], error: ServingError) -> None:
        """Let another replica answer what this one answered with garbage; a request that gets that twice fails."""
        if batch[0].retried:  # alone; it is the request that the model cannot answer
            self._fail(batch[0], error)
            return
        replica.garbled = True
        self._retry_elsewhere(replica, batch, str(error))

    def _retry_elsewhere(self, replica: Replica, batch: list[QueuedRequest], details: str) -> None:
        logger.warning("stage %s: replica %s does not serve: %s", self._labels[1], replica.endpoint.name, details)
        if not replica.failed and not replica.retired:
            replica.failed = True
            self._count_replicas()
            self._spawn(self._probe(replica))
        for request in reversed(batch):
            if request.retried:
                self._fail(request, ReplicaFailedError(f"two replicas failed with this request; the last: {details}"))
            else:
                request.failed_with = replica
                metrics.stage_retries.labels(*self._labels).inc()
                self._waiting.appendleft(request)
                self._note_expiry(request)

    async def _probe(self, replica: Replica) -> None:
        """Probe a failed replica until it answers or is retired."""
        if replica.garbled:  # it would answer at once
            await asyncio.sleep(PROBE_SECONDS)
        while not replica.retired:
            answers = not replica.serving and await replica.client.ready(PROBE_SECONDS)
            if answers and not replica.retired:  # it may be retired during the call
                replica.failed = replica.garbled = False
                self._idle.append(replica)
                self._count_replicas()
                self._dispatch()
                return
            await asyncio.sleep(PROBE_SECONDS)

    # --------------------------------------------------------------------------------------------- replicas

    def _retire(self, replica: Replica) -> None:
        replica.retired = True
        if replica in self._idle:
            self._idle.remove(replica)
        if not replica.serving:
            self._remove(replica)

    def _remove(self, replica: Replica) -> None:
        self._replicas.remove(replica)
        self._spawn(replica.client.close())

    def _count_replicas(self) -> None:
        working: defaultdict[str, float] = defaultdict(float)
        for replica in self._replicas:
            if not (replica.retired or replica.failed):
                working[replica.endpoint.variant] += replica.endpoint.share
        self._variants |= set(working)
        for variant in self._variants:
            metrics.stage_replicas.labels(*self._labels, variant).set(working[variant])

    # -------------------------------------------------------------------------------------------- outcomes

    def _fail(self, request: QueuedRequest, error: ServingError) -> None:
        if request.answer.done():
            return
        request.answer.set_exception(error)
        self._count(DROPPED if isinstance(error, TooOldError) else FAILED)

    def _count(self, outcome: str) -> None:
        self._outcomes[outcome].inc()
