"""The simulator as a backend of the control loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from opd.measurement import Interval, Observation, SimulationParameters, Span, utilisation
from opd.objective import profiled_service_time, profiled_throughput
from opd.pipeline import Configuration, Pipeline, as_array
from opd.simulator.simulator import Simulator
from opd.workload.forecast import HISTORY_SECONDS, future_maximum

Device = Callable[[float], Pipeline]
"""The pipeline with the latencies that its device has so many seconds after the first decision."""


class SimulatedBackend:
    """The simulator as a backend of the control loop.

    Args:
        pipeline: the simulated pipeline.
        parameters: behaviour of the device.
        history: (H,) counts per second before the first decision.
        counts: (T,) counts per second from the first decision on.
        configuration: runs at the start, with all replicas ready.
        seed: of arrivals and service noise.
        device: its latencies apply to the batches that begin in an interval; by default those of the pipeline.
        arrivals: (M,) seconds after the first decision at which the requests of ``counts`` arrive, ascending; by
            default they are drawn within each second.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        parameters: SimulationParameters,
        history: np.ndarray,
        counts: np.ndarray,
        configuration: Configuration,
        seed: int,
        device: Device | None = None,
        arrivals: np.ndarray | None = None,
    ) -> None:
        self._pipeline, self._arrivals = pipeline, arrivals
        self._device = device or (lambda seconds: pipeline)
        self._seconds = parameters.interval
        self._counts = np.concatenate([history, counts]).astype(np.int64)
        self._lead = self._now = len(history)
        first = self._device(0.0)
        self._simulator = Simulator(first, parameters, 1, int(self._counts.max(initial=1)), seed, True, True)
        self._simulator.reset(configuration)
        self.configuration = configuration
        rows = as_array(configuration)
        self._task_latency = profiled_service_time(first, rows)
        self._ready_throughput = profiled_throughput(first, rows)
        self._queue, self._utilisation = np.zeros(len(rows)), np.zeros(0)

    def observe(self) -> Observation:
        """State of the simulated device, including the coming load."""
        last = self._counts[max(self._now - self._seconds, 0) : self._now]
        return Observation(
            history=self._counts[max(self._now - HISTORY_SECONDS, 0) : self._now],
            available_cores=float(self._pipeline.capacity),
            configuration=self.configuration,
            task_latency=self._task_latency,
            ready_throughput=self._ready_throughput,
            queue=self._queue,
            incoming_load=float(last.mean()) if len(last) else 0.0,
            coming_load=float(future_maximum(self._counts, np.array([self._now]))[0]),
            utilisation=self._utilisation,
            coming_counts=self._counts[self._now :],
            stages=self._simulator.stage_states(),
        )

    def apply(self, configuration: Configuration) -> None:
        """Run ``configuration`` from now on."""
        self.configuration = configuration

    def wait(self) -> tuple[Span, Interval]:
        """Simulate one interval."""
        begin = float(self._now - self._lead)
        rows, window = as_array(self.configuration)[None], self._window()
        self._simulator.pipeline = self._device(begin)
        if self._arrivals is None:
            interval = self._simulator.step(rows, window[None])
        else:
            first, last = np.searchsorted(self._arrivals, [begin, begin + self._seconds])
            interval = self._simulator.step_arrivals(rows[0], self._arrivals[first:last])
        self._task_latency, self._ready_throughput = interval.task_latency[0], interval.ready_throughput[0]
        self._queue = interval.queue[0]
        self._utilisation = utilisation(self._simulator.pipeline, rows, interval, self._seconds)[0]
        self._now += self._seconds
        return Span(begin, begin + self._seconds), interval

    def _window(self) -> np.ndarray:
        window = self._counts[self._now : self._now + self._seconds]
        if len(window) < self._seconds:
            raise ValueError(
                f"the workload ends at {len(self._counts)} s, within the interval that begins at {self._now} s; "
                "run fewer decisions or provide a longer workload"
            )
        return window
