"""Compiled dynamic programmes: one option for each stage, within a number of cores and a latency limit.

This is the multiple-choice knapsack problem. Without the latency limit it is solved by a table over cores. With it,
labels (cores, latency, score) of partial choices are extended stage by stage, and those that another one dominates or
that cannot reach the score of a known choice are discarded. N is the number of stages, M the number of options.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_SCORE_TOLERANCE = 1e-10
"""By how much a bound may fall below a known score through rounding alone."""

_PRICES = 16
"""Prices of latency tried before label setting; more make its bound tighter and cost a knapsack each."""


@njit(cache=True)
def best_by_cores(cores, score, capacity):
    """Highest total score for every number of cores, computed from the last stage backwards.

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
            # More cores are never worth it without a higher score.
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
    """(N,) the options that give the value of :func:`best_by_cores` for all stages and the whole capacity."""
    remaining = choice.shape[1] - 1
    selected = np.empty(choice.shape[0], dtype=np.int64)
    for n in range(choice.shape[0]):
        selected[n] = choice[n, remaining]
        remaining -= cores[n, selected[n]]
    return selected


@njit(cache=True)
def _minima_from(figures):
    """(N + 1,) smallest possible total of ``figures`` (N, M) over the stages from each on."""
    rest = np.zeros(figures.shape[0] + 1)
    for n in range(figures.shape[0] - 1, -1, -1):
        rest[n] = rest[n + 1] + figures[n].min()
    return rest


@njit(cache=True)
def _total(figures, selected):
    """Sum over the stages of the selected options' ``figures`` (N, M)."""
    total = 0.0
    for n in range(len(selected)):
        total += figures[n, selected[n]]
    return total


@njit(cache=True)
def _undominated(cores, latency, score, capacity):
    """Indices, by ascending latency, of the entries that no other one dominates in cores, latency and score."""
    kept = np.empty(len(cores), dtype=np.int64)
    count = 0
    # For every number of cores the highest score so far, all of entries with no more latency.
    highest = np.full(capacity + 1, -np.inf)
    for entry in np.argsort(latency):
        used = cores[entry]
        if used > capacity or score[entry] <= highest[used]:
            continue
        kept[count] = entry
        count += 1
        for total in range(used, capacity + 1):
            if highest[total] >= score[entry]:
                break
            highest[total] = score[entry]
    return kept[:count]


@njit(cache=True)
def _lagrangian(cores, latency, score, capacity, limit):
    """A good choice within the latency limit and a bound on all choices, by Lagrangian relaxation of the limit.

    A second of latency gets a price. Bisection finds about the lowest price at which the best choice by score minus
    price times latency keeps the limit.

    Returns:
        The choice (N,), whether it keeps the limit, the price, and the values of :func:`best_by_cores` at that price.
    """
    low, price, high = 0.0, 0.0, np.inf
    bound, choice = best_by_cores(cores, score, capacity)
    selected = follow_choice(cores, choice)
    kept = _total(latency, selected) <= limit
    if kept:
        return selected, kept, price, bound
    for _ in range(_PRICES):
        price = max(1.0, 4.0 * low) if high == np.inf else 0.5 * (low + high)
        tried_bound, choice = best_by_cores(cores, score - price * latency, capacity)
        tried = follow_choice(cores, choice)
        if _total(latency, tried) <= limit:
            selected, kept, bound, high = tried, True, tried_bound, price
        else:
            low = price
    return selected, kept, high if kept else 0.0, bound


@njit(cache=True)
def _extend(labels, options, rest, capacity, limit, price, goal):
    """Extend every label by every option of a stage, except where limits or ``goal`` are out of reach.

    Args:
        labels: cores, latency and score (L,) of the partial choices so far.
        options: cores, latency and score (M,) of the stage's options.
        rest: least cores and latency of the later stages, and (W + 1,) their best priced score by cores.
        capacity: W, cores.
        limit: seconds.
        price: score per second at which ``rest`` is priced.
        goal: score of a known choice.

    Returns:
        Cores, latency, score, label and option of each extension.
    """
    label_cores, label_latency, label_score = labels
    option_cores, option_latency, option_score = options
    rest_cores, rest_latency, rest_score = rest
    size = len(label_cores) * len(option_cores)
    cores = np.empty(size, dtype=np.int64)
    latency = np.empty(size)
    score = np.empty(size)
    parent = np.empty(size, dtype=np.int64)
    taken = np.empty(size, dtype=np.int64)
    count = 0
    for label in range(len(label_cores)):
        for option in range(len(option_cores)):
            used = label_cores[label] + option_cores[option]
            spent = label_latency[label] + option_latency[option]
            reached = label_score[label] + option_score[option]
            if used + rest_cores > capacity or spent + rest_latency > limit:
                continue
            if reached + rest_score[capacity - used] + price * (limit - spent) < goal:
                continue
            cores[count], latency[count], score[count] = used, spent, reached
            parent[count], taken[count] = label, option
            count += 1
    return cores[:count], latency[:count], score[:count], parent[:count], taken[:count]


@njit(cache=True)
def best_within_latency(cores, latency, score, capacity, limit):
    """The choice with the highest total score within cores and latency, exactly, by label setting.

    Args:
        cores: (N, M) cores of each option; one above ``capacity`` is never taken.
        latency: (N, M) seconds.
        score: (N, M) score of each option.
        capacity: W, cores.
        limit: seconds that the stages' latencies may add up to, infinite for no limit; some choice must keep it.

    Returns:
        (N,) option of each stage.
    """
    selected, kept, price, bound = _lagrangian(cores, latency, score, capacity, limit)
    if kept and price == 0.0:
        return selected
    # A choice worth as much as the known one must survive rounding.
    goal = _total(score, selected) - _SCORE_TOLERANCE if kept else -np.inf
    rest_cores = _minima_from(cores)
    rest_latency = _minima_from(latency)
    labels = (np.zeros(1, dtype=np.int64), np.zeros(1), np.zeros(1))
    parents = []
    taken = []
    for n in range(cores.shape[0]):
        useful = _undominated(cores[n], latency[n], score[n], capacity)
        options = (cores[n][useful], latency[n][useful], score[n][useful])
        rest = (rest_cores[n + 1], rest_latency[n + 1], bound[n + 1])
        used, spent, reached, parent, option = _extend(labels, options, rest, capacity, limit, price, goal)
        best = _undominated(used, spent, reached, capacity)
        labels = (used[best], spent[best], reached[best])
        parents.append(parent[best])
        taken.append(useful[option[best]])
    label = np.argmax(labels[2])
    for n in range(cores.shape[0] - 1, -1, -1):
        selected[n] = taken[n][label]
        label = parents[n][label]
    return selected


@njit(cache=True)
def pareto_front(cores, latency, accuracy, capacity, limit):
    """Choices of one option for each stage that no other one dominates in total cores, latency and accuracy.

    Of choices with the very same latency, dominated ones may remain.

    Args:
        cores: (N, M) cores of each option; one above ``capacity`` is never taken.
        latency: (N, M) seconds.
        accuracy: (N, M) fraction.
        capacity: W, cores.
        limit: seconds that the stages' latencies may add up to.

    Returns:
        (L,) cores, latency and accuracy, and (L, N) options of the choices; L is 0 if none keeps both limits.
    """
    stages = cores.shape[0]
    rest_cores, rest_latency = _minima_from(cores), _minima_from(latency)
    unknown = np.full(capacity + 1, np.inf)
    labels = (np.zeros(1, dtype=np.int64), np.zeros(1), np.zeros(1))
    selected = np.zeros((1, stages), dtype=np.int64)
    for n in range(stages):
        useful = _undominated(cores[n], latency[n], accuracy[n], capacity)
        options = (cores[n][useful], latency[n][useful], accuracy[n][useful])
        rest = (rest_cores[n + 1], rest_latency[n + 1], unknown)
        used, spent, reached, parent, option = _extend(labels, options, rest, capacity, limit, 0.0, -np.inf)
        best = _undominated(used, spent, reached, capacity)
        labels = (used[best], spent[best], reached[best])
        extended = selected[parent[best]]
        extended[:, n] = useful[option[best]]
        selected = extended
    return labels[0], labels[1], labels[2], selected
