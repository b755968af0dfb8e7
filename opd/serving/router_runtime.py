"""The runtime of the router: passes a request through the stages of the pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
from mlserver.types import InferenceRequest, InferenceResponse

from opd.serving import metrics
from opd.serving.client import Client
from opd.serving.protocol import (
    COMPLETED,
    FAILED,
    OUTCOMES,
    MalformedRequestError,
    QueueFullError,
    ReplicaFailedError,
    ServingError,
    StageUnreachableError,
    TooOldError,
    age_of,
    infer_response,
    outcome_of,
    payloads_of,
)
from opd.serving.runtime import Runtime

RETRY_SECONDS = 0.2
"""Pause between two attempts to reach a stage that is unavailable."""

_ERRORS: dict[grpc.StatusCode, type[ServingError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: MalformedRequestError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: QueueFullError,
    grpc.StatusCode.DEADLINE_EXCEEDED: TooOldError,
    grpc.StatusCode.ABORTED: ReplicaFailedError,
    grpc.StatusCode.UNAVAILABLE: StageUnreachableError,
}


class RouterRuntime(Runtime):
    """The pipeline behind one endpoint.

    Parameters: ``pipeline``; ``stages``, a list of ``task`` and ``address`` in the order in which
    a request visits them; ``drop_after``, age in seconds at which a waiting request is dropped; ``call_timeout``,
    seconds beyond that age for a replica to finish a request it has begun.
    """

    async def load(self) -> bool:
        """Create the clients of the stages, which need not be up yet."""
        self._stages = [Client(stage["address"], stage["task"]) for stage in self._parameters["stages"]]
        self._drop_after = float(self._parameters.get("drop_after", 10.0))
        self._call_timeout = float(self._parameters.get("call_timeout", 10.0))
        # Without a first value a series is absent, and an absent series does not mean zero load.
        metrics.requests.labels(self._parameters["pipeline"])
        metrics.latency.labels(self._parameters["pipeline"])
        for outcome in OUTCOMES:
            metrics.answers.labels(self._parameters["pipeline"], outcome)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Return the answers of the last stage; every outcome is counted, including cancellation by the caller."""
        loop = asyncio.get_running_loop()
        pipeline = self._parameters["pipeline"]
        arrived = loop.time()
        outcome = FAILED
        metrics.requests.labels(pipeline).inc()
        try:
            answers = await self._pass_through(payloads_of(payload), arrived - age_of(payload))
            outcome = COMPLETED
        except grpc.aio.AioRpcError as error:
            outcome = outcome_of(error.code())
            raise _ERRORS.get(error.code(), ServingError)(error.details() or error.code().name) from error
        finally:
            metrics.answers.labels(pipeline, outcome).inc()
        metrics.latency.labels(pipeline).observe(loop.time() - arrived)
        return infer_response(self.name, answers)

    async def _pass_through(self, payloads: Sequence[bytes], born: float) -> list[bytes]:
        answers = list(payloads)
        for stage in self._stages:
            answers = await self._ask(stage, answers, born)
        return answers

    async def _ask(self, stage: Client, payloads: Sequence[bytes], born: float) -> list[bytes]:
        """Return the stage's answers; an unavailable stage is retried until the request reaches its maximum age."""
        loop = asyncio.get_running_loop()
        while True:  # not by tenacity, which would add 0.1 ms to every call that succeeds
            age = max(loop.time() - born, 0.0)
            try:
                return await stage.infer(payloads, age, max(self._drop_after - age, 0.0) + self._call_timeout)
            except grpc.aio.AioRpcError as error:
                is_last = loop.time() - born + RETRY_SECONDS >= self._drop_after
                if error.code() != grpc.StatusCode.UNAVAILABLE or is_last:
                    raise
            await asyncio.sleep(RETRY_SECONDS)
