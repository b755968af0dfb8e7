"""The view model: what people see of a pipeline under control, made of what the control loop knows after each step."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from opd.control.loop import Step
from opd.host.json_data import plain_data
from opd.measurement import Calibration
from opd.pipeline import Configuration, Pipeline, ServiceLevel, StageConfiguration, Task
from opd.serving.emulation.names import is_emulated

logger = logging.getLogger(__name__)

IDLE = "idle"
"""Outcome of a decision that was not made because no request had arrived."""


@dataclass(frozen=True)
class StageView:
    """One stage as it runs.

    Attributes:
        task: its name.
        variant: that it runs.
        replicas: number of them.
        batch_size: requests per call, at most.
        waiting: requests in its queue at the end of the interval; NaN if unknown.
        service_factor: service time relative to the profile, as calibrated; NaN if unknown.
        service_deviation: relative standard deviation of ``service_factor``.
    """

    task: str
    variant: str
    replicas: int
    batch_size: int
    waiting: float = np.nan
    service_factor: float = np.nan
    service_deviation: float = np.nan


@dataclass(frozen=True)
class IntervalView:
    """Measurements of one interval, NaN where there are none.

    Attributes:
        end: Unix seconds.
        seconds: its length.
        offered: requests that arrived.
        failed: requests that got no answer.
        load: requests/s that arrived.
        forecast: largest load that was expected when the interval began, requests/s.
        capacity: requests/s that the replicas of the slowest stage carry as profiled, those that were ready.
        latency_mean: seconds, end to end.
        latency_p99: seconds, end to end.
        within: share of the requests within the latency of the objective.
        cores: of the configuration.
    """

    end: float
    seconds: float
    offered: float
    failed: float
    load: float
    forecast: float
    capacity: float
    latency_mean: float
    latency_p99: float
    within: float
    cores: float


@dataclass(frozen=True)
class DecisionView:
    """The decision at the beginning of the interval.

    Attributes:
        outcome: one of :data:`opd.control.loop.OUTCOMES`, or :data:`IDLE`.
        changes: of the stages, in words.
        basis: what was decided from, in words.
        remarks: why it was refused, left to the fallback policy, or made without a forecast.
        seconds: that it took.
        fallback: whether the fallback policy decided.
    """

    outcome: str
    changes: tuple[str, ...]
    basis: str
    remarks: tuple[str, ...]
    seconds: float
    fallback: bool


@dataclass(frozen=True)
class View:
    """A pipeline under control.

    Attributes:
        pipeline: its name.
        state: of control, such as ``leading``.
        address: ``host:port`` for requests; empty if unknown.
        agent: how the agent that decides was trained; empty for other policies.
        emulated: whether its replicas are.
        assumed: which figures of the profile are assumed; empty if none.
        level: what is asked of the latency; None if unknown.
        device_cores: cores of the device; NaN if unknown.
        stages: as they run, in order.
        interval: the last one; None before it.
        decision: of the last interval; None before it.
    """

    pipeline: str
    state: str = ""
    address: str = ""
    agent: str = ""
    emulated: bool = False
    assumed: str = ""
    level: ServiceLevel | None = None
    device_cores: float = np.nan
    stages: tuple[StageView, ...] = ()
    interval: IntervalView | None = None
    decision: DecisionView | None = None

    def as_json(self) -> dict[str, Any]:
        """The attributes as JSON has them; null for what is unknown."""
        return dict(plain_data(asdict(self)))


def view_of(pipeline: Pipeline, configuration: Configuration, step: Step | None = None, **known: Any) -> View:
    """Make the view of a pipeline after a step of the control loop.

    It raises nothing, because control must go on: if it fails, that is logged, and the view has only what is ``known``.

    Args:
        pipeline: its definition.
        configuration: that runs.
        step: the last one; None before the first.
        known: other attributes of :class:`View`.
    """
    view = View(pipeline.name, **known)
    try:
        return replace(
            view,
            emulated=is_emulated(pipeline.name),
            assumed=pipeline.assumed_note,
            level=pipeline.service_level,
            device_cores=float(pipeline.capacity),
            stages=_stages(pipeline, configuration, step),
            interval=None if step is None else _interval(step),
            decision=None if step is None else _decision(pipeline, step),
        )
    except Exception:
        logger.warning("the view of %s could not be made; control goes on", pipeline.name, exc_info=True)
        return view


def _stages(pipeline: Pipeline, configuration: Configuration, step: Step | None) -> tuple[StageView, ...]:
    unknown = np.full(len(configuration), np.nan)
    queue = unknown if step is None else step.interval.queue[0]
    calibration = _calibration(step)
    factors = [(np.nan, np.nan)] * len(unknown) if calibration is None else calibration.of_variants(configuration)
    return tuple(
        StageView(task.name, variant.name, int(stage.replicas), int(stage.batch_size), float(waiting), *factor)
        for task, (variant, stage), waiting, factor in zip(
            pipeline.tasks, pipeline.selected(configuration), queue, factors, strict=True
        )
    )


def _calibration(step: Step | None) -> Calibration | None:
    return step.observation.calibration if step is not None and step.observation is not None else None


def _interval(step: Step) -> IntervalView:
    interval, score = step.interval, step.score
    return IntervalView(
        end=float(step.span.end),
        seconds=float(step.span.seconds),
        offered=float(interval.offered[0]),
        failed=float(interval.failed[0]),
        load=float(interval.offered[0] / step.span.seconds) if step.span.seconds > 0.0 else np.nan,
        forecast=float(step.predicted_load),
        capacity=float(score.throughput[0]),
        latency_mean=float(interval.latency_mean[0]),
        latency_p99=float(interval.latency_p99[0]),
        within=float(score.within[0]),
        cores=float(score.cost[0]),
    )


def _decision(pipeline: Pipeline, step: Step) -> DecisionView:
    before = step.configuration if step.observation is None else step.observation.configuration
    changed = [
        change
        for task, old, new in zip(pipeline.tasks, before, step.configuration, strict=True)
        if (change := _change(task, old, new))
    ]
    by = f"the fallback policy decided{': ' * bool(step.fallback_reason)}{step.fallback_reason}"
    remarks = step.refused, by if step.fallback else "", step.forecast_failure
    return DecisionView(
        outcome=IDLE if step.idle else step.outcome,
        changes=tuple(changed),
        basis=_basis(step),
        remarks=tuple(filter(None, remarks)),
        seconds=float(step.decision_seconds),
        fallback=bool(step.fallback),
    )


def _change(task: Task, old: StageConfiguration, new: StageConfiguration) -> str:
    """What is different in a stage, in words; empty if nothing is."""
    parts = []
    if old.variant != new.variant:
        parts.append(f"{task.variants[old.variant].name} to {task.variants[new.variant].name}")
    if old.replicas != new.replicas:
        parts.append(f"{old.replicas} to {new.replicas} replicas")
    if old.batch_size != new.batch_size:
        parts.append(f"batch size {old.batch_size} to {new.batch_size}")
    return f"{task.name} {', '.join(parts)}" if parts else ""


def _basis(step: Step) -> str:
    """What the policy saw, in words; empty if nothing was observed."""
    if step.idle:
        return "no request had arrived"
    if step.observation is None:
        return ""
    load, waiting = step.observation.incoming_load, step.observation.queue.sum()
    return f"load {number(load)}, forecast {number(step.predicted_load)} requests/s, {number(waiting)} waiting"


def number(value: float) -> str:
    """Three significant digits or all before the point; a question mark for what is unknown."""
    return "?" if np.isnan(value) else f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"
