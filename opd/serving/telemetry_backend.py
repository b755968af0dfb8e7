"""What all backends of live pipelines have in common: the control loop's view, from metrics."""

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
        pipeline: what runs.
        configuration: that it runs now.
        monitor: source of metrics.
        interval_seconds: between two decisions.
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
        self._expect(configuration)

    def begin_run(self) -> None:
        """Forget what was measured until now: a policy is told only of the run in which it decides."""
        self._begin = time.time()
        self._expect(self.configuration)

    def observe(self) -> Observation:
        """What the metrics say.

        Raises:
            ObservationError: if they say nothing that is recent.
        """
        now = time.time()
        # The first interval begins with the first look, and so does the first after a while without decisions.
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
        """Cores that the replicas may use: W_max of the pipeline.

        Raises:
            ObservationError: if that cannot be seen.
        """
        return float(self.pipeline.capacity)

    def wait(self) -> Interval:
        """Sleep until the interval or the backend ends; figures are NaN where nothing could be measured."""
        now = time.monotonic()
        self._tick = max((self._tick or now) + self._seconds, now)
        if self._closing.wait(self._tick - now):
            return unmeasured(self.pipeline)
        end = time.time()
        try:
            interval = self._telemetry.interval(end - self._seconds, end, self.configuration)
        except MonitoringError as error:
            logger.warning("the interval was not measured: %s", error)
            self._expect(self.configuration)
            return unmeasured(self.pipeline)
        self._task_latency, self._ready_throughput = interval.task_latency[0], interval.ready_throughput[0]
        return interval

    def _expect(self, configuration: Configuration) -> None:
        """Until an interval is measured, the stages are taken to do what their profiles say."""
        rows = as_array(configuration)
        self._task_latency = profiled_service_time(self.pipeline, rows)
        self._ready_throughput = profiled_throughput(self.pipeline, rows)
