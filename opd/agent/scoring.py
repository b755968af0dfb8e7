"""The agent's policy, compiled: a plan in closed form, and a small network that departs from it where that pays.

The plan is the configuration with the best expected reward over the coming intervals, found in closed form by
coordinate ascent. An action is then chosen task by task, and within a task variant, replicas and batch size in turn
(Sec. IV-C). Each choice sees the earlier ones. It is masked by the cores that remain once the cheapest completion of
the later tasks is set aside, so every action is feasible by construction (Eq. 4).
Unless choices are sampled, one whose expected reward is more than a unit below the plan's gives way to the plan.

Every option is completed to a whole configuration, and described by how much better or worse than the plan that is,
and by what it carries and costs in comparison with the loads that may come, with what runs and with the plan. So the
network knows no number of tasks, variants, replicas or batch sizes. Before it has learned anything, it does as planned.

Training and deployment share this code. It is one module because Numba's cache notices changes in one file only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from opd.agent.description import INCOMING, OBJECTIVE, PLANNED, WAITING
from opd.objective import SHORTFALL_PENALTY
from opd.planner.expected import BUSIEST, WAITING_SHARE

OPTION_INPUTS = 30
STAGE_INPUTS = OPTION_INPUTS + 10
NODE_INPUTS = OBJECTIVE + 19

QUANTILE_WEIGHTS = np.array([0.075, 0.1, 0.2, 0.25, 0.2, 0.1, 0.075])
"""Share of the cases for which each quantile of the forecaster stands."""

UNIT = 0.02
"""Difference in expected reward, as a share of the planned cores, that makes an option e times less likely before
anything is learned."""

LEVEL_WAITING = 1.0
"""The same as :data:`WAITING_SHARE` for a service level, where the slowest requests count."""

LEVEL_MARGIN = 1.05
"""The latency of a service level is planned as if it were shorter by this factor: plans just keep it, and predictions
that are too low with it."""

EXCESS_PRICE = 30.0
"""Cores that an option is worth less for each core that it leaves too few for the planned rest."""

_LOW, _MEDIAN, _UPPER, _HIGH = 1, 3, 4, 5  # among the quantiles


class ScoringWeights(NamedTuple):
    """Weights of the policy as float32 arrays; W width, R residual blocks."""

    node_weight: np.ndarray  # (W, NODE_INPUTS)
    stage_weight: np.ndarray  # (W, STAGE_INPUTS)
    stage_bias: np.ndarray  # (W,)
    pooled_weight: np.ndarray  # (W, 2 W) of the mean and the maximum over the stages
    reduce_bias: np.ndarray  # (W,)
    block_weight: np.ndarray  # (R, 2, W, W)
    block_bias: np.ndarray  # (R, 2, W)
    context_weight: np.ndarray  # (3, W, W) of the features, for each kind of choice
    context_bias: np.ndarray  # (3, W)
    own_weight: np.ndarray  # (3, W, W) of the stage
    chosen_weight: np.ndarray  # (3, W, OPTION_INPUTS) of each option that was chosen before
    option_weight: np.ndarray  # (3, W, OPTION_INPUTS)
    score_weight: np.ndarray  # (3, W)
    direct_weight: np.ndarray  # (3, OPTION_INPUTS) from an option to its score


@njit(cache=True)
def _squash(value):
    """Logarithmic for large values of either sign, the value itself for small ones."""
    return np.sign(value) * np.log1p(min(abs(value), 1e3))


@njit(cache=True)
def _ratio(value, other):
    """Logarithm of a ratio of rates or times, limited."""
    return min(max(np.log((value + 1e-3) / (other + 1e-3)), -3.0), 3.0)


@njit(cache=True, inline="always")
def _rate(d, n, z, f, k):
    """Requests/s of the replicas f + 1 of a variant with batch size 2 ** k."""
    return (f + 1) * (1 << k) / d.service[n, z, k]


@njit(cache=True)
def _share_ready(until, interval):
    """Share of an interval (0 is the next one) in which a replica serves that is ready after ``until`` intervals."""
    return min(max(interval + 1.0 - until, 0.0), 1.0)


@njit(cache=True, inline="always")
def _rate_in(service, startup, serving, starting, wait, all_serving, z, f, k, interval):
    """Requests/s of a stage in the mean of a coming interval; until all replicas serve, those of other variants go on.

    A batch size applies to all of them at once. Service times (Z, K), start-up times (Z,) and replicas (Z,) are those
    of the stage in description and situation; ``all_serving`` is the rate of all that serve now, with this batch size.
    """
    each = (1 << k) / service[z, k]
    already = min(serving[z], f + 1.0)
    soon = min(starting[z], f + 1.0 - already)
    new = f + 1.0 - already - soon
    rate = each * (already + soon * _share_ready(wait[z], interval) + new * _share_ready(startup[z], interval))
    if already < f + 1.0:
        until = startup[z] if new > 0.0 else wait[z]
        rate += (1.0 - _share_ready(until, interval)) * max(all_serving - each * serving[z], 0.0)
    return rate


# --- the plan, in closed form --------------------------------------------------------------------------------------


class Prospects(NamedTuple):
    """What every choice of a stage contributes to the expected reward of H coming intervals, in cores.

    Attributes:
        value: (N, Z, F, K) accuracy less cores, and for weights less latency; minus infinity beyond the capacity.
        rate: (N, Z, F, K, H) requests/s.
        balance: (N, Z, F, K, H) what throughput, unmet and spare load and what piles up are worth at this rate; only
            for weights.
        waiting: (N, Z, F, K, H, 7) mean seconds in the queue; only for a service level. Otherwise N is 0.
        spread: (N, Z, F, K, H, 7) variance of the seconds in the stage; likewise.
    """

    value: np.ndarray
    rate: np.ndarray
    balance: np.ndarray
    waiting: np.ndarray
    spread: np.ndarray


_STEPS, _MOST = 64, 64
_BUSY = np.linspace(0.0, BUSIEST, _STEPS + 1)
_CROWD = 0.5 * WAITING_SHARE * _BUSY ** (np.sqrt(2.0 * np.arange(2.0, _MOST + 2.0)[:, None]) - 1.0) / (1.0 - _BUSY)
"""(64, 65) seconds in the queue by replicas - 1 and utilisation, in service times of a request on all replicas."""


@njit(cache=True)
def _crowd(f, busy):
    """Linear interpolation of the table, see :func:`opd.planner.expected.waiting_times`."""
    place = min(busy / BUSIEST, 1.0) * _STEPS
    below = min(int(place), _STEPS - 1)
    row = min(f, _MOST - 1)
    return _CROWD[row, below] + (place - below) * (_CROWD[row, below + 1] - _CROWD[row, below])


@njit(cache=True)
def _piled_up(interval, patience, load, rate, queue):
    """Mean seconds behind what piles up in an interval, and the requests that wait at its end.

    Nobody waits longer than :attr:`Description.patience`, so no more requests can pile up than are served in that time.
    """
    after = min(max(queue + interval * (load - rate), 0.0), patience * rate)
    return min(0.5 * (queue + after) / max(rate, 1e-9), patience), after


@njit(cache=True)
def _balance(o, horizon, interval, patience, coming, queue, rates, out):
    """Write what the throughput (H,) of a pipeline is worth, with unmet and spare load and what piles up, in cores."""
    out[:] = 0.0
    for q in range(len(QUANTILE_WEIGHTS)):
        waits = queue
        for h in range(len(rates)):
            excess = coming[h, q] - rates[h]
            seconds, waits = _piled_up(interval, patience, coming[h, q], rates[h], waits)
            lost = (o[3] * excess if excess > 0.0 else -o[4] * excess) + o[6] * seconds
            out[h] += horizon[h] * QUANTILE_WEIGHTS[q] * (o[2] * rates[h] - lost)


@njit(cache=True)
def _forming(d, coming, k, forming):
    """Write mean seconds (H, 7) in which a batch of 2 ** k forms; return their mean."""
    mean = 0.0
    for h in range(len(d.horizon)):
        for q in range(len(QUANTILE_WEIGHTS)):
            forming[h, q] = 0.5 * min(d.timeout, ((1 << k) - 1.0) / max(coming[h, q], 0.1))
            mean += d.horizon[h] * QUANTILE_WEIGHTS[q] * forming[h, q]
    return mean


@njit(cache=True)
def _stage_prospects(d, s, e, n, k, forming, to_form, found):
    """Write the :class:`Prospects` of a stage for the batch size 2 ** k.

    Arrays are taken out of ``d`` and ``s`` before the loops: handing all of both on from there takes far longer.
    """
    value, rate, level = found.value[n], found.rate[n], d.objective[0] > 0.0
    balance, waiting, spread = found.balance[n:], found.waiting[n:], found.spread[n:]  # empty where there is nothing
    horizon, objective, interval, patience = d.horizon, d.objective, d.interval, d.patience
    service, startup, cores, worth, variation = d.service[n], d.startup[n], d.cores[n], d.worth[n], d.variation
    serving, starting, wait, all_serving = s.serving[e, n], s.starting[e, n], s.wait[e, n], 0.0
    for z in range(d.variants[n]):
        all_serving += serving[z] * (1 << k) / service[z, k]
    coming, queue, share = s.coming[e], interval * s.loads[e, WAITING], LEVEL_WAITING / WAITING_SHARE if level else 1.0
    rates, worths = np.zeros(len(horizon)), np.zeros(len(horizon))
    for z in range(d.variants[n]):
        for f in range(_most_replicas(d, n, z, d.capacity)):
            each, latency = service[z, k] / ((1 << k) * (f + 1)), service[z, k] + to_form
            for h in range(len(horizon)):
                here = _rate_in(service, startup, serving, starting, wait, all_serving, z, f, k, h)
                rates[h] = rate[z, f, k, h] = here
                inverse = 1.0 / max(here, 1e-9)
                for q in range(len(QUANTILE_WEIGHTS)):
                    seconds = share * each * _crowd(f, coming[h, q] * inverse)
                    latency += horizon[h] * QUANTILE_WEIGHTS[q] * seconds
                    if level:
                        waiting[0, z, f, k, h, q] = seconds + forming[h, q]
                        # Some skip the queue, the others wait an exponential time; forming takes 0 to twice its mean.
                        queued = 0.5 * LEVEL_WAITING * each / (1.0 - min(coming[h, q] * inverse, BUSIEST))
                        variance = variation * service[z, k] ** 2 + forming[h, q] ** 2 / 3.0
                        spread[0, z, f, k, h, q] = variance + seconds * (2.0 * queued - seconds)
            if not level:
                _balance(objective, horizon, interval, patience, coming, queue, rates, worths)
                for h in range(len(horizon)):
                    balance[0, z, f, k, h] = worths[h]
            value[z, f, k] = worth[z] - (f + 1) * cores[z] - objective[6] * latency


@njit(cache=True)
def prospects(d, s, e):
    """The :class:`Prospects` of all choices in a situation."""
    stages, variants, sizes = d.service.shape
    intervals, quantiles, level = len(d.horizon), len(QUANTILE_WEIGHTS), d.objective[0] > 0.0
    value = np.full((stages, variants, d.replicas, sizes), -np.inf)
    rate = np.zeros((stages, variants, d.replicas, sizes, intervals))
    balance = np.zeros((0 if level else stages, variants, d.replicas, sizes, intervals))
    waiting = np.zeros((stages if level else 0, variants, d.replicas, sizes, intervals, quantiles))
    spread, forming = np.zeros(waiting.shape), np.zeros((intervals, quantiles))
    found = Prospects(value, rate, balance, waiting, spread)
    for k in range(sizes):
        to_form = _forming(d, s.coming[e], k, forming)
        for n in range(stages):
            _stage_prospects(d, s, e, n, k, forming, to_form, found)
    return found


class Rest(NamedTuple):
    """What all stages but one contribute, see :class:`Prospects`; (H,) rate, balance, (H, 7) waiting, spread."""

    value: float
    rate: np.ndarray
    balance: np.ndarray
    waiting: np.ndarray
    spread: np.ndarray
    service: float
    accuracy: float
    cores: float
    largest: int


@njit(cache=True)
def _rest_of(d, s, e, p, choices, stage):
    """The :class:`Rest` of a configuration without one stage."""
    value, service, accuracy, cores, largest = 0.0, 0.0, 0.0, 0.0, 0
    rate, balance = np.full(len(d.horizon), np.inf), np.zeros(len(d.horizon))
    waiting, spread = np.zeros((2, len(d.horizon), len(QUANTILE_WEIGHTS)))
    for n in range(len(choices)):
        if n != stage:
            z, f, k = choices[n]
            value += p.value[n, z, f, k]
            service += d.service[n, z, k]
            accuracy += d.accuracy[n, z]
            cores += (f + 1) * d.cores[n, z]
            largest = max(largest, k)
            for h in range(len(rate)):
                rate[h] = min(rate[h], p.rate[n, z, f, k, h])
            if len(p.waiting):
                waiting += p.waiting[n, z, f, k]
                spread += p.spread[n, z, f, k]
    if len(choices) > 1 and len(p.balance):
        queue = d.interval * s.loads[e, WAITING]
        _balance(d.objective, d.horizon, d.interval, d.patience, s.coming[e], queue, rate, balance)
    return Rest(value, rate, balance, waiting, spread, service, accuracy, cores, largest)


@njit(cache=True, inline="always")
def _joint(total, rate, balance, rest_rate, rest_balance, largest, batch_price, z, f, k):
    """Add what throughput and the largest batch are worth to a ``total``; rate and balance (Z, F, K, H) of a stage."""
    for h in range(len(rest_rate)):
        total += balance[z, f, k, h] if rate[z, f, k, h] < rest_rate[h] else rest_balance[h]
    return total - batch_price * (1 << max(largest, k))


@njit(cache=True, inline="always")
def _expected(d, s, e, p, rest, n, z, f, k):
    """Expected reward of a configuration in cores: Eq. 7, or the reward of a service level."""
    total = rest.value + p.value[n, z, f, k]
    if d.objective[0] > 0.0:
        inaccurate = max(d.floor - rest.accuracy - d.accuracy[n, z], 0.0)
        return total - d.capacity * SHORTFALL_PENALTY * (_late(d, s, e, p, rest, n, z, f, k) + inaccurate)
    return _joint(total, p.rate[n], p.balance[n], rest.rate, rest.balance, rest.largest, d.objective[5], z, f, k)


@njit(cache=True)
def _late(d, s, e, p, rest, n, z, f, k):
    """Expected shortfall of a service level, a fraction; the latency is taken to be distributed normally."""
    asked, shortfall = 1.0 - np.exp(-d.objective[7]), 0.0
    slack = d.seconds / LEVEL_MARGIN - rest.service - d.service[n, z, k]
    for q in range(len(QUANTILE_WEIGHTS)):
        waits = 0.0
        for h in range(len(d.horizon)):
            load, rate = s.coming[e, h, q], min(rest.rate[h], p.rate[n, z, f, k, h])
            if h == 0:
                load += s.loads[e, WAITING]
            behind, waits = _piled_up(d.interval, d.patience, load, rate, waits)
            seconds = rest.waiting[h, q] + p.waiting[n, z, f, k, h, q] + behind
            variance = rest.spread[h, q] + p.spread[n, z, f, k, h, q] + behind**2 / 3.0
            within = 0.5 * math.erfc((seconds - slack) / math.sqrt(2.0 * max(variance, 1e-9)))
            within *= min(1.0, rate / max(load, 1e-9))
            shortfall += d.horizon[h] * QUANTILE_WEIGHTS[q] * max(asked - within, 0.0)
    return shortfall


@njit(cache=True)
def _used(d, choices):
    """Cores of a configuration (Eq. 2)."""
    cores = 0.0
    for n in range(len(choices)):
        cores += (choices[n, 1] + 1) * d.cores[n, choices[n, 0]]
    return cores


@njit(cache=True)
def _worth(d, s, e, p, choices):
    """Expected reward of a configuration in cores; minus infinity beyond the capacity."""
    if _used(d, choices) > d.capacity + 1e-9:
        return -np.inf
    z, f, k = choices[0]
    return _expected(d, s, e, p, _rest_of(d, s, e, p, choices, 0), 0, z, f, k)


@njit(cache=True)
def _appraise(d, s, e, p, rest, n, budget, out):
    """Write the expected reward (Z, F, K) of every choice of a stage; minus infinity where the budget is too small."""
    out[:] = -np.inf
    level, sizes, price = d.objective[0] > 0.0, out.shape[2], d.objective[5]
    value, rate, balance = p.value[n], p.rate[n], p.balance[n:]
    base, rest_rate, rest_balance, largest = rest.value, rest.rate, rest.balance, rest.largest
    for z in range(d.variants[n]):
        for f in range(_most_replicas(d, n, z, budget)):
            excess = EXCESS_PRICE * max(rest.cores + (f + 1) * d.cores[n, z] - d.capacity - 1e-9, 0.0)
            for k in range(sizes):
                if level:
                    total = _expected(d, s, e, p, rest, n, z, f, k)
                else:
                    total = base + value[z, f, k]
                    total = _joint(total, rate, balance[0], rest_rate, rest_balance, largest, price, z, f, k)
                out[z, f, k] = total - excess


SWEEPS = 6
"""Rounds of coordinate ascent at most."""


@njit(cache=True)
def _ascend(d, s, e, p, choices, best, first):
    """Coordinate ascent over the stages from ``first`` on; the configuration it ends with, and its expected reward."""
    found, values = choices.copy(), np.zeros(p.value.shape[1:])
    for _ in range(SWEEPS):
        before = best
        for n in range(first, len(found)):
            rest = _rest_of(d, s, e, p, found, n)
            _appraise(d, s, e, p, rest, n, d.capacity - rest.cores, values)
            place = np.argmax(values)
            if values.ravel()[place] > best + 1e-9:
                best, sizes = values.ravel()[place], values.shape[2]
                found[n] = place // sizes // d.replicas, place // sizes % d.replicas, place % sizes
        if best == before:
            break
    return found, best


@njit(cache=True)
def _complete(d, s, e, p, choices, first):
    """Complete a configuration, whose stages before ``first`` are chosen, by the best that ascent finds for the rest.

    It begins with the best of what is there already and of what is solved for some load, as far as that fits.
    """
    stages, best, found = len(choices), -np.inf, choices.copy()
    likely = s.coming[e, : len(d.horizon)]
    begin = max(np.searchsorted(d.loads, 0.6 * likely.min()) - 1, 0)
    end = np.searchsorted(d.loads, 1.5 * (likely.max() + s.loads[e, WAITING])) + 1
    for row in range(begin - 2, min(end, len(d.solved))):
        other = choices.copy()
        if row == begin - 2:
            for n in range(first, stages):
                other[n, 0], other[n, 1] = np.argmin(d.cores[n]), 0
        elif row >= begin:
            other[first:] = d.solved[row, first:]
        value = _worth(d, s, e, p, other)
        if value > best:
            best, found = value, other
    return _ascend(d, s, e, p, found, best, first)


@njit(cache=True)
def _go_on(d, s, e, p, current, n, chosen):
    """The plan once stage n is chosen: the same where that was planned, otherwise later stages are planned again."""
    if (current[n] == chosen).all():
        return current
    changed = current.copy()
    changed[n] = chosen
    return _complete(d, s, e, p, changed, n + 1)[0] if n + 1 < len(changed) else changed


@njit(cache=True)
def plan(d, s, e):
    """(N, 3) choices with the best expected reward that is found in a situation, and the :class:`Prospects`."""
    p, running = prospects(d, s, e), s.running[e].copy()
    found, best = _complete(d, s, e, p, running, 0)
    other, value = _ascend(d, s, e, p, running, _worth(d, s, e, p, running), 0)
    return (other if value > best else found), p


@njit(cache=True)
def expected_rewards(d, s, e, p, choices):
    """(C,) expected rewards of configurations (C, N, 3), in cores; minus infinity beyond the capacity."""
    return np.array([_worth(d, s, e, p, each) for each in choices])


# --- options as numbers ----------------------------------------------------------------------------------------------


@njit(cache=True)
def _describe_option(d, s, e, p, planned, budget, carried, largest, lead, gain, n, z, f, k, out):
    """Describe the option to run f + 1 replicas of variant z with batch size 2 ** k in stage n.

    ``planned`` (3,) is the choice of the plan, ``budget`` the cores that the stage may take, ``carried`` the requests/s
    of the slowest stage chosen so far, infinite before the first, and ``largest`` the exponent of the largest batch
    size chosen so far. The expected reward is ``lead`` above that of the plan, in :data:`UNIT` of its cores, and
    ``gain`` above that of what the stage runs, in cores. Writes ``out``, (OPTION_INPUTS,) float32.
    """
    coming, (z0, f0, k0), (zp, fp, kp) = s.coming[e], s.running[e, n], planned
    rate, old = _rate(d, n, z, f, k), _rate(d, n, z0, f0, k0)
    seconds, old_seconds = d.service[n, z, k], d.service[n, z0, k0]
    forming = min(d.timeout, ((1 << k) - 1) / max(coming[0, _MEDIAN], 0.1))
    out[0] = min(max(lead, -20.0), 20.0) / 4.0
    out[1] = _squash(gain)
    out[2] = min((f + 1) * d.cores[n, z] / max(budget, 1e-6), 2.0)
    out[3] = _ratio((f + 1) * d.cores[n, z], (f0 + 1) * d.cores[n, z0])
    out[4] = _ratio(rate, coming[0, _LOW])
    out[5] = _ratio(rate, coming[0, _MEDIAN])
    out[6] = _ratio(rate, coming[0, _HIGH])
    out[7] = _ratio(rate, s.loads[e, PLANNED])
    out[8] = _ratio(rate, coming[1, _HIGH])
    out[9] = _ratio(p.rate[n, z, f, k, 0], coming[0, _MEDIAN] + s.loads[e, WAITING])
    out[10] = _ratio(p.rate[n, z, f, k, 1], coming[1, _MEDIAN])
    out[11] = _ratio(rate, coming[5, _MEDIAN])
    out[12] = 1.0 if f + 1.0 > s.serving[e, n, z] + s.starting[e, n, z] else 0.0
    out[13] = np.log1p(d.startup[n, z])
    out[14] = 1.0 if z == z0 else 0.0
    out[15] = min(max((f - f0) / 3.0, -1.0), 1.0) if z == z0 else 0.0
    out[16] = (k - k0) / 3.0
    out[17] = 1.0 if z == z0 and f == f0 and k == k0 else 0.0
    out[18] = _ratio(seconds, old_seconds)
    out[19] = _ratio(rate, old)
    out[20] = min((seconds + forming) / d.seconds, 3.0)
    out[21] = _squash((seconds + forming) * d.objective[6])
    out[22] = _ratio(rate, carried) if carried < np.inf else 0.0
    out[23] = max(k - largest, 0) / 3.0
    out[24] = _squash(d.worth[n, z] - d.worth[n, z0])
    out[25] = _squash(d.worth[n, z] - d.worth[n, zp])
    out[26] = 1.0 if z == zp else 0.0
    out[27] = 1.0 if z == zp and f == fp and k == kp else 0.0
    out[28] = _ratio(rate, _rate(d, n, zp, fp, kp))
    out[29] = (k - kp) / 3.0


@njit(cache=True)
def _describe_stage(d, s, e, p, planned, worth, unit, n, out):
    """Describe stage n as it is: what runs, beside the plan (N, 3) and what that is worth, and what was measured."""
    z, f, k = s.running[e, n]
    kept = planned.copy()
    kept[n] = s.running[e, n]
    lead = (_worth(d, s, e, p, kept) - worth) / unit
    budget = d.capacity - d.reserve[n]
    _describe_option(d, s, e, p, planned[n], budget, np.inf, k, lead, 0.0, n, z, f, k, out[:OPTION_INPUTS])
    place = OPTION_INPUTS
    out[place] = _ratio(s.throughput[e, n], _rate(d, n, z, f, k))
    out[place + 1] = _ratio(s.latency[e, n], d.service[n, z, k])
    out[place + 2] = np.log1p(s.queue[e, n])
    out[place + 3] = _ratio(s.queue[e, n] / d.interval, s.coming[e, 0, _MEDIAN])
    out[place + 4] = min(s.serving[e, n, z] / (f + 1.0), 2.0)
    out[place + 5] = 1.0 if n == 0 else 0.0
    out[place + 6] = d.variants[n] / 8.0
    out[place + 7] = np.log(d.replicas) / 2.0
    out[place + 8] = d.service.shape[2] / 5.0
    out[place + 9] = _ratio(d.service[n, z, k], d.interval)


@njit(cache=True)
def _describe_node(d, s, e, used, planned, out):
    """Describe the device: objective, loads relative to the planned one, cores of what runs and of the plan."""
    load, coming = s.loads[e, PLANNED], s.coming[e]
    for index in range(OBJECTIVE):
        by_load = load if index in (2, 3, 4) else 1.0
        out[index] = np.log1p(d.objective[index] * by_load)
    place = OBJECTIVE
    for quantile in (_LOW, _MEDIAN, _UPPER, _HIGH):
        out[place] = _ratio(coming[0, quantile], load)
        out[place + 1] = _ratio(coming[1, quantile], load)
        place += 2
    out[place] = _ratio(coming[5, _MEDIAN], load)
    out[place + 1] = _ratio(s.loads[e, INCOMING], load)
    out[place + 2] = _ratio(s.loads[e, WAITING], load)
    out[place + 3] = used / d.capacity
    out[place + 4] = planned / d.capacity
    out[place + 5] = _ratio(planned, used)
    out[place + 6] = np.log(d.capacity) / 3.0
    out[place + 7] = np.log1p(load) / 4.0
    out[place + 8] = len(d.variants) / 5.0
    out[place + 9] = _ratio(load + s.loads[e, WAITING], d.loads[-1])
    out[place + 10] = len(d.horizon) / 6.0


@njit(cache=True)
def _most_replicas(d, n, z, budget):
    return min(d.replicas, int(budget / d.cores[n, z] + 1e-9))


@njit(cache=True)
def _describe_choice(d, s, e, p, values, planned, unit, budget, carried, largest, n, kind, z, f, out):
    """Describe the options of one choice, those that the limits allow; what is open in the stage is the best there is.

    Returns:
        the number of options, those described being the first rows of ``out``; and the index of each in ``places``.
    """
    count, places = 0, np.empty(len(out), dtype=np.int64)
    z0, f0, k0 = s.running[e, n]
    best, old = values[planned[0], planned[1], planned[2]], values[z0, f0, k0]
    options = d.variants[n] if kind == 0 else d.replicas if kind == 1 else values.shape[2]
    for option in range(options):
        zo, fo, ko = option, 0, 0
        if kind == 0:
            place = int(np.argmax(values[option]))
            fo, ko = place // values.shape[2], place % values.shape[2]
        elif kind == 1:
            zo, fo, ko = z, option, int(np.argmax(values[z, option]))
        else:
            zo, fo, ko = z, f, option
        value = values[zo, fo, ko]
        if value > -np.inf:
            gain, lead = value - old, (value - best) / unit
            _describe_option(d, s, e, p, planned, budget, carried, largest, lead, gain, n, zo, fo, ko, out[count])
            places[count] = option
            count += 1
    return count, places


# --- the network and its choices --------------------------------------------------------------------------------------


@njit(cache=True)
def most_options(d):
    """Largest number of options of any choice."""
    return max(d.service.shape[1], d.replicas, d.service.shape[2])


@njit(cache=True)
def _features(w, node, stages, hidden):
    """(W,) features of the residual extractor; writes the encoded stages (N, W)."""
    width = len(w.stage_bias)
    pooled = np.zeros(2 * width, dtype=np.float32)
    for n in range(len(stages)):
        hidden[n] = np.maximum(w.stage_weight @ stages[n] + w.stage_bias, np.float32(0.0))
        for i in range(width):
            pooled[i] += hidden[n, i] / np.float32(len(stages))
            pooled[width + i] = max(pooled[width + i], hidden[n, i])
    features = np.maximum(w.node_weight @ node + w.pooled_weight @ pooled + w.reduce_bias, np.float32(0.0))
    for r in range(len(w.block_weight)):
        inner = np.maximum(w.block_weight[r, 0] @ features + w.block_bias[r, 0], np.float32(0.0))
        features = np.maximum(features + w.block_weight[r, 1] @ inner + w.block_bias[r, 1], np.float32(0.0))
    return features


@njit(cache=True)
def _score(w, kind, context, options, count, scores):
    """Write the score of each option."""
    for option in range(count):
        total = np.float32(0.0)
        hidden = w.option_weight[kind] @ options[option]
        for i in range(options.shape[1]):
            total += w.direct_weight[kind, i] * options[option, i]
        for i in range(len(context)):
            total += w.score_weight[kind, i] * max(hidden[i] + context[i], np.float32(0.0))
        scores[option] = total


@njit(cache=True)
def _pick(scores, count, uniform):
    """One of the options and its log-probability.

    Args:
        scores: (K,).
        count: number of options.
        uniform: within 0..1 for the option at which the cumulative probability passes it; negative for the best.
    """
    best = int(np.argmax(scores[:count]))
    total = 0.0
    for option in range(count):
        total += np.exp(np.float64(scores[option] - scores[best]))
    chosen = best
    if uniform >= 0.0:
        cumulative = 0.0
        for option in range(count):
            chosen = option
            cumulative += np.exp(np.float64(scores[option] - scores[best]))
            if cumulative > uniform * total:
                break
    return chosen, scores[chosen] - scores[best] - np.log(total)


@njit(cache=True)
def _observe(d, s, e, node, inputs):
    """Plan in a situation and write what the network sees of node and stages; (N, 3) plan, its unit, prospects."""
    planned, p = plan(d, s, e)
    cores, worth = _used(d, planned), _worth(d, s, e, p, planned)
    _describe_node(d, s, e, _used(d, s.running[e]), cores, node)
    for n in range(len(planned)):
        _describe_stage(d, s, e, p, planned, worth, UNIT * cores, n, inputs[n])
    return planned, UNIT * cores, p


@njit(cache=True)
def choose(w, d, s, uniform):
    """Choose an action in every situation.

    Args:
        w: :class:`ScoringWeights`.
        d: :class:`~opd.agent.description.Description`.
        s: :class:`~opd.agent.description.Situations`, E of them.
        uniform: (E, 3 N) within 0..1 to sample; negative for the options with the best scores.

    Returns:
        (E, N, 3) choices, -1 where nothing fits; (E,) log-probabilities of what the network chose.
    """
    environments, stages = s.running.shape[0], s.running.shape[1]
    choices = np.full((environments, stages, 3), -1)
    log_prob = np.zeros(environments)
    options = np.zeros((most_options(d), OPTION_INPUTS), dtype=np.float32)
    scores = np.zeros(len(options), dtype=np.float32)
    node, inputs = np.zeros(NODE_INPUTS, dtype=np.float32), np.zeros((stages, STAGE_INPUTS), dtype=np.float32)
    hidden = np.zeros((stages, len(w.stage_bias)), dtype=np.float32)
    values = np.zeros((d.service.shape[1], d.replicas, d.service.shape[2]))
    if d.reserve[0] + d.cores[0].min() > d.capacity:  # not even the smallest configuration fits
        return choices, log_prob
    for e in range(environments):
        first, unit, p = _observe(d, s, e, node, inputs)
        features = _features(w, node, inputs, hidden)
        memory = np.zeros(len(features), dtype=np.float32)  # of the options chosen so far
        current, cores, carried, largest = first, d.capacity, np.inf, 0
        for n in range(stages):
            budget, z, f, k = cores - d.reserve[n], 0, 0, 0
            _appraise(d, s, e, p, _rest_of(d, s, e, p, current, n), n, budget, values)
            planned = current[n].copy()
            for kind in range(3):
                count, places = _describe_choice(
                    d, s, e, p, values, planned, unit, budget, carried, largest, n, kind, z, f, options
                )
                context = w.context_weight[kind] @ features + w.context_bias[kind] + w.own_weight[kind] @ hidden[n]
                _score(w, kind, context + memory, options, count, scores)
                chosen, logarithm = _pick(scores, count, uniform[e, 3 * n + kind])
                log_prob[e] += logarithm
                memory += w.chosen_weight[kind] @ options[chosen]
                choices[e, n, kind] = places[chosen]
                z, f, k = choices[e, n]
            current = _go_on(d, s, e, p, current, n, choices[e, n])
            cores -= (f + 1) * d.cores[n, z]
            carried, largest = min(carried, _rate(d, n, z, f, k)), max(largest, k)
        if uniform[e, 0] < 0.0 and _worth(d, s, e, p, choices[e]) < _worth(d, s, e, p, first) - unit:
            choices[e] = first
    return choices, log_prob


class Expanded(NamedTuple):
    """Choices in E situations as the network sees them: M sequences each, T = 3 N steps a sequence, R options in all.

    Attributes:
        node: (E, NODE_INPUTS).
        stages: (E, N, STAGE_INPUTS).
        options: (R, OPTION_INPUTS) of all steps, one after another.
        step: (R,) step of each option, counted through all sequences.
        chosen: (E M T,) place among the options of the one that each step chose.
    """

    node: np.ndarray
    stages: np.ndarray
    options: np.ndarray
    step: np.ndarray
    chosen: np.ndarray


@njit(cache=True)
def _expand_sequence(d, s, e, p, current, unit, choices, first, step, options, step_of, chosen):
    """Write the options of one sequence of choices (N, 3) from place ``first`` on; return the place after the last."""
    cores, carried, largest = d.capacity, np.inf, 0
    values = np.zeros((d.service.shape[1], d.replicas, d.service.shape[2]))
    for n in range(len(choices)):
        budget = cores - d.reserve[n]
        z, f, k = choices[n]
        _appraise(d, s, e, p, _rest_of(d, s, e, p, current, n), n, budget, values)
        for kind in range(3):
            end = first + most_options(d)
            count, places = _describe_choice(
                d, s, e, p, values, current[n], unit, budget, carried, largest, n, kind, z, f, options[first:end]
            )
            step_of[first : first + count] = step
            chosen[step] = -1
            for option in range(count):
                if places[option] == choices[n, kind]:
                    chosen[step] = first + option
            first += count
            step += 1
        current = _go_on(d, s, e, p, current, n, choices[n])
        cores -= (f + 1) * d.cores[n, z]
        carried, largest = min(carried, _rate(d, n, z, f, k)), max(largest, k)
    return first


@njit(cache=True)
def expand(d, s, choices):
    """Describe the options among which choices were made.

    Args:
        d: description.
        s: situations, E of them.
        choices: (E, M, N, 3), each feasible.

    Returns:
        the fields of :class:`Expanded`.
    """
    environments, sequences, stages = choices.shape[:3]
    node = np.zeros((environments, NODE_INPUTS), dtype=np.float32)
    inputs = np.zeros((environments, stages, STAGE_INPUTS), dtype=np.float32)
    steps = environments * sequences * 3 * stages
    chosen = np.zeros(steps, dtype=np.int64)
    most = most_options(d)
    places = environments * sequences * stages * (d.service.shape[1] + d.replicas + d.service.shape[2]) + most
    options = np.zeros((places, OPTION_INPUTS), dtype=np.float32)
    step_of = np.zeros(places, dtype=np.int64)
    first = step = 0
    for e in range(environments):
        planned, unit, p = _observe(d, s, e, node[e], inputs[e])
        for m in range(sequences):
            first = _expand_sequence(d, s, e, p, planned, unit, choices[e, m], first, step, options, step_of, chosen)
            step += 3 * stages
    return node, inputs, options[:first], step_of[:first], chosen
