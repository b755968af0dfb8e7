"""The seconds that forecasts look back and ahead, and the largest load within them."""

from __future__ import annotations

import numpy as np

HISTORY_SECONDS = 120
"""Past seconds that the forecast sees (Sec. IV); they must be recorded before a cycle starts."""

HORIZON_SECONDS = 20
"""Seconds ahead whose largest load is forecast (Sec. IV-A)."""


def future_maximum(counts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Largest count of the :data:`HORIZON_SECONDS` that follow each position: the target of the forecast.

    Args:
        counts: (T,) requests per second.
        ends: (M,) positions 0..T. Where fewer seconds follow, those there are; at T the last count.

    Returns:
        (M,) requests/s, of the type of ``counts``.
    """
    padded = np.pad(counts, (0, HORIZON_SECONDS), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, HORIZON_SECONDS)[ends].max(axis=1)


class RecentMaximum:
    """The largest count of the last 20 s: a forecaster that needs no training, and the fallback of those that do."""

    def predict(self, history: np.ndarray) -> float:
        """Requests/s, from a history of counts per second; 0 for an empty one."""
        return float(history[-HORIZON_SECONDS:].max(initial=0))

    def predict_many(self, counts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """(M,) forecasts for counts (T,) up to each of the positions ``ends`` (M,)."""
        return np.array([self.predict(counts[:end]) for end in ends], dtype=float)
