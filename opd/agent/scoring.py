"""The agent's policy, compiled: options described as numbers, scored by a small network, chosen one after another.

An action is chosen task by task, and within a task variant, replicas and batch size in turn (Sec. IV-C). Each choice
sees the earlier ones. It is masked by the cores that remain once the cheapest completion of the later tasks is set
aside, so every action is feasible by construction (Eq. 4).

Every option is completed to a configuration of its stage and described by the same figures: what it is worth, costs and
carries, now and once its replicas have started, in comparison with the loads that may come, with what runs and with
what the exact solver would run. So the network knows no number of tasks, variants, replicas or batch sizes.

Training and deployment share this code. It is one module because Numba's cache notices changes in one file only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from opd.agent.description import LOADS, OBJECTIVE, REFERENCES

PROSPECTS = 3
"""Configurations of a stage with which the prospects of an option are compared."""

OPTION_INPUTS = 24 + 3 * REFERENCES + 2 * PROSPECTS
STAGE_INPUTS = OPTION_INPUTS + 10
NODE_INPUTS = LOADS + OBJECTIVE + 2 * REFERENCES + 5

_INCOMING, _PLANNED, _LOW, _MEDIAN, _UPPER, _HIGH, _MEDIAN_2, _HIGH_2, _LATER, _WAITING = range(LOADS)


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


@njit(cache=True)
def _squash(value):
    """Logarithmic for large values of either sign, the value itself for small ones."""
    return np.sign(value) * np.log1p(abs(value))


@njit(cache=True)
def _ratio(value, other):
    """Logarithm of a ratio of rates or times, limited."""
    return min(max(np.log((value + 1e-3) / (other + 1e-3)), -3.0), 3.0)


@njit(cache=True)
def _row_for(loads, load):
    """Position of the first load that is not below ``load``, or the last one."""
    return min(np.searchsorted(loads, load), len(loads) - 1)


@njit(cache=True)
def _references(description, loads, rows):
    """Write the rows of the solved configurations that options are compared with: for growing loads, and what waits."""
    waiting = loads[_WAITING]
    rows[0] = _row_for(description.loads, loads[_MEDIAN] + waiting)
    rows[1] = _row_for(description.loads, loads[_UPPER] + waiting)
    rows[2] = _row_for(description.loads, max(loads[_HIGH], loads[_HIGH_2]) + waiting)
    rows[3] = _row_for(description.loads, loads[_PLANNED] + waiting)


@njit(cache=True)
def _rate(d, n, z, f, k):
    """Requests/s of the replicas f + 1 of a variant with batch size 2 ** k."""
    return (f + 1) * (1 << k) / d.service[n, z, k]


@njit(cache=True)
def _share_ready(until, interval):
    """Share of an interval (0 is the next one) in which a replica serves that is ready after ``until`` intervals."""
    return min(max(interval + 1.0 - until, 0.0), 1.0)


@njit(cache=True)
def _rate_in(d, s, e, n, z, f, k, interval):
    """Requests/s in the mean of a coming interval; until all replicas serve, those of the running variant go on.

    A batch size applies to all of them at once.
    """
    each = (1 << k) / d.service[n, z, k]
    serving = min(s.serving[e, n, z], f + 1.0)
    starting = min(s.starting[e, n, z], f + 1.0 - serving)
    new = f + 1.0 - serving - starting
    rate = each * (
        serving + starting * _share_ready(s.wait[e, n, z], interval) + new * _share_ready(d.startup[n, z], interval)
    )
    running = s.running[e, n, 0]
    if running != z and serving < f + 1.0:
        until = d.startup[n, z] if new > 0.0 else s.wait[e, n, z]
        old = s.serving[e, n, running] * (1 << k) / d.service[n, running, k]
        rate += (1.0 - _share_ready(until, interval)) * old
    return rate


@njit(cache=True)
def _prospect(d, s, e, n, z, f, k, carried, interval):
    """Expected reward of a stage in the next interval (0) or the second one (1), in cores, as if no other were slower.

    Throughput, unmet and spare load of Eq. 3 are means over quantiles of the load; with them count accuracy, service
    time, cores and batch size.
    """
    loads, o = s.loads[e], d.objective
    rate = min(_rate_in(d, s, e, n, z, f, k, interval), carried)
    if interval == 0:
        waiting = loads[_WAITING]
        low, middle, upper, high = loads[_LOW], loads[_MEDIAN], loads[_UPPER], loads[_HIGH]
    else:
        waiting = 0.0
        middle, high = loads[_MEDIAN_2], loads[_HIGH_2]
        low, upper = max(2.0 * middle - high, 0.0), 0.5 * (middle + high)
    balance = 0.0
    for load, weight in ((low, 0.25), (middle, 0.35), (upper, 0.2), (high, 0.2)):
        excess = load + waiting - rate
        balance -= weight * (o[3] * max(excess, 0.0) + o[4] * max(-excess, 0.0))
    cores = (f + 1) * d.cores[n, z]
    return d.worth[n, z] + o[2] * rate + balance - cores - o[5] * (1 << k) - o[6] * d.service[n, z, k]


@njit(cache=True)
def _prospects(d, s, e, rows, n, carried, out):
    """Write the prospects (PROSPECTS, 2) of what runs and of two references."""
    for interval in range(2):
        z, f, k = s.running[e, n]
        out[0, interval] = _prospect(d, s, e, n, z, f, k, carried, interval)
        z, f, k = d.solved[rows[3], n]
        out[1, interval] = _prospect(d, s, e, n, z, f, k, carried, interval)
        z, f, k = d.solved[rows[0], n]
        out[2, interval] = _prospect(d, s, e, n, z, f, k, carried, interval)


@njit(cache=True)
def _compare_option(d, s, e, rows, prospects, carried, n, z, f, k, out):
    """Compare an option with the solved configurations, and its prospects with those of three configurations."""
    rate = _rate(d, n, z, f, k)
    for r in range(REFERENCES):
        zr, fr, kr = d.solved[rows[r], n]
        place = 3 * r
        out[place] = 1.0 if z == zr else 0.0
        out[place + 1] = _ratio(rate, _rate(d, n, zr, fr, kr))
        out[place + 2] = 1.0 if z == zr and f == fr and k == kr else 0.0
    place = 3 * REFERENCES
    for interval in range(2):
        own = _prospect(d, s, e, n, z, f, k, carried, interval)
        for other in range(PROSPECTS):
            out[place + 2 * other + interval] = _squash(own - prospects[other, interval])


@njit(cache=True)
def _describe_option(d, s, e, rows, prospects, budget, carried, largest, n, z, f, k, out):
    """Describe the option to run f + 1 replicas of variant z with batch size 2 ** k in stage n.

    Args:
        d: description.
        s: situations.
        e: which one.
        rows: of the references.
        prospects: of the configurations to compare with.
        budget: cores that this stage may take.
        carried: requests/s of the slowest stage chosen so far; infinite before the first.
        largest: exponent of the largest batch size chosen so far.
        n: stage.
        z: variant.
        f: replicas - 1.
        k: exponent of the batch size.
        out: (OPTION_INPUTS,) float32, written.
    """
    loads = s.loads[e]
    z0, f0, k0 = s.running[e, n]
    rate, old = _rate(d, n, z, f, k), _rate(d, n, z0, f0, k0)
    cores, old_cores = (f + 1) * d.cores[n, z], (f0 + 1) * d.cores[n, z0]
    seconds, old_seconds = d.service[n, z, k], d.service[n, z0, k0]
    forming = min(d.timeout, ((1 << k) - 1) / max(loads[_MEDIAN], 0.1))
    out[0] = _squash(d.worth[n, z])
    out[1] = _squash(d.worth[n, z] - d.worth[n, z0])
    out[2] = min(cores / max(budget, 1e-6), 2.0)
    out[3] = _ratio(cores, old_cores)
    out[4] = _ratio(rate, loads[_LOW])
    out[5] = _ratio(rate, loads[_MEDIAN])
    out[6] = _ratio(rate, loads[_HIGH])
    out[7] = _ratio(rate, loads[_PLANNED])
    out[8] = _ratio(rate, loads[_HIGH_2])
    out[9] = _ratio(_rate_in(d, s, e, n, z, f, k, 0), loads[_MEDIAN] + loads[_WAITING])
    out[10] = _ratio(_rate_in(d, s, e, n, z, f, k, 1), loads[_MEDIAN_2])
    out[11] = 1.0 if f + 1.0 > s.serving[e, n, z] + s.starting[e, n, z] else 0.0
    out[12] = np.log1p(d.startup[n, z])
    out[13] = 1.0 if z == z0 else 0.0
    out[14] = min(max((f - f0) / 3.0, -1.0), 1.0) if z == z0 else 0.0
    out[15] = (k - k0) / 3.0
    out[16] = 1.0 if z == z0 and f == f0 and k == k0 else 0.0
    out[17] = _ratio(seconds, old_seconds)
    out[18] = min((seconds + forming) / d.seconds, 3.0)
    out[19] = _squash((seconds + forming) * d.objective[6])
    out[20] = _ratio(rate, carried) if carried < np.inf else 0.0
    out[21] = max(k - largest, 0) / 3.0
    out[22] = _ratio(rate, loads[_LATER])
    out[23] = _ratio(rate, old)
    _compare_option(d, s, e, rows, prospects, carried, n, z, f, k, out[24:])


@njit(cache=True)
def _describe_stage(d, s, e, rows, n, out):
    """Describe stage n as it is: what runs, and what was measured."""
    loads = s.loads[e]
    z, f, k = s.running[e, n]
    prospects = np.zeros((PROSPECTS, 2))
    _prospects(d, s, e, rows, n, np.inf, prospects)
    _describe_option(d, s, e, rows, prospects, d.capacity - d.reserve[n], np.inf, k, n, z, f, k, out[:OPTION_INPUTS])
    place = OPTION_INPUTS
    running = (f + 1) * (1 << k) / d.service[n, z, k]
    out[place] = _ratio(s.throughput[e, n], running)
    out[place + 1] = _ratio(s.latency[e, n], d.service[n, z, k])
    out[place + 2] = np.log1p(s.queue[e, n])
    out[place + 3] = _ratio(s.queue[e, n] / d.interval, loads[_MEDIAN])
    out[place + 4] = min(s.serving[e, n, z] / (f + 1.0), 2.0)
    out[place + 5] = 1.0 if n == 0 else 0.0
    out[place + 6] = d.variants[n] / 8.0
    out[place + 7] = np.log(d.replicas) / 2.0
    out[place + 8] = d.service.shape[2] / 5.0
    out[place + 9] = _ratio(d.service[n, z, k], d.interval)


@njit(cache=True)
def _describe_node(d, s, e, rows, out):
    """Describe the device: loads relative to the planned one, objective, cores of what runs and of references."""
    loads = s.loads[e]
    stages = s.running.shape[1]
    for index in range(LOADS):
        out[index] = _ratio(loads[index], loads[_PLANNED])
    place = LOADS
    for index in range(OBJECTIVE):
        by_load = loads[_PLANNED] if index in (2, 3, 4) else 1.0
        out[place + index] = np.log1p(d.objective[index] * by_load)
    place += OBJECTIVE
    used = 0.0
    for n in range(stages):
        used += (s.running[e, n, 1] + 1) * d.cores[n, s.running[e, n, 0]]
    for r in range(REFERENCES):
        cores = 0.0
        for n in range(stages):
            cores += (d.solved[rows[r], n, 1] + 1) * d.cores[n, d.solved[rows[r], n, 0]]
        out[place + 2 * r] = cores / d.capacity
        out[place + 2 * r + 1] = _ratio(cores, used)
    place += 2 * REFERENCES
    out[place] = used / d.capacity
    out[place + 1] = np.log(d.capacity) / 3.0
    out[place + 2] = np.log1p(loads[_PLANNED]) / 4.0
    out[place + 3] = stages / 5.0
    out[place + 4] = _ratio(loads[_PLANNED] + loads[_WAITING], d.loads[-1])


@njit(cache=True)
def _fits(d, n, z, budget):
    return z < d.variants[n] and d.cores[n, z] <= budget


@njit(cache=True)
def _most_replicas(d, n, z, budget):
    return min(d.replicas, int(budget / d.cores[n, z] + 1e-9))


@njit(cache=True)
def _usual_replicas(d, rows, n, z, k, budget, load):
    """Index of the fewest replicas of a variant that carry a load, within the limits."""
    needed = int(np.ceil(load * d.service[n, z, k] / (1 << k) - 1e-9))
    return min(max(needed, 1), _most_replicas(d, n, z, budget)) - 1


@njit(cache=True)
def _describe_choice(d, s, e, rows, budget, carried, largest, n, kind, z, f, out):
    """Describe the options of one choice, those that the limits allow; the rest of the stage is as usual.

    Returns:
        the number of options, those described being the first rows of ``out``; and the index of each in ``places``.
    """
    usual = d.solved[rows[3], n, 2]
    load = s.loads[e, _PLANNED] + s.loads[e, _WAITING]
    count = 0
    places = np.empty(len(out), dtype=np.int64)
    prospects = np.zeros((PROSPECTS, 2))
    _prospects(d, s, e, rows, n, carried, prospects)
    if kind == 0:
        for option in range(d.variants[n]):
            if _fits(d, n, option, budget):
                replicas = _usual_replicas(d, rows, n, option, usual, budget, load)
                _describe_option(
                    d, s, e, rows, prospects, budget, carried, largest, n, option, replicas, usual, out[count]
                )
                places[count] = option
                count += 1
    elif kind == 1:
        for option in range(_most_replicas(d, n, z, budget)):
            _describe_option(d, s, e, rows, prospects, budget, carried, largest, n, z, option, usual, out[count])
            places[count] = option
            count += 1
    else:
        for option in range(d.service.shape[2]):
            _describe_option(d, s, e, rows, prospects, budget, carried, largest, n, z, f, option, out[count])
            places[count] = option
            count += 1
    return count, places


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
    best = 0
    for option in range(count):
        if scores[option] > scores[best]:
            best = option
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
def choose(w, d, s, uniform):
    """Choose an action in every situation.

    Args:
        w: :class:`ScoringWeights`.
        d: :class:`~opd.agent.description.Description`.
        s: :class:`~opd.agent.description.Situations`, E of them.
        uniform: (E, 3 N) within 0..1 to sample; negative for the options with the best scores.

    Returns:
        (E, N, 3) choices, -1 where nothing fits; (E,) log-probabilities.
    """
    environments, stages = s.running.shape[0], s.running.shape[1]
    choices = np.full((environments, stages, 3), -1)
    log_prob = np.zeros(environments)
    options = np.zeros((most_options(d), OPTION_INPUTS), dtype=np.float32)
    scores = np.zeros(len(options), dtype=np.float32)
    node, inputs = np.zeros(NODE_INPUTS, dtype=np.float32), np.zeros((stages, STAGE_INPUTS), dtype=np.float32)
    hidden = np.zeros((stages, len(w.stage_bias)), dtype=np.float32)
    rows = np.zeros(REFERENCES, dtype=np.int64)
    for e in range(environments):
        _references(d, s.loads[e], rows)
        _describe_node(d, s, e, rows, node)
        for n in range(stages):
            _describe_stage(d, s, e, rows, n, inputs[n])
        features = _features(w, node, inputs, hidden)
        memory = np.zeros(len(features), dtype=np.float32)  # of the options chosen so far
        cores, carried, largest = d.capacity, np.inf, 0
        for n in range(stages):
            budget, z, f, k = cores - d.reserve[n], 0, 0, 0
            for kind in range(3):
                count, places = _describe_choice(d, s, e, rows, budget, carried, largest, n, kind, z, f, options)
                if count == 0:
                    return choices, log_prob
                context = w.context_weight[kind] @ features + w.context_bias[kind] + w.own_weight[kind] @ hidden[n]
                _score(w, kind, context + memory, options, count, scores)
                chosen, logarithm = _pick(scores, count, uniform[e, 3 * n + kind])
                log_prob[e] += logarithm
                memory += w.chosen_weight[kind] @ options[chosen]
                choices[e, n, kind] = places[chosen]
                z, f, k = choices[e, n]
            cores -= (f + 1) * d.cores[n, z]
            carried, largest = min(carried, _rate(d, n, z, f, k)), max(largest, k)
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
def _expand_sequence(d, s, e, rows, choices, first, step, options, step_of, chosen):
    """Write the options of one sequence of choices (N, 3) from place ``first`` on; return the place after the last."""
    cores, carried, largest = d.capacity, np.inf, 0
    for n in range(len(choices)):
        budget = cores - d.reserve[n]
        z, f, k = choices[n]
        for kind in range(3):
            count, places = _describe_choice(
                d, s, e, rows, budget, carried, largest, n, kind, z, f, options[first : first + most_options(d)]
            )
            step_of[first : first + count] = step
            chosen[step] = -1
            for option in range(count):
                if places[option] == choices[n, kind]:
                    chosen[step] = first + option
            first += count
            step += 1
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
    rows = np.zeros(REFERENCES, dtype=np.int64)
    first = step = 0
    for e in range(environments):
        _references(d, s.loads[e], rows)
        _describe_node(d, s, e, rows, node[e])
        for n in range(stages):
            _describe_stage(d, s, e, rows, n, inputs[e, n])
        for m in range(sequences):
            first = _expand_sequence(d, s, e, rows, choices[e, m], first, step, options, step_of, chosen)
            step += 3 * stages
    return node, inputs, options[:first], step_of[:first], chosen
