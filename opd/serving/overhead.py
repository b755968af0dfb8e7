"""What queues and router cost a request: CPU time, and latency beyond that of calling the replicas directly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil

from opd.serving.client import Client
from opd.serving.local import LocalBackend

TIMEOUT = 10.0


async def _alternate(
    chain: Sequence[Client], router: Client, payloads: Sequence[bytes]
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of every payload through the replicas called one after the other, and through the router."""
    direct, routed = np.zeros(len(payloads)), np.zeros(len(payloads))
    for place, payload in enumerate(payloads):
        begin = time.perf_counter()
        answer = [payload]
        for replica in chain:
            answer = await replica.infer(answer, 0.0, TIMEOUT)
        middle = time.perf_counter()
        assert await router.infer([payload], 0.0, TIMEOUT) == answer
        direct[place], routed[place] = middle - begin, time.perf_counter() - middle
    return direct, routed


def _cpu_seconds(backend: LocalBackend) -> float:
    times = [psutil.Process(p.pid).cpu_times() for p in (backend.router, *(stage.queue for stage in backend.stages))]
    return sum(each.user + each.system for each in times)


def measure_overhead(backend: LocalBackend, payloads: Sequence[bytes], warm_up: int = 20) -> dict[str, Any]:
    """Send every payload twice, one request at a time: straight to the first replica of each stage, and to the router.

    Args:
        backend: the pipeline, up and idle, with batch size 1 everywhere.
        payloads: what to send.
        warm_up: of them that are not counted.

    Returns:
        milliseconds a request: CPU time of router and queues, which is counted in steps of 10 ms over the whole
        measurement, and quantiles of the latency of both ways and of what the router's adds to the other.
    """

    async def measure() -> tuple[np.ndarray, np.ndarray, float]:
        chain = [Client(stage.replicas[0].process.grpc_address, stage.task.name) for stage in backend.stages]
        router = Client(backend.address, backend.pipeline.name)
        try:
            await _alternate(chain, router, payloads[:warm_up])
            before = _cpu_seconds(backend)
            direct, routed = await _alternate(chain, router, payloads[warm_up:])
            return direct, routed, _cpu_seconds(backend) - before
        finally:
            for client in (*chain, router):
                await client.close()

    direct, routed, cpu = asyncio.run(measure())
    added = routed - direct
    return {
        "requests": len(routed),
        "cpu_ms": 1e3 * cpu / len(routed),
        **{
            name: {"p50": 1e3 * float(np.quantile(values, 0.5)), "p95": 1e3 * float(np.quantile(values, 0.95))}
            for name, values in (("direct_ms", direct), ("routed_ms", routed), ("added_ms", added))
        },
    }
