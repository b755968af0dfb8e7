"""Traces to test with."""

from __future__ import annotations

import numpy as np

from opd.workload.trace import Trace
from opd.workload.trace_limits import MIN_SECONDS


def make_trace(counts: np.ndarray, raw_index: np.ndarray | None = None, damping: int = 1) -> Trace:
    """A trace of these counts, without recording gaps by default."""
    counts = np.asarray(counts)
    return Trace("made", counts, np.arange(len(counts)) if raw_index is None else raw_index, damping)


def steady(seconds: int = MIN_SECONDS, level: int = 40) -> np.ndarray:
    """The same count every second."""
    return np.full(seconds, level)
