"""Forecasts and futures for a load of another scale than the one that was learned."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from opd.workload.forecast import Forecaster
from opd.workload.futures import Futures, rounded
from opd.workload.quantile_futures import futures_of


class RescaledForecaster:
    """A forecaster for a load of another scale than the one it learned from.

    Args:
        forecaster: predicts counts of its own scale.
        factor: from the counts here to that scale.
    """

    def __init__(self, forecaster: Forecaster, factor: float) -> None:
        self._forecaster, self._factor = forecaster, factor

    def predict(self, history: np.ndarray) -> float:
        """The largest load of the next 20 s, requests/s."""
        return self._forecaster.predict(history * self._factor) / self._factor

    @property
    def futures(self) -> RescaledFutures:
        """The futures of the forecaster, in the scale of the load here."""
        return RescaledFutures(futures_of(self._forecaster), self._factor)


class RescaledFutures(NamedTuple):
    """Futures for a load of another scale, see :class:`opd.workload.futures.Futures`.

    Attributes:
        futures: in their own scale.
        factor: from the counts here to that scale.
    """

    futures: Futures
    factor: float

    def sample(
        self, history: np.ndarray, predicted_load: float, paths: int, seconds: int, generator: np.random.Generator
    ) -> np.ndarray:
        """Draw futures in their own scale and bring them to this one."""
        history = np.asarray(history) * self.factor
        drawn = self.futures.sample(history, predicted_load * self.factor, paths, seconds, generator)
        return rounded(drawn / self.factor, generator)

    def quantiles(self, history: np.ndarray, predicted_load: float) -> np.ndarray:
        """See :meth:`opd.workload.futures.Futures.quantiles`."""
        return self.futures.quantiles(np.asarray(history) * self.factor, predicted_load * self.factor) / self.factor
