"""Overhead of queues and router: CPU time per request, and latency on top of calling the replicas directly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil

from opd.live.direct_calls import replica_clients, timed_calls
from opd.serving.client import Client, complete
from opd.serving.local import LocalBackend


def measure_overhead(
    backend: LocalBackend, payloads: Sequence[bytes], warm_up: int = 20, idle_seconds: float = 10.0
) -> dict[str, Any]:
    """Send every payload twice, one request at a time: directly to one replica of each stage, and to the router.

    Args:
        backend: the pipeline, up and idle, with batch size 1 in all stages.
        payloads: to send.
        warm_up: number of payloads at the start that are not counted.
        idle_seconds: time without requests, to measure the CPU time that the processes take when idle.

    Returns:
        Milliseconds per request: ``cpu_ms``, CPU time of router and queues on top of what they take when idle,
        measured over the whole run because the system counts in steps of 10 ms; mean and percentiles of the latency of
        direct and routed requests, and of the latency that routing adds.

    Raises:
        RuntimeError: if router and replicas give different answers.
    """
    direct, routed, cpu_seconds = complete(_measure(backend, payloads[:warm_up], payloads[warm_up:], idle_seconds))
    latencies = {"direct_ms": direct, "routed_ms": routed, "added_ms": routed - direct}
    return {
        "requests": len(routed),
        "cpu_ms": 1e3 * cpu_seconds / len(routed),
        **{
            name: {
                "mean": 1e3 * float(values.mean()),
                "p50": 1e3 * float(np.quantile(values, 0.5)),
                "p95": 1e3 * float(np.quantile(values, 0.95)),
            }
            for name, values in latencies.items()
        },
    }


async def _measure(
    backend: LocalBackend, warm_up: Sequence[bytes], payloads: Sequence[bytes], idle_seconds: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Seconds of every direct and every routed request, and CPU seconds of all routed ones."""
    async with replica_clients(backend) as replicas:
        router = Client(backend.address, backend.pipeline.name)
        try:
            await _alternate(replicas, router, warm_up)
            idle_before = _cpu_seconds(backend)
            await asyncio.sleep(idle_seconds)
            idle_rate = (_cpu_seconds(backend) - idle_before) / idle_seconds  # mostly for answering scrapes
            before, begin = _cpu_seconds(backend), time.perf_counter()
            direct, routed = await _alternate(replicas, router, payloads)
            idle = idle_rate * (time.perf_counter() - begin)
            return direct, routed, _cpu_seconds(backend) - before - idle
        finally:
            await router.close()


async def _alternate(
    replicas: Sequence[Client], router: Client, payloads: Sequence[bytes]
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of every payload through the replicas called one after the other, and through the router."""
    direct, routed = np.zeros(len(payloads)), np.zeros(len(payloads))
    for number, payload in enumerate(payloads):
        expected, direct[number] = await timed_calls(replicas, [payload])
        answers, routed[number] = await timed_calls([router], [payload])
        if answers != expected:
            raise RuntimeError(
                f"payload {number}: the router's answer differs from that of the replicas called directly"
            )
    return direct, routed


def _cpu_seconds(backend: LocalBackend) -> float:
    """CPU seconds that router and queues have used so far."""
    times = [psutil.Process(p.pid).cpu_times() for p in (backend.router, *(stage.queue for stage in backend.stages))]
    return sum(each.user + each.system for each in times)
