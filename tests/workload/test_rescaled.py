"""Forecasts and futures of a load of another scale."""

from __future__ import annotations

import numpy as np
import pytest

from opd.workload.forecast import RecentMaximum
from opd.workload.forecast_network import INTERVALS
from opd.workload.futures import RecentFutures
from opd.workload.quantile_futures import QuantileFutures, futures_of
from opd.workload.rescaled import RescaledForecaster, RescaledFutures


def test_a_rescaled_forecaster_forecasts_in_the_scale_of_its_history():
    seen = []

    class Noting(RecentMaximum):
        def predict(self, history):
            seen.append(history)
            return super().predict(history)

    history = np.arange(1.0, 31.0)
    assert RescaledForecaster(Noting(), 3.0).predict(history) == pytest.approx(30.0)
    np.testing.assert_allclose(seen[0], 3.0 * history)


def test_rescaled_futures_have_the_level_of_the_history():
    futures = futures_of(RescaledForecaster(RecentMaximum(), 4.0))
    assert isinstance(futures, RescaledFutures)
    drawn = futures.sample(np.full(120, 5), 5.0, 200, 30, np.random.default_rng(0))
    assert drawn.shape == (200, 30)
    assert drawn.dtype == np.int64
    assert drawn.mean() == pytest.approx(5.0, rel=0.02)


def test_rescaled_quantiles_have_the_level_of_the_history():
    """Twelve requests/s in the scale that was learned are three here."""
    futures = RescaledFutures(RecentFutures(), 4.0)
    np.testing.assert_allclose(futures.quantiles(np.full(120, 3), 3.0), 3.0)
    history = np.random.default_rng(0).poisson(9.0, 120)
    np.testing.assert_allclose(futures.quantiles(history, 9.0), RecentFutures().quantiles(4 * history, 36.0) / 4.0)


def test_quantiles_of_a_forecaster_are_rescaled_as_well(forecaster, trace):
    history = trace.counts[-120:]
    known = QuantileFutures(forecaster).quantiles(history, 9.0)
    found = futures_of(RescaledForecaster(forecaster, 0.25)).quantiles(4 * history, 36.0)
    assert found.shape[0] == INTERVALS
    np.testing.assert_allclose(found, 4.0 * known, rtol=1e-6)
