"""Futures of the load: known answers, properties, and the bundled trace."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from opd.workload.forecast import HISTORY_SECONDS, RecentMaximum
from opd.workload.forecast_network import INTERVALS, QUANTILES
from opd.workload.futures import Futures, NearestFutures, RecentFutures
from opd.workload.quantile_futures import QuantileFutures
from opd.workload.rescaled import RescaledFutures

PREDICT = RecentMaximum()


@pytest.fixture(scope="module")
def nearest(trace) -> NearestFutures:
    return NearestFutures.of(trace.counts[trace.split("train")][:40_000], PREDICT.predict_many)


@pytest.fixture(scope="module", params=["nearest", "recent", "quantiles"])
def source(request, nearest, forecaster) -> Futures:
    """Each source of futures in turn."""
    return {"nearest": nearest, "recent": RecentFutures(), "quantiles": QuantileFutures(forecaster)}[request.param]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Known answers


def test_what_always_followed_follows():
    """A stretch of 300 random loads that repeats: whatever its phase, only one load can follow."""
    stretch = rng(3).integers(0, 1000, 300)
    futures = NearestFutures.of(np.tile(stretch, 450), PREDICT.predict_many)
    for phase in (0, 70, 290):
        history = np.roll(stretch, -phase)
        drawn = futures.sample(history, PREDICT.predict(history), paths=16, seconds=80, generator=rng())
        np.testing.assert_array_equal(drawn, np.tile(history[:80], (16, 1)))


def test_a_constant_load_goes_on():
    history = np.full(HISTORY_SECONDS, 7)
    near = NearestFutures.of(np.full(1000, 7), PREDICT.predict_many)
    for futures in (near, RecentFutures()):
        np.testing.assert_array_equal(futures.sample(history, 7.0, 5, 60, rng()), np.full((5, 60), 7))


def test_recent_futures_are_at_the_present_level():
    """Twice as many requests since ten seconds: futures have twice the load of the minutes before."""
    history = np.concatenate([np.full(110, 100), np.full(10, 200)])
    assert RecentFutures().sample(history, 200.0, 400, 5, rng()).mean() == pytest.approx(200.0, rel=0.08)


def test_recent_futures_without_history_follow_the_forecast():
    drawn = RecentFutures().sample(np.zeros(0, dtype=int), 20.0, 200, 60, rng())
    assert drawn.mean() == pytest.approx(20.0, rel=0.02)
    assert not RecentFutures().sample(np.zeros(0, dtype=int), 0.0, 3, 4, rng()).any()


def test_recent_futures_rise_as_often_as_they_fall():
    rising = np.arange(HISTORY_SECONDS) + 100
    drawn = RecentFutures().sample(rising, float(rising.max()), 2000, 40, rng())
    assert (drawn[:, -1] > rising[-10:].mean()).mean() == pytest.approx(0.5, abs=0.1)


def test_quantiles_of_a_constant_load_are_that_load():
    history = np.full(HISTORY_SECONDS, 7)
    near = NearestFutures.of(np.full(1000, 7), PREDICT.predict_many)
    for futures in (near, RecentFutures()):
        np.testing.assert_array_equal(futures.quantiles(history, 7.0), np.full((INTERVALS, len(QUANTILES)), 7.0))


def test_quantiles_are_those_of_the_means_of_ten_seconds():
    """Without history, of ten Poisson counts of mean 40: the mean is 40, the standard deviation 2."""
    found = RecentFutures().quantiles(np.zeros(0, dtype=int), 40.0)
    expected = 40.0 + 2.0 * stats.norm.ppf(QUANTILES)
    np.testing.assert_allclose(found[:, 1:-1].mean(axis=0), expected[1:-1], atol=0.6)


def test_quantiles_of_what_always_followed():
    stretch = rng(3).integers(0, 1000, 300)
    futures = NearestFutures.of(np.tile(stretch, 450), PREDICT.predict_many)
    coming = stretch[:60].reshape(INTERVALS, 10).mean(axis=1)
    found = futures.quantiles(stretch, PREDICT.predict(stretch))
    np.testing.assert_allclose(found, np.repeat(coming[:, None], len(QUANTILES), axis=1))


# Properties


@settings(max_examples=25, deadline=None)
@given(history=st.lists(st.integers(0, 2000), max_size=150), predicted=st.floats(0.0, 3000.0))
def test_quantiles_of_every_source_rise_and_repeat(nearest, history, predicted):
    known = np.array(history, dtype=np.int64)
    sources: tuple[Futures, ...] = (nearest, RecentFutures(), RescaledFutures(RecentFutures(), 3.0))
    for futures in sources:
        found = futures.quantiles(known, predicted)
        assert found.shape == (INTERVALS, len(QUANTILES))
        assert (np.diff(found, axis=1) >= 0.0).all() and (found >= 0.0).all()
        np.testing.assert_array_equal(futures.quantiles(known, predicted), found)


@settings(max_examples=40, deadline=None)
@given(
    history=st.lists(st.integers(0, 2000), max_size=150),
    predicted=st.floats(0.0, 3000.0),
    paths=st.integers(1, 500),
    seconds=st.integers(1, 150),
)
def test_futures_are_counts_for_any_history(source, history, predicted, paths, seconds):
    drawn = source.sample(np.array(history, dtype=np.int64), predicted, paths, seconds, rng())
    assert drawn.shape == (paths, seconds)
    assert drawn.dtype == np.int64
    assert (drawn >= 0).all()


def test_only_the_last_two_minutes_matter_and_the_generator_decides(source, trace):
    history = trace.counts[-500:]
    shorter = source.sample(history[-HISTORY_SECONDS:], 9.0, 8, 60, rng(1))
    np.testing.assert_array_equal(source.sample(history, 9.0, 8, 60, rng(1)), shorter)
    assert not np.array_equal(shorter, source.sample(history, 9.0, 8, 60, rng(2)))


def test_pickled_futures_draw_the_same(source, trace):
    drawn = source.sample(trace.counts[-120:], 9.0, 16, 60, rng())
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.sample(trace.counts[-120:], 9.0, 16, 60, rng()), drawn)


def test_futures_do_not_look_beyond_the_trace_they_were_made_of(trace):
    known = trace.counts[:20_000]
    changed = np.concatenate([known, np.full(5000, 77)])
    one, other = (NearestFutures.of(counts[:20_000], PREDICT.predict_many) for counts in (known, changed))
    np.testing.assert_array_equal(one.features, other.features)
    assert (one.moments[-1] + 60 <= 20_000) and one.counts.max() < 77


def test_too_short_a_trace_is_refused():
    with pytest.raises(ValueError, match="at least 180 s of load, but got 179"):
        NearestFutures.of(np.ones(179, dtype=int), PREDICT.predict_many)
