"""Telemetry of a live pipeline: the observations and measurements of the control loop, from raw samples."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

import numpy as np
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from opd.control.loop import NoRequestsError, ObservationError
from opd.host.waiting import wait_until
from opd.measurement import Interval, Observation, Span, unmeasured, utilisation
from opd.objective import profiled_service_time, profiled_throughput
from opd.pipeline import Configuration, Pipeline, as_array
from opd.serving import metrics
from opd.serving.monitoring.source import SCRAPE_SECONDS, UP, Monitor, MonitoringError, NoDataError, Series
from opd.serving.monitoring.statistics import (
    STALE_SECONDS,
    counted,
    from_zero,
    increase,
    quantile,
    time_average,
    total_increase,
)
from opd.serving.outcomes import COMPLETED
from opd.workload.forecast import HISTORY_SECONDS

logger = logging.getLogger(__name__)

SCRAPE_WAIT_SECONDS = 2.0
"""Longest wait for a scrape after the end of an interval."""

POLL_SECONDS = 0.1
"""Pause between two queries while waiting for samples."""

SHORTEST_SHARE = 0.5
"""Smallest share of an interval that is measured. A change that takes longer than the rest delays the next decision:
with scrapes a second apart, less time would not show what the new configuration does."""


class Telemetry:
    """Reads one pipeline's metrics.

    Args:
        monitor: source of the samples.
        pipeline: its name and its tasks are labels of the metrics; its profiles give the throughput of replicas.
    """

    def __init__(self, monitor: Monitor, pipeline: Pipeline) -> None:
        self._monitor = monitor
        self._pipeline = pipeline

    def wait(self, timeout: float) -> None:
        """Wait until everything that the control loop reads has been scraped; Prometheus takes up to seven seconds.

        Args:
            timeout: seconds.

        Raises:
            NoDataError: if something is still missing after ``timeout``; names it.
            MonitoringError: if the monitor cannot be read.
        """
        Retrying(
            retry=retry_if_exception_type(NoDataError),
            stop=stop_after_delay(timeout),
            wait=wait_fixed(POLL_SECONDS),
            reraise=True,
        )(self._require_samples)

    def _require_samples(self) -> None:
        now = time.time()
        self._requests(now - STALE_SECONDS, now)
        self.queue(now)
        self._by_task(metrics.STAGE_REPLICAS, now - STALE_SECONDS, now)

    def history(self, now: float, begin: float = -np.inf) -> np.ndarray:
        """Return the requests that arrived in each of the last seconds, as far back as they were monitored.

        The last second ends with the newest sample, about 1 s before ``now`` at most. The seconds are therefore in step
        with the scrapes: a count is the increase between two of them.

        Args:
            now: Unix seconds.
            begin: Unix seconds of the beginning of a run. The history then covers this run only and starts with its
                first request: before that, its load had not begun, which is different from a load of zero.

        Returns:
            (H,) requests, newest last, H at most 120; empty before the second sample, of the run if there is one.

        Raises:
            NoDataError: if there are no recent samples.
            MonitoringError: if the monitor cannot be read.
        """
        oldest = now - HISTORY_SECONDS - STALE_SECONDS
        # At the beginning of a run, samples from before it show that the gateway is monitored.
        known = self._requests(max(oldest, min(begin, now - STALE_SECONDS)), now)
        found = [series for each in known if len((series := _kept(each, each.times >= begin)).times)]
        if not found:
            return np.zeros(0)
        newest = _newest(found)
        monitored = newest - min(float(series.times[0]) for series in found)
        # Scrapes are a second apart give or take some milliseconds, which the oldest second may be short of.
        seconds = min(int(monitored + 0.1 * SCRAPE_SECONDS), HISTORY_SECONDS)
        edges = newest - np.arange(seconds, -1.0, -1.0)
        counts = np.diff(np.sum([counted(series, edges) for series in found], axis=0))
        # Less than half a request belongs to the next second: its scrape was some milliseconds late.
        is_busy = counts > 0.5
        return counts[np.argmax(is_busy) :] if begin > oldest and is_busy.any() else counts

    def queue(self, now: float) -> np.ndarray:
        """Return the requests that wait at each task.

        Args:
            now: Unix seconds.

        Returns:
            (N,) requests in the last sample before ``now``.

        Raises:
            NoDataError: if a task has no recent sample.
            MonitoringError: if the monitor cannot be read.
        """
        by_task = self._by_task(metrics.STAGE_QUEUE, now - STALE_SECONDS, now)
        return np.array([sum(float(each.values[-1]) for each in series if len(each.values)) for series in by_task])

    def interval(self, begin: float, end: float, configuration: Configuration) -> Interval:
        """Measure an interval; waits up to :data:`SCRAPE_WAIT_SECONDS` until its end has been scraped.

        Every event belongs to the interval in which it was counted, so an answer may belong to a later one than its
        request. Latencies are those of the requests that left in the interval, the p99 from histogram buckets.
        ``dropped`` and ``failed`` include every outcome except completion: dropped for age, rejected, and failed.
        Counts are interpolated between scrapes and need not be whole numbers.

        Args:
            begin: Unix seconds.
            end: Unix seconds.
            configuration: desired configuration of the interval. Its batch sizes determine the throughput of the
                replicas that were there, its variants the latency of a task that no request left. Replicas of variants
                that the pipeline does not have count as zero throughput.

        Returns:
            a batch of one, without the latencies of single requests.

        Raises:
            NoDataError: if requests, or the queue or the replicas of a task, were not monitored at its end.
            MonitoringError: if the monitor cannot be read.
        """
        since = begin - STALE_SECONDS
        requests = self._requests_past(since, end)
        answers = self._counters(f"{metrics.ANSWERS}_total", since)
        completed = [series for series in answers if series.labels["outcome"] == COMPLETED]
        others = [series for series in answers if series.labels["outcome"] != COMPLETED]
        lost = np.array([total_increase(others, begin, end)])
        buckets = self._counters(f"{metrics.LATENCY}_bucket", since)
        latency = self._mean(metrics.LATENCY, begin, end)
        busy, batches = self._batches(begin, end)
        return Interval(
            offered=np.array([total_increase(requests, begin, end)]),
            completed=np.array([total_increase(completed, begin, end)]),
            within=np.array([total_increase(self._counters(f"{metrics.WITHIN}_total", since), begin, end)]),
            dropped=lost,
            failed=lost,
            latency_mean=np.array([latency or 0.0]),
            latency_p99=np.array([quantile(buckets, begin, end, 0.99)]),
            task_latency=self._task_latency(begin, end, configuration)[None],
            ready_throughput=self._ready_throughput(begin, end, configuration)[None],
            queue=self.queue(end)[None],
            latencies=np.zeros((1, 0)),
            busy=busy[None],
            batches=batches[None],
        )

    def _task_latency(self, begin: float, end: float, configuration: Configuration) -> np.ndarray:
        latencies = []
        for task, (variant, _) in zip(self._pipeline.tasks, self._pipeline.selected(configuration), strict=True):
            mean = self._mean(metrics.STAGE_LATENCY, begin, end, task=task.name)
            latencies.append(variant.service_time(1) if mean is None else mean)
        return np.array(latencies)

    def _ready_throughput(self, begin: float, end: float, configuration: Configuration) -> np.ndarray:
        throughput = np.zeros(len(configuration))
        for n, replicas in enumerate(self._by_task(metrics.STAGE_REPLICAS, begin - STALE_SECONDS, end)):
            variants, batch_size = self._pipeline.tasks[n].variants, configuration[n].batch_size
            known = {variant.name: variant.throughput(batch_size) for variant in variants}
            for series in replicas:
                # A queue still exports variants that were removed from the pipeline; their throughput is unknown.
                throughput[n] += time_average(series, begin, end) * known.get(series.labels["variant"], 0.0)
        return throughput

    def _batches(self, begin: float, end: float) -> tuple[np.ndarray, np.ndarray]:
        """Return seconds (N, Z) and number (N, Z, B_max + 1) of the calls of each variant that the pipeline has."""
        stages, variants, sizes = self._pipeline.tables.service_time.shape
        busy, batches = np.zeros((stages, variants)), np.zeros((stages, variants, sizes))
        places = {
            (task.name, variant.name): (n, z)
            for n, task in enumerate(self._pipeline.tasks)
            for z, variant in enumerate(task.variants)
        }
        since = begin - STALE_SECONDS
        for series in self._counters(f"{metrics.STAGE_SERVICE}_sum", since):
            place = places.get((series.labels["task"], series.labels["variant"]))
            if place is not None:
                busy[place] += increase(series, begin, end)
        for series in self._counters(f"{metrics.STAGE_BATCHES}_total", since):
            place, size = places.get((series.labels["task"], series.labels["variant"])), int(series.labels["size"])
            if place is not None and size < sizes:
                batches[(*place, size)] += increase(series, begin, end)
        return busy, batches

    def _by_task(self, metric: str, since: float, now: float) -> list[list[Series]]:
        """Return the series of a stage's gauge for each task, until ``now``."""
        found = [_kept(series, series.times <= now) for series in self._samples(metric, since)]
        by_task = [[series for series in found if series.labels["task"] == task.name] for task in self._pipeline.tasks]
        for task, of_task in zip(self._pipeline.tasks, by_task, strict=True):
            _require_recent(of_task, now, f"{metric} of task {task.name!r}")
        return by_task

    def _mean(self, metric: str, begin: float, end: float, **labels: str) -> float | None:
        """Return the mean of a histogram's observations, None without any."""
        sums, counts = (
            self._counters(f"{metric}_{part}", begin - STALE_SECONDS, **labels) for part in ("sum", "count")
        )
        count = total_increase(counts, begin, end)
        return total_increase(sums, begin, end) / count if count > 0.0 else None

    def _requests_past(self, since: float, end: float) -> list[Series]:
        """Return :meth:`_requests` including a scrape after ``end``, unless there is none soon."""
        wait_until(lambda: _newest(self._requests(since, end)) >= end, SCRAPE_WAIT_SECONDS, POLL_SECONDS)
        return self._requests(since, end)

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
    """Return the finite samples since a time; the monitor looked back from a slightly later time."""
    return _kept(series, np.isfinite(series.values) & (series.times >= since))


def _kept(series: Series, mask: np.ndarray) -> Series:
    return Series(series.labels, series.times[mask], series.values[mask])


def _newest(found: Sequence[Series]) -> float:
    return max((float(series.times[-1]) for series in found if len(series.times)), default=-np.inf)


def _require_recent(found: Sequence[Series], now: float, name: str) -> None:
    age = now - _newest(found)
    if age <= STALE_SECONDS:
        return
    state = f"was last scraped {age:.1f} s ago (limit {STALE_SECONDS:g} s)" if np.isfinite(age) else "has no samples"
    raise NoDataError(
        f"{name} {state}; this does not mean that the load is zero: check that the process serves its metrics and is "
        "a target of the monitor"
    )


class TelemetryBackend:
    """Observes a pipeline and measures its intervals.

    Args:
        pipeline: the pipeline.
        configuration: its running configuration.
        monitor: source of metrics.
        interval_seconds: seconds between two decisions.
    """

    def __init__(
        self, pipeline: Pipeline, configuration: Configuration, monitor: Monitor, interval_seconds: float
    ) -> None:
        self.pipeline, self.configuration, self.monitor = pipeline, configuration, monitor
        self._seconds = float(interval_seconds)
        self._telemetry = Telemetry(monitor, pipeline)
        self._closing = threading.Event()
        self._tick: float | None = None
        self._change_end = -np.inf
        self._begin, self._idle = -np.inf, False
        self._assume_profiles(configuration)

    def begin_run(self) -> None:
        """Discard all measurements so far: a policy sees only its run, from the first request on."""
        self._begin, self._tick, self._idle = time.monotonic(), None, True
        self._assume_profiles(self.configuration)

    def observe(self) -> Observation:
        """Observe the pipeline through its metrics.

        Raises:
            ObservationError: if there are no recent metrics.
            NoRequestsError: if there are, and they count no request since the run began.
        """
        now = time.time()
        begin = self._begin + now - time.monotonic()  # in the time of the samples, whose clock may be set meanwhile
        # The first interval begins with the first observation, and so does the first after a pause in decisions.
        if self._tick is None or time.monotonic() > self._tick + self._seconds:
            self._tick = time.monotonic()
        try:
            history = self._telemetry.history(now, begin)
            queue = self._telemetry.queue(now)
        except MonitoringError as error:
            raise ObservationError(str(error)) from error
        self._idle = self._idle and not history.any()
        if self._idle:
            raise NoRequestsError("no request has arrived yet")
        if not len(history):
            raise ObservationError("the gateway was scraped less than twice")
        return Observation(
            history=history,
            available_cores=self.available_cores(),
            configuration=self.configuration,
            task_latency=self._task_latency,
            ready_throughput=self._ready_throughput,
            queue=queue,
            incoming_load=float(history[-round(self._seconds) :].mean()),
            utilisation=self._utilisation,
        )

    def available_cores(self) -> float:
        """Return the cores that the replicas may use: W_max of the pipeline.

        Raises:
            ObservationError: if they cannot be determined.
        """
        return float(self.pipeline.capacity)

    def note_change(self) -> None:
        """Let the measured time begin now, because the configuration was changed, or a change was rolled back."""
        self._change_end = time.monotonic()

    def wait(self) -> tuple[Span, Interval]:
        """Sleep until the interval or the backend ends, and measure; figures are NaN where that was impossible.

        Decisions keep their pace. The measured time begins with the end of the previous interval, or with the end of a
        change since then, and lasts for at least :data:`SHORTEST_SHARE` of an interval.
        """
        now = time.monotonic()
        last = self._tick or now
        begin = max(last, self._change_end)
        self._tick = max(last + self._seconds, begin + SHORTEST_SHARE * self._seconds, now)
        closed = self._closing.wait(self._tick - now)
        to_unix = time.time() - time.monotonic()
        if closed:
            return Span(begin + to_unix, max(begin + to_unix, time.time())), unmeasured(self.pipeline)
        span = Span(begin + to_unix, self._tick + to_unix)
        try:
            interval = self._telemetry.interval(*span, self.configuration)
        except MonitoringError as error:
            logger.warning("the interval could not be measured: %s", error)
            self._assume_profiles(self.configuration)
            return span, unmeasured(self.pipeline)
        self._task_latency, self._ready_throughput = interval.task_latency[0], interval.ready_throughput[0]
        rows = as_array(self.configuration)[None]
        self._utilisation = utilisation(self.pipeline, rows, interval, span.seconds)[0]
        return span, interval

    def _assume_profiles(self, configuration: Configuration) -> None:
        """Take latencies and throughputs from the profiles, until an interval is measured."""
        rows = as_array(configuration)
        self._task_latency = profiled_service_time(self.pipeline, rows)
        self._ready_throughput = profiled_throughput(self.pipeline, rows)
        self._utilisation = np.zeros(0)
