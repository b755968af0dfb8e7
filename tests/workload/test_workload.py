import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from opd.workload import synthetic
from opd.workload import trace as workload
from opd.workload.load import HISTORY_SECONDS
from opd.workload.trace import (
    CYCLE_SECONDS,
    DAY_SECONDS,
    MIN_SECONDS,
    TWITTER_VARIABLE,
    Trace,
    TraceError,
    burst_starts,
    characteristic_cycles,
    cycle_from_start,
    evaluation_cycles,
    load_trace,
)


def make_trace(counts, raw_index=None, damping=1):
    counts = np.asarray(counts)
    return Trace("made", counts, np.arange(len(counts)) if raw_index is None else raw_index, damping)


def steady(seconds=MIN_SECONDS, level=40):
    return np.full(seconds, level)


@pytest.fixture(scope="module")
def bundled():
    return load_trace("synthetic")


@pytest.fixture(scope="module")
def twitter():
    try:
        return load_trace("twitter", damping=8)
    except FileNotFoundError as error:
        pytest.skip(str(error))


# Traces, positions and splits


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


def test_too_short_a_trace_says_how_long_it_must_be(tmp_path):
    path = tmp_path / "short.csv"
    pd.DataFrame({"count": steady(600)}).to_csv(path, index=False)
    with pytest.raises(TraceError, match="600 recorded seconds, but at least 21600"):
        load_trace(path)


@pytest.mark.parametrize("damping", [0, -1, 1.5])
def test_a_damping_below_one_or_broken_is_refused(damping):
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


def test_files_that_are_no_traces_are_refused(tmp_path):
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
    with pytest.raises(TraceError, match=f"MD5 sum.*{workload.TWITTER_MD5}.*dvc update.*{TWITTER_VARIABLE}"):
        load_trace("twitter")


# Cycles and bursts


def test_characteristic_cycles_are_found_where_they_were_put():
    rng = np.random.default_rng(0)
    rate = 60.0 + 5.0 * np.sin(np.arange(2 * DAY_SECONDS) / 300.0)
    low, fluctuating, high = 120_000, 145_000, 160_000
    rate[low : low + 14_000] = 20.0
    rate[fluctuating : fluctuating + 1260] = np.where(np.arange(1260) // 200 % 2, 30.0, 150.0)
    rate[high - 120 : high + 1400] = 200.0
    found = {cycle.name: cycle.start for cycle in characteristic_cycles(make_trace(rng.poisson(rate)))}
    assert list(found) == ["steady-low", "fluctuating", "steady-high"]
    assert low <= found["steady-low"] <= low + 14_000 - CYCLE_SECONDS
    assert abs(found["fluctuating"] - fluctuating) <= 600
    assert high - 120 <= found["steady-high"] <= high + 200


def check_cycles(trace, cycles):
    positions = np.array([trace.position(cycle.start) for cycle in cycles])
    test = trace.split("test")
    assert positions.min() >= test.start + HISTORY_SECONDS and positions.max() + CYCLE_SECONDS <= test.stop
    assert np.diff(np.sort(positions)).min() >= CYCLE_SECONDS
    assert len({cycle.name for cycle in cycles}) == len(cycles)
    for cycle, position in zip(cycles, positions, strict=True):
        assert len(trace.cycle_counts(cycle)) == CYCLE_SECONDS
        span = trace.raw_index[position + CYCLE_SECONDS - 1] - trace.raw_index[position - HISTORY_SECONDS]
        assert span == CYCLE_SECONDS + HISTORY_SECONDS - 1, "a cycle or its history touches a recording gap"


def test_evaluation_cycles_of_the_bundled_trace(bundled):
    cycles = evaluation_cycles(bundled)
    assert [cycle.name for cycle in cycles[:3]] == ["steady-low", "fluctuating", "steady-high"]
    check_cycles(bundled, cycles)
    assert cycles == evaluation_cycles(load_trace("synthetic", damping=8)), "cycles must not depend on the damping"
    low, fluctuating, high = (bundled.cycle_counts(cycle) for cycle in cycles[:3])
    assert low.mean() < 50 and high.mean() > 180
    assert fluctuating.std() > 3 * low.std()
    spread = np.sort([cycle.start for cycle in cycles[3:]])
    assert len(spread) == 9
    width = (bundled.split("test").stop - bundled.split("test").start) / 9
    np.testing.assert_allclose(np.diff(spread), width, atol=2 * CYCLE_SECONDS)


@given(gap=st.integers(1, 1800), at=st.integers(14_500, 33_000), extra=st.integers(0, 4))
@settings(max_examples=30, deadline=None)
@example(gap=1, at=19_008, extra=0)  # the highest loads all lie beside the lowest ones
def test_cycles_avoid_recording_gaps(gap, at, extra):
    counts = np.random.default_rng(at).poisson(40, 12 * 3600)
    raw_index = np.arange(len(counts)) + gap * (np.arange(len(counts)) >= at)
    trace = make_trace(counts, raw_index)
    cycles = evaluation_cycles(trace, extra)
    assert len(cycles) == 3 + extra
    check_cycles(trace, cycles)


def test_more_cycles_than_fit_are_refused_with_the_number_that_fits():
    trace = make_trace(np.random.default_rng(0).poisson(40, MIN_SECONDS))
    with pytest.raises(TraceError, match=r"only (\d) of 9 further cycles fit.*lower their number to \1"):
        evaluation_cycles(trace)


def test_a_cycle_from_any_start_needs_history_and_length():
    trace = make_trace(steady())
    assert cycle_from_start(trace, 120) == ("from-120", 120)
    assert cycle_from_start(trace, MIN_SECONDS - CYCLE_SECONDS).start == MIN_SECONDS - CYCLE_SECONDS
    for start in (119, MIN_SECONDS - CYCLE_SECONDS + 1):
        with pytest.raises(TraceError, match=f"from second {start} needs 120 s.*between seconds 120 and 20400"):
            cycle_from_start(trace, start)
    with pytest.raises(TraceError, match=f"second {10 * MIN_SECONDS} lies outside"):
        cycle_from_start(trace, 10 * MIN_SECONDS)


def test_a_burst_begins_where_the_load_jumps_and_stays():
    counts = steady(2 * MIN_SECONDS)
    counts[3000:3200] = 100  # a burst
    counts[6000:6040] = 100  # too short
    counts[9000:9200] = 60  # too low
    assert burst_starts(make_trace(counts), "train").tolist() == [3000]
    assert burst_starts(make_trace(counts), "train", rise=0.4).tolist() == [3000, 9000]
    raw_index = np.arange(len(counts)) + 500 * (np.arange(len(counts)) >= 3000)
    assert burst_starts(make_trace(counts, raw_index), "train").tolist() == [], "a jump across a gap is no burst"


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_bursts_lie_inside_their_split_with_room_around(bundled, split):
    starts = burst_starts(bundled, split)
    positions = bundled.split(split)
    assert starts.min() >= positions.start + 300 and starts.max() + 60 <= positions.stop
    before = np.array([np.median(bundled.recorded[start - 120 : start]) for start in starts])
    after = np.array([np.median(bundled.recorded[start : start + 60]) for start in starts])
    assert (after > 1.3 * before).all()


# The Twitter trace


def test_twitter_trace_is_read_split_and_damped_as_published(twitter):
    assert len(twitter.counts) == 1_899_061 - 37_899
    assert twitter.recorded.min() > 0
    assert twitter.raw_index[twitter.split("test").start] == 1_234_902
    assert twitter.split("train").stop == 12 * DAY_SECONDS
    assert twitter.recorded.mean() == pytest.approx(64.9, abs=0.1)
    assert not twitter.is_synthetic


def test_twitter_cycles_are_the_three_of_the_paper_and_nine_more(twitter):
    cycles = evaluation_cycles(twitter)
    assert [cycle.start for cycle in cycles[:3]] == [1_299_600, 1_301_160, 1_768_260]
    check_cycles(twitter, cycles)
    low, fluctuating, high = (twitter.cycle_counts(cycle) for cycle in cycles[:3])
    assert low.mean() == pytest.approx(5.1, abs=0.05)
    assert (round(fluctuating.mean()), fluctuating.min(), fluctuating.max()) == (12, 3, 34)
    assert (high.min(), high.max()) == (23, 37) and high.mean() == pytest.approx(29.2, abs=0.05)
    assert len(cycles) == 12


def test_twitter_has_a_dozen_bursts_a_day(twitter):
    assert len(burst_starts(twitter, "train")) / 12 == pytest.approx(12, abs=1)


# The synthetic trace: published statistics of the recording that it imitates


def test_the_bundled_file_is_what_the_generator_makes(bundled):
    np.testing.assert_array_equal(bundled.recorded, synthetic.generate_counts())
    assert bundled.is_synthetic


def test_the_command_line_writes_a_readable_trace(tmp_path):
    path = tmp_path / "other.parquet"
    command = [
        sys.executable,
        "-m",
        "opd.workload.synthetic",
        "--output",
        path,
        "--seconds",
        str(MIN_SECONDS),
        "--seed",
        "5",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert str(path) in done.stdout
    np.testing.assert_array_equal(load_trace(path).counts, synthetic.generate_counts(MIN_SECONDS, seed=5))


def test_mean_and_percentiles(bundled):
    assert bundled.counts.mean() == pytest.approx(64.9, abs=1.0)
    np.testing.assert_allclose(np.percentile(bundled.counts, [5, 50, 95, 99.9]), [37, 54, 177, 276], atol=6)


def test_autocorrelation(bundled):
    deviation = bundled.counts - bundled.counts.mean()
    lags = (1, 60, 300, 600)
    found = [np.mean(deviation[:-lag] * deviation[lag:]) / np.mean(deviation**2) for lag in lags]
    np.testing.assert_allclose(found, [0.958, 0.876, 0.467, 0.170], atol=0.045)


def test_how_often_a_new_maximum_comes(bundled):
    counts = pd.Series(bundled.counts)
    ahead = counts[::-1].rolling(20).max()[::-1].shift(-1)
    surpassed = (ahead > counts.rolling(120).max())[120:-20]
    assert 100 * surpassed.mean() == pytest.approx(13.4, abs=0.8)


def test_a_dozen_bursts_a_day(bundled):
    bursts = sum(len(burst_starts(bundled, split)) for split in ("train", "validation", "test"))
    assert bursts / (len(bundled.counts) / DAY_SECONDS) == pytest.approx(12, abs=1)


def test_seeds_differ_and_repeat():
    first = synthetic.generate_counts(5000, seed=1)
    np.testing.assert_array_equal(first, synthetic.generate_counts(5000, seed=1))
    assert (first != synthetic.generate_counts(5000, seed=3)).mean() > 0.5
    with pytest.raises(ValueError, match="0 seconds cannot be generated"):
        synthetic.generate_counts(0)
