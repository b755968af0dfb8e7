"""What queues and router cost a request: CPU time, and latency beyond that of calling the replicas directly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil

from opd.serving.client import Client, complete
from opd.serving.local import LocalBackend

TIMEOUT = 10.0

PAUSE_SECONDS = 0.1
"""Between two requests: a process that has slept is slower than one that is kept busy, and most are asleep most of the
time."""


async def _alternate(
    chain: Sequence[Client], router: Client, payloads: Sequence[bytes]
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of every payload through the replicas called one after the other, and through the router."""
    direct, routed = np.zeros(len(payloads)), np.zeros(len(payloads))
    for place, payload in enumerate(payloads):
        await asyncio.sleep(PAUSE_SECONDS)
        begin = time.perf_counter()
        answer = [payload]
        for replica in chain:
            answer = await replica.infer(answer, 0.0, TIMEOUT)
        direct[place] = time.perf_counter() - begin
        await asyncio.sleep(PAUSE_SECONDS)
        begin = time.perf_counter()
        through_router = await router.infer([payload], 0.0, TIMEOUT)
        routed[place] = time.perf_counter() - begin
        if through_router != answer:
            raise RuntimeError(f"payload {place}: the router answers otherwise than the replicas called one by one")
    return direct, routed


def _cpu_seconds(backend: LocalBackend) -> float:
    times = [psutil.Process(p.pid).cpu_times() for p in (backend.router, *(stage.queue for stage in backend.stages))]
    return sum(each.user + each.system for each in times)


async def _cpu_rate(backend: LocalBackend, seconds: float) -> float:
    """CPU seconds a second that router and queues take when no request comes, most of it for being scraped."""
    before = _cpu_seconds(backend)
    await asyncio.sleep(seconds)
    return (_cpu_seconds(backend) - before) / seconds


def measure_overhead(
    backend: LocalBackend, payloads: Sequence[bytes], warm_up: int = 20, idle_seconds: float = 10.0
) -> dict[str, Any]:
    """Send every payload twice, one request at a time: straight to the first replica of each stage, and to the router.

    Args:
        backend: the pipeline, up and idle, with batch size 1 everywhere.
        payloads: what to send.
        warm_up: of them that are not counted.
        idle_seconds: for which nothing is sent, to see what the processes take by themselves.

    Returns:
        milliseconds a request: CPU time of router and queues, beyond what they take when idle and counted in steps of
        10 ms over the whole measurement; mean and quantiles of the latency of both ways, and of what the router's adds.

    Raises:
        RuntimeError: if the router answers otherwise than the replicas.
    """

    async def measure() -> tuple[np.ndarray, np.ndarray, float]:
        chain = [Client(stage.replicas[0].process.grpc_address, stage.task.name) for stage in backend.stages]
        router = Client(backend.address, backend.pipeline.name)
        try:
            await _alternate(chain, router, payloads[:warm_up])
            idle = await _cpu_rate(backend, idle_seconds)
            before, begin = _cpu_seconds(backend), time.perf_counter()
            direct, routed = await _alternate(chain, router, payloads[warm_up:])
            return direct, routed, _cpu_seconds(backend) - before - idle * (time.perf_counter() - begin)
        finally:
            for client in (*chain, router):
                await client.close()

    direct, routed, cpu = complete(measure())
    added = routed - direct
    return {
        "requests": len(routed),
        "cpu_ms": 1e3 * cpu / len(routed),
        **{
            name: {
                "mean": 1e3 * float(values.mean()),
                "p50": 1e3 * float(np.quantile(values, 0.5)),
                "p95": 1e3 * float(np.quantile(values, 0.95)),
            }
            for name, values in (("direct_ms", direct), ("routed_ms", routed), ("added_ms", added))
        },
    }
