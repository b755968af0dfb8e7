"""The runtimes of stages and routers, which are MLServer models.

Parameters come from :class:`opd.serving.settings.ServerSettings`.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import grpc
from mlserver.grpc.dataplane_pb2 import ModelInferRequest, ModelInferResponse
from mlserver.handlers import custom_handler
from pydantic import BaseModel, Field

from opd.serving import metrics
from opd.serving.adapters import load_adapter, next_request
from opd.serving.batching import check_request
from opd.serving.client import Client
from opd.serving.message_server import MessageRuntime
from opd.serving.protocol import (
    COMPLETED,
    ERRORS,
    FAILED,
    OUTCOMES,
    MalformedRequestError,
    ServingError,
    age_of,
    outcome_of,
)
from opd.serving.settings import StageSettings
from opd.serving.stage_queue import ReplicaEndpoint, StageQueue

RETRY_SECONDS = 0.2
"""Pause between two attempts of the router to reach a stage that is unavailable."""


class DesiredStage(BaseModel):
    """Desired state of a stage."""

    batch_size: int = Field(ge=1)
    replicas: list[ReplicaEndpoint]


class QueueRuntime(MessageRuntime):
    """One stage of the pipeline behind one endpoint.

    Parameters: ``pipeline``, ``task`` and ``settings``, those of :class:`StageSettings`.
    """

    async def load(self) -> bool:
        """Open the queue; its replicas are set by :meth:`configure`."""
        pipeline, task = self._parameters["pipeline"], self._parameters["task"]
        settings = StageSettings(**self._parameters.get("settings", {}))
        self._queue = StageQueue(pipeline, task, settings, partial(Client, model=task))
        return True

    async def infer(self, request: ModelInferRequest) -> ModelInferResponse:
        """Queue the request and answer once it is served."""
        answer = await self._queue.submit(request, age_of(request))
        answer.model_name = self.name
        return answer

    @custom_handler(rest_path="/stage", rest_method="PUT")
    async def configure(self, desired: DesiredStage) -> dict[str, Any]:
        """Switch to these replicas and this batch size."""
        self._queue.configure(desired.batch_size, desired.replicas)
        return self._queue.status()

    @custom_handler(rest_path="/stage", rest_method="GET")
    async def status(self) -> dict[str, Any]:
        """Report the state of the stage."""
        return self._queue.status()


class RouterRuntime(MessageRuntime):
    """The pipeline behind one endpoint.

    Parameters: ``pipeline``; ``stages``, a list of ``task``, ``address`` and, where needed, ``adapter``
    (:mod:`opd.serving.adapters`) in the order in which a request visits them; ``drop_after``, age in seconds at which a
    waiting request is dropped; ``call_timeout``, seconds beyond that age for a replica to finish a request that it has
    begun; ``objective``, seconds of the service level: requests that are completed within them are counted.
    """

    async def load(self) -> bool:
        """Create the clients of the stages, which need not be up yet."""
        self._stages = [
            (load_adapter(stage.get("adapter"), stage["task"]), Client(stage["address"], stage["task"]))
            for stage in self._parameters["stages"]
        ]
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

    async def infer(self, request: ModelInferRequest) -> ModelInferResponse:
        """Return the answer of the last stage; every outcome is counted, including cancellation by the caller."""
        loop = asyncio.get_running_loop()
        pipeline = self._parameters["pipeline"]
        arrived = loop.time()
        outcome = FAILED
        metrics.requests.labels(pipeline).inc()
        try:
            check_request(request)
            answer = await self._walk(request, arrived - age_of(request))
            outcome = COMPLETED
        except ServingError as error:
            outcome = outcome_of(error.code)
            raise
        finally:
            metrics.answers.labels(pipeline, outcome).inc()
        seconds = loop.time() - arrived
        metrics.latency.labels(pipeline).observe(seconds)
        if seconds <= self._objective:
            metrics.within.labels(pipeline).inc()
        return answer

    async def _walk(self, request: ModelInferRequest, born: float) -> ModelInferResponse:
        """Send a request through all stages; the outputs it selects are those of the last."""
        selected = list(request.outputs)
        del request.outputs[:]
        adapt, stage = self._stages[0]
        try:
            message = adapt(request)
        except ServingError as error:  # it is the request that is not as the first adapter needs it
            raise MalformedRequestError(str(error)) from error
        for adapt, following in self._stages[1:]:
            answer = await self._ask(stage, message, born)
            message, stage = adapt(next_request(answer, request)), following
        message.outputs.extend(selected)
        answer = await self._ask(stage, message, born)
        _select(answer, [output.name for output in selected])
        answer.model_name, answer.id = self.name, request.id
        return answer

    async def _ask(self, stage: Client, request: ModelInferRequest, born: float) -> ModelInferResponse:
        """Return the stage's answer; an unavailable stage is retried until the request reaches its maximum age.

        Raises:
            ServingError: of the class for the status of the call; its message names the stage.
        """
        loop = asyncio.get_running_loop()
        while True:  # not by tenacity, which would add 0.1 ms to every call that succeeds
            age = max(loop.time() - born, 0.0)
            try:
                return await stage.infer(request, age, max(self._drop_after - age, 0.0) + self._call_timeout)
            except grpc.aio.AioRpcError as error:
                is_last = loop.time() - born + RETRY_SECONDS >= self._drop_after
                if error.code() != grpc.StatusCode.UNAVAILABLE or is_last:
                    raise _stage_error(stage.model, error) from error
            await asyncio.sleep(RETRY_SECONDS)


def _stage_error(task: str, error: grpc.aio.AioRpcError) -> ServingError:
    details = error.details() or error.code().name
    named = details if details.startswith("stage ") else f"stage {task!r}: {details}"
    return ERRORS.get(error.code(), ServingError)(named)


def _select(answer: ModelInferResponse, names: list[str]) -> None:
    """Leave only the outputs of these names in an answer, in this order; all of them if none is named.

    Raises:
        MalformedRequestError: if there is no such output.
    """
    places = {output.name: place for place, output in enumerate(answer.outputs)}
    missing = [name for name in names if name not in places]
    if missing:
        raise MalformedRequestError(
            f"the pipeline has no output {missing[0]!r}; select among {', '.join(map(repr, places))}"
        )
    if not names or names == list(places):
        return
    outputs, raw = list(answer.outputs), list(answer.raw_output_contents)
    del answer.outputs[:], answer.raw_output_contents[:]
    answer.outputs.extend(outputs[places[name]] for name in names)
    if raw:
        answer.raw_output_contents.extend(raw[places[name]] for name in names)
