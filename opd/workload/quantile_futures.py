"""Futures drawn from the quantiles that the forecaster predicts.

The quantiles say how the load of each coming interval is distributed, but not which loads follow one another. That is
taken from the past: the forecaster keeps, of some thousand stretches of its training days, where the loads of six
successive intervals lay between the quantiles predicted for them. A future takes the ranks of one such stretch and
puts them between the quantiles of now (the Schaake shuffle, Clark et al. 2004, with ranks among predicted quantiles).
Its counts depart from the mean load of their interval as those of the stretch did, in proportion to the square root of
the load.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opd.workload.forecast import Forecaster, Patterns
from opd.workload.forecast_network import (
    BIN_SECONDS,
    HALF_REQUEST,
    INTERVALS,
    ForecastNetwork,
    Outlook,
    outlooks,
    scaled,
    unscaled,
)
from opd.workload.futures import Futures, RecentFutures, rounded

_FARTHEST = 4.0
"""Largest rank beyond the outermost quantiles, so that two that lie very close do not give an absurd one."""


def ranks(quantiles: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Rank values among quantiles: r where the value is the quantile of number r, linear between and beyond them.

    Args:
        quantiles: (N, K, Q) increasing, no two equal.
        values: (N, K).

    Returns:
        (N, K) ranks, mostly between -1 and Q.
    """
    below = np.clip((quantiles <= values[..., None]).sum(axis=-1) - 1, 0, quantiles.shape[-1] - 2)
    lower, width = _segment(quantiles, below)
    return np.clip(below + (values - lower) / width, -_FARTHEST, quantiles.shape[-1] - 1 + _FARTHEST)


def at_ranks(quantiles: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Invert :func:`ranks`: (N, K) values at the ranks ``numbers`` (N, K) among quantiles (N, K, Q)."""
    below = np.clip(np.floor(numbers), 0, quantiles.shape[-1] - 2).astype(np.int64)
    lower, width = _segment(quantiles, below)
    return lower + (numbers - below) * width


def _segment(quantiles: np.ndarray, below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower ends and widths, each (N, K), of the segments that begin with quantile number ``below``."""
    lower = np.take_along_axis(quantiles, below[..., None], axis=-1)[..., 0]
    upper = np.take_along_axis(quantiles, below[..., None] + 1, axis=-1)[..., 0]
    return lower, upper - lower


@dataclass(frozen=True)
class QuantileFutures:
    """Futures from the forecaster's quantiles; after the sixth interval the load of the sixth is repeated.

    Attributes:
        forecaster: predicts the quantiles.
    """

    forecaster: Forecaster

    def sample(
        self, history: np.ndarray, predicted_load: float, paths: int, seconds: int, generator: np.random.Generator
    ) -> np.ndarray:
        """See :meth:`opd.workload.futures.Futures.sample`; without history, the load was ``predicted_load``."""
        outlook = self._outlook(history, predicted_load)
        quantiles = np.repeat(outlook.quantiles, paths, axis=0)
        patterns = self.forecaster.patterns
        stretch = generator.integers(len(patterns.ranks), size=paths)
        logarithms = np.minimum(at_ranks(quantiles, patterns.ranks[stretch]), outlook.highest)
        means = unscaled(logarithms, outlook.levels)[..., None]
        loads = means + np.sqrt(means + HALF_REQUEST) * patterns.departures[stretch]
        interval = np.minimum(np.arange(-(-seconds // BIN_SECONDS)), INTERVALS - 1)
        return rounded(loads[:, interval].reshape(paths, -1)[:, :seconds], generator)

    def quantiles(self, history: np.ndarray, predicted_load: float) -> np.ndarray:
        """See :meth:`opd.workload.futures.Futures.quantiles`."""
        outlook = self._outlook(history, predicted_load)
        return unscaled(outlook.quantiles[0], outlook.levels[0])

    def _outlook(self, history: np.ndarray, predicted_load: float) -> Outlook:
        known = history if len(history) else np.full(BIN_SECONDS, max(predicted_load, 0.0))
        return self.forecaster.outlook(known)


def futures_of(forecaster: object) -> Futures:
    """The futures of a trained forecaster, or its own ``futures``; of anything else those of the last two minutes."""
    if isinstance(forecaster, Forecaster):
        return QuantileFutures(forecaster)
    return getattr(forecaster, "futures", None) or RecentFutures()


def patterns_of(counts: np.ndarray, ends: np.ndarray, network: ForecastNetwork) -> Patterns:
    """Make the patterns of the stretches of counts (T,) that begin at the positions ``ends`` (R,)."""
    outlook = outlooks(counts, ends, network)
    seconds = counts[ends[:, None] + np.arange(INTERVALS * BIN_SECONDS)].reshape(-1, INTERVALS, BIN_SECONDS)
    means = seconds.mean(axis=-1)
    between = ranks(outlook.quantiles, scaled(means, outlook.levels[:, None]))
    departures = (seconds - means[..., None]) / np.sqrt(means[..., None] + HALF_REQUEST)
    return Patterns(between.astype(np.float32), departures.astype(np.float16))
