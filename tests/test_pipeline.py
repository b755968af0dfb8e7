"""The pipeline and the limits of its configurations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_pipelines import every_configuration, ocr_pipeline, pipelines, stages, within_limits

from opd.pipeline import (
    InfeasibleError,
    Pipeline,
    ServiceLevel,
    Task,
    Variant,
    as_array,
    as_configuration,
    batch_sizes_up_to,
    check_feasible,
    from_choices,
    stage_cores,
    to_choices,
    used_cores,
)

SMALL = Variant("small", 0.5, 1, {1: 0.1, 4: 0.25}, 1.0)


# --- variants --------------------------------------------------------------------------------------------------------


def test_service_time_is_the_profile_and_linear_in_between():
    assert [SMALL.service_time(size) for size in (1, 2, 3, 4)] == pytest.approx([0.1, 0.15, 0.2, 0.25])


def test_throughput_is_the_batch_over_its_service_time():
    assert [SMALL.throughput(size) for size in (1, 2, 4)] == pytest.approx([10.0, 2 / 0.15, 16.0])


@pytest.mark.parametrize("batch_size", [0, 5, 8])
def test_the_error_for_a_batch_size_outside_the_profile_names_the_remedy(batch_size):
    with pytest.raises(ValueError, match=rf"'small' has no profile for batch {batch_size} .*\[1, 4\].*`opd profile`"):
        SMALL.service_time(batch_size)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"accuracy": 1.5}, "accuracy 1.5 is not a fraction"),
        ({"accuracy": -0.1}, "accuracy -0.1 is not a fraction"),
        ({"accuracy": math.nan}, "accuracy nan is not a fraction"),
        ({"cores": 0}, "0 cores per replica, but at least 1"),
        ({"startup_time": -1.0}, "start-up time -1.0 s"),
        ({"startup_time": math.nan}, "start-up time nan s"),
        ({"startup_time": math.inf}, "start-up time inf s"),
        ({"latency": {}}, "no latency profile; measure it with `opd profile`"),
        ({"latency": {1: 0.1, 2: 0.0}}, "latency 0.0 s at batch 2 must be positive"),
        ({"latency": {1: math.nan}}, "latency nan s at batch 1 must be positive"),
        ({"latency": {1: math.inf}}, "latency inf s at batch 1 must be positive"),
    ],
)
def test_the_error_for_a_wrong_variant_names_it(wrong, message):
    with pytest.raises(ValueError, match=rf"variant 'small'.* {message}"):
        replace(SMALL, **wrong)


# --- tasks and pipelines ---------------------------------------------------------------------------------------------


def test_the_error_for_an_unknown_variant_lists_the_variants():
    task = ocr_pipeline().tasks[1]
    assert [task.variant_index(name) for name in ("tiny", "small", "large")] == [0, 1, 2]
    with pytest.raises(KeyError, match="task 'recognition' has no variant 'huge'; it has tiny, small, large"):
        task.variant_index("huge")


def test_a_task_needs_variants_with_unique_names():
    with pytest.raises(ValueError, match="task 'empty' has no variant"):
        Task("empty", ())
    with pytest.raises(ValueError, match=r"task 'double' has two variants of the same name: \['small', 'small'\]"):
        Task("double", (SMALL, SMALL))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks": ()}, "has no task"),
        ({"tasks": ocr_pipeline().tasks[:1] * 2}, r"has two tasks of the same name: \['detection', 'detection'\]"),
        ({"max_replicas": 0}, "max_replicas is 0, but must be at least 1"),
        ({"max_batch_size": 0}, "max_batch_size 0 is not a power of two"),
        ({"max_batch_size": 3}, "max_batch_size 3 is not a power of two"),
    ],
)
def test_the_error_for_a_wrong_pipeline_names_it(wrong, message):
    with pytest.raises(ValueError, match=f"pipeline 'ocr'.* {message}"):
        replace(ocr_pipeline(), **wrong)


def test_a_pipeline_whose_profile_lacks_a_batch_size_is_refused():
    with pytest.raises(ValueError, match=r"variant 'small' has no profile for batch 4 .*lower max_batch_size"):
        replace(ocr_pipeline(), max_batch_size=4)


def test_the_error_for_too_small_a_capacity_names_the_cores_needed():
    assert ocr_pipeline(capacity=2).capacity == 2
    with pytest.raises(InfeasibleError, match="capacity 1 cores is too small.*needs 2 cores. Raise capacity"):
        ocr_pipeline(capacity=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seconds": 0.0}, "latency 0.0 s must be finite, above 0"),
        ({"seconds": math.nan}, "latency nan s must be finite"),
        ({"seconds": math.inf}, "latency inf s must be finite"),
        ({"percentile": 0.0}, "percentile 0.0 must be above 0 and below 100"),
        ({"percentile": 100.0}, "percentile 100.0 must be above 0 and below 100"),
        ({"accuracy_floor": 90.0}, "accuracy floor 90.0 is not a fraction between 0 and 1"),
        ({"accuracy_weight": -1.0}, "accuracy weight -1.0 must be finite, at least 0"),
    ],
)
def test_the_error_for_a_wrong_service_level_names_it(wrong, message):
    with pytest.raises(ValueError, match=f"service level: {message}"):
        replace(ServiceLevel(0.5), **wrong)


def test_every_limit_of_a_pipeline_is_required():
    with pytest.raises(TypeError, match="service_level"):
        Pipeline("ocr", ocr_pipeline().tasks, 8, 3, 2)  # type: ignore[call-arg]


# --- dense tables ----------------------------------------------------------------------------------------------------


def test_tables_pad_missing_variants_with_infinite_cores_and_times():
    tables = ocr_pipeline().tables
    assert tables.accuracy.tolist() == [[0.5, 0.75, 0.0], [0.625, 0.75, 0.875]]
    assert tables.cores.tolist() == [[1.0, 2.0, math.inf], [1.0, 2.0, 4.0]]
    assert tables.startup_time.tolist() == [[1.0, 2.0, math.inf], [1.0, 2.0, 4.0]]
    assert tables.batch_sizes.tolist() == [1, 2]
    assert tables.variant_counts.tolist() == [2, 3]
    assert tables.service_time[0, 0].tolist() == [0.0, 0.1, 0.16]
    assert np.isinf(tables.service_time[0, 2]).all()


@given(pipelines())
def test_tables_agree_with_the_variants(pipeline):
    tables = pipeline.tables
    for n, task in enumerate(pipeline.tasks):
        for z, variant in enumerate(task.variants):
            expected = [variant.service_time(size) for size in range(1, pipeline.max_batch_size + 1)]
            np.testing.assert_array_equal(tables.service_time[n, z, 1:], expected)
        assert np.isinf(tables.cores[n, len(task.variants) :]).all()


# --- configurations --------------------------------------------------------------------------------------------------


def test_batch_sizes_are_the_powers_of_two_up_to_the_largest():
    assert [batch_sizes_up_to(largest) for largest in (1, 4, 7)] == [(1,), (1, 2, 4), (1, 2, 4)]
    assert ocr_pipeline().batch_sizes == (1, 2)


def test_conversions_of_a_configuration_by_hand():
    configuration = stages((1, 2, 4), (0, 1, 1))
    assert as_array(configuration).tolist() == [[1, 2, 4], [0, 1, 1]]
    assert to_choices(as_array(configuration)).tolist() == [[1, 1, 2], [0, 0, 0]]


@given(pipelines(max_tasks=2, max_replicas=2))
def test_conversions_of_configurations_are_inverted(pipeline):
    candidates = every_configuration(pipeline)
    rows = np.stack([as_array(candidate) for candidate in candidates])
    assert [as_configuration(each) for each in rows] == candidates
    np.testing.assert_array_equal(from_choices(to_choices(rows)), rows)


def test_used_cores_by_hand():
    pipeline = ocr_pipeline()
    assert stage_cores(pipeline, stages((1, 2, 1), (2, 1, 2))).tolist() == [2 * 2, 1 * 4]
    assert used_cores(pipeline, stages((1, 2, 1), (2, 1, 2))) == 2 * 2 + 1 * 4
    batch = np.array([[[[0, 1, 1], [0, 1, 1]]], [[[0, 3, 1], [1, 2, 2]]]])
    assert used_cores(pipeline, batch).tolist() == [[2.0], [7.0]]


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        (stages((0, 1, 1)), "has 2 tasks, the configuration 1"),
        (stages((2, 1, 1), (0, 1, 1)), r"task 'detection': variant index 2 is not within 0\.\.1"),
        (stages((-1, 1, 1), (0, 1, 1)), r"task 'detection': variant index -1 is not within 0\.\.1"),
        (stages((0, 1, 1), (0, 0, 1)), r"task 'recognition': 0 replicas are not within 1\.\.3"),
        (stages((0, 1, 1), (0, 4, 1)), r"task 'recognition': 4 replicas are not within 1\.\.3"),
        (stages((0, 1, 3), (0, 1, 1)), r"task 'detection': batch size 3 is not one of \(1, 2\)"),
        (stages((0, 1, 4), (0, 1, 1)), r"task 'detection': batch size 4 is not one of \(1, 2\)"),
        (stages((1, 3, 1), (2, 1, 1)), "needs 10 cores, the device has 8"),
        (stages((0, 1.5, 1), (0, 1, 1)), r"task 'detection': .*1\.5.* whole numbers"),
        (stages((0.5, 1, 1), (0, 1, 1)), r"task 'detection': .*0\.5.* whole numbers"),
        (stages((0, math.nan, 1), (0, 1, 1)), r"task 'detection': .*nan.* whole numbers"),
    ],
)
def test_the_error_for_an_infeasible_configuration_names_the_limit(configuration, message):
    with pytest.raises(InfeasibleError, match=message):
        check_feasible(ocr_pipeline(), configuration)


@given(pipelines(), st.data())
def test_exactly_the_configurations_that_eq_4_allows_are_feasible(pipeline, data):
    entry = st.tuples(st.integers(-1, 4), st.integers(0, 5), st.sampled_from([0, 1, 2, 3, 4, 8, 16]))
    configuration = stages(*data.draw(st.tuples(*(entry for _ in pipeline.tasks))))
    if within_limits(pipeline, configuration, pipeline.capacity):
        check_feasible(pipeline, configuration)
    else:
        with pytest.raises(InfeasibleError):
            check_feasible(pipeline, configuration)


@given(pipelines(max_tasks=2, max_replicas=2))
def test_no_configuration_needs_fewer_cores_than_the_smallest(pipeline):
    smallest = pipeline.smallest_configuration()
    assert {(stage.replicas, stage.batch_size) for stage in smallest} == {(1, 1)}
    assert used_cores(pipeline, smallest) == min(used_cores(pipeline, c) for c in every_configuration(pipeline))


def test_selected_yields_the_variant_and_configuration_of_every_task():
    chosen = list(ocr_pipeline().selected(stages((1, 2, 1), (0, 1, 2))))
    assert [(variant.name, *stage) for variant, stage in chosen] == [("large", 1, 2, 1), ("tiny", 0, 1, 2)]
