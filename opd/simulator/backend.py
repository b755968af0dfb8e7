"""The simulator as a backend of the control loop."""

from __future__ import annotations

import numpy as np

from opd.measurement import Interval, Observation
from opd.objective import profiled_service_time, profiled_throughput
from opd.pipeline import Configuration, Pipeline, as_array
from opd.simulator.parameters import SimulationParameters
from opd.simulator.simulator import Simulator
from opd.workload.load import HISTORY_SECONDS, future_maximum


class SimulatedBackend:
    """The simulator as a backend of the control loop.

    Args:
        pipeline: the simulated pipeline.
        parameters: behaviour of the device.
        history: (H,) counts per second before the first decision.
        counts: (T,) counts per second from the first decision on.
        configuration: runs at the start, with all replicas ready.
        seed: of arrivals and service noise.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        parameters: SimulationParameters,
        history: np.ndarray,
        counts: np.ndarray,
        configuration: Configuration,
        seed: int,
    ) -> None:
        self._pipeline = pipeline
        self._seconds = parameters.interval
        self._counts = np.concatenate([history, counts]).astype(np.int64)
        self._now = len(history)
        self._simulator = Simulator(pipeline, parameters, 1, int(self._counts.max(initial=1)), seed, True)
        self._simulator.reset(configuration)
        self.configuration = configuration
        rows = as_array(configuration)
        self._task_latency = profiled_service_time(pipeline, rows)
        self._ready_throughput = profiled_throughput(pipeline, rows)
        self._queue = np.zeros(len(rows))

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
        )

    def apply(self, configuration: Configuration) -> None:
        """Run ``configuration`` from now on."""
        self.configuration = configuration

    def wait(self) -> Interval:
        """Simulate one interval."""
        interval = self._simulator.step(as_array(self.configuration)[None], self._window()[None])
        self._task_latency, self._ready_throughput = interval.task_latency[0], interval.ready_throughput[0]
        self._queue = interval.queue[0]
        self._now += self._seconds
        return interval

    def _window(self) -> np.ndarray:
        window = self._counts[self._now : self._now + self._seconds]
        if len(window) < self._seconds:
            raise ValueError(
                f"the workload ends at {len(self._counts)} s, within the interval that begins at {self._now} s; "
                "run fewer decisions or provide a longer workload"
            )
        return window
