"""Myopic: the exact maximiser of Eq. 7 for one load, and with it the expert of Alg. 2.

It knows no start-up times, no queues and no later intervals. Given the largest load of the next 20 s, it is the
clairvoyant reference. Two parts of Eq. 7 do not add up over the stages: the largest batch size B, and the throughput T,
which is the smallest of the stages'. Both are handled by a search around the knapsack over cores:

* B: every batch size in turn is made the largest allowed, and charged in full. That undervalues configurations with
  smaller batches, which their own turn values correctly.
* T: the terms of Eq. 3 in the throughput, here called the gain, rise up to a peak (the load, unless spare capacity is
  worth more than it costs) and fall from there. At or above the peak the smallest throughput therefore has the largest
  gain: each stage in turn is the one whose gain counts. Below the peak, each stage in turn stays below it while a floor
  under all throughputs rises. The best score above a floor can only fall as the floor rises, so the floor jumps to
  where the gain could close the gap to the best configuration known.

In each of these knapsacks an option needs only the fewest replicas that reach the required throughput.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from opd.objective import Weights, accuracy, qos, reward, throughput
from opd.pipeline import Configuration, Pipeline, as_configuration, used_cores
from opd.profiling.attainable import check_load
from opd.solvers.knapsack import best_by_cores, follow_choice
from opd.solvers.options import StageOptions, forming_time, replicas_needed, stage_options


class _Instance(NamedTuple):
    """One decision as the compiled code sees it; N tasks, M options.

    Attributes:
        options: variants and batch sizes of every stage.
        quality: (N, M) the option's share of alpha V - L.
        load: requests/s.
        peak: requests/s of throughput from which the gain no longer rises.
        capacity: W_max, cores.
        max_replicas: F_max.
        beta: of Eq. 3.
        gamma: of Eq. 3.
        delta: of Eq. 3.
        cost_weight: of Eq. 7.
        batch_weight: of Eq. 7.
    """

    options: StageOptions
    quality: np.ndarray
    load: float
    peak: float
    capacity: int
    max_replicas: int
    beta: float
    gamma: float
    delta: float
    cost_weight: float
    batch_weight: float


@njit(cache=True)
def _gain(p, throughput):
    """The terms of Eq. 3 in the throughput, beta T - gamma E or beta T + delta E."""
    excess = p.load - throughput
    return p.beta * throughput - (p.gamma * excess if excess >= 0.0 else -p.delta * excess)


@njit(cache=True)
def _throughput_with_gain(p, wanted):
    """The lowest throughput, at least 0, whose gain is ``wanted`` or more; infinite if there is none."""
    missing = wanted - _gain(p, p.load)
    slope = p.beta + p.gamma if missing <= 0.0 else p.beta - p.delta
    if slope <= 0.0:
        return 0.0 if missing <= 0.0 else np.inf
    return max(0.0, p.load + missing / slope)


@njit(cache=True)
def _options_above(p, floor, exceed, largest_batch):
    """Every option with the fewest replicas that reach a throughput of ``floor``, or exceed it.

    Returns:
        Replicas, cores (more than the capacity where the option cannot be taken), the share of the reward that adds up
        over the stages, and throughput; each (N, M).
    """
    options = p.options
    rate = options.throughput
    replicas = replicas_needed(rate, floor, p.max_replicas, exceed)
    cores = np.full(rate.shape, p.capacity + 1)
    score = np.zeros(rate.shape)
    for n in range(rate.shape[0]):
        for option in range(rate.shape[1]):
            if replicas[n, option] > 0 and options.batch_size[option] <= largest_batch:
                cores[n, option] = min(replicas[n, option] * options.cores[n, option], p.capacity + 1)
                score[n, option] = p.quality[n, option] - p.cost_weight * cores[n, option]  # Eq. 7
    return replicas, cores, score, replicas * rate


@njit(cache=True)
def _with_replicas(selected, replicas):
    """(N, 2) option and replicas of each stage, for options (N,) and the replicas (N, M) of all options."""
    found = np.empty((len(selected), 2), dtype=np.int64)
    for n in range(len(selected)):
        found[n, 0] = selected[n]
        found[n, 1] = replicas[n, selected[n]]
    return found


@njit(cache=True)
def _at_or_above_peak(p, largest_batch, best, found):
    """Improve on ``best`` with throughputs at or above the peak, where the smallest has the largest gain."""
    charge = p.batch_weight * largest_batch  # Eq. 7
    replicas, cores, score, rate = _options_above(p, p.peak, False, largest_batch)
    value, _ = best_by_cores(cores, score, p.capacity)
    if value[0, p.capacity] + _gain(p, p.peak) - charge <= best:
        return best, found
    for bottleneck in range(score.shape[0]):
        gained = score.copy()
        for option in range(score.shape[1]):
            if cores[bottleneck, option] <= p.capacity:
                gained[bottleneck, option] += _gain(p, rate[bottleneck, option])
        value, choice = best_by_cores(cores, gained, p.capacity)
        reached = value[0, p.capacity] - charge
        if reached > best:
            best = reached
            found = _with_replicas(follow_choice(cores, choice), replicas)
    return best, found


@njit(cache=True)
def _below_peak(p, largest_batch, bottleneck, best, found):
    """Improve on ``best`` with a stage ``bottleneck`` below the peak, raising the floor under all throughputs."""
    charge = p.batch_weight * largest_batch  # Eq. 7
    highest_gain = _gain(p, p.peak)
    floor = 0.0
    while floor < p.peak:
        replicas, cores, score, rate = _options_above(p, floor, True, largest_batch)
        for option in range(score.shape[1]):
            if rate[bottleneck, option] >= p.peak:
                cores[bottleneck, option] = p.capacity + 1
        value, choice = best_by_cores(cores, score, p.capacity)
        without_gain = value[0, p.capacity] - charge
        if without_gain + highest_gain <= best:
            break
        selected = follow_choice(cores, choice)
        smallest = np.inf
        for n in range(len(selected)):
            smallest = min(smallest, rate[n, selected[n]])
        reached = without_gain + _gain(p, smallest)
        if reached > best:
            best = reached
            found = _with_replicas(selected, replicas)
        floor = max(smallest, _throughput_with_gain(p, best - without_gain))
    return best, found


@njit(cache=True)
def _maximise(p, batch_sizes):
    """(N, 2) option and replicas of each stage that maximise Eq. 7."""
    stages = p.quality.shape[0]
    best = -np.inf
    found = np.zeros((stages, 2), dtype=np.int64)
    for largest_batch in batch_sizes:
        best, found = _at_or_above_peak(p, largest_batch, best, found)
    for largest_batch in batch_sizes:
        for bottleneck in range(stages):
            best, found = _below_peak(p, largest_batch, bottleneck, best, found)
    return found


def _batch_wait(batch_size: np.ndarray, load: float, batch_timeout: float) -> np.ndarray:
    """Mean seconds that a request waits for its batch: half the time it takes to form, ``batch_timeout`` at most."""
    check_load(load)
    if not batch_timeout >= 0.0:
        raise ValueError(f"batch_timeout {batch_timeout} s must not be negative")
    return np.minimum(forming_time(batch_size, load) / 2, batch_timeout)


def predicted_reward(
    pipeline: Pipeline, configuration: Configuration, load: float, weights: Weights, batch_timeout: float
) -> float:
    """Eq. 7 under a steady load, with all replicas ready and no queue: the objective of :func:`myopic`.

    The latency of a stage is the time for a full batch plus half the time a batch takes to form, or plus
    ``batch_timeout`` if that is shorter.

    Args:
        pipeline: the pipeline.
        configuration: its configuration.
        load: requests/s.
        weights: of Eqs. 3 and 7.
        batch_timeout: seconds after which a partial batch is taken.

    Raises:
        ValueError: if the load or ``batch_timeout`` is out of its range.
    """
    batches = np.array([stage.batch_size for stage in configuration])
    wait = _batch_wait(batches, load, batch_timeout)
    service = sum(variant.service_time(stage.batch_size) for variant, stage in pipeline.selected(configuration))
    reached = throughput(pipeline, configuration)
    quality = qos(weights, accuracy(pipeline, configuration), reached, service + wait.sum(), load - reached)
    return float(reward(weights, quality, used_cores(pipeline, configuration), batches.max()))


def myopic(pipeline: Pipeline, load: float, weights: Weights, batch_timeout: float) -> Configuration:
    """The configuration with the highest :func:`predicted_reward` (Eq. 7) for a load, exactly.

    A load beyond what the device can carry needs no rule of its own: unmet demand is part of Eq. 3.

    Args:
        pipeline: the pipeline.
        load: requests/s; the forecast, or the true load for the clairvoyant reference.
        weights: of Eqs. 3 and 7.
        batch_timeout: seconds after which a partial batch is taken.

    Raises:
        ValueError: if the load or ``batch_timeout`` is out of its range.
    """
    options = stage_options(pipeline)
    wait = _batch_wait(options.batch_size, load, batch_timeout)
    always_rises = weights.beta > weights.delta
    instance = _Instance(
        options,
        weights.alpha * options.accuracy - (options.service_time + wait),  # Eq. 3
        float(load),
        float(load + (1.0 + pipeline.max_replicas * options.throughput.max() if always_rises else 0.0)),
        pipeline.capacity,
        pipeline.max_replicas,
        float(weights.beta),
        float(weights.gamma),
        float(weights.delta),
        float(weights.cost_weight),
        float(weights.batch_weight),
    )
    selected, replicas = _maximise(instance, pipeline.tables.batch_sizes).T
    return as_configuration(options.configuration(selected, replicas))
