"""An upper bound on the mean reward of a cycle, so that a result can be read as a share of what is possible.

No sequence of feasible configurations that keeps up with the load has a higher mean reward in the simulator, whatever
is known of the requests to come. ``docs/bound.md`` has the theorem and its proof, and what is added for a sequence that
does not keep up; this is how the bound is computed.

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

The seconds in a stage are at least those of a request in the best batch. A batch of k below the batch size is not taken
before its oldest request has waited for the batch timeout, so its requests take at least
``service_time(k) + batch_timeout / k`` in the mean. Where the variant changes to a slower one, the previous one serves
the requests that come while the next one starts. Small batches take less time, but more of the replicas' time for each
request; a price of busy seconds, the best of a few for every interval, sees to it that there is enough of it.

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
from opd.simulator.simulator import service_factors

BUSY_PRICES = np.array([0.0, 0.5, 1.0, 2.0, 4.0])
"""Seconds of a request's stay that a second of a replica's time is worth; the best of them is taken."""

ITERATIONS = 5
"""Subgradient steps; a hundred lower the bounds of the shipped pipelines by another 0.3 % at most."""


class StagePaths(NamedTuple):
    """What a stage can run; O states of variant and replicas, Z variants, K batch sizes.

    Attributes:
        variant: (O,) index of the variant of a state.
        value: (O,) alpha times the accuracy of its variant.
        cores: (O,) cores of all its replicas.
        throughput: (O, O, K) requests/s after the state of the first index was followed by that of the second.
        busy: (O, O, K) most seconds that all replicas together serve in an interval, by previous and present state.
        seconds: (P, Z, K) fewest mean seconds of the requests that a variant serves, at every price of busy seconds.
        faster: (P, Z, Z, K) seconds by which they are fewer with the other variants that may still serve, by previous
            and present variant.
        seconds_idle: (Z,) fewest seconds where possibly no request leaves.
        early: (T, Z) share of an interval's requests that come while a variant starts.
        batch_sizes: (K,) requests.
        start: state at the start.
    """

    variant: np.ndarray
    value: np.ndarray
    cores: np.ndarray
    throughput: np.ndarray
    busy: np.ndarray
    seconds: np.ndarray
    faster: np.ndarray
    seconds_idle: np.ndarray
    early: np.ndarray
    batch_sizes: np.ndarray
    start: int


class Prices(NamedTuple):
    """What the intervals are worth to a stage; T intervals.

    Attributes:
        arrivals: (T,) requests.
        load: (T,) m, requests/s.
        served: (T,) reward per request/s of throughput up to the load.
        spare: (T,) reward per request/s of throughput above it, at least 0.
        core: (T,) reward lost per core.
        batch: (T,) reward lost per request of the batch size.
    """

    arrivals: np.ndarray
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
    arrivals = counts[: len(counts) // seconds * seconds].reshape(-1, seconds)
    if not len(arrivals):
        raise ValueError(f"{len(counts)} s of counts are no whole interval of {seconds} s; give more")
    stages = [_stage_paths(pipeline, objective, simulation, n, start, arrivals) for n in range(len(pipeline.tasks))]
    search = _Search(pipeline, objective, arrivals, stages)
    return min(search.step(number) for number in range(iterations)) / len(arrivals)


class _Search:
    """Subgradient search for shares and prices."""

    def __init__(self, pipeline: Pipeline, weights: Weights, arrivals: np.ndarray, stages: list[StagePaths]) -> None:
        self._weights, self._stages, self._capacity = weights, stages, pipeline.capacity
        self._arrivals, self._load = arrivals.sum(axis=1).astype(float), arrivals.mean(axis=1)
        shape = (len(stages), len(arrivals))
        self._throughput_shares = np.full(shape, 1.0 / len(stages))
        self._batch_shares = np.full(shape, 1.0 / len(stages))
        self._core_price = np.zeros(len(arrivals))

    def step(self, number: int) -> float:
        """Bound the summed reward with the present shares and prices, then improve these."""
        weights, load = self._weights, self._load
        bound = float(self._core_price.sum() * self._capacity - weights.gamma * load.sum())
        chosen = np.zeros((3, len(self._stages), len(load)))  # throughput, cores, batch size
        for n, stage in enumerate(self._stages):
            share = self._throughput_shares[n]
            prices = Prices(
                self._arrivals,
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
    pipeline: Pipeline,
    weights: Weights,
    simulation: SimulationParameters,
    n: int,
    start: Configuration,
    arrivals: np.ndarray,
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
    slow = startup > simulation.interval
    seconds = np.stack(
        [_fewest_seconds(service, tables.batch_sizes, simulation.batch_timeout, price) for price in BUSY_PRICES]
    )
    longest = np.maximum.accumulate(service, axis=1)[:, tables.batch_sizes] * service_factors(simulation).max()
    return StagePaths(
        variant,
        weights.alpha * tables.accuracy[n, variant],
        cores,
        _throughputs(variant, replicas, rate, startup / simulation.interval, pipeline.max_replicas),
        _busy_seconds(variant, replicas, longest, startup, simulation.interval, pipeline.max_replicas),
        seconds,
        np.stack([_seconds_saved(each, slow) for each in seconds]),
        service[:, 1:].min(axis=1),
        _early_shares(arrivals, startup),
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


def _busy_seconds(
    variant: np.ndarray, replicas: np.ndarray, longest: np.ndarray, startup: np.ndarray, interval: float, most: int
) -> np.ndarray:
    """(O, O, K) seconds that all replicas serve in batches begun in an interval; the last batch may outlast it.

    Args:
        variant: (O,) of a state.
        replicas: (O,) of a state.
        longest: (Z, K) longest seconds of a batch.
        startup: (Z,) seconds.
        interval: seconds.
        most: replicas that a variant may have.
    """
    before, after = replicas[:, None, None], replicas[None, :, None]
    start = np.minimum(startup, interval)[variant][None, :, None]
    last, last_before = longest[variant][None, :, :], longest[variant][:, None, :]
    kept = np.minimum(before, after) * interval + np.maximum(after - before, 0) * (interval - start) + after * last
    changed = before * (start + last_before) + after * (interval - start + last)
    same = (variant[:, None] == variant[None, :])[:, :, None]
    slow = startup > interval
    unlimited = slow[variant][None, :, None] | (~same & slow[variant][:, None, None])
    return np.where(unlimited, most * (interval + longest).sum(axis=0), np.where(same, kept, changed))


def _fewest_seconds(service: np.ndarray, batch_sizes: np.ndarray, timeout: float, price: float) -> np.ndarray:
    """(Z, K) fewest mean seconds of the requests that a variant serves, plus ``price`` times its time for a request.

    Args:
        service: (Z, B + 1) seconds by number of requests.
        batch_sizes: (K,) requests.
        timeout: seconds after which a batch is taken that is not full.
        price: of a second that a replica serves.
    """
    requests = np.arange(1, service.shape[1])
    full = service[:, 1:] * (1.0 + price / requests)
    partial = full + timeout / requests
    incomplete = [partial[:, : size - 1].min(axis=1, initial=np.inf) for size in batch_sizes]
    return np.minimum(full[:, batch_sizes - 1], np.stack(incomplete, axis=1))


def _seconds_saved(seconds: np.ndarray, slow: np.ndarray) -> np.ndarray:
    """(Z, Z, K) seconds by which other variants that may still serve are faster, by previous and present variant.

    Args:
        seconds: (Z, K) of the variants.
        slow: (Z,) whether a variant takes longer than an interval to start; then any other may still serve.
    """
    others = np.where(slow[:, None, None], seconds.min(axis=0), seconds[:, None, :])
    same = np.eye(len(slow), dtype=bool)[:, :, None]
    others = np.where(slow[None, :, None], seconds.min(axis=0), np.where(same, seconds[None, :, :], others))
    return np.maximum(seconds[None, :, :] - others, 0.0)


def _early_shares(arrivals: np.ndarray, startup: np.ndarray) -> np.ndarray:
    """(T, Z) share of the requests in the seconds in which a variant starts; all where there are none.

    Args:
        arrivals: (T, interval) requests of each second.
        startup: (Z,) seconds.
    """
    counted = np.concatenate([np.zeros((len(arrivals), 1)), np.cumsum(arrivals, axis=1)], axis=1)
    total = counted[:, -1:]
    begun = np.minimum(np.ceil(startup), arrivals.shape[1]).astype(np.int64)
    return np.where(total > 0.0, counted[:, begun] / np.maximum(total, 1.0), 1.0)


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
                wanted = reached[after] - value[before] - fixed
                k, earned = _best_batch(stage, prices, t, before, after, wanted)
                if earned > wanted:
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
def _best_batch(stage, prices, t, before, after, wanted):
    """The batch size that earns most between two states, and what it earns beside accuracy and cores.

    Where that is no more than ``wanted``, neither needs to be right.
    """
    load = prices.load[t]
    best = -np.inf
    best_k = 0
    for k in range(len(stage.batch_sizes)):
        throughput = stage.throughput[before, after, k]
        earned = prices.served[t] * min(throughput, load) - prices.batch[t] * stage.batch_sizes[k]
        if throughput > load:
            earned += prices.spare[t] * (throughput - load)
        if earned <= max(best, wanted):
            continue
        earned -= _stay(stage, t, before, after, k, prices.arrivals[t], earned - max(best, wanted))
        if earned > best:
            best = earned
            best_k = k
    return best_k, best


@njit(cache=True)
def _stay(stage, t, before, after, k, arrivals, enough):
    """Fewest mean seconds in the stage, at the price of busy seconds that tells most, or any that is ``enough``."""
    old, new = stage.variant[before], stage.variant[after]
    if arrivals == 0.0:
        return min(stage.seconds[0, new, k] - stage.faster[0, old, new, k], stage.seconds_idle[new])
    stay = 0.0
    for p in range(len(BUSY_PRICES)):
        seconds = stage.seconds[p, new, k] - stage.early[t, new] * stage.faster[p, old, new, k]
        stay = max(stay, seconds - BUSY_PRICES[p] * stage.busy[before, after, k] / arrivals)
        if stay >= enough:
            break
    return stay
