"""The runtimes of stages and routers, which are MLServer models.

Parameters come from :class:`opd.serving.settings.ServerSettings`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

import grpc
from mlserver import MLModel
from mlserver.handlers import custom_handler
from mlserver.settings import ModelSettings
from mlserver.types import InferenceRequest, InferenceResponse
from pydantic import BaseModel, Field

from opd.serving import metrics
from opd.serving.client import Client
from opd.serving.protocol import (
    COMPLETED,
    ERRORS,
    FAILED,
    OUTCOMES,
    ServingError,
    age_of,
    infer_response,
    outcome_of,
    payloads_of,
)
from opd.serving.settings import StageSettings
from opd.serving.stage_queue import ReplicaEndpoint, StageQueue

RETRY_SECONDS = 0.2
"""Pause between two attempts of the router to reach a stage that is unavailable."""


class Runtime(MLModel):
    """Base of the runtimes."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self._parameters: dict[str, Any] = dict(settings.parameters.extra or {})  # type: ignore[union-attr]


class DesiredStage(BaseModel):
    """Desired state of a stage."""

    batch_size: int = Field(ge=1)
    replicas: list[ReplicaEndpoint]


class QueueRuntime(Runtime):
    """One stage of the pipeline behind one endpoint.

    Parameters: ``pipeline``, ``task`` and ``settings``, those of :class:`StageSettings`.
    """

    async def load(self) -> bool:
        """Open the queue; its replicas are set by :meth:`configure`."""
        pipeline, task = self._parameters["pipeline"], self._parameters["task"]
        settings = StageSettings(**self._parameters.get("settings", {}))
        self._queue = StageQueue(pipeline, task, settings, partial(Client, model=task))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Queue the payloads and answer once all of them are served."""
        age = age_of(payload)
        requests = [self._queue.submit(element, age) for element in payloads_of(payload)]
        return infer_response(self.name, await asyncio.gather(*requests))

    @custom_handler(rest_path="/stage", rest_method="PUT")
    async def configure(self, desired: DesiredStage) -> dict[str, Any]:
        """Switch to these replicas and this batch size."""
        self._queue.configure(desired.batch_size, desired.replicas)
        return self._queue.status()

    @custom_handler(rest_path="/stage", rest_method="GET")
    async def status(self) -> dict[str, Any]:
        """Report the state of the stage."""
        return self._queue.status()


class RouterRuntime(Runtime):
    """The pipeline behind one endpoint.

    Parameters: ``pipeline``; ``stages``, a list of ``task`` and ``address`` in the order in which a request visits
    them; ``drop_after``, age in seconds at which a waiting request is dropped; ``call_timeout``, seconds beyond that
    age for a replica to finish a request it has begun; ``objective``, seconds of the service level: requests that are
    completed within them are counted.
    """

    async def load(self) -> bool:
        """Create the clients of the stages, which need not be up yet."""
        self._stages = [Client(stage["address"], stage["task"]) for stage in self._parameters["stages"]]
        self._drop_after = float(self._parameters.get("drop_after", 10.0))
        self._call_timeout = float(self._parameters.get("call_timeout", 10.0))
        self._objective = float(self._parameters["objective"])
        # Without a first value a series is absent, and an absent series does not mean zero load.
        metrics.requests.labels(self._parameters["pipeline"])
        metrics.latency.labels(self._parameters["pipeline"])
        metrics.within.labels(self._parameters["pipeline"])
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
            answers, born = payloads_of(payload), arrived - age_of(payload)
            for stage in self._stages:
                answers = await self._ask(stage, answers, born)
            outcome = COMPLETED
        except grpc.aio.AioRpcError as error:
            outcome = outcome_of(error.code())
            raise ERRORS.get(error.code(), ServingError)(error.details() or error.code().name) from error
        finally:
            metrics.answers.labels(pipeline, outcome).inc()
        seconds = loop.time() - arrived
        metrics.latency.labels(pipeline).observe(seconds)
        if seconds <= self._objective:
            metrics.within.labels(pipeline).inc()
        return infer_response(self.name, answers)

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
