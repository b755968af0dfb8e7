"""One emulated replica: a gRPC server that answers a batch once its service time is over."""

from __future__ import annotations

import asyncio
import logging

import grpc
import numpy as np
from grpc import aio
from mlserver.grpc import dataplane_pb2 as messages
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server

from opd.serving import metrics
from opd.serving.batching import check_request, rows
from opd.serving.emulation.settings import Failure, ReplicaSettings
from opd.serving.protocol import SERVER_OPTIONS, MalformedRequestError

logger = logging.getLogger(__name__)

VERSION = "emulated"
"""Version of the model in answers, and platform in its metadata."""

SECONDS, LATE = "emulated_seconds", "emulated_late_seconds"
"""Parameters of an answer: the service time that was drawn, and how much later the replica woke up."""


class EmulatedReplica(GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A replica within the running event loop: starting, then ready, until it is stopped.

    Like a real one it works on one batch after the other. It answers with the tensors that it gets, so that each caller
    can recognise its own.

    Args:
        settings: what it does.
        host: address to listen on.
    """

    def __init__(self, settings: ReplicaSettings, host: str) -> None:
        self.settings = settings
        self.failure: Failure = "none"
        self._loop = asyncio.get_running_loop()
        self._rng = np.random.default_rng(settings.seed)
        self._ready_at = self._loop.time() + settings.startup_seconds
        self._idle_at = 0.0
        self._server = aio.server(options=SERVER_OPTIONS)
        self._server.add_insecure_port(f"{host}:{settings.grpc_port}")
        add_GRPCInferenceServiceServicer_to_server(self, self._server)
        labels = settings.pipeline, settings.task, settings.variant
        self._observe_seconds = metrics.model_seconds.labels(*labels).observe
        self._observe_late = metrics.emulated_late.labels(*labels).observe

    async def start(self) -> None:
        """Listen; it is ready after its start-up time."""
        await self._server.start()

    async def stop(self, grace: float | None) -> None:
        """Refuse new requests and finish the running ones within ``grace`` seconds; None cancels them."""
        await self._server.stop(grace)

    @property
    def ready(self) -> bool:
        """Whether it has started up and answers."""
        return self._loop.time() >= self._ready_at and self.failure != "hang"

    async def ModelInfer(  # noqa: N802
        self, request: messages.ModelInferRequest, context: aio.ServicerContext
    ) -> messages.ModelInferResponse:
        """Answer a batch when its service time is over; a call that waits for another one begins after it."""
        arrived = self._loop.time()
        await self._hang()
        await self._require(request.model_name, context)
        try:
            check_request(request)
        except MalformedRequestError as error:
            await context.abort(error.code, str(error))
        seconds = self._draw(rows(request))
        self._idle_at = deadline = max(arrived, self._idle_at) + seconds
        answer = echo(request)  # made now, so that nothing is left to do at the deadline
        answer.parameters[SECONDS].string_param = f"{seconds:.9f}"
        await self._sleep_until(deadline)
        await self._hang()
        late = self._loop.time() - deadline
        self._observe_seconds(seconds + late)
        self._observe_late(late)
        answer.parameters[LATE].string_param = f"{late:.9f}"
        return garbled(answer) if self.failure == "garbage" else answer

    async def ModelReady(  # noqa: N802
        self, request: messages.ModelReadyRequest, context: aio.ServicerContext
    ) -> messages.ModelReadyResponse:
        """Tell whether it has started up."""
        await self._hang()
        return messages.ModelReadyResponse(ready=self.ready and request.name == self.settings.task)

    async def ServerLive(  # noqa: N802
        self, request: messages.ServerLiveRequest, context: aio.ServicerContext
    ) -> messages.ServerLiveResponse:
        """Tell that it runs."""
        await self._hang()
        return messages.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802
        self, request: messages.ServerReadyRequest, context: aio.ServicerContext
    ) -> messages.ServerReadyResponse:
        """Tell whether it has started up."""
        await self._hang()
        return messages.ServerReadyResponse(ready=self.ready)

    async def ModelMetadata(  # noqa: N802
        self, request: messages.ModelMetadataRequest, context: aio.ServicerContext
    ) -> messages.ModelMetadataResponse:
        """Name the model, and say that it is emulated."""
        await self._require(request.name, context)
        return messages.ModelMetadataResponse(name=request.name, versions=[VERSION], platform=f"opd-{VERSION}")

    def _draw(self, count: int) -> float:
        """Draw the seconds of a batch of ``count`` rows."""
        sigma = self.settings.noise
        factor = float(np.exp(sigma * self._rng.standard_normal() - sigma**2 / 2))
        return self.settings.mean_seconds(count) * factor

    async def _sleep_until(self, deadline: float) -> None:
        """Wait for an absolute time, so that no delay before it adds to the wait."""
        woken = self._loop.create_future()
        timer = self._loop.call_at(deadline, _wake, woken)
        try:
            await woken
        finally:
            timer.cancel()

    async def _hang(self) -> None:
        if self.failure == "hang":
            await self._loop.create_future()  # until the caller gives up

    async def _require(self, model: str, context: aio.ServicerContext) -> None:
        if model != self.settings.task:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"there is no model {model!r} here, only {self.settings.task!r}"
            )
        if not self.ready:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"model {model!r} is still starting")


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def echo(request: messages.ModelInferRequest) -> messages.ModelInferResponse:
    """Return an answer whose outputs are the inputs of a request: those that it selects, if it selects any of them."""
    answer = messages.ModelInferResponse(model_name=request.model_name, model_version=VERSION, id=request.id)
    selected = {output.name for output in request.outputs} & {tensor.name for tensor in request.inputs}
    for place, tensor in enumerate(request.inputs):
        if selected and tensor.name not in selected:
            continue
        contents = tensor.contents if tensor.HasField("contents") else None
        answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape, contents=contents)
        if request.raw_input_contents:
            answer.raw_output_contents.append(request.raw_input_contents[place])
    return answer


def garbled(answer: messages.ModelInferResponse) -> messages.ModelInferResponse:
    """Return an answer whose tensors have one row more than elements for it."""
    for output in answer.outputs:
        output.shape[0] += 1
    return answer


def stated_seconds(answer: messages.ModelInferResponse) -> tuple[float, float]:
    """Service time that was drawn for an answer, and how much later the replica woke up; seconds."""
    return float(answer.parameters[SECONDS].string_param), float(answer.parameters[LATE].string_param)
