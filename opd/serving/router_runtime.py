"""The runtime in front: walks a request through the stages of the pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
from mlserver import MLModel
from mlserver.settings import ModelSettings
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

RETRY_SECONDS = 0.2
"""Between two attempts to reach a stage that is not there."""

_ERRORS: dict[grpc.StatusCode, type[ServingError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: MalformedRequestError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: QueueFullError,
    grpc.StatusCode.DEADLINE_EXCEEDED: TooOldError,
    grpc.StatusCode.ABORTED: ReplicaFailedError,
    grpc.StatusCode.UNAVAILABLE: StageUnreachableError,
}


class RouterRuntime(MLModel):
    """The pipeline behind one endpoint.

    Parameters of the model settings: ``pipeline``; ``stages``, a list of ``task`` and ``address`` in the order a
    request visits them; ``drop_after``, seconds after which a request is given up; ``call_timeout``, seconds by which
    a stage may pass that while replicas finish.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self._parameters: dict[str, Any] = dict(settings.parameters.extra or {})  # type: ignore[union-attr]

    async def load(self) -> bool:
        """Connect to the stages; they need not be there yet."""
        self._stages = [Client(stage["address"], stage["task"]) for stage in self._parameters["stages"]]
        self._drop_after = float(self._parameters.get("drop_after", 10.0))
        self._call_timeout = float(self._parameters.get("call_timeout", 10.0))
        # A series that nobody has counted is absent, which must not be mistaken for a load of zero.
        metrics.requests.labels(self._parameters["pipeline"])
        metrics.latency.labels(self._parameters["pipeline"])
        for outcome in OUTCOMES:
            metrics.answers.labels(self._parameters["pipeline"], outcome)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer with what the last stage says; every end of a request is counted, a caller's leaving too."""
        loop = asyncio.get_running_loop()
        pipeline = self._parameters["pipeline"]
        arrived = loop.time()
        outcome = FAILED
        metrics.requests.labels(pipeline).inc()
        try:
            answers = await self._walk(payloads_of(payload), arrived - age_of(payload))
            outcome = COMPLETED
        except grpc.aio.AioRpcError as error:
            outcome = outcome_of(error.code())
            raise _ERRORS.get(error.code(), ServingError)(error.details() or error.code().name) from error
        finally:
            metrics.answers.labels(pipeline, outcome).inc()
        metrics.latency.labels(pipeline).observe(loop.time() - arrived)
        return infer_response(self.name, answers)

    async def _walk(self, payloads: Sequence[bytes], born: float) -> list[bytes]:
        answers = list(payloads)
        for stage in self._stages:
            answers = await self._ask(stage, answers, born)
        return answers

    async def _ask(self, stage: Client, payloads: Sequence[bytes], born: float) -> list[bytes]:
        """The stage's answers; while the stage cannot be reached it is tried again, as long as the request is young."""
        loop = asyncio.get_running_loop()
        while True:
            age = max(loop.time() - born, 0.0)
            try:
                return await stage.infer(payloads, age, max(self._drop_after - age, 0.0) + self._call_timeout)
            except grpc.aio.AioRpcError as error:
                young = loop.time() - born + RETRY_SECONDS < self._drop_after
                if error.code() != grpc.StatusCode.UNAVAILABLE or not young:
                    raise
            await asyncio.sleep(RETRY_SECONDS)
