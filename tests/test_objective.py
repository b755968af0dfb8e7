"""Eqs. 1-4 and 7, calculated by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_pipelines import every_configuration, ocr_pipeline, pipelines

from opd.objective import (
    Weights,
    accuracy,
    check_objective,
    excess_load,
    objective,
    objective_fields,
    objective_from,
    qos,
    reward,
    service_quality,
    service_reward,
    share_within,
    shortfall_cost,
    throughput,
)
from opd.pipeline import ServiceLevel, StageConfiguration, as_array, used_cores

WEIGHTS = Weights(alpha=10.0, beta=0.5, gamma=0.25, delta=0.125, cost_weight=0.75, batch_weight=0.0625)
CONFIGURATION = (StageConfiguration(1, 2, 2), StageConfiguration(0, 1, 1))
FIGURES = st.floats(-1e3, 1e3)


def test_eq_1_sums_the_accuracies_regardless_of_replicas():
    assert accuracy(ocr_pipeline(), CONFIGURATION) == 0.75 + 0.625


def test_eq_2_sums_the_cores_of_all_replicas():
    assert used_cores(ocr_pipeline(), CONFIGURATION) == 2 * 2 + 1 * 1


def test_throughput_is_that_of_the_slowest_stage():
    # Detection: 2 replicas of 2 requests in 0.4 s are 10 requests/s; recognition: 1 of 1 in 0.05 s are 20.
    assert throughput(ocr_pipeline(), CONFIGURATION) == pytest.approx(10.0)
    faster = (StageConfiguration(0, 3, 2), StageConfiguration(0, 1, 1))
    assert throughput(ocr_pipeline(), faster) == pytest.approx(20.0)


def test_eq_3_with_unmet_demand():
    # 10 x 1.375 + 0.5 x 10 - 0.5 - 0.25 x 4
    assert qos(WEIGHTS, 1.375, 10.0, 0.5, 4.0) == 13.75 + 5.0 - 0.5 - 1.0


def test_eq_3_with_spare_capacity():
    # 10 x 1.375 + 0.5 x 10 - 0.5 - 0.125 x 4
    assert qos(WEIGHTS, 1.375, 10.0, 0.5, -4.0) == 13.75 + 5.0 - 0.5 - 0.5


def test_eq_3_where_capacity_meets_demand():
    assert qos(WEIGHTS, 1.375, 10.0, 0.5, 0.0) == 18.25


def test_eq_4_weighs_quality_against_cost():
    assert objective(WEIGHTS, 17.25, 5.0) == 17.25 - 0.75 * 5.0


def test_eq_7_also_charges_the_largest_batch():
    assert reward(WEIGHTS, 17.25, 5.0, 2) == 17.25 - 0.75 * 5.0 - 0.0625 * 2


def test_the_default_weights_by_hand():
    quality = qos(Weights(), 1.5, 20.0, 0.25, 2.0)
    assert quality == pytest.approx(15.0 + 0.4 - 0.25 - 0.6)
    assert reward(Weights(), quality, 6.0, 4) == pytest.approx(14.55 - 0.9 - 0.08)


@given(pipelines(max_tasks=2, max_replicas=2))
def test_a_batch_of_configurations_scores_like_its_elements(pipeline):
    candidates = every_configuration(pipeline)
    batch = np.stack([as_array(candidate) for candidate in candidates])
    by_hand = [sum(pipeline.tasks[n].variants[s.variant].accuracy for n, s in enumerate(c)) for c in candidates]
    np.testing.assert_allclose(accuracy(pipeline, batch), by_hand)
    np.testing.assert_array_equal(used_cores(pipeline, batch), [used_cores(pipeline, each) for each in candidates])


@given(st.lists(st.tuples(FIGURES, FIGURES, FIGURES, FIGURES), min_size=1))
def test_arrays_score_like_their_elements(rows):
    columns = np.array(rows).T
    np.testing.assert_array_equal(qos(WEIGHTS, *columns), [qos(WEIGHTS, *row) for row in rows])
    np.testing.assert_array_equal(reward(WEIGHTS, *columns[:3]), [reward(WEIGHTS, *row[:3]) for row in rows])


@given(st.floats(0.0, 1e3), st.floats(0.0, 1e3))
def test_unmet_demand_and_spare_capacity_both_reduce_quality(excess, more):
    unmet = [qos(WEIGHTS, 1.0, 1.0, 1.0, load) for load in (0.0, excess, excess + more)]
    spare = [qos(WEIGHTS, 1.0, 1.0, 1.0, -load) for load in (0.0, excess, excess + more)]
    assert unmet == sorted(unmet, reverse=True)
    assert spare == sorted(spare, reverse=True)


@pytest.mark.parametrize("name", ["alpha", "beta", "gamma", "delta", "cost_weight", "batch_weight"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_the_error_for_a_wrong_weight_names_it(name, value):
    with pytest.raises(ValueError, match=f"weight {name} is {value}, but must be a finite number of at least 0"):
        Weights(**{name: value})
    assert getattr(Weights(**{name: 0.0}), name) == 0.0


# --- service levels --------------------------------------------------------------------------------------------------

LEVEL = ServiceLevel(0.5, percentile=95.0, accuracy_floor=0.75, accuracy_weight=20.0)


def test_one_percentage_point_short_costs_the_whole_device():
    assert shortfall_cost(8, 0.01) == pytest.approx(8.0)
    assert shortfall_cost(8, -0.5) == 0.0


def test_a_service_level_that_is_kept_by_hand():
    # 20 cores for 1.00 of accuracy, 6 cores taken.
    quality = service_quality(LEVEL, 8, 0.875, 0.96)
    assert quality == 17.5
    assert service_reward(quality, 6.0) == 11.5


def test_a_service_level_that_is_missed_by_hand():
    # 5 points of requests and 12.5 of accuracy short, at 8 cores a point.
    assert service_quality(LEVEL, 8, 0.625, 0.90) == pytest.approx(12.5 - 40.0 - 100.0)


def test_the_share_within_a_level_counts_the_requests_that_ended():
    assert share_within(np.array([9.0, 0.0, 7.0, 0.0]), np.array([10.0, 3.0, 6.9, 0.0])).tolist() == [
        0.9,
        0.0,
        1.0,
        1.0,
    ]


def test_failures_are_unmet_demand_only_where_there_are_some():
    assert excess_load(np.array([6.0, 6.0, 6.0]), np.array([10.0, 10.0, 2.0]), np.array([0.0, 1.5, 1.5])).tolist() == [
        -4.0,
        1.5,
        4.0,
    ]


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_more_requests_in_time_and_more_accuracy_are_never_worse(accuracy, within, better):
    quality = service_quality(LEVEL, 8, accuracy, within)
    assert service_quality(LEVEL, 8, accuracy, max(within, better)) >= quality
    assert service_quality(LEVEL, 8, max(accuracy, better), within) >= quality


@pytest.mark.parametrize("given_objective", [WEIGHTS, LEVEL], ids=lambda each: type(each).__name__)
def test_an_objective_survives_as_plain_data(given_objective):
    assert objective_from({"other": 1} | objective_fields(given_objective)) == given_objective


def test_the_objective_asks_for_the_latency_by_which_requests_are_counted():
    check_objective(ocr_pipeline(), ServiceLevel(1.0, percentile=50.0))
    with pytest.raises(ValueError, match=r"latency is 0\.5 s, that of pipeline 'ocr' 1 s"):
        check_objective(ocr_pipeline(), LEVEL)
