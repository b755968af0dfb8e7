"""The present state that rollouts begin with: as a backend observed it, or as what it observed suggests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opd.measurement import Observation, StageState
from opd.pipeline import Pipeline


def present_stages(pipeline: Pipeline, observation: Observation) -> tuple[StageState, ...]:
    """What is under way in each stage.

    A live pipeline tells how many requests wait, but not since when, and its changes are complete when the next
    decision is due. Then all replicas of the running configuration are taken to be ready and idle, and requests to have
    joined their queue evenly over the time that its replicas take to serve as many.
    """
    if observation.stages:
        return observation.stages
    stages, before = [], 0.0
    running = zip(observation.configuration, observation.queue, observation.task_latency, strict=True)
    for n, (stage, queue, latency) in enumerate(running):
        number = int(round(float(queue)))
        service = pipeline.tables.service_time[n, stage.variant, stage.batch_size]
        seconds = number * service / (stage.replicas * stage.batch_size)
        here = seconds * (1.0 - (np.arange(number) + 0.5) / max(number, 1))
        replicas = np.tile([float(stage.variant), 0.0, 0.0, np.inf], (stage.replicas, 1))
        stages.append(StageState(np.stack([here, here + before], axis=1), np.zeros((0, 2)), replicas))
        before += float(latency)
    return tuple(stages)


def replica_counts(stages: Sequence[StageState], variants: int, interval: float) -> tuple[np.ndarray, ...]:
    """(N, Z) replicas that serve, replicas that are starting, and intervals until the last of these serves."""
    shape = (len(stages), variants)
    serving, starting, wait = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for n, stage in enumerate(stages):
        for variant, ready, *_ in stage.replicas.tolist():
            z = int(variant)
            if ready > 0.0:
                starting[n, z] += 1.0
                wait[n, z] = max(wait[n, z], ready / interval)
            else:
                serving[n, z] += 1.0
    return serving, starting, wait
