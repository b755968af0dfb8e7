"""An upper bound on the mean reward of a cycle, so that a result can be read as a share of what is possible.

No sequence of feasible configurations that keeps up with the load, chosen with whatever knowledge of the requests, has
a higher mean reward in the simulator. ``docs/bound.md`` has the theorem, its conditions and its proof, and what is
added for a sequence that does not keep up; this is how the bound is computed.

The reward of an interval t is, with weights and names of Eqs. 1-4 and 7 and the load m::

    r_t = alpha V - L + beta T - gamma (m - T)^+ - delta (T - m)^+ - cost_weight C - batch_weight B

T = min_n t_n and B = max_n b_n tie the stages together, and so does the capacity W. With any shares pi_n, theta_n >= 0
that add up to 1, and any price mu >= 0 of a core,

* the terms in T are at most ``-gamma m + sum_n pi_n g(t_n)`` with
  ``g(t) = (beta + gamma) min(t, m) + (beta - delta)^+ (t - m)^+``, which does not fall as t rises;
* ``-B <= -sum_n theta_n b_n``; and ``0 <= mu (W - C)`` for every feasible configuration.

What remains is a sum over the stages. What a stage earns in an interval depends on its present and its previous
configuration alone, because replicas of the previous variant serve until the new ones are ready. So the best sequence
of a stage is a longest path through variants and replicas, found by dynamic programming. The sum of the stages' optima
is a bound for *any* shares and prices; a subgradient method looks for good ones.

The seconds in a stage are at least those of a request in the best batch of the variants that may serve in the interval.
A batch of k below the batch size is not taken before its oldest request has waited for the batch timeout, so its
requests take at least ``service_time(k) + batch_timeout / k`` in the mean.

A variant that takes longer than an interval to start lets what served before it go on, again and again if variants keep
changing. Where one is chosen, throughput is therefore not limited and the seconds are those of the fastest variant. The
bound is loose there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from opd.measurement import SimulationParameters
from opd.objective import Objective, Weights
from opd.pipeline import Configuration, Pipeline

ITERATIONS = 5
"""Subgradient steps; a hundred lower the bounds of the shipped pipelines by another 0.3 % at most."""


class StagePaths(NamedTuple):
    """What a stage can run; O states of variant and replicas, Z variants, K batch sizes.

    Attributes:
        variant: (O,) index of the variant of a state.
        value: (O,) alpha times the accuracy of its variant.
        cores: (O,) cores of all its replicas.
        throughput: (O, O, K) requests/s after the state of the first index was followed by that of the second.
        seconds: (Z, Z, K) fewest mean seconds of the requests that leave, by previous and present variant.
        seconds_idle: (Z,) the same where possibly none leaves.
        batch_sizes: (K,) requests.
        start: state at the start.
    """

    variant: np.ndarray
    value: np.ndarray
    cores: np.ndarray
    throughput: np.ndarray
    seconds: np.ndarray
    seconds_idle: np.ndarray
    batch_sizes: np.ndarray
    start: int


class Prices(NamedTuple):
    """What the intervals are worth to a stage; T intervals.

    Attributes:
        load: (T,) m, requests/s.
        served: (T,) reward per request/s of throughput up to the load.
        spare: (T,) reward per request/s of throughput above it, at least 0.
        core: (T,) reward lost per core.
        batch: (T,) reward lost per request of the batch size.
    """

    load: np.ndarray
    served: np.ndarray
    spare: np.ndarray
    core: np.ndarray
    batch: np.ndarray


def reward_bound(
    pipeline: Pipeline,
    objective: Objective,
    simulation: SimulationParameters,
    start: Configuration,
    counts: np.ndarray,
    iterations: int = ITERATIONS,
) -> float:
    """Bound the mean reward of the intervals of a cycle from above.

    Args:
        pipeline: the pipeline with its true latencies.
        objective: weights of Eqs. 3 and 7.
        simulation: behaviour of the device.
        start: configuration that runs before the first decision, all its replicas ready.
        counts: (T * interval,) requests of each second.
        iterations: subgradient steps, at least 1.

    Raises:
        ValueError: if the objective is a service level, or there is no whole interval.
    """
    if not isinstance(objective, Weights):
        raise ValueError(
            "there is no bound for a service level, because the share of requests in time is no sum over the stages; "
            "give weights of Eq. 7"
        )
    seconds = simulation.interval
    load = counts[: len(counts) // seconds * seconds].reshape(-1, seconds).mean(axis=1)
    if not len(load):
        raise ValueError(f"{len(counts)} s of counts are no whole interval of {seconds} s; give more")
    stages = [_stage_paths(pipeline, objective, simulation, n, start) for n in range(len(pipeline.tasks))]
    search = _Search(pipeline, objective, load, stages)
    return min(search.step(number) for number in range(iterations)) / len(load)


class _Search:
    """Subgradient search for shares and prices."""

    def __init__(self, pipeline: Pipeline, weights: Weights, load: np.ndarray, stages: list[StagePaths]) -> None:
        self._weights, self._load, self._stages, self._capacity = weights, load, stages, pipeline.capacity
        shape = (len(stages), len(load))
        self._throughput_shares = np.full(shape, 1.0 / len(stages))
        self._batch_shares = np.full(shape, 1.0 / len(stages))
        self._core_price = np.zeros(len(load))

    def step(self, number: int) -> float:
        """Bound the summed reward with the present shares and prices, then improve these."""
        weights, load = self._weights, self._load
        bound = float(self._core_price.sum() * self._capacity - weights.gamma * load.sum())
        chosen = np.zeros((3, len(self._stages), len(load)))  # throughput, cores, batch size
        for n, stage in enumerate(self._stages):
            share = self._throughput_shares[n]
            prices = Prices(
                load,
                (weights.beta + weights.gamma) * share,
                max(weights.beta - weights.delta, 0.0) * share,
                weights.cost_weight + self._core_price,
                weights.batch_weight * self._batch_shares[n],
            )
            bound += _best_path(stage, prices, chosen[:, n])
        throughput, cores, batches = chosen
        length = 1.0 / (number + 3.0)
        self._throughput_shares = _on_simplex(self._throughput_shares - length * throughput / np.maximum(load, 1.0))
        self._batch_shares = _on_simplex(self._batch_shares + 0.3 * length * batches / batches.sum(axis=0))
        excess = cores.sum(axis=0) / self._capacity - 1.0
        self._core_price = np.maximum(self._core_price + 0.1 * length * excess, 0.0)
        return bound


def _on_simplex(points: np.ndarray) -> np.ndarray:
    """The nearest shares, not negative and with sum 1 over the first axis."""
    falling = -np.sort(-points, axis=0)
    above = np.cumsum(falling, axis=0) - 1.0
    counted = np.arange(1, len(points) + 1)[:, None]
    last = (falling > above / counted).sum(axis=0) - 1
    return np.maximum(points - above[last, np.arange(points.shape[1])] / (last + 1), 0.0)


# ----------------------------------------------------------------------------------------------------------- one stage


def _stage_paths(
    pipeline: Pipeline, weights: Weights, simulation: SimulationParameters, n: int, start: Configuration
) -> StagePaths:
    """Tabulate stage ``n``, without the states that leave the other stages too few cores."""
    tables, count = pipeline.tables, len(pipeline.tasks[n].variants)
    least = tables.cores.min(axis=1)
    variant = np.repeat(np.arange(count), pipeline.max_replicas)
    replicas = np.tile(np.arange(1, pipeline.max_replicas + 1), count)
    cores = replicas * tables.cores[n, variant]
    fits = cores <= pipeline.capacity - least.sum() + least[n]
    variant, replicas, cores = variant[fits], replicas[fits], cores[fits]
    service = tables.service_time[n, :count]
    rate = tables.batch_sizes / service[:, tables.batch_sizes]
    startup = tables.startup_time[n, :count]
    return StagePaths(
        variant,
        weights.alpha * tables.accuracy[n, variant],
        cores,
        _throughputs(variant, replicas, rate, startup / simulation.interval, pipeline.max_replicas),
        _fewest_seconds(service, tables.batch_sizes, startup > simulation.interval, simulation.batch_timeout),
        service[:, 1:].min(axis=1),
        tables.batch_sizes,
        int(np.flatnonzero((variant == start[n].variant) & (replicas == start[n].replicas))[0]),
    )


def _throughputs(
    variant: np.ndarray, replicas: np.ndarray, rate: np.ndarray, startup: np.ndarray, most: int
) -> np.ndarray:
    """(O, O, K) requests/s by previous and present state.

    Args:
        variant: (O,) of a state.
        replicas: (O,) of a state.
        rate: (Z, K) requests/s of one replica.
        startup: (Z,) start-up times in intervals.
        most: replicas that a variant may have.
    """
    before, after = replicas[:, None, None], replicas[None, :, None]
    own, old, late = rate[variant][None, :, :], rate[variant][:, None, :], startup[variant][None, :, None]
    same = (variant[:, None] == variant[None, :])[:, :, None]
    kept = own * (np.minimum(before, after) + np.maximum(after - before, 0) * (1.0 - late))
    throughput = np.where(same, kept, own * after * (1.0 - late) + old * before * late)
    # Replicas of every variant may serve while one starts that takes longer than an interval.
    slow = startup > 1.0
    unlimited = slow[variant][None, :, None] | (~same & slow[variant][:, None, None])
    return np.where(unlimited, np.broadcast_to(most * rate.sum(axis=0), throughput.shape), throughput)


def _fewest_seconds(service: np.ndarray, batch_sizes: np.ndarray, slow: np.ndarray, timeout: float) -> np.ndarray:
    """(Z, Z, K) fewest mean seconds in the stage by previous and present variant.

    Args:
        service: (Z, B + 1) seconds by number of requests.
        batch_sizes: (K,) requests.
        slow: (Z,) whether a variant takes longer than an interval to start.
        timeout: seconds after which a batch is taken that is not full.
    """
    partial = service[:, 1:] + timeout / np.arange(1, service.shape[1])
    alone = np.stack(
        [np.minimum(service[:, size], partial[:, : size - 1].min(axis=1, initial=np.inf)) for size in batch_sizes],
        axis=1,
    )
    seconds = np.minimum(alone[:, None, :], alone[None, :, :])
    any_variant = slow[None, :, None] | (slow[:, None, None] & ~np.eye(len(slow), dtype=bool)[:, :, None])
    return np.where(any_variant, alone.min(axis=0), seconds)


@njit(cache=True)
def _best_path(stage, prices, chosen):
    """The most that a stage can earn in all intervals; ``chosen`` (3, T) becomes throughput, cores and batch size."""
    steps, states = len(prices.load), len(stage.variant)
    value = np.full(states, -np.inf)
    value[stage.start] = 0.0
    came_from = np.zeros((steps, states), dtype=np.int64)
    batch = np.zeros((steps, states), dtype=np.int64)
    for t in range(steps):
        reached = np.full(states, -np.inf)
        for after in range(states):
            fixed = stage.value[after] - prices.core[t] * stage.cores[after]
            for before in range(states):
                if value[before] == -np.inf:
                    continue
                k, earned = _best_batch(stage, prices, t, before, after)
                if value[before] + fixed + earned > reached[after]:
                    reached[after] = value[before] + fixed + earned
                    came_from[t, after] = before
                    batch[t, after] = k
        value = reached
    last = int(np.argmax(value))
    best = value[last]
    for t in range(steps - 1, -1, -1):
        before, k = came_from[t, last], batch[t, last]
        chosen[0, t] = min(stage.throughput[before, last, k], prices.load[t])
        chosen[1, t] = stage.cores[last]
        chosen[2, t] = stage.batch_sizes[k]
        last = before
    return best


@njit(cache=True)
def _best_batch(stage, prices, t, before, after):
    """The batch size that earns most between two states, and what it earns beside accuracy and cores."""
    load = prices.load[t]
    best = -np.inf
    best_k = 0
    for k in range(len(stage.batch_sizes)):
        throughput = stage.throughput[before, after, k]
        seconds = stage.seconds[stage.variant[before], stage.variant[after], k]
        if load == 0.0:
            seconds = min(seconds, stage.seconds_idle[stage.variant[after]])
        earned = prices.served[t] * min(throughput, load) - prices.batch[t] * stage.batch_sizes[k] - seconds
        if throughput > load:
            earned += prices.spare[t] * (throughput - load)
        if earned > best:
            best = earned
            best_k = k
    return best_k, best
