"""The load that a pipeline can carry within the limits of its device."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from opd.pipeline import Pipeline


def check_load(load: float) -> None:
    """Check that ``load`` is a number of requests/s that a solver can plan for.

    Raises:
        ValueError: if it is negative, infinite or not a number.
    """
    if not 0.0 <= load < np.inf:
        raise ValueError(
            f"load {load} requests/s is not a finite number of at least 0; check the forecast that produced it"
        )


def attainable_load(pipeline: Pipeline, load: float) -> float:
    """The load, or the highest throughput within the limits if that is lower, in requests/s.

    Raises:
        ValueError: if the load is negative, infinite or not a number.
    """
    check_load(load)
    tables = pipeline.tables
    replicas = np.minimum(np.arange(pipeline.capacity + 1) // tables.cores[:, :, None], pipeline.max_replicas)
    fastest = (tables.batch_sizes / tables.service_time[:, :, tables.batch_sizes]).max(axis=2)
    # (N, W + 1) highest throughput of each stage with at most so many cores.
    reachable = (replicas * fastest[:, :, None]).max(axis=1)

    def fits(rate: float) -> bool:
        # The number of entries below a rate is the number of cores needed to reach it.
        return (reachable < rate).sum() <= pipeline.capacity

    if fits(load):
        return load
    rates = np.unique(reachable[reachable < load])
    # Zero always fits, so there is a rate below the first one that does not.
    return float(rates[bisect_left(rates, True, key=lambda rate: not fits(rate)) - 1])
