"""A client of a model server: one persistent gRPC channel, and a timeout on every call."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
from mlserver.grpc import dataplane_pb2 as messages
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

from opd.serving.protocol import GRPC_MESSAGE_BYTES, set_age

CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", GRPC_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", GRPC_MESSAGE_BYTES),
    # Reconnects to a restarted server within a second; the default backs off to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Calls to different servers must not share one connection's fate.
    ("grpc.use_local_subchannel_pool", 1),
    # Servers are on the loopback interface or in the cluster; the environment's proxies are for neither.
    ("grpc.enable_http_proxy", 0),
)

Result = TypeVar("Result")


def complete(calls: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to completion from synchronous code, even inside a running event loop, as in a notebook."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, calls).result()


class Client:
    """Calls one model of one server, within the event loop that is running when it is created.

    Args:
        address: ``host:port`` of the server's gRPC endpoint.
        model: name of the model there.
    """

    def __init__(self, address: str, model: str) -> None:
        self.address, self.model = address, model
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = GRPCInferenceServiceStub(self._channel)

    async def infer(
        self, request: messages.ModelInferRequest, age: float, timeout: float
    ) -> messages.ModelInferResponse:
        """Send a request.

        Args:
            request: to send; the model's name and the age are set in it, not in a copy.
            age: seconds since the request entered the pipeline.
            timeout: seconds the call may take.

        Raises:
            grpc.aio.AioRpcError: with the status of a call that failed.
        """
        request.model_name = self.model
        set_age(request, age)
        return await self._stub.ModelInfer(request, timeout=timeout)

    async def ready(self, timeout: float) -> bool:
        """Check whether the server answers within ``timeout`` seconds and has the model loaded."""
        try:
            answer = await self._stub.ModelReady(messages.ModelReadyRequest(name=self.model), timeout=timeout)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.ready)

    async def close(self) -> None:
        """Close the channel; running calls are cancelled."""
        await self._channel.close()
