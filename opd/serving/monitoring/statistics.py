"""Increases, means and quantiles of an interval, from raw samples.

Counters are followed across restarts and interpolated linearly between samples, so that the increases of adjacent
intervals add up to the total count, whatever the times of the scrapes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from opd.serving.monitoring.source import Series

STALE_SECONDS = 5.0
"""A sample older than this no longer describes the present."""


def from_zero(series: Series, scrapes: Sequence[Series]) -> Series:
    """Prepend the zeros that were not exported: a target shows a labelled counter only after its first count.

    Args:
        series: samples of a counter.
        scrapes: samples of ``up`` over the same time; every successful scrape of the counter's target before its first
            sample stands for a zero.
    """
    instance = series.labels.get("instance")
    good = [each.times[each.values > 0.0] for each in scrapes if each.labels.get("instance") == instance]
    times = np.concatenate([np.zeros(0), *good])
    before = np.sort(times[times < series.times[0]]) if len(series.times) else times[:0]
    return Series(
        series.labels,
        np.concatenate([before, series.times]),
        np.concatenate([np.zeros(len(before)), series.values]),
    )


def counted(series: Series, times: np.ndarray) -> np.ndarray:
    """Return the count since the first sample at each of ``times``; it is constant outside the samples.

    Args:
        series: finite samples of a counter. Where the value falls, the process was restarted and counts from zero.
        times: (K,) Unix seconds.
    """
    if not len(series.times):
        return np.zeros(len(times))
    steps = np.diff(series.values)
    steps = np.where(steps < 0.0, series.values[1:], steps)
    return np.interp(times, series.times, np.concatenate([[0.0], np.cumsum(steps)]))


def increase(series: Series, begin: float, end: float) -> float:
    """Return the increase of a counter between two times, as far as its samples reach."""
    first, last = counted(series, np.array([begin, end]))
    return float(last - first)


def total_increase(found: Sequence[Series], begin: float, end: float) -> float:
    """Return the sum of :func:`increase` over several series."""
    return sum((increase(series, begin, end) for series in found), 0.0)


def time_average(series: Series, begin: float, end: float) -> float:
    """Return the mean of a gauge; each sample holds until the next, at most :data:`STALE_SECONDS`, then it is 0."""
    until = np.minimum(np.append(series.times[1:], np.inf), series.times + STALE_SECONDS)
    held = np.clip(np.minimum(until, end) - np.maximum(series.times, begin), 0.0, None)
    return float(series.values @ held / (end - begin))


def quantile(buckets: Sequence[Series], begin: float, end: float, share: float) -> float:
    """Return a quantile of the observations of a histogram in an interval, linear within a bucket.

    Args:
        buckets: series of a cumulative histogram with their upper bound in the label ``le``.
        begin: Unix seconds.
        end: Unix seconds.
        share: between 0 and 1.

    Returns:
        the largest finite bound if the quantile lies above it; 0 without observations.
    """
    counts: defaultdict[float, float] = defaultdict(float)
    for series in buckets:
        counts[float(series.labels["le"])] += increase(series, begin, end)
    bounds = [0.0, *sorted(counts)]
    # Rounding errors of interpolation can make a cumulative count fall slightly.
    below = np.maximum.accumulate([0.0, *(counts[bound] for bound in bounds[1:])])
    if below[-1] <= 0.0:
        return 0.0
    index = int(np.searchsorted(below, share * below[-1]))
    if index == 0 or not np.isfinite(bounds[index]):
        return bounds[max(index - 1, 0)]
    low, high = bounds[index - 1], bounds[index]
    return float(low + (high - low) * (share * below[-1] - below[index - 1]) / (below[index] - below[index - 1]))
