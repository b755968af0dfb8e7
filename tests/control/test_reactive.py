"""Reactive policies: the formulas of Kubernetes and KEDA, their limits in time, shared cores, and the ladder."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pipelines import ocr_pipeline, pipelines, stages, within_limits

from opd.control.factory import reactive_policy
from opd.control.loop import run
from opd.control.reactive import (
    HpaPolicy,
    LadderPolicy,
    QueueThresholdPolicy,
    Stabiliser,
    desired_replicas,
    largest_replicas,
)
from opd.control.thresholds import HpaThresholds, LadderThresholds, QueueThresholds, Thresholds
from opd.measurement import Calibration, SimulationParameters, StageState, idle_observation
from opd.objective import Weights, throughput
from opd.pipeline import ServiceLevel, as_array, used_cores
from opd.simulator.backend import SimulatedBackend
from opd.solvers import myopic
from opd.solvers.exact import solver_for
from opd.solvers.ladder import build_ladder, lowest_carrying

WEIGHTS, SIMULATION = Weights(), SimulationParameters()
SOLVE = partial(myopic, weights=WEIGHTS, batch_timeout=SIMULATION.batch_timeout)
USUAL_LOAD = 4.0  # the design is for 8 requests/s
HPA = HpaThresholds(headroom=2.0, target=0.5, window=0.0)
QUEUE = QueueThresholds(headroom=2.0, requests_per_replica=2.0, window=0.0)
LADDER = LadderThresholds(upper=0.8, lower=0.75, load_seconds=5.0, drain_seconds=10.0, hold_seconds=30.0)


# --- the autoscaler of Kubernetes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("current", "ready", "ratio", "desired"),
    [
        (3, 3, 2.0, 6),  # twice the target doubles the replicas
        (4, 4, 0.5, 2),  # half of it halves them
        (3, 3, 1.2, 4),  # 3.6 is rounded up
        (10, 10, 1.1, 10),  # within the tolerance
        (10, 10, 0.9, 10),
        (10, 10, 1.11, 12),
        (10, 10, 0.89, 9),
        (10, 10, 0.0, 0),
        (4, 2, 1.5, 4),  # with the two that start it is 0.75 of the target: they are enough
        (4, 2, 2.0, 4),
        (4, 2, 3.0, 6),  # they are not
        (4, 2, 0.5, 1),  # fewer are wanted, so those that start do not count
        (4, 0, float("nan"), 4),  # nothing was measured
        (5, 5, 0.6 / 0.3, 10),  # no replica for a rounding error
    ],
)
def test_desired_replicas_are_those_of_kubernetes(current, ready, ratio, desired):
    assert desired_replicas(current, ready, ratio) == desired


def stabilised(interval: float, window: float, current: int, wanted: list[int]) -> list[int]:
    """Replicas after each decision, starting with ``current``."""
    stabiliser, seen = Stabiliser(interval, window), []
    for each in wanted:
        current = int(stabiliser.stabilise(np.array([current]), np.array([each]))[0])
        seen.append(current)
    return seen


def test_replicas_go_down_to_the_most_that_were_wanted_within_the_window():
    assert stabilised(10.0, 300.0, 5, [5] + [2] * 32) == [5] * 30 + [2] * 3
    assert stabilised(10.0, 30.0, 5, [5, 2, 3, 2, 2, 2]) == [5, 5, 5, 3, 3, 2]
    assert stabilised(10.0, 0.0, 5, [2, 4, 1]) == [2, 4, 1]


def test_a_new_autoscaler_remembers_what_runs():
    assert stabilised(10.0, 30.0, 5, [1, 1, 1]) == [5, 5, 1]


def test_replicas_go_up_at_once_but_by_four_or_twice_in_15_seconds():
    assert stabilised(10.0, 300.0, 1, [40] * 6) == [5, 5, 10, 10, 20, 20]
    assert stabilised(15.0, 300.0, 1, [40] * 4) == [5, 10, 20, 40]
    assert stabilised(10.0, 300.0, 3, [4, 5]) == [4, 5]


# --- cores ------------------------------------------------------------------------------------------------------------


def test_the_limits_of_the_stages_fit_together_and_are_balanced():
    def limits(throughput, cores, capacity, most=9):
        return largest_replicas(np.array(throughput), np.array(cores), capacity, most).tolist()

    assert limits([10.0, 5.0], [1, 1], 9) == [3, 6]
    # Of 11 cores two replicas of each stage take 10, and one of the second stage, with the lower throughput, the last.
    assert limits([8.0, 5.0], [4, 1], 11) == [2, 3]
    assert limits([10.0, 5.0], [1, 1], 30, most=4) == [4, 4]
    assert limits([10.0, 5.0], [3, 4], 7) == [1, 1]


@given(
    st.lists(st.tuples(st.floats(0.5, 50.0), st.integers(1, 5)), min_size=1, max_size=6),
    st.integers(0, 60),
    st.integers(1, 9),
)
def test_no_limit_could_be_higher_and_none_hinders_the_slowest_stage(pairs, extra, most):
    throughput, cores = np.array(pairs).T
    capacity = int(cores.sum()) + extra
    replicas = largest_replicas(throughput, cores, capacity, most)
    left = capacity - cores @ replicas
    assert (replicas >= 1).all() and (replicas <= most).all() and left >= 0
    assert not ((replicas < most) & (cores <= left)).any()
    slowest = (replicas * throughput).min()
    # To carry more, every stage needs at least these, which is more than there is.
    more = np.floor(slowest * (1.0 + 1e-9) / throughput) + 1
    assert cores @ more > capacity or more.max() > most


# --- policies ---------------------------------------------------------------------------------------------------------


def observation(pipeline, configuration, load=8.0, **figures):
    seen = replace(idle_observation(pipeline), configuration=configuration, incoming_load=load)
    return replace(seen, **figures)


@settings(max_examples=30)
@given(
    pipelines(),
    st.sampled_from([HPA, QUEUE, LADDER]),
    st.booleans(),
    st.lists(st.tuples(st.floats(0.0, 60.0), st.floats(0.0, 1.2), st.integers(0, 300)), min_size=1, max_size=5),
    st.floats(0.0, 1.0),
)
def test_every_decision_is_within_the_limits_and_the_cores_that_are_left(pipeline, thresholds, level, loads, share):
    objective = ServiceLevel(1.0) if level else WEIGHTS
    policy = reactive_policy(pipeline, solver_for(objective, SIMULATION), 10.0, thresholds, USUAL_LOAD)
    tasks = len(pipeline.tasks)
    smallest = used_cores(pipeline, pipeline.smallest_configuration())
    seen = observation(pipeline, pipeline.smallest_configuration())
    for load, utilisation, queue in loads:
        left = float(smallest + share * (pipeline.capacity - smallest))
        figures = dict(utilisation=np.full(tasks, utilisation), queue=np.full(tasks, queue), incoming_load=load)
        decided = policy.decide(replace(seen, available_cores=left, **figures))
        assert within_limits(pipeline, decided, left)
        seen, share = replace(seen, configuration=decided), 1.0 - share  # the cores change, too


@pytest.mark.parametrize("thresholds", [HPA, QUEUE])
def test_an_autoscaler_begins_with_its_design_and_changes_replicas_only(thresholds):
    pipeline = ocr_pipeline(capacity=16)
    policy = reactive_policy(pipeline, SOLVE, 10.0, thresholds, USUAL_LOAD)
    design = myopic(pipeline, 8.0, WEIGHTS, SIMULATION.batch_timeout)
    other = tuple(stage._replace(batch_size=3 - stage.batch_size) for stage in design)
    assert policy.decide(observation(pipeline, other)) == design
    busy = dict(utilisation=np.array([1.0, 1.0]), queue=np.array([100, 100]))
    scaled = policy.decide(observation(pipeline, design, **busy))
    assert scaled != design
    assert as_array(scaled)[:, [0, 2]].tolist() == as_array(design)[:, [0, 2]].tolist()


def test_without_a_usual_load_the_design_is_for_the_load_of_the_first_decision():
    pipeline = ocr_pipeline(capacity=16)
    policy = HpaPolicy(pipeline, SOLVE, 10.0, HPA)
    begun = observation(pipeline, stages((0, 1, 2), (0, 1, 2)), history=np.array([2, 6]))
    policy.warm_up(replace(begun, history=np.array([20])))
    design = myopic(pipeline, 8.0, WEIGHTS, SIMULATION.batch_timeout)
    assert policy.decide(begun) == design
    later = policy.decide(replace(begun, history=np.full(120, 30)))
    assert as_array(later)[:, [0, 2]].tolist() == as_array(design)[:, [0, 2]].tolist()


def test_the_hpa_scales_every_stage_by_its_utilisation():
    pipeline = ocr_pipeline(capacity=40, max_replicas=6)
    policy = HpaPolicy(pipeline, SOLVE, 10.0, HPA, USUAL_LOAD)
    design = as_array(myopic(pipeline, 8.0, WEIGHTS, 0.25))
    design[:, 1] = 2
    seen = observation(pipeline, stages(*design.tolist()), utilisation=np.array([0.8, 0.2]))
    assert as_array(policy.decide(seen))[:, 1].tolist() == [4, 1]
    unknown = replace(seen, utilisation=np.array([np.nan, 0.9]))
    assert as_array(policy.decide(unknown))[:, 1].tolist() == [2, 4]
    assert as_array(policy.decide(replace(seen, utilisation=np.zeros(0))))[:, 1].tolist() == [2, 2]


def test_the_hpa_counts_replicas_that_start_as_idle():
    pipeline = ocr_pipeline(capacity=40, max_replicas=6)
    design = as_array(myopic(pipeline, 8.0, WEIGHTS, 0.25))
    design[:, 1] = 3
    # Variant, and seconds until ready, idle and retired: in the first stage two start, in the second one retires.
    ready, starting, retiring = (1, 0.0, 0.0, np.inf), (1, 2.0, 2.0, np.inf), (1, 0.0, 0.0, 4.0)
    none = np.zeros((0, 2))
    replicas = [ready, starting, starting], [ready, ready, ready, retiring]
    states = tuple(StageState(none, none, np.array(each)) for each in replicas)
    seen = observation(pipeline, stages(*design.tolist()), utilisation=np.array([0.9, 0.9]), stages=states)
    assert as_array(HpaPolicy(pipeline, SOLVE, 10.0, HPA, USUAL_LOAD).decide(seen))[:, 1].tolist() == [3, 6]


def test_the_queue_threshold_counts_what_waits_and_what_is_served():
    pipeline = ocr_pipeline(capacity=40, max_replicas=6)
    policy = QueueThresholdPolicy(pipeline, SOLVE, 10.0, QUEUE, USUAL_LOAD)
    design = as_array(myopic(pipeline, 8.0, WEIGHTS, 0.25))
    design[:, 1] = 2
    # 10 requests/s for 0.75 s are 7.5 requests, for which 4 replicas of 2 are wanted; in the second stage 11 wait.
    figures = dict(load=10.0, task_latency=np.array([0.75, 0.1]), queue=np.array([3, 11]))
    seen = observation(pipeline, stages(*design.tolist()), **figures)
    assert as_array(policy.decide(seen))[:, 1].tolist() == [4, 6]


def test_without_requests_one_replica_stays():
    pipeline = ocr_pipeline(capacity=16)
    design = myopic(pipeline, 8.0, WEIGHTS, SIMULATION.batch_timeout)
    idle = observation(pipeline, design, load=0.0, utilisation=np.zeros(2))
    for thresholds in (HPA, QUEUE):
        decided = reactive_policy(pipeline, SOLVE, 10.0, thresholds, USUAL_LOAD).decide(idle)
        assert as_array(decided)[:, 1].tolist() == [1, 1]


# --- ladder -----------------------------------------------------------------------------------------------------------


def climbed(loads: list[float], queue: int = 0) -> list[int]:
    """Rungs after each decision, from the lowest."""
    pipeline = ocr_pipeline(capacity=16)
    ladder = build_ladder(pipeline, SOLVE)
    policy, running, seen = LadderPolicy(pipeline, SOLVE, 10.0, LADDER), ladder.rungs[0], []
    for load in loads:
        running = policy.decide(observation(pipeline, running, load, queue=np.array([queue, 0])))
        seen.append(ladder.rungs.index(running))
    return seen


def test_the_ladder_climbs_at_once_to_the_rung_that_carries_the_demand():
    ladder = build_ladder(ocr_pipeline(capacity=16), SOLVE)
    (rung,), rates = climbed([18.0]), ladder.throughput(ocr_pipeline(capacity=16))
    assert rates[rung - 1] < 18.0 / 0.8 <= rates[rung]
    assert rung > 1
    assert climbed([8.0], queue=100) == [rung]  # 10 more requests/s serve them in 10 s


def test_the_load_of_the_ladder_is_the_mean_of_the_last_seconds():
    pipeline = ocr_pipeline(capacity=16)
    policy = LadderPolicy(pipeline, SOLVE, 10.0, LADDER)
    ladder, history = build_ladder(pipeline, SOLVE), np.array([90] * 20 + [16, 17, 18, 19, 20])
    seen = observation(pipeline, ladder.rungs[0], 50.0, history=history)
    assert [ladder.rungs.index(policy.decide(seen))] == climbed([18.0])


def test_the_ladder_descends_after_the_hold_time_and_not_for_small_changes():
    ladder = build_ladder(ocr_pipeline(capacity=16), SOLVE)
    (high,), (low,) = climbed([18.0]), climbed([6.0])
    rates = ladder.throughput(ocr_pipeline(capacity=16))
    allowed = lowest_carrying(rates, 6.0 / (0.8 * 0.75))
    assert low <= allowed < high
    assert climbed([18.0, 6.0, 6.0, 6.0, 6.0]) == [high, high, high, allowed, allowed]
    assert climbed([18.0, 6.0, 18.0, 6.0, 6.0]) == [high] * 5
    slightly_less = 0.8 * 0.76 * rates[high]
    assert climbed([18.0, *[slightly_less] * 6]) == [high] * 7


def test_on_a_slower_device_the_ladder_climbs_higher_for_the_same_load():
    pipeline = ocr_pipeline(capacity=16)
    ladder = build_ladder(pipeline, SOLVE)
    slow = Calibration(np.full((2, 3), 1.5), np.zeros((2, 3)), np.full((2, 3), 0.01), 1.5)
    seen = observation(pipeline, ladder.rungs[0], 12.0)
    as_profiled, slower = (
        LadderPolicy(pipeline, SOLVE, 10.0, LADDER).decide(each) for each in (seen, replace(seen, calibration=slow))
    )
    assert slower in ladder.rungs and throughput(pipeline, slower) >= 12.0 * 1.49 / 0.8 > throughput(
        pipeline, as_profiled
    )


def test_the_ladder_leaves_a_configuration_that_is_no_rung():
    pipeline = ocr_pipeline(capacity=16)
    ladder = build_ladder(pipeline, SOLVE)
    outside = stages((0, 3, 1), (0, 3, 2))
    assert ladder.position(outside) is None
    decided = LadderPolicy(pipeline, SOLVE, 10.0, LADDER).decide(observation(pipeline, outside, 6.0))
    assert decided == ladder.rungs[lowest_carrying(ladder.throughput(pipeline), 6.0 / (0.8 * 0.75))]


# --- the whole loop ---------------------------------------------------------------------------------------------------


def steps_of(thresholds: Thresholds, counts: np.ndarray):
    pipeline = ocr_pipeline(capacity=40, max_replicas=6)
    policy = reactive_policy(pipeline, SOLVE, 10.0, thresholds, USUAL_LOAD)
    backend = SimulatedBackend(pipeline, SIMULATION, np.zeros(0), counts, pipeline.smallest_configuration(), 0)
    return pipeline, list(run(backend, pipeline, policy, lambda history: 0.0, WEIGHTS, len(counts) // 10))


def test_the_hpa_holds_its_target_in_the_simulator():
    pipeline, steps = steps_of(HPA, np.full(300, 12))
    detection = [step.configuration[0] for step in steps[-10:]]
    serving = 12.0 * pipeline.tasks[0].variants[detection[0].variant].service_time(1)
    assert {stage.batch_size for stage in detection} == {1}
    assert {stage.replicas for stage in detection} <= {int(np.ceil(serving / 0.5)) + more for more in (-1, 0)}
    assert all(0.4 <= step.observation.utilisation[0] <= 0.6 for step in steps[-10:])


@pytest.mark.parametrize("thresholds", [HPA, replace(QUEUE, requests_per_replica=1.0), LADDER])
def test_a_reactive_policy_follows_the_load_in_the_simulator(thresholds):
    pipeline, steps = steps_of(thresholds, np.repeat([4, 16, 4], 300))
    assert not any(step.refused for step in steps)
    cost = np.array([float(step.score.cost[0]) for step in steps])
    assert cost[45:60].min() > max(cost[15:30].max(), cost[75:].max())
    assert all(float(throughput(pipeline, step.configuration)) >= 16.0 for step in steps[45:60])
    assert sum(step.interval.dropped[0] for step in steps[45:]) == 0
