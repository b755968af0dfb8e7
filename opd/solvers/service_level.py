"""Solvers for a service level: its latency is that of a percentile, predicted by :mod:`opd.solvers.latency`.

The predicted percentile, M + z sqrt(V) with the sums M and V of the stages' means and variances, does not add up over
the stages. But for every t > 0, M + z^2 V / (2 t) + t / 2 does and is no smaller, with equality at t = z sqrt(V). The
*planned* latency is the smallest of these over a grid of t: up to 1.6 % of z sqrt(V) above the prediction where that
lies in the grid. With it, a limit on the percentile is one additive limit for every t, and all solvers here are exact.

A choice is judged by cores, accuracy and planned latency alone, so the best one is among the choices that no other
dominates in the three. These are found by label setting, stage by stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from opd.measurement import SimulationParameters
from opd.objective import Number, accuracy, service_quality, service_reward, shortfall_cost
from opd.pipeline import Configuration, Pipeline, ServiceLevel, as_configuration, used_cores
from opd.profiling.attainable import check_load
from opd.solvers.baselines import greedy
from opd.solvers.ipa import LATENCY_TOLERANCE, IpaParameters
from opd.solvers.knapsack import best_by_cores, best_within_latency, follow_choice, pareto_front
from opd.solvers.latency import deviations, predicted_latency, stage_latencies

_TAILS = 2.0 ** (-0.5 * np.arange(1, 11))
"""Grid of t as shares of the latency that is asked for, from 71 to 3 %."""

MARGIN = 1.05
"""Factor on predicted latencies. Solvers choose what just keeps a level, and so favour predictions that are too low:
the 95th percentile is predicted up to a tenth too low (``docs/service-levels.md``)."""

_LOWEST_SHARE = 50.0
"""Percent of requests in time down to which a share is predicted by the normal distribution."""


class LevelOptions(NamedTuple):
    """Every variant with every number of replicas and batch size at one load; N tasks, M options.

    Attributes:
        cores: (N, M) cores of all replicas, more than the capacity where a stage has no such option or cannot carry the
            load with it.
        accuracy: (N, M) fraction.
        mean: (N, M) seconds in the stage.
        variance: (N, M) squared seconds.
        stages: (M, 3) variant, replicas and batch size.
    """

    cores: np.ndarray
    accuracy: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    stages: np.ndarray

    def planned(self, percent: float, tail: float) -> np.ndarray:
        """(N, M) shares of the planned latency of a percentile at t = ``tail``, without its constant t / 2."""
        with np.errstate(invalid="ignore"):
            return self.mean + deviations(percent) ** 2 / (2.0 * tail) * self.variance

    def configuration(self, selected: np.ndarray) -> Configuration:
        """The configuration of option ``selected[n]`` at every stage n."""
        return as_configuration(self.stages[selected])


def level_options(pipeline: Pipeline, load: float, simulation: SimulationParameters) -> LevelOptions:
    """The options of every stage at ``load`` requests/s.

    Raises:
        ValueError: if the load is negative, infinite or not a number.
    """
    check_load(load)
    tables = pipeline.tables
    latencies = stage_latencies(pipeline, load, simulation)
    shape = latencies.shape[:4]
    stages = np.stack(np.meshgrid(*map(np.arange, shape[1:]), indexing="ij"), axis=-1).reshape(-1, 3)
    stages = np.stack([stages[:, 0], stages[:, 1] + 1, tables.batch_sizes[stages[:, 2]]], axis=1)
    mean, variance = np.moveaxis(latencies.reshape(shape[0], -1, 2), -1, 0)
    cores = tables.cores[:, stages[:, 0]] * stages[:, 1]
    cores = np.where(np.isfinite(mean), np.minimum(cores, pipeline.capacity + 1), pipeline.capacity + 1)
    return LevelOptions(
        cores.astype(np.int64), tables.accuracy[:, stages[:, 0]], np.ascontiguousarray(mean), variance.copy(), stages
    )


def planned_latency(mean: Number, variance: Number, percent: float, seconds: float) -> Number:
    """Planned latency of a percentile for a pipeline whose latency has this mean and variance; see the module."""
    tails = tails_of(seconds)
    with np.errstate(invalid="ignore"):  # an infinite variance; the mean is infinite then, too
        shares = np.multiply.outer(variance, deviations(percent) ** 2 / (2.0 * tails)) + 0.5 * tails
    return np.min(np.asarray(mean)[..., None] + shares, axis=-1)  # type: ignore[return-value]


def tails_of(seconds: float) -> np.ndarray:
    """The grid of t for a latency of ``seconds``."""
    return seconds * _TAILS


def _target(level: ServiceLevel) -> float:
    """Seconds that a planned latency may take."""
    return level.seconds / MARGIN + LATENCY_TOLERANCE


def planned_share(mean: Number, variance: Number, level: ServiceLevel) -> Number:
    """Share of requests that is planned to be within a level's latency, no higher than its percentile.

    It is the highest of :func:`_shares` whose planned latency, with the margin, is within the level's. Below one half
    it falls as the mean latency rises.
    """
    share = _share_of_slow(np.asarray(mean), level)
    for percent in reversed(_shares(level)):
        in_time = planned_latency(mean, variance, percent, _target(level)) <= _target(level)
        share = np.where(in_time, percent / 100.0, share)
    return share  # type: ignore[return-value]


def _share_of_slow(mean: np.ndarray, level: ServiceLevel) -> np.ndarray:
    """Share planned for configurations that keep none of :func:`_shares`; it falls as the mean latency rises."""
    return min(_LOWEST_SHARE, level.percentile) / 100.0 * np.minimum(_target(level) / mean, 1.0)


def _shares(level: ServiceLevel) -> list[float]:
    """Percentiles that are planned with: the level's, then every whole one below it down to one half."""
    whole = np.arange(np.ceil(level.percentile) - 1.0, _LOWEST_SHARE - 1.0, -1.0)
    return [level.percentile, *whole.tolist()]


def fronts(
    options: LevelOptions, capacity: int, percent: float, seconds: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """The :func:`pareto_front` for every t: together, all choices worth considering for a latency of ``seconds``."""
    for tail in tails_of(seconds):
        limit = seconds - 0.5 * tail
        yield pareto_front(options.cores, options.planned(percent, tail), options.accuracy, capacity, limit)


def shortest_latency(options: LevelOptions, capacity: int, percent: float, seconds: float) -> tuple[float, np.ndarray]:
    """Shortest planned latency of a percentile within the capacity, and the options (N,) that have it.

    Args:
        options: of every stage.
        capacity: W, cores.
        percent: the percentile.
        seconds: the latency around which the grid of t lies.

    Returns:
        Seconds, infinite if no choice fits the capacity, and the option of each stage.
    """
    best, selected = np.inf, np.zeros(len(options.cores), dtype=np.int64)
    for tail in tails_of(seconds):
        latency = options.planned(percent, tail)
        value, choice = best_by_cores(options.cores, -latency, capacity)
        if 0.5 * tail - value[0, capacity] < best:
            best, selected = 0.5 * tail - value[0, capacity], follow_choice(options.cores, choice)
    return float(best), selected


class _Candidate(NamedTuple):
    """A choice and what it is ranked by: the reward, then accuracy, then a shorter latency."""

    reward: float
    accuracy: float
    latency: float
    selected: tuple[int, ...]


def _best(level: ServiceLevel, capacity: int, share: np.ndarray | float, front: tuple[np.ndarray, ...]) -> _Candidate:
    """The best choice of a front, given the share of requests within the level of each."""
    cores, latency, accuracy, selected = front
    mean_accuracy = accuracy / selected.shape[1]
    reward = service_reward(service_quality(level, capacity, mean_accuracy, share), cores)  # type: ignore[type-var]
    first = np.lexsort((latency, -accuracy, -reward))[0]
    return _Candidate(reward[first], accuracy[first], -latency[first], tuple(selected[first]))


def predicted_service_reward(
    pipeline: Pipeline, configuration: Configuration, load: float, level: ServiceLevel, simulation: SimulationParameters
) -> float:
    """The reward of a service level under a steady load: the objective of :func:`best_for_level`.

    Args:
        pipeline: the pipeline.
        configuration: its configuration, which must carry the load.
        load: requests/s.
        level: the service level.
        simulation: batch timeout and noise of the service times.
    """
    expected = predicted_latency(pipeline, configuration, load, simulation)
    share = planned_share(float(expected.stage_means.sum()), float(expected.stage_variances.sum()), level)
    mean_accuracy = float(accuracy(pipeline, configuration)) / len(pipeline.tasks)
    return service_reward(
        service_quality(level, pipeline.capacity, mean_accuracy, share), float(used_cores(pipeline, configuration))
    )


def best_for_level(
    pipeline: Pipeline, load: float, level: ServiceLevel, simulation: SimulationParameters
) -> Configuration:
    """The configuration with the highest :func:`predicted_service_reward`, exactly.

    Of equal rewards the more accurate, then the faster one is taken. Where nothing within the limits carries the load,
    it is the one that carries the most.

    Args:
        pipeline: the pipeline.
        load: requests/s.
        level: the service level.
        simulation: batch timeout and noise of the service times.

    Raises:
        ValueError: if the load is negative, infinite or not a number.
    """
    options, capacity = level_options(pipeline, load, simulation), pipeline.capacity
    if best_by_cores(options.cores, options.accuracy, capacity)[0][0, capacity] == -np.inf:
        return greedy(pipeline, load)
    most = level.accuracy_weight * pipeline.tables.accuracy.max(axis=1).mean() - options.cores.min(axis=1).sum()
    candidates, target = [_Candidate(-np.inf, 0.0, 0.0, ())], _target(level)
    for percent in _shares(level):
        if most - shortfall_cost(capacity, (level.percentile - percent) / 100.0) < max(candidates).reward:
            break
        if shortest_latency(options, capacity, percent, target)[0] <= target:
            found = fronts(options, capacity, percent, target)
            candidates += [_best(level, capacity, percent / 100.0, front) for front in found if len(front[0])]
    else:
        front = pareto_front(options.cores, options.mean, options.accuracy, capacity, np.inf)
        candidates.append(_best(level, capacity, _share_of_slow(front[1], level), front))
    return options.configuration(np.array(max(candidates).selected))


def greedy_for_level(
    pipeline: Pipeline, load: float, level: ServiceLevel, simulation: SimulationParameters
) -> Configuration:
    """The fewest cores that keep a service level, or miss it by least, whatever accuracy above its floor is worth.

    Arguments and errors are those of :func:`best_for_level`.
    """
    return best_for_level(pipeline, load, replace(level, accuracy_weight=0.0), simulation)


def ipa_for_level(
    pipeline: Pipeline, load: float, level: ServiceLevel, simulation: SimulationParameters, parameters: IpaParameters
) -> Configuration:
    """IPA's optimum with its latency constraint on the planned percentile of a service level, exactly.

    As in :mod:`opd.solvers.ipa`, a latency that cannot be met is dropped. Where nothing within the limits carries the
    load, the configuration that carries the most is taken.

    Args:
        pipeline: the pipeline.
        load: requests/s.
        level: the service level; IPA knows no accuracy floor.
        simulation: batch timeout and noise of the service times.
        parameters: weights of IPA's objective.

    Raises:
        ValueError: if the load is negative, infinite or not a number.
    """
    options, capacity = level_options(pipeline, load, simulation), pipeline.capacity
    score = parameters.alpha * options.accuracy - parameters.beta * options.cores
    score -= parameters.gamma * options.stages[:, 2]
    value, choice = best_by_cores(options.cores, score, capacity)
    if value[0, capacity] == -np.inf:
        return greedy(pipeline, load)
    stages = np.arange(len(options.cores))
    best, selected = -np.inf, follow_choice(options.cores, choice)
    for tail in tails_of(_target(level)):
        latency, limit = options.planned(level.percentile, tail), _target(level) - 0.5 * tail
        if -best_by_cores(options.cores, -latency, capacity)[0][0, capacity] > limit:
            continue
        chosen = best_within_latency(options.cores, latency, score, capacity, limit)
        if (reached := score[stages, chosen].sum()) > best:
            best, selected = reached, chosen
    return options.configuration(selected)
