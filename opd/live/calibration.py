"""Measurements on an idle pipeline, one call at a time: latencies of served replicas, overhead of the gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import cycle, islice
from typing import Any, NamedTuple

import numpy as np
import psutil
from mlserver.grpc.dataplane_pb2 import ModelInferRequest, ModelInferResponse

from opd.pipeline import Configuration, Pipeline
from opd.serving.adapters import Adapter, load_adapter, next_request
from opd.serving.batching import join, joinable, rows, split
from opd.serving.client import Client, complete
from opd.serving.contents import contents_of
from opd.serving.emulation.names import is_emulated
from opd.serving.emulation.replica import stated_seconds
from opd.serving.local import LocalBackend

WARM_UP_CALLS = 5
"""Calls of each batch size that are not counted."""

CALLS = 30
"""Calls of each batch size that are counted."""

CALL_TIMEOUT = 10.0

PAUSE_SECONDS = 0.1
"""Pause before a timed call. Servers are mostly asleep under light load, and a process that slept is slower."""


class Callee(NamedTuple):
    """A server, and the adapter of what it is sent."""

    client: Client
    adapt: Adapter


@asynccontextmanager
async def connect(backend: LocalBackend) -> AsyncIterator[tuple[list[Callee], Callee]]:
    """Connect to the first replica of each stage, in order, and to the gateway."""
    replicas = [
        Callee(
            Client(stage.replicas[0].process.grpc_address, stage.task.name),
            load_adapter(stage.task.adapter, stage.task.name),
        )
        for stage in backend.stages
    ]
    gateway = Callee(Client(backend.address, backend.pipeline.name), load_adapter(None, "gateway"))
    try:
        yield replicas, gateway
    finally:
        for callee in (*replicas, gateway):
            await callee.client.close()


async def timed_calls(chain: Sequence[Callee], request: ModelInferRequest) -> tuple[ModelInferResponse, float]:
    """Pause, then call servers one after the other, each with the outputs of the one before.

    Args:
        chain: the servers.
        request: one batch for the first server.

    Returns:
        The answer of the last server, and the seconds that all calls took together.
    """
    await asyncio.sleep(PAUSE_SECONDS)
    begin = time.perf_counter()
    for client, adapt in chain:
        answer = await client.infer(adapt(request), 0.0, CALL_TIMEOUT)
        request = next_request(answer, request)
    return answer, time.perf_counter() - begin


# ---------------------------------------------------------------------------------------- served latencies


def with_served_latencies(
    pipeline: Pipeline, configuration: Configuration, latencies: Sequence[dict[int, float]]
) -> Pipeline:
    """Replace the profiled latencies of the variants in ``configuration`` by served ones.

    Args:
        pipeline: with its profiles.
        configuration: that was served.
        latencies: of :func:`measure_served_latencies`; other batch sizes keep their profiled latency.
    """
    tasks = []
    for task, stage, latency in zip(pipeline.tasks, configuration, latencies, strict=True):
        variants = list(task.variants)
        profiled = variants[stage.variant]
        variants[stage.variant] = replace(profiled, latency={**profiled.latency, **latency})
        tasks.append(replace(task, variants=tuple(variants)))
    return replace(pipeline, tasks=tuple(tasks))


def calibrated_by_calls(backend: LocalBackend, samples: Sequence[ModelInferRequest]) -> Pipeline:
    """Return the pipeline with the latencies of the variants that it runs as calls of their replicas take them.

    For real replicas they are measured (:func:`measure_served_latencies`). Those of emulated replicas are their
    profiles, plus what a call takes beyond the service time that its answer states (:func:`measure_call_seconds`), for
    every batch size: so their noise, and what they would take on a real device, need not be measured again.
    """
    pipeline, configuration = backend.pipeline, backend.configuration
    if not is_emulated(pipeline.name):
        return with_served_latencies(pipeline, configuration, measure_served_latencies(backend, samples))
    added = measure_call_seconds(backend, samples)
    latencies = [
        {size: seconds + more for size, seconds in variant.latency.items()}
        for (variant, _), more in zip(pipeline.selected(configuration), added, strict=True)
    ]
    return with_served_latencies(pipeline, configuration, latencies)


def measure_call_seconds(backend: LocalBackend, samples: Sequence[ModelInferRequest]) -> list[float]:
    """Measure what the call of an emulated replica of each stage takes beyond its service time.

    Returns:
        Median seconds of :data:`CALLS` calls of one request each, for every stage.
    """

    async def beyond(replica: Callee) -> float:
        calls = [await timed_calls([replica], samples[0]) for _ in range(CALLS)]
        return float(np.median([seconds - stated_seconds(answer)[0] for answer, seconds in calls]))

    async def call_stages() -> list[float]:
        async with connect(backend) as (replicas, _):
            return [await beyond(replica) for replica in replicas]

    return complete(call_stages())


def measure_served_latencies(backend: LocalBackend, samples: Sequence[ModelInferRequest]) -> list[dict[int, float]]:
    """Measure how long a replica of each stage lets a gateway wait: single calls with pauses, as under light load.

    In addition to the model's own time, this includes gRPC, MLServer and waking up a process that slept. The profiler,
    which calls the model in a busy loop, sees none of these.

    Args:
        backend: the pipeline, up and idle.
        samples: requests for the first stage; each further stage gets the outputs of the one before. Only those of
            the most frequent signature are used, because others cannot be joined with them.

    Returns:
        Mean seconds of :data:`CALLS` calls by batch size up to the largest of the configuration, for every stage.
    """
    return complete(_call_stages(backend, samples))


async def _call_stages(backend: LocalBackend, samples: Sequence[ModelInferRequest]) -> list[dict[int, float]]:
    largest = max(stage.batch_size for stage in backend.configuration)
    results: list[dict[int, float]] = []
    async with connect(backend) as (replicas, _):
        for client, adapt in replicas:
            samples = joinable([adapt(request) for request in samples])
            replica = Callee(client, load_adapter(None, client.model))  # the samples are adapted already
            means: dict[int, float] = {}
            outputs: list[ModelInferRequest] = []
            for size in (size for size in backend.pipeline.batch_sizes if size <= largest):
                seconds = np.zeros(WARM_UP_CALLS + CALLS)
                for call in range(len(seconds)):
                    batch = [samples[(call + position) % len(samples)] for position in range(size)]
                    answer, seconds[call] = await timed_calls([replica], join(batch))
                    parts = split(answer, [rows(request) for request in batch], client.model)
                    outputs += [next_request(part, request) for part, request in zip(parts, batch, strict=True)]
                means[size] = float(np.mean(seconds[WARM_UP_CALLS:]))
            results.append(means)
            samples = outputs
    return results


# --------------------------------------------------------------------------------- overhead of the gateway


def measure_overhead(
    backend: LocalBackend,
    samples: Sequence[ModelInferRequest],
    count: int,
    warm_up: int = 20,
    idle_seconds: float = 10.0,
) -> dict[str, Any]:
    """Send every request twice, one at a time: directly to one replica of each stage, and to the gateway.

    Args:
        backend: the pipeline, up and idle; its batch sizes become 1, so that no request waits for a batch to fill.
        samples: requests to send, in turn.
        count: number of requests to send.
        warm_up: number of requests at the start that are not counted.
        idle_seconds: time without requests, to measure the CPU time that the processes take when idle.

    Returns:
        Milliseconds per request: ``cpu_ms``, CPU time of the gateway on top of what it takes when idle,
        measured over the whole run because the system counts in steps of 10 ms; mean and percentiles of the latency of
        direct and routed requests, and of the latency that routing adds.

    Raises:
        ApplyError: if the pipeline does not take the batch sizes.
        RuntimeError: if gateway and replicas give different answers.
    """
    backend.apply(tuple(stage._replace(batch_size=1) for stage in backend.configuration))
    requests = list(islice(cycle(samples), count))
    direct, routed, cpu_seconds = complete(_call_both(backend, requests[:warm_up], requests[warm_up:], idle_seconds))
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


async def _call_both(
    backend: LocalBackend,
    warm_up: Sequence[ModelInferRequest],
    samples: Sequence[ModelInferRequest],
    idle_seconds: float,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Seconds of every direct and every routed request, and CPU seconds of all routed ones."""
    async with connect(backend) as (replicas, gateway):
        await _alternate(replicas, gateway, warm_up)
        idle_before = _cpu_seconds(backend)
        await asyncio.sleep(idle_seconds)
        idle_rate = (_cpu_seconds(backend) - idle_before) / idle_seconds  # mostly for answering scrapes
        before, begin = _cpu_seconds(backend), time.perf_counter()
        direct, routed = await _alternate(replicas, gateway, samples)
        idle = idle_rate * (time.perf_counter() - begin)
        return direct, routed, _cpu_seconds(backend) - before - idle


async def _alternate(
    replicas: Sequence[Callee], gateway: Callee, samples: Sequence[ModelInferRequest]
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of every request through the replicas called one after the other, and through the gateway."""
    direct, routed = np.zeros(len(samples)), np.zeros(len(samples))
    for number, request in enumerate(samples):
        expected, direct[number] = await timed_calls(replicas, request)
        answer, routed[number] = await timed_calls([gateway], request)
        if contents_of(answer) != contents_of(expected):
            raise RuntimeError(
                f"request {number}: the gateway's answer differs from that of the replicas called directly"
            )
    return direct, routed


def _cpu_seconds(backend: LocalBackend) -> float:
    """CPU seconds that the gateways have used so far."""
    times = [psutil.Process(p.pid).cpu_times() for p in backend.gateways.servers]
    return sum(each.user + each.system for each in times)
