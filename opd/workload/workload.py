"""Workload of a simulation: counts per second with their forecasts, on the grid of decisions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from opd.workload.load import RecentMaximum, future_maximum
from opd.workload.trace import Split, Trace, load_trace

Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(M,) forecasts in requests/s, from counts (T,) and the positions (M,) up to which they are known."""


@dataclass(frozen=True)
class Workload:
    """Counts per second with their forecasts, on the grid of decisions.

    Attributes:
        counts: (T,) requests per second.
        forecasts: (T // interval + 1,) predicted load at second ``interval * j``, requests/s.
        interval: seconds between two decisions.
    """

    counts: np.ndarray
    forecasts: np.ndarray
    interval: int

    @property
    def decisions(self) -> int:
        """Number of whole intervals."""
        return len(self.counts) // self.interval

    @classmethod
    def of(cls, trace: Trace, split: Split, interval: int, predict: Predict) -> Workload:
        """Make the workload of one split of a trace.

        Args:
            trace: counts per second.
            split: ``train``, ``validation`` or ``test``.
            interval: seconds between two decisions.
            predict: makes the forecasts, for instance ``Forecaster.predict_many``.
        """
        counts = trace.counts[trace.split(split)]
        ends = np.arange(0, len(counts) + 1, interval)
        forecasts = np.zeros(len(ends))
        forecasts[1:] = predict(counts, ends[1:])
        return cls(counts, forecasts, interval)

    @classmethod
    def bundled(cls, interval: int) -> Workload:
        """Make the default workload of the environments.

        It is the training split of the bundled synthetic trace at damping 8, with the maximum of the last 20 s as the
        forecast.
        """
        return cls.of(load_trace("synthetic", damping=8), "train", interval, RecentMaximum().predict_many)

    def windows(self, decisions: np.ndarray) -> np.ndarray:
        """(E, interval) counts of the intervals that begin at ``decisions`` (E,)."""
        return self.counts[decisions[:, None] * self.interval + np.arange(self.interval)]

    def perfect_forecasts(self, decisions: np.ndarray) -> np.ndarray:
        """(E,) target of a forecast made at ``decisions`` (E,): the largest load of the next 20 s in requests/s."""
        return future_maximum(self.counts, decisions * self.interval)
