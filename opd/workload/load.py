"""History and horizon of the load forecast, its target, and the forecast that needs no training."""

from __future__ import annotations

import numpy as np

HISTORY_SECONDS = 120
"""Past seconds that a forecast sees (Sec. IV); the trace must hold them before a cycle starts."""

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
    """Forecaster without training: the largest count of the last 20 s; the fallback of trained forecasters."""

    def predict(self, history: np.ndarray) -> float:
        """Predict requests/s from a history of counts per second; 0 if it is empty."""
        return float(history[-HORIZON_SECONDS:].max(initial=0))

    def predict_many(self, counts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """(M,) forecasts for counts (T,) up to each of the positions ``ends`` (M,)."""
        return np.array([self.predict(counts[:end]) for end in ends], dtype=float)
