"""Inference service that answers or fails as the payload says."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
from mlserver.grpc import dataplane_pb2 as messages
from mlserver.grpc import dataplane_pb2_grpc as services

from opd.serving.contents import PAYLOAD, payloads_of
from opd.serving.tensors import answer_of

CODES = {
    b"full": grpc.StatusCode.RESOURCE_EXHAUSTED,
    b"old": grpc.StatusCode.DEADLINE_EXCEEDED,
    b"wrong": grpc.StatusCode.INVALID_ARGUMENT,
    b"gone": grpc.StatusCode.UNAVAILABLE,
}


class ScriptedService(services.GRPCInferenceServiceServicer):
    """Answers a payload in capitals, or fails as the payload says.

    Args:
        stalled: requests that must have come before any is answered.
    """

    def __init__(self, stalled: int = 0) -> None:
        self.asked = 0
        self._stalled = stalled
        self._goes_on = asyncio.Event()

    async def has_been_asked(self, times: int) -> None:
        """Wait for so many requests."""
        while self.asked < times:
            await asyncio.sleep(0.01)

    async def ModelReady(self, request, context):  # noqa: N802
        return messages.ModelReadyResponse(ready=request.name == "pipeline")

    async def ModelInfer(self, request, context):  # noqa: N802
        self.asked += 1
        (payload,) = payloads_of(request)
        if self.asked >= self._stalled:
            self._goes_on.set()
        await self._goes_on.wait()
        if payload == b"hang":
            await asyncio.sleep(60.0)
        if payload == b"empty":
            return messages.ModelInferResponse()
        if payload in CODES:
            await context.abort(CODES[payload], f"refused: {payload.decode()}")
        return answer_of({PAYLOAD: [payload.upper()]}, raw=False)


@contextlib.asynccontextmanager
async def serving(service):
    server = grpc.aio.server()
    services.add_GRPCInferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
