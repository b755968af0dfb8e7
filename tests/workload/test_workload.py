"""Counts and forecasts on the grid of decisions."""

from __future__ import annotations

import numpy as np

from opd.workload.forecast import RecentMaximum
from opd.workload.trace import Trace, Workload


def test_a_workload_is_divided_into_intervals():
    workload = Workload(np.arange(25), np.array([0.0, 5.0, 6.0]), 10)
    assert workload.decisions == 2
    assert workload.windows(np.array([1, 0])).tolist() == [list(range(10, 20)), list(range(10))]


def test_forecasts_of_a_split_are_at_the_end_of_their_history():
    counts = np.arange(6 * 3600)
    trace = Trace("ramp", counts, np.arange(len(counts)))
    split = trace.split("validation")
    asked: list[np.ndarray] = []

    def last_count(history: np.ndarray, ends: np.ndarray) -> np.ndarray:
        asked.append(history)
        return history[ends - 1].astype(float)

    workload = Workload.of(trace, "validation", 10, last_count)
    np.testing.assert_array_equal(workload.counts, counts[split])
    np.testing.assert_array_equal(asked[0], counts[split])
    assert len(workload.forecasts) == len(workload.counts) // 10 + 1
    assert workload.forecasts[0] == 0.0
    for decision in (1, 2, workload.decisions):
        assert workload.forecasts[decision] == workload.counts[10 * decision - 1]


def test_the_forecast_without_training_is_the_largest_recent_count():
    counts = np.array([9, *[1] * 19, 2, 3])
    assert RecentMaximum().predict_many(counts, np.array([0, 1, 20, 21, 22])).tolist() == [0.0, 9.0, 9.0, 2.0, 3.0]
