"""Futures: loads of the next seconds that may follow a history, one count a second.

A planner tries configurations against several of them. Every source of futures implements :class:`Futures`:
:class:`NearestFutures` repeats what followed similar moments of a trace, and :class:`RecentFutures`, where there is no
trace, repeats the last two minutes themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from scipy.spatial import KDTree

from opd.workload.forecast_network import BIN_SECONDS, HALF_REQUEST, HISTORY_SECONDS, INTERVALS, QUANTILES

FUTURE_SECONDS = INTERVALS * BIN_SECONDS
"""Seconds that follow every moment which :class:`NearestFutures` can choose; futures are scored for as long."""

NEIGHBOURS = 100
"""Similar moments among which futures are drawn."""

SAMPLED = 64
"""Futures from which quantiles are taken where nothing predicts them."""

_FEATURE_WEIGHTS = (1.0, 1.0, 0.5, 0.3)


class Futures(Protocol):
    """A source of loads that may follow."""

    def sample(
        self, history: np.ndarray, predicted_load: float, paths: int, seconds: int, generator: np.random.Generator
    ) -> np.ndarray:
        """Draw loads that may follow.

        Args:
            history: counts of the last seconds, the newest last; the last 120 matter, and it may be shorter or empty.
            predicted_load: requests/s, forecast maximum of the next 20 s.
            paths: number of futures P, at least 1.
            seconds: length of each S, at least 1.
            generator: the source of randomness.

        Returns:
            (P, S) int64 requests in each of the coming seconds, at least 0.
        """
        ...

    def quantiles(self, history: np.ndarray, predicted_load: float) -> np.ndarray:
        """(6, 7) requests/s, quantiles of the mean load in each of the next six intervals of ten seconds.

        The probabilities are :data:`opd.workload.forecast_network.QUANTILES`; the arguments are those of
        :meth:`sample`.
        """
        ...


class SampledQuantiles:
    """Quantiles of a source of futures that has no others: those of some sampled ones, the same in every call."""

    def quantiles(self: Futures, history: np.ndarray, predicted_load: float) -> np.ndarray:
        """See :meth:`Futures.quantiles`."""
        drawn = self.sample(history, predicted_load, SAMPLED, FUTURE_SECONDS, np.random.default_rng(0))
        means = drawn.reshape(SAMPLED, INTERVALS, BIN_SECONDS).mean(axis=2)
        return np.quantile(means, QUANTILES, axis=0).T


class RecentFutures(SampledQuantiles):
    """Futures without training: the last two minutes from a random second on, at the present level.

    The level is the mean of the last ten seconds. Every other future runs backwards, so that a rise is as likely as a
    fall. Where the history ends, it is run through again in the other direction.
    """

    def sample(
        self, history: np.ndarray, predicted_load: float, paths: int, seconds: int, generator: np.random.Generator
    ) -> np.ndarray:
        """See :meth:`Futures.sample`; without any history, Poisson counts with the mean of ``predicted_load``."""
        recent = np.asarray(history[-HISTORY_SECONDS:], dtype=np.float64)
        known = len(recent)
        if known == 0:
            return generator.poisson(max(predicted_load, 0.0), (paths, seconds))
        width = min(BIN_SECONDS, known)
        present = recent[-width:].mean() + HALF_REQUEST
        both = np.stack([recent, recent[::-1]])
        direction = np.arange(paths) % 2
        start = generator.integers(width, known + 1, paths)
        total = np.pad(both.cumsum(axis=1), ((0, 0), (1, 0)))
        level = (total[direction, start] - total[direction, start - width]) / width
        second = (start[:, None] + np.arange(seconds)) % (2 * known)
        turned = np.minimum(second, 2 * known - 1 - second)
        loads = both[direction[:, None], turned] * (present / (level + HALF_REQUEST))[:, None]
        return rounded(loads, generator)


def rounded(loads: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Round loads up or down at random so that the mean stays; negative ones become 0."""
    return np.maximum(np.floor(loads + generator.random(loads.shape)), 0.0).astype(np.int64)


@dataclass(frozen=True, eq=False)
class NearestFutures(SampledQuantiles):
    """Futures that followed the most similar moments of a trace.

    Moments are similar if their forecasts and their loads of the last ten seconds and two minutes are.

    Attributes:
        counts: (T,) requests per second of the trace, of an unsigned type that is just large enough.
        moments: (M,) positions of the first second that a future may begin with.
        features: (M, F) of the moments, see :func:`moment_features`.
    """

    counts: np.ndarray
    moments: np.ndarray
    features: np.ndarray

    @classmethod
    def of(
        cls, counts: np.ndarray, predict_many: Callable[[np.ndarray, np.ndarray], np.ndarray], stride: int = BIN_SECONDS
    ) -> NearestFutures:
        """Make futures of a stretch of a trace.

        Args:
            counts: (T,) requests per second, for instance of the training days.
            predict_many: makes forecasts from counts and positions, for instance ``Forecaster.predict_many``; the
                futures must be asked for with forecasts of the same kind.
            stride: seconds between two moments.

        Raises:
            ValueError: if the counts are fewer than those of a history and a future.
        """
        if len(counts) < HISTORY_SECONDS + FUTURE_SECONDS:
            raise ValueError(
                f"futures need at least {HISTORY_SECONDS + FUTURE_SECONDS} s of load, but got {len(counts)}; give a "
                "longer trace"
            )
        moments = np.arange(HISTORY_SECONDS, len(counts) - FUTURE_SECONDS + 1, stride)
        forecasts = predict_many(counts, moments)
        histories = np.lib.stride_tricks.sliding_window_view(counts, HISTORY_SECONDS)[moments - HISTORY_SECONDS]
        small = np.min_scalar_type(int(counts.max()))
        return cls(counts.astype(small), moments.astype(np.int32), moment_features(histories, forecasts))

    @cached_property
    def _tree(self) -> KDTree:
        return KDTree(self.features)

    def sample(
        self, history: np.ndarray, predicted_load: float, paths: int, seconds: int, generator: np.random.Generator
    ) -> np.ndarray:
        """See :meth:`Futures.sample`; a future that reaches the end of the trace goes on at its beginning."""
        largest = np.array([max(predicted_load, 0.0)])
        known = np.asarray(history[-HISTORY_SECONDS:]) if len(history) else largest
        asked = moment_features(known[None], largest)[0]
        neighbours = min(NEIGHBOURS, len(self.moments))
        _, near = self._tree.query(asked, neighbours)
        drawn = generator.choice(np.atleast_1d(near), paths, replace=paths > neighbours)
        following = self.moments[drawn][:, None] + np.arange(seconds)
        return self.counts[following % len(self.counts)].astype(np.int64)


def moment_features(histories: np.ndarray, forecasts: np.ndarray) -> np.ndarray:
    """Describe moments so that those with similar futures are near one another.

    Args:
        histories: (M, S) counts of the seconds before each, the newest last.
        forecasts: (M,) requests/s, forecast maximum of the next 20 s.

    Returns:
        (M, 4) float32 logarithms of the forecast, of the mean of the last ten seconds, and of mean and standard
        deviation of the history; the last two have the weights that gave the best scores on validation days.
    """
    recent = histories[:, -BIN_SECONDS:].mean(axis=1)
    known = np.stack([forecasts, recent, histories.mean(axis=1), histories.std(axis=1)], axis=1)
    return (np.log(known + HALF_REQUEST) * _FEATURE_WEIGHTS).astype(np.float32)
