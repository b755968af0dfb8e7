"""Direct calls to the servers of an idle local pipeline, timed one at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from opd.serving.client import Client
from opd.serving.local import LocalBackend

CALL_TIMEOUT = 10.0

PAUSE_SECONDS = 0.1
"""Pause before a timed call. Servers are mostly asleep under light load, and a process that slept is slower."""


@asynccontextmanager
async def replica_clients(backend: LocalBackend) -> AsyncIterator[list[Client]]:
    """Connect to the first replica of each stage, in order."""
    clients = [Client(stage.replicas[0].process.grpc_address, stage.task.name) for stage in backend.stages]
    try:
        yield clients
    finally:
        for client in clients:
            await client.close()


async def timed_calls(chain: Sequence[Client], payloads: Sequence[bytes]) -> tuple[Sequence[bytes], float]:
    """Pause, then call servers one after the other, each with the answers of the one before.

    Args:
        chain: the servers.
        payloads: one batch for the first server.

    Returns:
        The answers of the last server, and the seconds that all calls took together.
    """
    await asyncio.sleep(PAUSE_SECONDS)
    begin = time.perf_counter()
    for server in chain:
        payloads = await server.infer(payloads, 0.0, CALL_TIMEOUT)
    return payloads, time.perf_counter() - begin
