"""The control loop (Alg. 1), one function over any backend, and the guard that checks every decision.

A backend is the simulator, the processes of one machine, or a cluster: it observes the pipeline, applies a
configuration and lets an interval pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import NamedTuple, Protocol

import numpy as np

from opd.control.calibration import CalibrationFilter
from opd.control.decisions import as_decision
from opd.control.policies import Policy
from opd.host.errors import reason_of
from opd.measurement import Calibration, Interval, Observation, Score, Span, score
from opd.objective import Objective, check_objective
from opd.pipeline import Configuration, InfeasibleError, Pipeline, as_array, check_feasible
from opd.workload.forecast import RecentMaximum

logger = logging.getLogger(__name__)

APPLIED, KEPT, REFUSED = OUTCOMES = ("applied", "kept", "refused")
"""Outcomes of a decision: another configuration runs, the same one goes on, or the policy's decision was refused."""


class ObservationError(RuntimeError):
    """The state of the pipeline cannot be observed now, so no decision is possible."""


class NoRequestsError(ObservationError):
    """No request has arrived since the run began. This is a state and no failure: there is nothing to decide from."""


class ApplyError(RuntimeError):
    """A configuration did not start; the previous one keeps running."""


class Backend(Protocol):
    """A place where a pipeline runs."""

    configuration: Configuration
    """The running configuration."""

    def observe(self) -> Observation:
        """Observe the pipeline; the control loop adds the forecast.

        Raises:
            ObservationError: if nothing can be observed now.
            NoRequestsError: if the pipeline is monitored, but no request has arrived since the run began.
        """
        ...

    def apply(self, configuration: Configuration) -> None:
        """Switch to ``configuration``.

        Raises:
            ApplyError: if it does not start; ``configuration`` says what runs then, as a rule what ran before.
        """
        ...

    def wait(self) -> tuple[Span, Interval]:
        """Let one interval pass; return the time that was measured, and its measurements as a batch of one.

        The time begins when the last change was complete, so the interval shows the running configuration.
        """
        ...


@dataclass(frozen=True)
class Step:
    """One pass of the control loop.

    Attributes:
        observation: with forecast and calibration, as the policy got it; None if nothing was observed.
        decided: the configuration that the policy or its fallback chose; None if neither did.
        predicted_load: p, requests/s; NaN if nothing was observed.
        forecast_failure: why ``predicted_load`` is the largest load of the last 20 s instead of a forecast; else empty.
        configuration: what ran in the interval.
        refused: why the policy did not decide, or its decision was not applied; else empty.
        fallback: whether the fallback policy of an agent or of a user's policy decided.
        fallback_reason: why an agent left the decision to it; else empty.
        idle: whether no request had arrived since the run began, so that nothing was decided.
        decision_seconds: d_t of Alg. 1, forecast and features included.
        span: the time that was measured.
        interval: the measurements; NaN where there are none.
        score: the measurements in terms of the objective.
    """

    observation: Observation | None
    decided: Configuration | None
    predicted_load: float
    forecast_failure: str
    configuration: Configuration
    refused: str
    fallback: bool
    fallback_reason: str
    idle: bool
    decision_seconds: float
    span: Span
    interval: Interval
    score: Score

    @property
    def changed(self) -> bool:
        """Whether another configuration ran before."""
        return self.observation is not None and self.observation.configuration != self.configuration

    @property
    def outcome(self) -> str:
        """One of :data:`OUTCOMES`."""
        return REFUSED if self.refused else APPLIED if self.changed else KEPT


class Guard:
    """Admits only configurations within all limits; otherwise the last good one stays.

    Args:
        pipeline: defines the limits.
        configuration: the running one.

    Raises:
        InfeasibleError: if the running configuration is not within the limits.
    """

    def __init__(self, pipeline: Pipeline, configuration: Configuration) -> None:
        check_feasible(pipeline, configuration)
        self._pipeline = pipeline
        self.configuration = configuration

    def admit(self, configuration: Configuration, available_cores: float) -> str:
        """Adopt ``configuration`` if it is feasible on the available cores; return the reason if it is refused."""
        if not np.isfinite(available_cores):
            return f"the device reports {available_cores} available cores, not a finite number"
        cores = int(available_cores)
        try:
            # A new pipeline validates itself, which takes longer than everything else here.
            pipeline = self._pipeline if cores == self._pipeline.capacity else replace(self._pipeline, capacity=cores)
            check_feasible(pipeline, configuration)
        except InfeasibleError as error:
            return str(error)
        self.configuration = configuration
        return ""


def expected_load(forecast: Callable[[np.ndarray], float], history: np.ndarray) -> tuple[float, str]:
    """Forecast from a history of per-second counts; on failure the largest load of the last 20 s, and the reason."""
    try:
        load = float(forecast(history))
        failure = "" if 0.0 <= load < np.inf else f"the forecast is {load} requests/s, not a load"
    except Exception as error:  # a broken forecaster must not stop the pipeline
        failure = f"the forecast failed with {reason_of(error)}"
    if failure:
        load = RecentMaximum().predict(history)
    return load, failure


class Decision(NamedTuple):
    """The outcome of observing, forecasting and deciding; the attributes are explained in :class:`Step`."""

    observation: Observation | None = None
    decided: Configuration | None = None
    predicted_load: float = np.nan
    forecast_failure: str = ""
    fallback: bool = False
    fallback_reason: str = ""
    decision_seconds: float = 0.0
    refused: str = ""
    idle: bool = False


def look(backend: Backend, forecast: Callable[[np.ndarray], float], calibration: Calibration | None = None) -> Decision:
    """Observe the pipeline and forecast its load, or state why nothing was observed; nothing is decided yet."""
    try:
        observation = backend.observe()
    except NoRequestsError:
        return Decision(idle=True)
    except ObservationError as error:
        return Decision(refused=f"no decision: {error}")
    begin = perf_counter()
    load, failure = expected_load(forecast, observation.history)
    observation = replace(observation, predicted_load=load, calibration=calibration)
    seconds = perf_counter() - begin
    return Decision(observation, predicted_load=load, forecast_failure=failure, decision_seconds=seconds)


def decide(pipeline: Pipeline, policy: Policy, seen: Decision) -> Decision:
    """Let the policy decide from what :func:`look` saw, or state why there is no decision."""
    if seen.observation is None:
        return seen
    begin, decided, reasons = perf_counter(), None, []
    try:
        decided = as_decision(pipeline, policy.decide(seen.observation))
    except InfeasibleError as error:
        reasons = [f"no decision: {error}"]
    except Exception as error:  # a broken policy must not stop the pipeline
        logger.warning("the policy failed", exc_info=True)
        reasons = [f"no decision: {reason_of(error)}"]
    seconds = seen.decision_seconds + perf_counter() - begin
    # A policy need not have the attributes of Policy.
    refused, fallback = getattr(policy, "refused", ""), getattr(policy, "fallback", False)
    return seen._replace(
        decided=decided,
        fallback=fallback,
        fallback_reason=getattr(policy, "fallback_reason", ""),
        decision_seconds=seconds,
        refused="; ".join(filter(None, [refused, *reasons])),
    )


def apply(backend: Backend, guard: Guard, decision: Decision) -> str:
    """Apply a decision that the guard admits.

    Returns:
        Why the decision of the policy is not what runs: it was refused, and a fallback decided or the previous
        configuration keeps running. Empty if it is.
    """
    if decision.observation is None or decision.decided is None:
        return decision.refused
    # Someone else may have changed what runs: an operator, or in shadow mode whatever scales.
    guard.configuration = decision.observation.configuration
    refused = guard.admit(decision.decided, decision.observation.available_cores)
    try:
        backend.apply(guard.configuration)
    except ApplyError as error:
        guard.configuration = backend.configuration
        refused = str(error)
    return "; ".join(filter(None, [decision.refused, refused]))


def finish(backend: Backend, pipeline: Pipeline, objective: Objective, decision: Decision) -> Step:
    """Let the interval pass, and score what was measured in it."""
    span, interval = backend.wait()
    return Step(
        **decision._asdict(),
        configuration=backend.configuration,
        span=span,
        interval=interval,
        score=score(pipeline, objective, as_array(backend.configuration)[None], interval, span.seconds),
    )


def run(
    backend: Backend,
    pipeline: Pipeline,
    policy: Policy,
    forecast: Callable[[np.ndarray], float],
    objective: Objective,
    decisions: int,
    calibrate: bool = True,
) -> Iterator[Step]:
    """Run Alg. 1: observe, forecast, decide, apply, wait, score; yields each step when it ends.

    A failed observation, decision or change does not end the loop: the last good configuration keeps running and the
    step states the reason. It also keeps running until the first request arrives. If the forecast fails, the largest
    load of the last 20 s replaces it.

    Args:
        backend: where the pipeline runs.
        pipeline: its definition.
        policy: decides.
        forecast: predicted maximum load (requests/s) for a history of per-second counts.
        objective: of the reward: the weights of Eq. 7, or a service level.
        decisions: number of steps.
        calibrate: whether the policy is told what the measured service times say of the profiles.
    """
    check_objective(pipeline, objective)
    guard = Guard(pipeline, backend.configuration)
    estimate = CalibrationFilter(pipeline) if calibrate else None
    for _ in range(decisions):
        seen = look(backend, forecast, None if estimate is None else estimate.calibration())
        decision = decide(pipeline, policy, seen)
        step = finish(backend, pipeline, objective, decision._replace(refused=apply(backend, guard, decision)))
        if estimate is not None:
            estimate.update(step.interval, step.span.seconds)
        yield step
