"""Actions of the environments: their space, their masks and their refusal."""

from __future__ import annotations

import numpy as np
from gymnasium.spaces import MultiDiscrete

from opd.pipeline import Pipeline, used_cores


def action_space(pipeline: Pipeline) -> MultiDiscrete:
    """For every task the index of the variant, replicas - 1 and log2 of the batch size (Eq. 6)."""
    replicas, batch_sizes = pipeline.max_replicas, len(pipeline.batch_sizes)
    entries = [(len(task.variants), replicas, batch_sizes) for task in pipeline.tasks]
    return MultiDiscrete(np.array(entries).flatten())


def action_masks(pipeline: Pipeline) -> np.ndarray:
    """Flat booleans, entry after entry of the action space: true for what some feasible action contains."""
    tables = pipeline.tables
    smallest = tables.cores.min(axis=1)
    masks = []
    for n, task in enumerate(pipeline.tasks):
        budget = pipeline.capacity - (smallest.sum() - smallest[n])
        masks.append(tables.cores[n, : len(task.variants)] <= budget)
        masks.append(np.arange(1, pipeline.max_replicas + 1) * smallest[n] <= budget)
        masks.append(np.ones(len(pipeline.batch_sizes), dtype=bool))
    return np.concatenate(masks)


def admit(pipeline: Pipeline, running: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Refuse configurations that exceed the capacity: what ran before goes on.

    Args:
        pipeline: the pipeline, N tasks.
        running: (E, N, 3) configurations that run.
        wanted: (E, N, 3) configurations that were chosen, each entry within its own bounds.

    Returns:
        (E, N, 3) configurations to run, and (E,) which were refused.
    """
    refused = used_cores(pipeline, wanted) > pipeline.capacity
    return np.where(refused[:, None, None], running, wanted), refused
