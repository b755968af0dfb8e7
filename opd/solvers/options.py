"""The options of a stage: every pair of variant and batch size, and the replicas each needs to carry a load.

The solvers choose one option for each stage. How many replicas an option needs follows from the throughput asked of it:
one replica more costs cores and adds nothing to the objective.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from opd.pipeline import Pipeline


class StageOptions(NamedTuple):
    """Variant and batch size of every stage; N tasks, M = Z K pairs, padding where a task has fewer variants.

    Attributes:
        throughput: (N, M) requests/s of one replica, 0 for padding.
        cores: (N, M) cores of one replica, more than the capacity for padding.
        service_time: (N, M) seconds for a full batch, infinite for padding.
        accuracy: (N, M) fraction.
        batch_size: (M,) requests.
        variant: (M,) index of the variant.
    """

    throughput: np.ndarray
    cores: np.ndarray
    service_time: np.ndarray
    accuracy: np.ndarray
    batch_size: np.ndarray
    variant: np.ndarray

    def configuration(self, selected: np.ndarray, replicas: np.ndarray) -> np.ndarray:
        """(N, 3) variant, replicas and batch size of option ``selected[n]`` with ``replicas[n]`` at every stage n."""
        return np.stack([self.variant[selected], replicas, self.batch_size[selected]], axis=1)


def stage_options(pipeline: Pipeline) -> StageOptions:
    """Every pair of variant and batch size, in the order of the pipeline."""
    tables = pipeline.tables
    stages, variants = tables.accuracy.shape
    sizes = len(tables.batch_sizes)
    service_time = tables.service_time[:, :, tables.batch_sizes].reshape(stages, variants * sizes)
    batch_size = np.tile(tables.batch_sizes, variants)
    cores = np.minimum(tables.cores, pipeline.capacity + 1).astype(np.int64)
    return StageOptions(
        batch_size / service_time,
        np.repeat(cores, sizes, axis=1),
        service_time,
        np.repeat(tables.accuracy, sizes, axis=1),
        batch_size,
        np.repeat(np.arange(variants), sizes),
    )


@njit(cache=True)
def replicas_needed(throughput, load, max_replicas, exceed):
    """Fewest replicas of every option that reach a load, or exceed it.

    The comparison uses the same product as :func:`opd.objective.throughput`, so rounding cannot make them differ.

    Args:
        throughput: (N, M) requests/s of one replica.
        load: requests/s.
        max_replicas: F_max.
        exceed: whether the throughput must be higher than the load.

    Returns:
        (N, M) replicas, 0 where ``max_replicas`` are too few.
    """
    replicas = np.zeros(throughput.shape, dtype=np.int64)
    for n in range(throughput.shape[0]):
        for option in range(throughput.shape[1]):
            rate = throughput[n, option]
            most = max_replicas * rate
            if rate == 0.0 or most < load or (exceed and most == load):
                continue
            needed = max(1, int(load / rate))
            if needed > 1 and (needed - 1) * rate >= load and not exceed:
                needed -= 1
            while needed * rate < load or (exceed and needed * rate == load):
                needed += 1
            replicas[n, option] = needed
    return replicas


def forming_time(batch_size: np.ndarray, load: float) -> np.ndarray:
    """Seconds from the first to the last request of a full batch, (b - 1) / load; infinite at a load of 0."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return np.where(batch_size > 1, (batch_size - 1.0) / np.float64(load), 0.0)
