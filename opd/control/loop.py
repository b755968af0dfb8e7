"""The control loop (Alg. 1), one function over any backend, and the guard that every action passes.

A backend is the simulator, the processes of one machine, or a cluster: it says what there is to see,
applies a configuration and lets an interval pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Protocol

import numpy as np

from opd.control.policies import Policy
from opd.measurement import Interval, Observation, Score, score
from opd.objective import Weights
from opd.pipeline import Configuration, InfeasibleError, Pipeline, as_array, check_feasible
from opd.workload.load import RecentMaximum


class ObservationError(RuntimeError):
    """The state of the pipeline cannot be seen now, so that there is nothing to decide on."""


class ApplyError(RuntimeError):
    """A configuration could not be brought to run; the previous one goes on."""


class Backend(Protocol):
    """Where a pipeline runs."""

    configuration: Configuration
    """What runs now."""

    def observe(self) -> Observation:
        """What can be seen now; the control loop adds the forecast.

        Raises:
            ObservationError: if nothing can.
        """
        ...

    def apply(self, configuration: Configuration) -> None:
        """Begin to run ``configuration``.

        Raises:
            ApplyError: if it cannot run; then nothing has changed.
        """
        ...

    def wait(self) -> Interval:
        """Let one interval pass and say what was measured in it, as a batch of one."""
        ...


@dataclass(frozen=True)
class Step:
    """One pass of the control loop.

    Attributes:
        predicted_load: p, requests/s; NaN if there was nothing to see.
        forecast_failure: why ``predicted_load`` is the largest load of the last 20 s and no forecast; else empty.
        configuration: what ran in the interval.
        refused: why the policy did not decide or its action does not run, empty if it does.
        by_expert: whether an agent's expert decided in its place.
        decision_seconds: d_t of Alg. 1, forecast and features included.
        interval: what was measured; NaN where nothing could be.
        score: the same in the terms of Eqs. 1-3 and 7.
    """

    predicted_load: float
    forecast_failure: str
    configuration: Configuration
    refused: str
    by_expert: bool
    decision_seconds: float
    interval: Interval
    score: Score


class Guard:
    """Lets through only what keeps every limit; otherwise the last good configuration stays.

    Args:
        pipeline: its limits hold.
        configuration: the one that runs now.
    """

    def __init__(self, pipeline: Pipeline, configuration: Configuration) -> None:
        check_feasible(pipeline, configuration)
        self._pipeline = pipeline
        self.configuration = configuration

    def admit(self, configuration: Configuration, available_cores: float) -> str:
        """Take over ``configuration`` if it is feasible now; otherwise say why it was refused."""
        if not np.isfinite(available_cores):
            return f"the device reports {available_cores} available cores, which is no finite number"
        cores = int(available_cores)
        try:
            # A pipeline checks itself when it is made, which would take longer than everything else here.
            pipeline = self._pipeline if cores == self._pipeline.capacity else replace(self._pipeline, capacity=cores)
            check_feasible(pipeline, configuration)
        except InfeasibleError as error:
            return str(error)
        self.configuration = configuration
        return ""


def expected_load(forecast: Callable[[np.ndarray], float], history: np.ndarray) -> tuple[float, str]:
    """The forecast for a history of per-second counts; where it fails, the largest load of the last 20 s, and why."""
    try:
        load = float(forecast(history))
        failure = "" if 0.0 <= load < np.inf else f"the forecast is {load} requests/s, which is no load"
    except Exception as error:  # whatever is wrong with a forecaster, the pipeline has to go on
        failure = f"the forecast failed with {type(error).__name__}: {error}"
    if failure:
        load = RecentMaximum().predict(history)
    return load, failure


def run(
    backend: Backend,
    pipeline: Pipeline,
    policy: Policy,
    forecast: Callable[[np.ndarray], float],
    weights: Weights,
    decisions: int,
    interval_seconds: float,
) -> Iterator[Step]:
    """Alg. 1: observe, forecast, decide, guard, apply, wait, reward; yields every step as it ends.

    What cannot be seen or cannot be applied ends nothing: the last good configuration goes on and the step says why.
    Nor does a forecast that fails: the largest load of the last 20 s takes its place.

    Args:
        backend: where the pipeline runs.
        pipeline: its definition.
        policy: what decides.
        forecast: predicted maximum load (requests/s) for a history of per-second counts.
        weights: of the reward.
        decisions: number of steps.
        interval_seconds: time between two of them.
    """
    guard = Guard(pipeline, backend.configuration)
    for _ in range(decisions):
        predicted_load, failure, by_expert, decision_seconds = np.nan, "", False, 0.0
        running = guard.configuration
        try:
            observation = backend.observe()
            begin = perf_counter()
            predicted_load, failure = expected_load(forecast, observation.history)
            wanted = policy.decide(replace(observation, predicted_load=predicted_load))
            decision_seconds, by_expert = perf_counter() - begin, policy.by_expert
            refused = guard.admit(wanted, observation.available_cores)
            backend.apply(guard.configuration)
        except (ObservationError, InfeasibleError) as error:
            refused = f"nothing to decide on: {error}"
        except ApplyError as error:
            refused, guard.configuration = str(error), running
        interval = backend.wait()
        result = score(pipeline, weights, as_array(guard.configuration)[None], interval, interval_seconds)
        yield Step(predicted_load, failure, guard.configuration, refused, by_expert, decision_seconds, interval, result)
