"""A client of a model server: one persistent gRPC channel, and a timeout on every call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
from mlserver.grpc import dataplane_pb2 as messages
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

from opd.serving.protocol import GRPC_MESSAGE_BYTES, PING_SECONDS, set_age

CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", GRPC_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", GRPC_MESSAGE_BYTES),
    # Reconnects to a restarted server within a second; the default backs off to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", int(1000 * PING_SECONDS)),  # what an attempt may take on a busy machine
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", int(1000 * PING_SECONDS)),
    ("grpc.keepalive_timeout_ms", int(1000 * PING_SECONDS)),
    ("grpc.http2.max_pings_without_data", 0),
    # Calls to different servers must not share one connection's fate.
    ("grpc.use_local_subchannel_pool", 1),
    # Servers are on the loopback interface or in the cluster; the environment's proxies are for neither.
    ("grpc.enable_http_proxy", 0),
)

_RETRY = {
    "name": [{"service": "inference.GRPCInferenceService"}],
    "waitForReady": True,
    "retryPolicy": {
        "maxAttempts": 5,
        "initialBackoff": "0.5s",
        "maxBackoff": "4s",
        "backoffMultiplier": 2,
        # A server that ends cancels what comes while the connection closes.
        "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
    },
}

RETRYING = (
    ("grpc.service_config", json.dumps({"methodConfig": [_RETRY]})),
    ("grpc.per_rpc_retry_buffer_size", GRPC_MESSAGE_BYTES),  # a longer request would not be sent again
)
"""Channel options of a caller that waits for a gateway, and sends again what a killed one held."""

BALANCING = (("grpc.lb_policy_name", "round_robin"),)
"""Channel options of a caller of several gateways."""

Result = TypeVar("Result")


def complete(calls: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to completion from synchronous code, even inside a running event loop, as in a notebook."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, calls).result()


class Client:
    """Calls one model of one server, within the event loop that is running when it is created.

    Args:
        address: ``host:port`` of the server's gRPC endpoint, or ``ipv4:host:port,host:port`` of several, which get
            calls in turn.
        model: name of the model there.
        retry: whether to call again when no server is there or one ended during a call.
    """

    def __init__(self, address: str, model: str, retry: bool = False) -> None:
        self.address, self.model = address, model
        options = CHANNEL_OPTIONS + (BALANCING if "," in address else ()) + (RETRYING if retry else ())
        self._channel = grpc.aio.insecure_channel(address, options=options)
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
