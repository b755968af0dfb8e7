"""Replicas of all stages for the load that is expected, decided once an interval."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from opd.control.loop import expected_load
from opd.measurement import SimulationParameters
from opd.profiling.pipeline_file import shipped_pipelines
from opd.profiling.pipelines import load_objective, load_pipeline
from opd.serving.monitoring.prometheus import PrometheusUrl
from opd.serving.monitoring.source import NoDataError
from opd.solvers.replicas import ReplicaPlan, plan_replicas
from opd.workload.forecast import HISTORY_SECONDS, Forecaster, RecentMaximum


def load_plan(pipeline: str, running: Mapping[str, tuple[str, int]]) -> ReplicaPlan:
    """The plan of a project folder, a pipeline file or a shipped pipeline, for its own objective.

    Args:
        pipeline: folder, file or name.
        running: by task, the name of the variant and the batch size that it runs.

    Raises:
        Exception: those of reading a pipeline file, and of :func:`opd.solvers.replicas.plan_replicas`.
    """
    source = pipeline if pipeline in shipped_pipelines() else Path(pipeline)
    return plan_replicas(load_pipeline(source), running, load_objective(source), SimulationParameters())


def load_forecast(file: Path | None) -> Callable[[np.ndarray], float]:
    """The forecast of a trained forecaster, or the largest load of the last 20 s if there is none."""
    return (Forecaster.load(file) if file else RecentMaximum()).predict


def measured_history(monitor: PrometheusUrl, query: str) -> np.ndarray:
    """Requests in each of the last seconds by a query, the newest last.

    Raises:
        NoDataError: if there are none. That is no load of zero, which would scale down what is not seen.
    """
    history = monitor.rates(query, HISTORY_SECONDS)
    if not len(history):
        raise NoDataError(
            f"{monitor.description} has no data of the last {HISTORY_SECONDS} s for {query}; before the first request "
            "that is as it should be, later check the query and that the metrics of its series are scraped"
        )
    return history


class ReplicaDecider:
    """Decides for whoever asks; within an interval all askers get the same decision, so stages change together.

    Args:
        plan: replicas by load.
        history: requests in each of the last seconds, at least one, the newest last; may raise an error.
        forecast: predicted maximum load (requests/s) for such a history.
        interval: seconds between two decisions.
        clock: seconds.
    """

    def __init__(
        self,
        plan: ReplicaPlan,
        history: Callable[[], np.ndarray],
        forecast: Callable[[np.ndarray], float],
        interval: float,
        clock: Callable[[], float],
    ) -> None:
        self.plan = plan
        self._history, self._forecast, self._interval, self._clock = history, forecast, interval, clock
        self._lock = threading.Lock()
        self._decided, self._until = plan.at(0.0), -np.inf

    def replicas(self) -> dict[str, int]:
        """Replicas by task, for the forecast or the mean load of the last interval, whichever is larger.

        Raises:
            Exception: whatever reading the history raises; the next call tries again.
        """
        with self._lock:
            if self._clock() >= self._until:
                history = self._history()
                recent = history[-max(round(self._interval), 1) :]
                load, _ = expected_load(self._forecast, history)
                self._decided = self.plan.at(max(load, float(recent.mean())))
                self._until = self._clock() + self._interval
            return self._decided
