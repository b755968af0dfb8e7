"""Solvers for service levels, against everything enumerated."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd.measurement import SimulationParameters
from opd.objective import accuracy
from opd.pipeline import Pipeline, ServiceLevel, StageConfiguration, Task, Variant, check_feasible, used_cores
from opd.profiling.synthetic import synthetic_pipeline
from opd.solvers import IpaParameters, greedy, ipa_objective
from opd.solvers.knapsack import pareto_front
from opd.solvers.latency import stage_latencies
from opd.solvers.service_level import (
    MARGIN,
    best_for_level,
    greedy_for_level,
    ipa_for_level,
    planned_latency,
    planned_share,
    predicted_service_reward,
)

SIMULATION = SimulationParameters()
QUICK = Variant("quick", 0.5, 1, {1: 0.1, 2: 0.15}, 1.0)
GOOD = Variant("good", 0.9, 2, {1: 0.25, 2: 0.4}, 2.0)
ONE_TASK = Pipeline("one", (Task("only", (QUICK, GOOD)),), 8, 3, 2, ServiceLevel(0.5))


def configurations(pipeline):
    """Every configuration within the limits."""
    stages = [
        itertools.product(range(len(task.variants)), range(1, pipeline.max_replicas + 1), pipeline.batch_sizes)
        for task in pipeline.tasks
    ]
    found = (tuple(itertools.starmap(StageConfiguration, rows)) for rows in itertools.product(*map(list, stages)))
    return [each for each in found if used_cores(pipeline, each) <= pipeline.capacity]


@st.composite
def instances(draw):
    """A pipeline small enough to enumerate, a load, and a level from hopeless to easy."""
    stages, variants, max_replicas, max_batch_size = draw(st.sampled_from([(1, 4, 5, 4), (2, 2, 3, 4), (2, 3, 3, 2)]))
    pipeline = synthetic_pipeline(stages, variants, draw(st.integers(0, 1000)))
    smallest = int(used_cores(pipeline, pipeline.smallest_configuration()))
    level = ServiceLevel(
        pipeline.service_level.seconds * draw(st.sampled_from([0.02, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0])),
        draw(st.sampled_from([50.0, 90.0, 95.0, 99.9])),
        draw(st.sampled_from([0.0, 0.6, 0.75, 1.0])),
        draw(st.sampled_from([0.0, 1.0, 30.0, 2000.0])),
    )
    pipeline = dataclasses.replace(
        pipeline,
        capacity=smallest + draw(st.integers(0, 6 * stages)),
        max_replicas=max_replicas,
        max_batch_size=max_batch_size,
        service_level=level,
    )
    return pipeline, draw(st.sampled_from([0.0, 0.5, 5.0, 12.0, 30.0])), level


def carrying(pipeline, load):
    """Configurations that carry a load, with the sums of mean and variance of their stages' latencies."""
    moments = stage_latencies(pipeline, load, SIMULATION)
    found = []
    for each in configurations(pipeline):
        sums = sum(moments[n, z, f - 1, pipeline.batch_sizes.index(b)] for n, (z, f, b) in enumerate(each))
        if np.isfinite(sums[0]):
            found.append((each, float(sums[0]), float(sums[1])))
    return found


def predicted_rewards(pipeline, level, candidates):
    """The reward of a level for every one of :func:`carrying`."""
    rewards = []
    for each, mean, variance in candidates:
        late = max(level.percentile / 100.0 - planned_share(mean, variance, level), 0.0)
        mean_accuracy = float(accuracy(pipeline, each)) / len(each)
        short = max(level.accuracy_floor - mean_accuracy, 0.0)
        worth = level.accuracy_weight * mean_accuracy - used_cores(pipeline, each)
        rewards.append(worth - 100.0 * pipeline.capacity * (late + short))
    return rewards


@settings(max_examples=30, deadline=None)
@given(instances())
def test_no_configuration_has_a_higher_predicted_reward(instance):
    pipeline, load, level = instance
    found = best_for_level(pipeline, load, level, SIMULATION)
    check_feasible(pipeline, found)
    candidates = carrying(pipeline, load)
    if not candidates:
        assert found == greedy(pipeline, load)
        return
    best = max(predicted_rewards(pipeline, level, candidates))
    reached = predicted_service_reward(pipeline, found, load, level, SIMULATION)
    assert reached == pytest.approx(best, rel=1e-9, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(instances(), st.sampled_from([IpaParameters(), IpaParameters(10.0, 0.0, 0.0), IpaParameters(1.0, 2.0, 0.5)]))
def test_ipa_has_the_best_objective_within_the_percentile(instance, parameters):
    pipeline, load, level = instance
    found = ipa_for_level(pipeline, load, level, SIMULATION, parameters)
    check_feasible(pipeline, found)
    if not (candidates := carrying(pipeline, load)):
        assert found == greedy(pipeline, load)
        return
    target = level.seconds / MARGIN + 1e-9
    in_time = [each for each, *sums in candidates if planned_latency(*sums, level.percentile, target) <= target]
    best = max(ipa_objective(pipeline, each, parameters) for each in in_time or [each for each, _, _ in candidates])
    assert ipa_objective(pipeline, found, parameters) == pytest.approx(best, abs=1e-9)


def test_the_cheapest_that_keeps_the_level_by_hand():
    # At 2 requests/s one quick replica is busy for a fifth of the time: 0.1 s and little waiting. The good one takes
    # 0.25 s, too long for 0.2 s whatever its replicas.
    assert greedy_for_level(ONE_TASK, 2.0, ServiceLevel(0.2), SIMULATION) == (StageConfiguration(0, 1, 1),)
    # Within 0.8 s accuracy decides: 0.4 of it for a second core.
    assert best_for_level(ONE_TASK, 1.0, ServiceLevel(0.8, accuracy_weight=3.0), SIMULATION)[0].variant == 1
    assert best_for_level(ONE_TASK, 1.0, ServiceLevel(0.8, accuracy_weight=2.0), SIMULATION)[0].variant == 0


def test_the_accuracy_floor_is_kept_where_it_can_be():
    floor = ServiceLevel(0.8, accuracy_floor=0.8)
    assert greedy_for_level(ONE_TASK, 1.0, floor, SIMULATION)[0].variant == 1
    # In 0.2 s only the quick variant keeps the latency, and 95 points of requests cost more than 30 of accuracy.
    assert greedy_for_level(ONE_TASK, 1.0, ServiceLevel(0.2, accuracy_floor=0.8), SIMULATION)[0].variant == 0


def test_a_stricter_percentile_needs_more_replicas():
    chosen = [
        greedy_for_level(ONE_TASK, 8.0, ServiceLevel(0.3, percentile), SIMULATION)[0] for percentile in (60.0, 99.0)
    ]
    assert chosen[0].replicas < chosen[1].replicas


def test_an_overload_gets_the_most_that_can_be_carried():
    found = best_for_level(ONE_TASK, 1e4, ServiceLevel(0.5), SIMULATION)
    assert found == greedy(ONE_TASK, 1e4)


@given(st.floats(0.01, 2.0), st.floats(0.0, 1.0), st.sampled_from([50.0, 90.0, 95.0, 99.0]))
def test_the_planned_latency_is_just_above_the_predicted_percentile(mean, deviation, percent):
    z = {50.0: 0.0, 90.0: 1.2815516, 95.0: 1.6448536, 99.0: 2.3263479}[percent]
    exact = mean + z * deviation
    seconds = 3.0
    assert planned_latency(mean, deviation**2, percent, seconds) >= exact - 1e-9
    # The grid of t spans 3 to 71 % of the seconds.
    if 0.04 * seconds < z * deviation < 0.7 * seconds:
        assert planned_latency(mean, deviation**2, percent, seconds) <= mean + 1.016 * z * deviation


def test_the_planned_share_by_hand():
    level = ServiceLevel(1.05, 95.0)
    assert planned_share(0.5, 0.0, level) == pytest.approx(0.95)
    assert planned_share(2.0, 0.0, level) == pytest.approx(0.25)


def test_no_choice_of_the_front_is_dominated_and_none_is_missing():
    rng = np.random.default_rng(1)
    cores = rng.integers(1, 6, (3, 7))
    latency, quality = rng.uniform(0.1, 1.0, (2, 3, 7))
    used, spent, reached, selected = pareto_front(cores, latency, quality, 12, 2.0)
    rows = np.arange(3)
    every = np.array(list(itertools.product(range(7), repeat=3)))
    figures = np.stack(
        [cores[rows, every].sum(axis=1), latency[rows, every].sum(axis=1), -quality[rows, every].sum(axis=1)], axis=1
    )
    figures = figures[(figures[:, 0] <= 12) & (figures[:, 1] <= 2.0)]
    dominated = [
        bool(((figures <= each + 1e-12).all(axis=1) & (figures < each - 1e-12).any(axis=1)).any()) for each in figures
    ]
    wanted = {tuple(each.round(6)) for each in figures[~np.array(dominated)]}
    found = {tuple(each) for each in np.stack([used, spent, -reached], axis=1).round(6)}
    assert found == wanted
    np.testing.assert_allclose(quality[rows, selected].sum(axis=1), reached)


def test_accuracy_is_the_mean_over_the_tasks():
    pipeline = synthetic_pipeline(2, 3, 4)
    level = ServiceLevel(1e3, accuracy_weight=1.0)
    found = best_for_level(pipeline, 1.0, level, SIMULATION)
    expected = float(accuracy(pipeline, found)) / 2 - used_cores(pipeline, found)
    assert predicted_service_reward(pipeline, found, 1.0, level, SIMULATION) == pytest.approx(expected)
