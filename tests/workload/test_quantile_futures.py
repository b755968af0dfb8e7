"""Futures from quantiles: ranks, pinball loss, coverage of a known distribution, dependence over time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from opd.workload.forecast import Forecaster, ForecastParameters, Patterns
from opd.workload.forecast_network import INTERVALS, QUANTILES, outlooks, quantile_inputs, scaled, unscaled
from opd.workload.forecast_training import pinball_loss, train_forecaster
from opd.workload.futures_scores import coverage, scored_positions
from opd.workload.quantile_futures import QuantileFutures, at_ranks, patterns_of, ranks
from opd.workload.trace import Trace

COUNT = len(QUANTILES)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def poisson() -> Trace:
    """Ten hours of independent Poisson counts with mean 40."""
    counts = rng(5).poisson(40.0, 36_000)
    return Trace("poisson", counts, np.arange(len(counts)))


@pytest.fixture(scope="module")
def of_poisson(poisson) -> Forecaster:
    return train_forecaster(poisson, ForecastParameters(epochs=10, stride=5, learning_rate=0.02))


# Known answers


def test_the_quantile_loss_by_hand():
    """Probability 0.5: half the absolute error. 0.98: 0.98 of what is above, 0.02 of what is below."""
    quantiles = torch.zeros(1, COUNT)
    above, below = pinball_loss(quantiles, torch.tensor([3.0])), pinball_loss(quantiles, torch.tensor([-2.0]))
    assert float(above) == pytest.approx(3.0 * sum(QUANTILES) / COUNT)
    assert float(below) == pytest.approx(2.0 * sum(1 - nominal for nominal in QUANTILES) / COUNT)


def test_ranks_are_linear_between_and_beyond_the_quantiles():
    quantiles = np.array([[[1.0, 2.0, 4.0]] * 5])
    values = np.array([[1.0, 1.5, 3.0, 5.0, 0.5]])
    np.testing.assert_allclose(ranks(quantiles, values), [[0.0, 0.5, 1.5, 2.5, -0.5]])


def test_loads_and_their_scaled_logarithms():
    loads, level = np.array([0.0, 2.0, 40.0]), 4.0
    assert scaled(loads, level)[1] == pytest.approx(np.log(2.5 / 4.0) / 0.3)
    np.testing.assert_allclose(unscaled(scaled(loads, level), level), loads, atol=1e-12)


def test_inputs_of_the_quantiles_by_hand(forecaster):
    """A constant load of 10 requests/s is the level of all bins and seconds; the last second has twice the load."""
    counts = np.full(120, 10.0)
    counts[-1] = 20.0
    inputs, levels = quantile_inputs(counts, np.array([120]), forecaster.network)
    level = 1210.0 / 120.0
    assert levels[0] == pytest.approx(level)
    bins, seconds, standardised = np.split(inputs[0, -33:], [12, 32])
    np.testing.assert_allclose(bins, 3.0 * np.log(np.append(np.full(11, 10.5), 11.5) / level), rtol=1e-5)
    np.testing.assert_allclose(seconds, 3.0 * np.log(np.append(np.full(19, 10.5), 20.5) / level), rtol=1e-5)
    network = forecaster.network
    assert standardised[0] == pytest.approx((np.log(level) - network.level_mean) / network.level_deviation, rel=1e-5)


def test_the_newest_seconds_decide_where_bins_are_equal(forecaster):
    """The same ten loads upwards and downwards: the same forecast of the largest load, but not of the next interval."""
    before, last = np.full(110, 10), np.arange(2, 22, 2)
    rising, falling = np.concatenate([before, last]), np.concatenate([before, last[::-1]])
    assert forecaster.predict(rising) == forecaster.predict(falling)
    end = np.array([len(rising)])
    up, down = forecaster.quantiles(rising, end)[0, 0], forecaster.quantiles(falling, end)[0, 0]
    assert (up[1:] > down[1:]).all()


def test_quantiles_of_a_known_distribution_are_covered(poisson, of_poisson):
    """Means of ten Poisson counts do not depend on the past, so coverage is nominal, but for sampling."""
    table = coverage(of_poisson, poisson, "test")
    for nominal, observed in table.groupby("nominal")["observed"].mean().items():
        assert observed == pytest.approx(nominal, abs=0.06)


def test_futures_of_a_known_distribution_have_its_mean_and_spread(poisson, of_poisson):
    ends = scored_positions(poisson, "test", 300)
    drawn = [QuantileFutures(of_poisson).sample(poisson.counts[end - 120 : end], 50.0, 40, 60, rng()) for end in ends]
    means = np.stack(drawn).reshape(len(ends), 40, 6, 10).mean(axis=-1)
    assert means.mean() == pytest.approx(40.0, rel=0.02)
    assert means.std() == pytest.approx(2.0, rel=0.25)  # of ten Poisson counts with mean 40
    assert np.std(drawn) == pytest.approx(np.sqrt(40.0), rel=0.15)


def test_futures_follow_the_patterns(forecaster, trace):
    """A pattern of always the first and one of always the last quantile: no future passes from one to the other."""
    extremes = np.repeat([[0.0], [COUNT - 1.0]], INTERVALS, axis=1).astype(np.float32)
    patterns = Patterns(extremes, np.zeros((2, INTERVALS, 10), dtype=np.float16))
    futures = QuantileFutures(dataclasses.replace(forecaster, patterns=patterns))
    end = trace.split("test").start + 5000
    low, *_, high = np.moveaxis(forecaster.quantiles(trace.counts, np.array([end]))[0], -1, 0)
    drawn = futures.sample(trace.counts[end - 120 : end], 9.0, 400, 60, rng()).reshape(400, INTERVALS, 10).mean(axis=-1)
    nearer_high = np.abs(drawn - high) < np.abs(drawn - low)
    same = nearer_high.all(axis=1) | ~nearer_high.any(axis=1)
    assert same.mean() > 0.9
    assert 0.4 < nearer_high.mean() < 0.6


def test_quantiles_are_those_that_the_forecaster_predicts(forecaster, trace):
    futures = QuantileFutures(forecaster)
    end = trace.split("test").start + 5000
    expected = forecaster.quantiles(trace.counts, np.array([end]))[0]
    assert expected.shape == (INTERVALS, COUNT)
    for known in (trace.counts[end - 120 : end], trace.counts[end - 1000 : end]):
        np.testing.assert_allclose(futures.quantiles(known, 9.0), expected, rtol=1e-5)
    # Without any history the forecast was the load, for as long as it matters.
    empty = futures.quantiles(np.zeros(0), 9.0)
    np.testing.assert_allclose(empty, futures.quantiles(np.full(120, 9.0), 9.0), rtol=1e-4)


# Properties


@given(
    quantiles=arrays(float, (3, 2, 5), elements=st.floats(-5.0, 5.0)).map(
        lambda values: np.sort(values, axis=-1) + 1e-4 * np.arange(5)
    ),
    numbers=arrays(float, (3, 2), elements=st.floats(-3.0, 7.0)),
)
def test_values_at_ranks_increase_with_them(quantiles, numbers):
    assert (at_ranks(quantiles, numbers + 0.5) >= at_ranks(quantiles, numbers)).all()
    inside = at_ranks(quantiles, np.clip(numbers, 0.0, 4.0))
    assert (inside >= quantiles[..., 0] - 1e-9).all() and (inside <= quantiles[..., -1] + 1e-9).all()


@given(values=arrays(float, (4, 6), elements=st.floats(-1.5, 1.5)), seed=st.integers(0, 100))
def test_ranks_are_inverted(values, seed):
    quantiles = np.sort(rng(seed).normal(size=(4, 6, 7)), axis=-1)
    numbers = ranks(quantiles, values)
    unclipped = np.abs(numbers - 3.0) < 7.0
    np.testing.assert_allclose(at_ranks(quantiles, numbers)[unclipped], values[unclipped], atol=1e-6)


@given(known=st.lists(st.integers(0, 50), min_size=1, max_size=130))
def test_a_shorter_history_counts_as_one_with_the_mean_of_its_first_ten_seconds_before_it(forecaster, known):
    padded = np.concatenate([np.full(120, np.mean(known[:10])), known])
    short = forecaster.quantiles(np.array(known), np.array([len(known)]))
    np.testing.assert_allclose(forecaster.quantiles(padded, np.array([len(padded)])), short, rtol=1e-4, atol=1e-6)


@given(history=st.lists(st.integers(0, 5000), min_size=1, max_size=130))
def test_loads_are_at_most_twice_the_largest_of_the_past(forecaster, history):
    known = np.array(history)
    limit = 2.0 * (known[-120:].max() + 0.5) * 1.001
    assert (forecaster.quantiles(known, np.array([len(known)])) <= limit).all()
    drawn = QuantileFutures(forecaster).sample(known, 9.0, 30, 60, rng()).reshape(30, INTERVALS, 10)
    spread = np.abs(forecaster.patterns.departures.astype(float)).max() * np.sqrt(limit + 0.5)
    assert drawn.max() <= limit + spread + 1.0


def test_quantiles_do_not_cross(forecaster, trace):
    quantiles = forecaster.quantiles(trace.counts, scored_positions(trace, "validation", 300))
    assert quantiles.shape[1:] == (INTERVALS, COUNT)
    assert (np.diff(quantiles, axis=-1) >= 0).all() and (quantiles >= 0).all()


# Real input


def test_patterns_between_their_own_quantiles_give_the_loads_that_came(forecaster, trace):
    ends = scored_positions(trace, "validation", 500)
    counts, network = trace.counts.astype(float), forecaster.network
    patterns = patterns_of(counts, ends, network)
    outlook = outlooks(counts, ends, network)
    means = unscaled(at_ranks(outlook.quantiles, patterns.ranks), outlook.levels[:, None])[..., None]
    usual = np.abs(patterns.ranks - 3.0).max(axis=1) < 6.5  # others lie too far outside
    loads = (means + np.sqrt(means + 0.5) * patterns.departures).reshape(len(ends), -1)
    assert usual.mean() > 0.9
    np.testing.assert_allclose(loads[usual], counts[ends[:, None] + np.arange(60)][usual], atol=0.02)


def test_a_decision_sees_what_a_whole_trace_does(forecaster, trace):
    """Forecast and quantiles after one history, which are remembered, are those of its position in the trace."""
    futures = QuantileFutures(forecaster)
    for end in (200, 201, 200):
        history = trace.counts[end - 120 : end]
        assert forecaster.predict(history) == forecaster.predict_many(trace.counts, np.array([end]))[0]
        expected = forecaster.quantiles(trace.counts, np.array([end]))[0]
        np.testing.assert_allclose(futures.quantiles(history, 1.0), expected, rtol=1e-5)


def test_stored_forecasters_draw_the_same(forecaster, trace, tmp_path):
    forecaster.save(tmp_path / "forecaster.npz")
    drawn = QuantileFutures(forecaster).sample(trace.counts[-120:], 9.0, 16, 60, rng())
    copy = QuantileFutures(Forecaster.load(tmp_path / "forecaster.npz"))
    np.testing.assert_array_equal(copy.sample(trace.counts[-120:], 9.0, 16, 60, rng()), drawn)
