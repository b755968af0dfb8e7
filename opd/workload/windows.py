"""Where forecasts are made in a trace, and the load that they should have predicted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from opd.workload.load import HISTORY_SECONDS, HORIZON_SECONDS, future_maximum
from opd.workload.trace import Split, Trace


class Windows(NamedTuple):
    """Where N forecasts are made in a trace, and the load that they should have predicted.

    Attributes:
        ends: (N,) positions of the first second that a forecast does not know.
        target: (N,) largest count of the ``HORIZON_SECONDS`` from there on.
    """

    ends: np.ndarray
    target: np.ndarray


def windows(trace: Trace, split: Split, stride: int = 10, last: int = 0) -> Windows:
    """Windows with history and horizon inside a split, every ``stride`` seconds; only the ``last`` ones if positive."""
    positions = trace.split(split)
    ends = np.arange(positions.start + HISTORY_SECONDS, positions.stop - HORIZON_SECONDS + 1, stride)[-last:]
    return Windows(ends, future_maximum(trace.counts, ends))
