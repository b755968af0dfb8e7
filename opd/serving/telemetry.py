"""What the control loop needs to know of a live pipeline, from the raw samples of any monitor.

Counters are followed across restarts and interpolated linearly between samples, so that the increases of adjoining
intervals add up to what was counted, whatever the moments of scraping.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from opd.measurement import Interval
from opd.pipeline import Configuration, Pipeline
from opd.serving import metrics
from opd.serving.monitoring.source import SCRAPE_SECONDS, UP, Monitor, NoDataError, Series
from opd.serving.protocol import COMPLETED
from opd.workload.load import HISTORY_SECONDS

STALE_SECONDS = 5.0
"""A sample older than this says nothing about now."""

SCRAPE_WAIT_SECONDS = 2.0
"""An interval's end is waited for at most this long to be scraped."""

POLL_SECONDS = 0.1


def from_zero(series: Series, scrapes: Sequence[Series]) -> Series:
    """A counter with the zeros that were not exported: a target shows a label only once it has counted something.

    Args:
        series: samples of a counter.
        scrapes: samples of ``up`` over the same time; a good scrape of the counter's target before its first sample
            found it at zero.
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
    """Count since the first sample at each of ``times``; before the first and after the last sample it stands still.

    Args:
        series: finite samples of a counter. Where the value falls, the process began again at zero.
        times: (K,) Unix seconds.
    """
    if not len(series.times):
        return np.zeros(len(times))
    steps = np.diff(series.values)
    steps = np.where(steps < 0.0, series.values[1:], steps)
    return np.interp(times, series.times, np.concatenate([[0.0], np.cumsum(steps)]))


def increase(series: Series, begin: float, end: float) -> float:
    """How far a counter rose between two moments, as far as its samples reach."""
    first, last = counted(series, np.array([begin, end]))
    return float(last - first)


def total_increase(found: Sequence[Series], begin: float, end: float) -> float:
    """Sum of :func:`increase`."""
    return sum((increase(series, begin, end) for series in found), 0.0)


def time_average(series: Series, begin: float, end: float) -> float:
    """Mean of a gauge over an interval; a sample holds until the next, at most :data:`STALE_SECONDS`, then it is 0."""
    until = np.minimum(np.append(series.times[1:], np.inf), series.times + STALE_SECONDS)
    held = np.clip(np.minimum(until, end) - np.maximum(series.times, begin), 0.0, None)
    return float(series.values @ held / (end - begin))


def quantile(buckets: Sequence[Series], begin: float, end: float, share: float) -> float:
    """A quantile of what a histogram observed in an interval, linear within a bucket.

    Args:
        buckets: series of a cumulative histogram with their upper bound in the label ``le``.
        begin: Unix seconds.
        end: Unix seconds.
        share: between 0 and 1.

    Returns:
        the largest finite bound if the quantile lies above that; 0 if nothing was observed.
    """
    counts: defaultdict[float, float] = defaultdict(float)
    for series in buckets:
        counts[float(series.labels["le"])] += increase(series, begin, end)
    bounds = [0.0, *sorted(counts)]
    # Interpolated counts of neighbouring buckets can differ by a rounding error the wrong way.
    below = np.maximum.accumulate([0.0, *(counts[bound] for bound in bounds[1:])])
    if below[-1] <= 0.0:
        return 0.0
    place = int(np.searchsorted(below, share * below[-1]))
    if place == 0 or not np.isfinite(bounds[place]):
        return bounds[max(place - 1, 0)]
    low, high = bounds[place - 1], bounds[place]
    return float(low + (high - low) * (share * below[-1] - below[place - 1]) / (below[place] - below[place - 1]))


class Telemetry:
    """Reads one pipeline's metrics.

    Args:
        monitor: where the samples come from.
        pipeline: its name and its tasks are labels of the metrics; its profiles say what replicas can carry.
    """

    def __init__(self, monitor: Monitor, pipeline: Pipeline) -> None:
        self._monitor = monitor
        self._pipeline = pipeline

    def wait(self, timeout: float) -> None:
        """Wait until all that the control loop reads has been scraped; Prometheus may take seven seconds to begin.

        Args:
            timeout: seconds.

        Raises:
            NoDataError: naming what is still missing then.
            MonitoringError: if the monitor cannot be read.
        """
        deadline = time.monotonic() + timeout
        while True:
            now = time.time()
            try:
                self._requests(now - STALE_SECONDS, now)
                self.queue(now)
                self._replicas(now - STALE_SECONDS, now)
                return
            except NoDataError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(POLL_SECONDS)

    def history(self, now: float, begin: float = -np.inf) -> np.ndarray:
        """Requests that arrived in each of the last seconds, as far as they were watched.

        The seconds end with the newest sample, at most some 1 s before ``now``, and so fall in step with the scrapes:
        a count is what was counted between two of them.

        Args:
            now: Unix seconds.
            begin: Unix seconds of the beginning of a run. The history is then of this run alone and starts with its
                first request, for until then its load was about to come and not zero.

        Returns:
            (H,) requests, newest last, H at most 120; empty before the second sample.

        Raises:
            NoDataError: if there are no samples, or none that are recent.
            MonitoringError: if the monitor cannot be read.
        """
        oldest = now - HISTORY_SECONDS - STALE_SECONDS
        found = self._requests(max(oldest, begin), now)
        newest = _newest(found)
        watched = newest - min(float(series.times[0]) for series in found)
        # Scrapes are a second apart give or take some milliseconds, which the oldest second may lack.
        seconds = min(int(watched + 0.1 * SCRAPE_SECONDS), HISTORY_SECONDS)
        edges = newest - np.arange(seconds, -1.0, -1.0)
        counts = np.diff(np.sum([counted(series, edges) for series in found], axis=0))
        # Less than half a request belongs to the next second: the scrape came some milliseconds late.
        came = counts > 0.5
        return counts[np.argmax(came) :] if begin > oldest and came.any() else counts

    def queue(self, now: float) -> np.ndarray:
        """Requests waiting at each task.

        Args:
            now: Unix seconds.

        Returns:
            (N,) requests, of the last sample before ``now``.

        Raises:
            NoDataError: if a task has no recent sample.
            MonitoringError: if the monitor cannot be read.
        """
        found = [_until(series, now) for series in self._samples(metrics.STAGE_QUEUE, now - STALE_SECONDS)]
        lengths = []
        for task in self._pipeline.tasks:
            of_task = _of_task(found, task.name)
            _require_recent(of_task, now, f"{metrics.STAGE_QUEUE} of task {task.name!r}")
            lengths.append(sum(float(series.values[-1]) for series in of_task if len(series.values)))
        return np.array(lengths)

    def interval(self, begin: float, end: float, configuration: Configuration) -> Interval:
        """What an interval measured; waits up to :data:`SCRAPE_WAIT_SECONDS` until its end has been scraped.

        What happened counts in the interval in which it was counted, so that an answer may come in a later one than
        its request; latencies are of the requests that left in the interval, the p99 read from histogram buckets.
        ``dropped`` holds every end but completion: given up for age, refused, and failed. Counts are interpolated
        between scrapes and need not be whole.

        Args:
            begin: Unix seconds.
            end: Unix seconds.
            configuration: what was wanted in it: its batch sizes say what the replicas that were there could carry,
                and its variants how long a request takes at a task that none left. Replicas of a variant that the
                pipeline does not have carry nothing that is known.

        Returns:
            a batch of one, without the latencies of single requests.

        Raises:
            NoDataError: if the requests, or the queue or the replicas of a task, were not watched at its end.
            MonitoringError: if the monitor cannot be read.
        """
        since = begin - STALE_SECONDS
        requests = self._requests_past(since, end)
        answers = self._counters(f"{metrics.ANSWERS}_total", since)
        completed = [series for series in answers if series.labels["outcome"] == COMPLETED]
        others = [series for series in answers if series.labels["outcome"] != COMPLETED]
        buckets = self._counters(f"{metrics.LATENCY}_bucket", since)
        latency = self._mean(metrics.LATENCY, begin, end)
        return Interval(
            offered=np.array([total_increase(requests, begin, end)]),
            completed=np.array([total_increase(completed, begin, end)]),
            dropped=np.array([total_increase(others, begin, end)]),
            latency_mean=np.array([latency or 0.0]),
            latency_p99=np.array([quantile(buckets, begin, end, 0.99)]),
            task_latency=self._task_latency(begin, end, configuration)[None],
            ready_throughput=self._ready_throughput(begin, end, configuration)[None],
            queue=self.queue(end)[None],
            latencies=np.zeros((1, 0)),
        )

    def _task_latency(self, begin: float, end: float, configuration: Configuration) -> np.ndarray:
        latencies = []
        for task, (variant, _) in zip(self._pipeline.tasks, self._pipeline.selected(configuration), strict=True):
            mean = self._mean(metrics.STAGE_LATENCY, begin, end, task=task.name)
            latencies.append(variant.service_time(1) if mean is None else mean)
        return np.array(latencies)

    def _ready_throughput(self, begin: float, end: float, configuration: Configuration) -> np.ndarray:
        throughput = np.zeros(len(configuration))
        for n, replicas in enumerate(self._replicas(begin - STALE_SECONDS, end)):
            variants, batch_size = self._pipeline.tasks[n].variants, configuration[n].batch_size
            known = {variant.name: variant.throughput(batch_size) for variant in variants}
            for series in replicas:
                # A queue goes on to show variants that the pipeline once had, whose speed nobody knows.
                throughput[n] += time_average(series, begin, end) * known.get(series.labels["variant"], 0.0)
        return throughput

    def _replicas(self, since: float, now: float) -> list[list[Series]]:
        """Of each task, the number of replicas of every variant."""
        found = self._samples(metrics.STAGE_REPLICAS, since)
        by_task = [_of_task(found, task.name) for task in self._pipeline.tasks]
        for task, of_task in zip(self._pipeline.tasks, by_task, strict=True):
            _require_recent(of_task, now, f"{metrics.STAGE_REPLICAS} of task {task.name!r}")
        return by_task

    def _mean(self, metric: str, begin: float, end: float, **labels: str) -> float | None:
        """Mean of what a histogram observed, None if that is nothing."""
        sums, counts = (
            self._counters(f"{metric}_{part}", begin - STALE_SECONDS, **labels) for part in ("sum", "count")
        )
        count = total_increase(counts, begin, end)
        return total_increase(sums, begin, end) / count if count > 0.0 else None

    def _requests_past(self, since: float, end: float) -> list[Series]:
        """As :meth:`_requests`, up to a scrape after ``end`` if there soon is one."""
        deadline = time.monotonic() + SCRAPE_WAIT_SECONDS
        found = self._requests(since, end)
        while _newest(found) < end and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            found = self._requests(since, end)
        return found

    def _requests(self, since: float, now: float) -> list[Series]:
        metric = f"{metrics.REQUESTS}_total"
        found = self._counters(metric, since)
        _require_recent(found, now, f"{metric} of pipeline {self._pipeline.name!r}")
        return found

    def _counters(self, metric: str, since: float, **labels: str) -> list[Series]:
        found = self._samples(metric, since, **labels)
        scrapes = [_finite(series, since) for series in self._monitor.samples(UP, time.time() - since)]
        return [from_zero(series, scrapes) for series in found]

    def _samples(self, metric: str, since: float, **labels: str) -> list[Series]:
        found = self._monitor.samples(metric, time.time() - since, pipeline=self._pipeline.name, **labels)
        kept = [_finite(series, since) for series in found]
        return [series for series in kept if len(series.times)]


def _finite(series: Series, since: float) -> Series:
    """The finite samples from ``since`` on; a monitor counts the time back from its own now, a moment later."""
    kept = np.isfinite(series.values) & (series.times >= since)
    return Series(series.labels, series.times[kept], series.values[kept])


def _until(series: Series, now: float) -> Series:
    kept = series.times <= now
    return Series(series.labels, series.times[kept], series.values[kept])


def _of_task(found: Sequence[Series], task: str) -> list[Series]:
    return [series for series in found if series.labels["task"] == task]


def _newest(found: Sequence[Series]) -> float:
    return max((float(series.times[-1]) for series in found if len(series.times)), default=-np.inf)


def _require_recent(found: Sequence[Series], now: float, what: str) -> None:
    age = now - _newest(found)
    if not age <= STALE_SECONDS:
        state = (
            f"was last read {age:.1f} s ago, over the limit of {STALE_SECONDS:g} s"
            if np.isfinite(age)
            else "has no samples"
        )
        raise NoDataError(
            f"{what} {state}; this does not mean that nothing happens: check that the process serves its metrics and "
            "is among the monitor's targets"
        )
