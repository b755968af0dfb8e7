"""Traces and forecasters that the tests of the load share."""

from __future__ import annotations

import pytest

from opd.workload.forecast import Forecaster, ForecastParameters
from opd.workload.forecast_training import train_forecaster
from opd.workload.trace import Trace, load_trace


@pytest.fixture(scope="session")
def bundled() -> Trace:
    """The bundled trace, undamped."""
    return load_trace("synthetic")


@pytest.fixture(scope="session")
def twitter() -> Trace:
    """The Twitter trace at the damping of the study."""
    try:
        return load_trace("twitter", damping=8)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def trace() -> Trace:
    """The bundled trace at the damping of the study."""
    return load_trace("synthetic", damping=8)


@pytest.fixture(scope="session")
def forecaster(trace: Trace) -> Forecaster:
    """A forecaster with a little training at damping 8."""
    return train_forecaster(trace, ForecastParameters(epochs=2, train_windows=12_000), seed=0)


@pytest.fixture(scope="session")
def undamped(bundled: Trace) -> Forecaster:
    """A forecaster with very little training on the undamped trace."""
    return train_forecaster(bundled, ForecastParameters(epochs=1, train_windows=1000), seed=1)
