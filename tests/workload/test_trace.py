"""Traces: reading, damping, positions, splits, and the workloads made from them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_traces import make_trace, steady

from opd.workload.forecast import RecentMaximum
from opd.workload.trace import DAY_SECONDS, MIN_SECONDS, Trace, Workload, load_trace
from opd.workload.trace_files import TWITTER_MD5, TWITTER_VARIABLE, TraceError


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


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.array([1.0, np.nan]), "count .*nan.* in row 1"),
        (np.array([1.0, 2.5]), r"count .*2\.5.* in row 1 .*not a whole number"),
        (np.array([3, -4]), "count .*-4.* in row 1"),
        (np.array([3.0, np.inf]), "count .*inf.* in row 1"),
        (np.array(["7", "many"]), "count 'many' in row 1"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_bad_count_is_named_with_its_row(tmp_path, counts, message, suffix):
    path = tmp_path / f"bad{suffix}"
    table = pd.DataFrame({"count": np.concatenate([counts, steady().astype(counts.dtype)])})
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    with pytest.raises(TraceError, match=message):
        load_trace(path)


def test_negative_counts_given_directly_are_refused():
    counts = steady()
    counts[77] = -3
    with pytest.raises(TraceError, match="count -3 at second 77 is negative"):
        make_trace(counts)


def test_the_error_for_a_short_trace_gives_the_required_length(tmp_path):
    path = tmp_path / "short.csv"
    pd.DataFrame({"count": steady(600)}).to_csv(path, index=False)
    with pytest.raises(TraceError, match="600 recorded seconds, but at least 21600"):
        load_trace(path)


@pytest.mark.parametrize("damping", [0, -1, 1.5])
def test_a_damping_below_one_or_not_whole_is_refused(damping):
    with pytest.raises(TraceError, match=f"damping {damping} is not a whole number"):
        make_trace(steady(), damping=damping)


def test_a_long_gap_is_refused_and_a_short_one_dropped(tmp_path):
    path = tmp_path / "gap.csv"
    seconds = np.arange(MIN_SECONDS + 100)
    seconds[5000:] += 3600
    table = pd.DataFrame({"timestamp": pd.to_datetime(1_700_000_000 + seconds, unit="s"), "count": 9})
    table.to_csv(path, index=False)
    trace = load_trace(path)
    assert trace.position(8600) == 5000

    table["timestamp"] = pd.to_datetime(1_700_000_000 + seconds + (seconds > 5000), unit="s")
    table.to_csv(path, index=False)
    with pytest.raises(TraceError, match="3601 seconds are missing after second 4999.*at most 3600 s; cut the trace"):
        load_trace(path)


@pytest.mark.parametrize("change", [0, -5, 0.5, np.nan])
def test_timestamps_must_advance_by_whole_seconds(tmp_path, change):
    path = tmp_path / "clock.parquet"
    seconds = np.arange(MIN_SECONDS, dtype=float)
    seconds[100] = seconds[99] + change
    pd.DataFrame({"timestamp": seconds, "count": 5}).to_parquet(path)
    with pytest.raises(TraceError, match="timestamp .* in row 100 .*sort the rows"):
        load_trace(path)


def test_files_that_are_not_traces_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="'nowhere.csv' is neither synthetic, twitter nor an existing file"):
        load_trace("nowhere.csv")
    for name, content, message in (
        ("trace.xlsx", "1", "only .csv and .parquet"),
        ("broken.parquet", "not parquet", "cannot be read as parquet"),
        ("empty.csv", "", "cannot be read as csv"),
        ("two.csv", "a,b\n1,2\n", "columns \\['a', 'b'\\]; name the requests per second 'count'"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(TraceError, match=message):
            load_trace(tmp_path / name)


@pytest.mark.parametrize("header", ["count\n", "requests\n", ""])
def test_csv_of_one_column_with_any_header_or_none(tmp_path, header):
    path = tmp_path / "own.csv"
    counts = np.arange(MIN_SECONDS) % 50
    path.write_text(header + "\n".join(map(str, counts)))
    trace = load_trace(str(path), damping=2)
    np.testing.assert_array_equal(trace.recorded, counts)
    assert (trace.name, trace.is_synthetic, trace.damping) == ("own.csv", False, 2)


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
