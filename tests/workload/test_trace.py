"""Traces: reading, damping, positions, splits, and the workloads made from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_traces import make_trace, steady

from opd.workload.forecast import RecentMaximum
from opd.workload.trace import Trace, Workload, load_trace
from opd.workload.trace_files import TWITTER_MD5, TWITTER_VARIABLE
from opd.workload.trace_limits import DAY_SECONDS, MIN_SECONDS, TraceError


def test_damping_divides_every_count_and_keeps_the_recording():
    trace = make_trace(np.arange(MIN_SECONDS) % 17, damping=8)
    np.testing.assert_array_equal(trace.counts[:18], [0] * 8 + [1] * 8 + [2, 0])
    assert trace.recorded[16] == 16


def test_a_position_skips_the_seconds_that_were_not_recorded():
    raw_index = np.concatenate([np.arange(1000), np.arange(1500, 500 + MIN_SECONDS)])
    trace = make_trace(steady(len(raw_index)), raw_index)
    assert trace.position(999) == 999
    assert trace.position(1500) == 1000
    with pytest.raises(TraceError, match="second 1200 falls into a recording gap.*999 and 1500"):
        trace.position(1200)
    with pytest.raises(TraceError, match=f"second {500 + MIN_SECONDS} lies outside"):
        trace.position(500 + MIN_SECONDS)
    with pytest.raises(TraceError, match="second -1 lies outside"):
        trace.position(-1)


@given(days=st.floats(0.25, 30))
@settings(max_examples=30, deadline=None)
def test_splits_are_disjoint_ordered_and_complete(days):
    trace = make_trace(steady(int(days * DAY_SECONDS)))
    train, validation, test = (trace.split(name) for name in ("train", "validation", "test"))
    assert train.start == 0 and train.stop == validation.start
    assert validation.stop == test.start and test.stop == len(trace.counts)
    assert validation.stop <= 14 * DAY_SECONDS
    assert abs(6 * (validation.stop - validation.start) - train.stop) <= 6
    if days >= 21:
        assert (train.stop, validation.stop) == (12 * DAY_SECONDS, 14 * DAY_SECONDS)


def test_an_unknown_split_is_named():
    with pytest.raises(TraceError, match="split 'holdout' is not one of train, validation, test"):
        make_trace(steady()).split("holdout")


def test_the_label_says_that_a_trace_is_synthetic_and_damped(bundled):
    assert "synthetic" in bundled.label
    assert load_trace("synthetic", 8).label.endswith("damping 8")
    assert "synthetic" not in make_trace(steady()).label


# Bad input


def test_negative_counts_given_directly_are_refused():
    counts = steady()
    counts[77] = -3
    with pytest.raises(TraceError, match="count -3 at second 77 is negative"):
        make_trace(counts)


@pytest.mark.parametrize("damping", [0, -1, 1.5])
def test_a_damping_below_one_or_not_whole_is_refused(damping):
    with pytest.raises(TraceError, match=f"damping {damping} is not a whole number"):
        make_trace(steady(), damping=damping)


def test_all_problems_of_a_trace_are_in_one_error():
    with pytest.raises(TraceError, match=r"'made' has 3 problems:\n- it has 9 .*\n- count -1 at .*\n- damping 0"):
        make_trace(np.array([1, 2, -1, *[3] * 6]), damping=0)


@pytest.mark.parametrize(
    ("counts", "damping", "message"),
    [
        (np.zeros(MIN_SECONDS, dtype=np.int64), 1, "all 21600 counts are 0"),
        (
            np.arange(MIN_SECONDS) % 8,
            8,
            "damping 8 makes every count 0, because the largest count is 7; lower",
        ),
    ],
)
def test_a_trace_without_load_is_refused(counts, damping, message):
    with pytest.raises(TraceError, match=message):
        make_trace(counts, damping=damping)


def test_one_request_is_a_load():
    counts = np.zeros(MIN_SECONDS, dtype=np.int64)
    counts[-1] = 8
    assert make_trace(counts, damping=8).counts.sum() == 1


def test_the_limits_of_gaps_are_those_of_the_message():
    raw_index = np.concatenate([np.arange(MIN_SECONDS), MIN_SECONDS + 3600 + np.arange(MIN_SECONDS)])
    assert make_trace(steady(2 * MIN_SECONDS), raw_index).position(MIN_SECONDS + 3600) == MIN_SECONDS
    raw_index[MIN_SECONDS:] += 1
    with pytest.raises(TraceError, match="second 21599: 3601 seconds are missing.*at most 3600 s; cut the trace"):
        make_trace(steady(2 * MIN_SECONDS), raw_index)


def test_a_fifth_of_the_seconds_may_be_missing_and_no_more():
    at_most = np.arange(MIN_SECONDS) + np.arange(MIN_SECONDS) // 4
    assert len(make_trace(steady(), at_most).counts) == MIN_SECONDS
    too_many = np.arange(MIN_SECONDS) + np.arange(MIN_SECONDS) // 3
    with pytest.raises(TraceError, match="7199 of 28799 seconds are missing, the first after second 2, but.* 20%"):
        make_trace(steady(), too_many)


def test_a_missing_or_altered_twitter_trace_names_both_remedies(tmp_path, monkeypatch):
    monkeypatch.setenv(TWITTER_VARIABLE, str(tmp_path / "absent.tbz2"))
    with pytest.raises(FileNotFoundError, match=f"dvc update data/twitter_workload.tbz2.dvc.*{TWITTER_VARIABLE}"):
        load_trace("twitter")
    altered = tmp_path / "altered.tbz2"
    altered.write_bytes(b"something else")
    monkeypatch.setenv(TWITTER_VARIABLE, str(altered))
    with pytest.raises(TraceError, match=f"MD5 sum.*{TWITTER_MD5}.*dvc update.*{TWITTER_VARIABLE}"):
        load_trace("twitter")


def test_twitter_trace_is_read_split_and_damped_as_published(twitter):
    assert len(twitter.counts) == 1_899_061 - 37_899
    assert twitter.recorded.min() > 0
    assert twitter.raw_index[twitter.split("test").start] == 1_234_902
    assert twitter.split("train").stop == 12 * DAY_SECONDS
    assert twitter.recorded.mean() == pytest.approx(64.9, abs=0.1)
    assert not twitter.is_synthetic


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
