"""The part that all backends of live pipelines share: observation and measurement from metrics."""

from __future__ import annotations

import logging
import threading
import time

import numpy as np

from opd.control.loop import ObservationError
from opd.measurement import Interval, Observation, unmeasured
from opd.objective import profiled_service_time, profiled_throughput
from opd.pipeline import Configuration, Pipeline, as_array
from opd.serving.monitoring.source import Monitor, MonitoringError
from opd.serving.telemetry import Telemetry

logger = logging.getLogger(__name__)


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
        self._begin = -np.inf
        self._assume_profiles(configuration)

    def begin_run(self) -> None:
        """Discard all measurements so far: a policy sees only the run in which it decides."""
        self._begin = time.time()
        self._assume_profiles(self.configuration)

    def observe(self) -> Observation:
        """Observe the pipeline through its metrics.

        Raises:
            ObservationError: if there are no recent metrics.
        """
        now = time.time()
        # The first interval begins with the first observation, and so does the first after a pause in decisions.
        if self._tick is None or time.monotonic() > self._tick + self._seconds:
            self._tick = time.monotonic()
        try:
            history = self._telemetry.history(now, self._begin)
            queue = self._telemetry.queue(now)
        except MonitoringError as error:
            raise ObservationError(str(error)) from error
        if not len(history):
            raise ObservationError("the router was scraped less than twice")
        return Observation(
            history=history,
            available_cores=self.available_cores(),
            configuration=self.configuration,
            task_latency=self._task_latency,
            ready_throughput=self._ready_throughput,
            queue=queue,
            incoming_load=float(history[-round(self._seconds) :].mean()),
        )

    def available_cores(self) -> float:
        """Return the cores that the replicas may use: W_max of the pipeline.

        Raises:
            ObservationError: if they cannot be determined.
        """
        return float(self.pipeline.capacity)

    def wait(self) -> Interval:
        """Sleep until the interval or the backend ends, and measure; figures are NaN where that was impossible."""
        now = time.monotonic()
        self._tick = max((self._tick or now) + self._seconds, now)
        if self._closing.wait(self._tick - now):
            return unmeasured(self.pipeline)
        end = time.time()
        try:
            interval = self._telemetry.interval(end - self._seconds, end, self.configuration)
        except MonitoringError as error:
            logger.warning("the interval could not be measured: %s", error)
            self._assume_profiles(self.configuration)
            return unmeasured(self.pipeline)
        self._task_latency, self._ready_throughput = interval.task_latency[0], interval.ready_throughput[0]
        return interval

    def _assume_profiles(self, configuration: Configuration) -> None:
        """Take latencies and throughputs from the profiles, until an interval is measured."""
        rows = as_array(configuration)
        self._task_latency = profiled_service_time(self.pipeline, rows)
        self._ready_throughput = profiled_throughput(self.pipeline, rows)
