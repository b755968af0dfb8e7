"""Candidates: the neighbours of a configuration, and which of many are feasible."""

from __future__ import annotations

import numpy as np

from opd.pipeline import Pipeline, used_cores

REPLICA_STEPS = (-1, 1, 2)


def neighbours(pipeline: Pipeline, configuration: np.ndarray) -> np.ndarray:
    """The configuration itself, and all that differ from it a little in one stage.

    A stage may have another variant, a few replicas less or more, or a batch size halved or doubled. Limits are not
    checked.

    Args:
        pipeline: the pipeline, N tasks.
        configuration: (N, 3) variant, replicas and batch size.

    Returns:
        (M, N, 3).
    """
    found = [configuration]
    for n, task in enumerate(pipeline.tasks):
        variant, replicas, batch_size = configuration[n]
        stages = [(z, replicas, batch_size) for z in range(len(task.variants)) if z != variant]
        stages += [(variant, replicas + step, batch_size) for step in REPLICA_STEPS]
        stages += [(variant, replicas, batch_size // 2), (variant, replicas, 2 * batch_size)]
        for stage in stages:
            changed = configuration.copy()
            changed[n] = stage
            found.append(changed)
    return np.array(found)


def feasible(pipeline: Pipeline, configurations: np.ndarray) -> np.ndarray:
    """Those of (M, N, 3) configurations that keep every limit of Eq. 4, each once, in a fixed order."""
    _, replicas, batch_size = np.moveaxis(configurations, -1, 0)
    within = (replicas >= 1) & (replicas <= pipeline.max_replicas)
    within &= (batch_size >= 1) & (batch_size <= pipeline.max_batch_size)
    kept = configurations[within.all(axis=1)]
    return np.unique(kept[used_cores(pipeline, kept) <= pipeline.capacity], axis=0)
