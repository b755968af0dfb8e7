"""Evaluation cycles and bursts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_traces import make_trace, steady

from opd.workload.forecast import HISTORY_SECONDS
from opd.workload.trace import (
    CYCLE_SECONDS,
    burst_starts,
    characteristic_cycles,
    cycle_counts,
    cycle_from_start,
    evaluation_cycles,
    load_trace,
)
from opd.workload.trace_limits import DAY_SECONDS, MIN_SECONDS, TraceError


def test_characteristic_cycles_are_found_at_their_known_places():
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
        assert len(cycle_counts(trace, cycle)) == CYCLE_SECONDS
        span = trace.raw_index[position + CYCLE_SECONDS - 1] - trace.raw_index[position - HISTORY_SECONDS]
        assert span == CYCLE_SECONDS + HISTORY_SECONDS - 1, "a cycle or its history touches a recording gap"


def test_evaluation_cycles_of_the_bundled_trace(bundled):
    cycles = evaluation_cycles(bundled)
    assert [cycle.name for cycle in cycles[:3]] == ["steady-low", "fluctuating", "steady-high"]
    check_cycles(bundled, cycles)
    assert cycles == evaluation_cycles(load_trace("synthetic", damping=8)), "cycles must not depend on the damping"
    low, fluctuating, high = (cycle_counts(bundled, cycle) for cycle in cycles[:3])
    assert low.mean() < 50 and high.mean() > 180
    assert fluctuating.std() > 3 * low.std()
    spread = np.sort([cycle.start for cycle in cycles[3:]])
    assert len(spread) == 9
    width = (bundled.split("test").stop - bundled.split("test").start) / 9
    np.testing.assert_allclose(np.diff(spread), width, atol=2 * CYCLE_SECONDS)


@given(gap=st.integers(1, 1800), at=st.integers(14_500, 33_000), extra=st.integers(0, 4))
@settings(max_examples=30, deadline=None)
@example(gap=1, at=19_008, extra=0)  # the highest loads are all next to the lowest ones
def test_cycles_avoid_recording_gaps(gap, at, extra):
    counts = np.random.default_rng(at).poisson(40, 12 * 3600)
    raw_index = np.arange(len(counts)) + gap * (np.arange(len(counts)) >= at)
    trace = make_trace(counts, raw_index)
    cycles = evaluation_cycles(trace, extra)
    assert len(cycles) == 3 + extra
    check_cycles(trace, cycles)


def test_more_cycles_than_fit_are_refused_with_the_number_that_fits():
    trace = make_trace(np.random.default_rng(0).poisson(40, MIN_SECONDS))
    with pytest.raises(TraceError, match=r"only (\d) of 9 further cycles fit.*lower `cycles` in params.yaml to \1"):
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
def test_bursts_have_their_surroundings_in_the_same_split(bundled, split):
    starts = burst_starts(bundled, split)
    positions = bundled.split(split)
    assert starts.min() >= positions.start + 300 and starts.max() + 60 <= positions.stop
    before = np.array([np.median(bundled.recorded[start - 120 : start]) for start in starts])
    after = np.array([np.median(bundled.recorded[start : start + 60]) for start in starts])
    assert (after > 1.3 * before).all()


# The Twitter trace


def test_twitter_cycles_are_the_three_of_the_paper_and_nine_more(twitter):
    cycles = evaluation_cycles(twitter)
    assert [cycle.start for cycle in cycles[:3]] == [1_299_600, 1_301_160, 1_768_260]
    check_cycles(twitter, cycles)
    low, fluctuating, high = (cycle_counts(twitter, cycle) for cycle in cycles[:3])
    assert low.mean() == pytest.approx(5.1, abs=0.05)
    assert (round(fluctuating.mean()), fluctuating.min(), fluctuating.max()) == (12, 3, 34)
    assert (high.min(), high.max()) == (23, 37) and high.mean() == pytest.approx(29.2, abs=0.05)
    assert len(cycles) == 12


def test_twitter_has_a_dozen_bursts_a_day(twitter):
    assert len(burst_starts(twitter, "train")) / 12 == pytest.approx(12, abs=1)
