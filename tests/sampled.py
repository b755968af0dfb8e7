"""Series of samples for tests of monitoring."""

import numpy as np

from opd.serving.monitoring.source import Series


def series(times, values, **labels):
    return Series(labels, np.array(times, dtype=float), np.array(values, dtype=float))
