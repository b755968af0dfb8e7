"""What the agent is told: a pipeline by hand, replicas and loads of a situation, and generated pipelines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_pipelines import ocr_pipeline, stages
from small_situations import QUIET, described, random_situations

from opd.agent.description import core_price, describe, objective_figures, situation_of
from opd.measurement import StageState, idle_observation
from opd.objective import Weights
from opd.pipeline import ServiceLevel, as_configuration, check_feasible, from_choices
from opd.planner.present import replica_counts
from opd.profiling.attainable import attainable_load
from opd.profiling.generated import generate_pipeline
from opd.solvers.exact import solver_for

NOTHING = np.zeros((0, 2))
QUANTILES = np.arange(42.0).reshape(6, 7)  # 7 for each interval


def stage_of(*replicas: tuple[float, float]) -> StageState:
    """A stage with replicas of (variant, seconds until it is ready)."""
    return StageState(NOTHING, NOTHING, np.array([[z, ready, ready, np.inf] for z, ready in replicas]))


# --- the pipeline ----------------------------------------------------------------------------------------------------


def test_a_pipeline_by_hand():
    """Accuracy is worth 10 a fraction and a core costs 0.5, so +0.25 of accuracy is worth 5 cores."""
    told = described(ocr_pipeline(), Weights(alpha=10.0, cost_weight=0.5))
    assert told.worth[0, :2].tolist() == [-5.0, 0.0]
    assert told.worth[1].tolist() == [-5.0, -2.5, 0.0]
    assert told.cores.tolist() == [[1.0, 2.0, np.inf], [1.0, 2.0, 4.0]]
    assert told.startup.tolist() == [[0.1, 0.2, 0.0], [0.1, 0.2, 0.4]]
    assert told.service[:, :2].tolist() == [[[0.1, 0.16], [0.2, 0.4]], [[0.05, 0.08], [0.1, 0.125]]]
    assert told.reserve.tolist() == [1.0, 0.0]  # recognition needs a core for its smallest variant
    assert told.variants.tolist() == [2, 3]
    assert told.accuracy.tolist() == [[0.25, 0.375, 0.0], [0.3125, 0.375, 0.4375]]
    assert told.horizon.tolist() == [0.5, 0.5]
    assert told.floor == 0.0
    assert (told.capacity, told.replicas, told.interval, told.timeout, told.seconds) == (8.0, 3, 10.0, 0.25, 1.0)


def test_reserves_of_three_tasks():
    pipeline = ocr_pipeline(capacity=20)
    first, second = pipeline.tasks
    large = replace(second, name="last", variants=second.variants[1:])
    assert described(replace(pipeline, tasks=(first, second, large))).reserve.tolist() == [3.0, 2.0, 0.0]


def test_objectives_are_in_cores():
    weights = Weights(alpha=10.0, beta=0.2, gamma=0.3, delta=0.05, cost_weight=0.5, batch_weight=0.02)
    assert core_price(weights) == 0.5
    assert objective_figures(weights).tolist() == pytest.approx([0.0, 20.0, 0.4, 0.6, 0.1, 0.04, 2.0, 0.0])
    level = ServiceLevel(0.8, percentile=90.0, accuracy_weight=12.0)
    assert core_price(level) == 1.0
    assert objective_figures(level).tolist() == pytest.approx([1.0, 12.0, 0.0, 0.0, 0.0, 0.0, 0.0, np.log(10.0)])


def test_accuracy_of_a_service_level_is_a_mean_over_tasks():
    level = ServiceLevel(1.0, accuracy_weight=12.0)
    assert described(ocr_pipeline(), level).worth[1].tolist() == [-1.5, -0.75, 0.0]  # 12 / 2 a fraction


def test_a_plan_looks_as_far_ahead_as_replicas_take_to_start():
    """A start-up of 25 s ends in the third interval: four intervals. Six at most."""
    pipeline = ocr_pipeline()
    first, second = pipeline.tasks
    for seconds, intervals in ((25.0, 4), (85.0, 6)):
        slow = tuple(replace(variant, startup_time=seconds) for variant in second.variants)
        told = described(replace(pipeline, tasks=(first, replace(second, variants=slow))))
        np.testing.assert_allclose(told.horizon, np.full(intervals, 1.0 / intervals))


def test_the_floor_of_a_service_level_is_told():
    assert described(ocr_pipeline(), ServiceLevel(1.0, accuracy_floor=0.7)).floor == 0.7


def test_solved_configurations_are_those_of_the_solver():
    pipeline, weights = ocr_pipeline(), Weights()
    solve = solver_for(weights, QUIET)
    told = describe(pipeline, weights, QUIET, solve, solved_loads=6)
    assert len(told.loads) == len(told.solved) == 7
    assert told.loads[0] == 0.0 and (np.diff(told.loads) > 0.0).all()
    assert told.loads[-1] == pytest.approx(attainable_load(pipeline, 1e9))
    for load, choices in zip(told.loads, told.solved, strict=True):
        assert as_configuration(from_choices(choices)) == solve(pipeline, float(load))


@pytest.mark.parametrize(("range", "seed"), [("inside", 0), ("inside", 5), ("inside", 11), ("outside", 8)])
def test_generated_pipelines_have_a_description(range, seed):
    generated = generate_pipeline(seed, range)
    told = described(generated.pipeline, generated.objective, 3)
    for choices in told.solved:
        check_feasible(generated.pipeline, as_configuration(from_choices(choices)))
    numbers = [part for name, part in told._asdict().items() if name != "cores"]
    assert all(np.isfinite(part).all() for part in numbers)
    present = np.arange(told.cores.shape[1]) < told.variants[:, None]
    assert (np.isfinite(told.cores) == present).all()
    assert (np.where(present, told.worth, -1.0).max(axis=1) == 0.0).all()


def test_a_smaller_device_changes_the_capacity_and_the_solved_configurations():
    whole, part = (described(ocr_pipeline(capacity=cores)) for cores in (12, 3))
    assert (whole.capacity, part.capacity) == (12.0, 3.0)
    assert part.loads[-1] < whole.loads[-1]
    np.testing.assert_array_equal(part.worth, whole.worth)


# --- the situation ---------------------------------------------------------------------------------------------------


def test_replicas_by_hand():
    """Of the second task two serve; two of its large variant start, the last of them in 12 s."""
    there = [stage_of((0, 0.0)), stage_of((0, 0.0), (2, 3.0), (0, 0.0), (2, 12.0), (1, 5.0))]
    serving, starting, wait = replica_counts(there, 3, 10.0)
    assert serving.tolist() == [[1, 0, 0], [2, 0, 0]]
    assert starting.tolist() == [[0, 0, 0], [0, 1, 2]]
    np.testing.assert_allclose(wait, [[0, 0, 0], [0, 0.5, 1.2]])


def observed(configuration, **figures):
    known = {
        "incoming_load": 6.0, "predicted_load": 9.0, "queue": np.array([20, 5]), "task_latency": np.array([0.3, 0.2]),
        "ready_throughput": np.array([18.0, 11.0]),
    }  # fmt: skip
    return replace(idle_observation(ocr_pipeline()), configuration=configuration, **(known | figures))


def test_a_situation_by_hand():
    told = described(ocr_pipeline())
    there = (stage_of((1, 0.0), (1, 2.0)), stage_of((0, 0.0)))
    seen = situation_of(told, observed(stages((1, 2, 2), (0, 1, 1)), stages=there), QUANTILES)
    assert seen.loads.tolist() == [[6.0, 9.0, 2.5]]  # 25 requests wait, which is 2.5/s for an interval
    assert seen.coming.tolist() == [QUANTILES.tolist()]
    assert seen.running.tolist() == [[[1, 1, 1], [0, 0, 0]]]
    assert seen.serving.tolist() == [[[0, 1, 0], [1, 0, 0]]]
    assert seen.starting.tolist() == [[[0, 1, 0], [0, 0, 0]]]
    assert seen.wait[0, 0, 1] == pytest.approx(0.2)
    assert seen.latency.tolist() == [[0.3, 0.2]]
    assert seen.throughput.tolist() == [[18.0, 11.0]]
    assert seen.queue.tolist() == [[20.0, 5.0]]


def test_where_a_backend_cannot_tell_all_replicas_of_what_runs_serve():
    seen = situation_of(described(ocr_pipeline()), observed(stages((1, 3, 1), (2, 1, 2))), QUANTILES)
    assert seen.serving.tolist() == [[[0, 3, 0], [0, 0, 1]]]
    assert not seen.starting.any() and not seen.wait.any()


def test_more_came_than_was_forecast():
    seen = situation_of(
        described(ocr_pipeline()), observed(stages((0, 1, 1), (0, 1, 1)), incoming_load=14.0), QUANTILES
    )
    assert seen.loads[0, :2].tolist() == [14.0, 14.0]


def test_a_part_of_the_situations_is_those_situations():
    told = described(ocr_pipeline())
    every = random_situations(told, 5, 0)
    some = every.part(np.array([4, 1]))
    for part, whole in zip(some, every, strict=True):
        np.testing.assert_array_equal(part, whole[[4, 1]])
    assert len(every.part(slice(2, 3)).loads) == 1
