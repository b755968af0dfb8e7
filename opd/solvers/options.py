"""What every solver starts from: the options of a stage, the replicas they need, and the best for a number of cores.

The solvers look at a stage as a list of options, one for every variant and batch size. How many replicas an
option needs follows from the throughput asked of it, because a replica more costs cores and adds nothing else.
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


def stage_options(pipeline: Pipeline) -> StageOptions:
    """Every pair of variant and batch size, in the order of the catalogue."""
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


def check_load(load: float) -> None:
    """Raise unless ``load`` is a number of requests/s that a solver can plan for.

    Raises:
        ValueError: if it is negative, infinite or not a number.
    """
    if not 0.0 <= load < np.inf:
        raise ValueError(
            f"load {load} requests/s is not a finite number of at least 0; check the forecast that produced it"
        )


@njit(cache=True)
def replicas_needed(throughput, load, max_replicas, above):
    """Fewest replicas of every option whose throughput reaches ``load``, or exceeds it if ``above``.

    The product compared is the one that :func:`opd.objective.throughput` forms, so rounding cannot tell them apart.

    Args:
        throughput: (N, M) requests/s of one replica.
        load: requests/s.
        max_replicas: F_max.
        above: whether reaching the load exactly is too little.

    Returns:
        (N, M) replicas, 0 where ``max_replicas`` are too few.
    """
    replicas = np.zeros(throughput.shape, dtype=np.int64)
    for n in range(throughput.shape[0]):
        for option in range(throughput.shape[1]):
            rate = throughput[n, option]
            most = max_replicas * rate
            if rate == 0.0 or most < load or (above and most == load):
                continue
            needed = max(1, int(load / rate))
            if needed > 1 and (needed - 1) * rate >= load and not above:
                needed -= 1
            while needed * rate < load or (above and needed * rate == load):
                needed += 1
            replicas[n, option] = needed
    return replicas


@njit(cache=True)
def best_by_cores(cores, score, capacity):
    """Highest total score within a number of cores, one option a stage: a knapsack, from the last stage backwards.

    Args:
        cores: (N, M) cores of each option; one above ``capacity`` is never taken.
        score: (N, M) score of each option.
        capacity: W, cores.

    Returns:
        (N + 1, W + 1) highest score of the stages from n on with at most c cores, minus infinity where none fit; and
        (N, W + 1) the option of stage n that reaches it.
    """
    stages, options = cores.shape
    value = np.full((stages + 1, capacity + 1), -np.inf)
    value[stages] = 0.0
    choice = np.full((stages, capacity + 1), -1)
    best_at = np.empty(capacity + 1, dtype=np.int64)
    for n in range(stages - 1, -1, -1):
        best_at[:] = -1
        for option in range(options):
            used = cores[n, option]
            if used <= capacity and (best_at[used] < 0 or score[n, option] > score[n, best_at[used]]):
                best_at[used] = option
        highest = -np.inf
        for used in range(capacity + 1):
            option = best_at[used]
            # More cores for no more score can never pay.
            if option < 0 or score[n, option] <= highest:
                continue
            highest = score[n, option]
            for total in range(used, capacity + 1):
                candidate = highest + value[n + 1, total - used]
                if candidate > value[n, total]:
                    value[n, total] = candidate
                    choice[n, total] = option
    return value, choice


@njit(cache=True)
def follow_choice(cores, choice):
    """(N,) the options behind ``best_by_cores``'s value for all stages and the whole capacity."""
    left = choice.shape[1] - 1
    selected = np.empty(choice.shape[0], dtype=np.int64)
    for n in range(choice.shape[0]):
        selected[n] = choice[n, left]
        left -= cores[n, selected[n]]
    return selected


def carried_load(pipeline: Pipeline, load: float) -> float:
    """The part of ``load`` that some configuration within the limits can carry, in requests/s.

    Raises:
        ValueError: if the load is negative, infinite or not a number.
    """
    check_load(load)
    tables = pipeline.tables
    replicas = np.minimum(np.arange(pipeline.capacity + 1) // tables.cores[:, :, None], pipeline.max_replicas)
    fastest = stage_options(pipeline).throughput.reshape(*tables.cores.shape, -1).max(axis=2)
    # (N, W + 1) highest throughput of each stage with at most so many cores.
    reachable = (replicas * fastest[:, :, None]).max(axis=1)

    def fits(wanted: float) -> bool:
        return (reachable < wanted).sum() <= pipeline.capacity

    if fits(load):
        return load
    rates = np.unique(reachable[reachable < load])
    # Zero always fits, the load does not: bisect for the last rate that does.
    low, high = 0, len(rates)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(rates[middle]) else (low, middle)
    return float(rates[low])


def forming_time(batch_size: np.ndarray, load: float) -> np.ndarray:
    """Seconds from the first to the last request of a full batch, (b - 1) / load; infinite if they never come."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return np.where(batch_size > 1, (batch_size - 1.0) / np.float64(load), 0.0)


def selected_rows(options: StageOptions, selected: np.ndarray, replicas: np.ndarray) -> np.ndarray:
    """The (N, 3) configuration of option ``selected[n]`` with ``replicas[n]`` at every stage n."""
    return np.stack([options.variant[selected], replicas, options.batch_size[selected]], axis=1)
