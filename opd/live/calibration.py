"""Calibration: the latency of served replicas on this machine, put into the profiles that the simulator uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from tqdm.auto import tqdm

from opd.live.direct_calls import replica_clients, timed_calls
from opd.pipeline import Configuration, Pipeline, StageConfiguration
from opd.serving.client import Client, complete
from opd.serving.local import LocalBackend

WARM_UP_CALLS = 5
"""Calls of each batch size that are not counted."""


def calibrate_pipeline(
    backend: LocalBackend, configurations: Sequence[Configuration], payloads: Sequence[bytes]
) -> Pipeline:
    """Measure every variant that occurs in some configurations, and put the latencies into the pipeline's profiles.

    Args:
        backend: the pipeline, up and idle; nothing else should run on the machine.
        configurations: determine the variants and the largest batch size.
        payloads: for the first stage.
    """
    pipeline = backend.pipeline
    for configuration in tqdm(covering_configurations(configurations), unit="configuration", desc="calibration"):
        backend.apply(configuration)
        pipeline = with_served_latencies(pipeline, configuration, measure_served_latencies(backend, payloads))
    return pipeline


def covering_configurations(configurations: Sequence[Configuration]) -> list[Configuration]:
    """Choose a few single-replica configurations that contain every variant of the given ones, at the largest batch."""
    largest = max(stage.batch_size for configuration in configurations for stage in configuration)
    chosen: list[Configuration] = []
    covered: set[tuple[int, int]] = set()
    for configuration in configurations:
        variants = [stage.variant for stage in configuration]
        if not covered.issuperset(enumerate(variants)):
            covered.update(enumerate(variants))
            chosen.append(tuple(StageConfiguration(variant, 1, largest) for variant in variants))
    return chosen


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


def measure_served_latencies(
    backend: LocalBackend, payloads: Sequence[bytes], calls: int = 30 + WARM_UP_CALLS
) -> list[dict[int, float]]:
    """Measure how long a queue waits for a replica of each stage: one call at a time with pauses, as under light load.

    In addition to the model's own time, this includes gRPC, MLServer and waking up a process that slept. The profiler,
    which calls the model in a busy loop, sees none of these.

    Args:
        backend: the pipeline, up and idle.
        payloads: for the first stage; each further stage gets the answers of the one before.
        calls: of each batch size up to the largest of the configuration, including :data:`WARM_UP_CALLS`.

    Returns:
        Mean seconds by batch size, for every stage.
    """

    async def measure() -> list[dict[int, float]]:
        largest = max(stage.batch_size for stage in backend.configuration)
        sizes = [size for size in backend.pipeline.batch_sizes if size <= largest]
        async with replica_clients(backend) as replicas:
            return await _call_stages(replicas, sizes, payloads, calls)

    return complete(measure())


async def _call_stages(
    replicas: Sequence[Client], batch_sizes: Sequence[int], payloads: Sequence[bytes], calls: int
) -> list[dict[int, float]]:
    results: list[dict[int, float]] = []
    for replica in replicas:
        means: dict[int, float] = {}
        answers: list[bytes] = []
        for size in batch_sizes:
            seconds = np.zeros(calls)
            for call in range(calls):
                batch = [payloads[(call + position) % len(payloads)] for position in range(size)]
                answered, seconds[call] = await timed_calls([replica], batch)
                answers += answered
            means[size] = float(np.mean(seconds[WARM_UP_CALLS:]))
        results.append(means)
        payloads = answers
    return results
