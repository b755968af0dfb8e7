"""Replicas that answer at once with what they were asked: ``python -m opd.live.echo_replicas PORT...``.

They cost next to nothing, so a benchmark of what stands in front of replicas can have many of them in one process.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence

from grpc import aio
from mlserver.grpc import dataplane_pb2 as messages
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server


class EchoServicer(GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers every model's requests with their own tensors."""

    async def ModelInfer(  # noqa: N802
        self, request: messages.ModelInferRequest, context: aio.ServicerContext
    ) -> messages.ModelInferResponse:
        """Answer a request."""
        answer = messages.ModelInferResponse(
            model_name=request.model_name, id=request.id, raw_output_contents=request.raw_input_contents
        )
        for tensor in request.inputs:
            answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        return answer

    async def ModelReady(  # noqa: N802
        self, request: messages.ModelReadyRequest, context: aio.ServicerContext
    ) -> messages.ModelReadyResponse:
        """Tell that it is ready."""
        return messages.ModelReadyResponse(ready=True)


async def serve(ports: Sequence[int]) -> None:
    """Serve at all ports of the loopback interface until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = aio.server(options=[("grpc.so_reuseport", 0)])
    add_GRPCInferenceServiceServicer_to_server(EchoServicer(), server)
    for port in ports:
        server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await stop.wait()
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(serve([int(port) for port in sys.argv[1:]]))
