"""Records of every decision: a line in the log, metrics, and an Event for changes and refusals.

One Event every interval would hide those that matter.
"""

from __future__ import annotations

import logging
import time
import uuid
from datetime import UTC, datetime
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from opd.cluster.api import Cluster
from opd.cluster.errors import ClusterError
from opd.cluster.log import FIELDS
from opd.cluster.names import gateway_name, labels
from opd.cluster.resources import DEPLOYMENT, Object
from opd.control.loop import OUTCOMES, Step
from opd.pipeline import Configuration, Pipeline, Task, configuration_text

logger = logging.getLogger(__name__)

STATE = ("available_cores", "incoming_load", "task_latency", "ready_throughput", "queue")
"""Fields of an observation that a log entry has."""

MAX_NOTE = 1000
"""Characters that an Event may have."""

COMPONENT = "opd-controller"

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, float("inf"))


class ControllerMetrics:
    """Metrics of the controller, in a registry of their own.

    Args:
        pipeline: its name is a label of all of them.
    """

    def __init__(self, pipeline: str) -> None:
        self.registry = CollectorRegistry()
        self._pipeline = pipeline
        names = ("pipeline",)
        self.decisions = Counter("opd_decisions", "decisions, by outcome", (*names, "outcome"), registry=self.registry)
        self.seconds = Histogram(
            "opd_decision_seconds", "forecast and decision", names, buckets=_SECONDS, registry=self.registry
        )
        gauges = {
            "reward": "reward of the objective, last interval",
            "qos": "quality of service, last interval",
            "within": "share of the requests that ended in the last interval within the latency of the service level",
            "cost": "cores of the configuration",
            "forecast": "predicted load, requests/s",
            "device_factor": "measured service times relative to the profiles, of the device",
            "leader": "1 if this controller acts",
            "left_alone": "1 while what runs was changed by hand and is left alone",
        }
        self._gauges = {
            name: Gauge(f"opd_controller_{name}", text, names, registry=self.registry) for name, text in gauges.items()
        }
        variant = *names, "task", "variant"
        factor, deviation = (
            "measured service times relative to the profile",
            "relative standard deviation of the factor",
        )
        self._factor = Gauge("opd_controller_service_factor", factor, variant, registry=self.registry)
        self._deviation = Gauge("opd_controller_service_deviation", deviation, variant, registry=self.registry)
        # Without a first value a series is absent, which dashboards would show as missing data.
        self.seconds.labels(pipeline)
        for outcome in OUTCOMES:
            self.decisions.labels(pipeline, outcome)
        self.set("leader", 0.0)

    def set(self, name: str, value: float) -> None:
        """Set the gauge of that name."""
        self._gauges[name].labels(self._pipeline).set(value)

    def count(self, step: Step) -> None:
        """Count one decision and set the gauges of its interval."""
        self.decisions.labels(self._pipeline, step.outcome).inc()
        self.seconds.labels(self._pipeline).observe(step.decision_seconds)
        values = {name: float(getattr(step.score, name)[0]) for name in ("reward", "qos", "within", "cost")}
        for name, value in {**values, "forecast": step.predicted_load}.items():
            self.set(name, value)

    def calibrate(self, calibration: dict[str, dict[str, Any]], device: float) -> None:
        """Set the gauges of the profiles' calibration, which is that of the variants that run, by task."""
        self.set("device_factor", device)
        for task, known in calibration.items():
            labels = self._pipeline, task, known["variant"]
            self._factor.labels(*labels).set(known["factor"])
            self._deviation.labels(*labels).set(known["deviation"])


class Recorder:
    """Records what a controller decides and does.

    Args:
        cluster: where Events go.
        pipeline: what is controlled.
        metrics: where decisions are counted.
        holder: name of this controller.
        events: whether to create Events.
    """

    def __init__(
        self, cluster: Cluster, pipeline: Pipeline, metrics: ControllerMetrics, holder: str, events: bool = True
    ) -> None:
        self._cluster, self._pipeline, self._metrics, self._holder = cluster, pipeline, metrics, holder
        self._events = events
        self._gateway_uid = ""

    def decision(self, step: Step) -> None:
        """Record one step of the control loop."""
        self._metrics.count(step)
        if step.observation and step.observation.calibration:
            self._metrics.calibrate(self._calibration(step), step.observation.calibration.device)
        words = configuration_text(self._pipeline, step.configuration)
        logger.info("%s: %s", step.outcome, words, extra={FIELDS: self.entry(step)})
        if step.forecast_failure:
            instead = f"the largest load of the last 20 s, {step.predicted_load:g} requests/s, replaces it"
            self.event("ForecastFailed", f"{step.forecast_failure}; {instead}", "Warning")
        if step.refused:
            replaced = step.fallback and step.decided == step.configuration
            source = "is the decision of the fallback policy" if replaced else "goes on"
            self.event("Refused", f"{step.refused}; {words} {source}", "Warning")
        if step.changed:
            self.event("Reconfigured", f"{words}; forecast {step.predicted_load:g} requests/s")

    def entry(self, step: Step) -> dict[str, Any]:
        """Return a step as plain data; unknown figures are null."""
        return {
            "event": "decision",
            "controller": self._holder,
            "pipeline": self._pipeline.name,
            "outcome": step.outcome,
            "reason": step.refused,
            "state": {name: _plain(getattr(step.observation, name)) for name in STATE if step.observation},
            "calibration": self._calibration(step),
            "forecast": _plain(step.predicted_load),
            "forecast_failure": step.forecast_failure,
            "wanted": None if step.decided is None else self._stages(step.decided),
            "configuration": self._stages(step.configuration),
            "by_expert": step.fallback,
            "fallback_reason": step.fallback_reason,
            "decision_seconds": step.decision_seconds,
            "score": {name: _plain(value[0]) for name, value in step.score._asdict().items()},
        }

    def event(self, reason: str, note: str, kind: str = "Normal") -> None:
        """Create an Event of the gateway; a failure is only logged."""
        logger.log(logging.WARNING if kind == "Warning" else logging.INFO, "%s: %s", reason, note)
        if not self._events:
            return
        try:
            self._cluster.create(self._event(reason, note[:MAX_NOTE], kind))
        except ClusterError as error:
            logger.warning("the event was not recorded: %s", error)

    def _event(self, reason: str, note: str, kind: str) -> Object:
        now, name = datetime.now(UTC), gateway_name(self._pipeline.name)
        second = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata = {
            "name": f"{name}.{time.time_ns():x}{uuid.uuid4().hex[:4]}",
            "namespace": self._cluster.namespace,
            "labels": labels(self._pipeline.name),
        }
        gateway = {
            **DEPLOYMENT.type_fields,
            "name": name,
            "namespace": self._cluster.namespace,
            **self._uid_of_gateway(name),
        }
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": metadata,
            "involvedObject": gateway,
            "reason": reason,
            "message": note,
            "type": kind,
            "action": reason,
            "count": 1,
            "firstTimestamp": second,
            "lastTimestamp": second,
            "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._holder,
        }

    def _uid_of_gateway(self, name: str) -> dict[str, str]:
        """Return the field by which ``kubectl describe`` finds a gateway's Events; empty if it cannot be read."""
        if not self._gateway_uid:
            try:
                self._gateway_uid = str(self._cluster.get(DEPLOYMENT, name)["metadata"]["uid"])
            except ClusterError as error:
                logger.warning("the event will not be listed with the gateway: %s", error)
        return {"uid": self._gateway_uid} if self._gateway_uid else {}

    def _stages(self, configuration: Configuration) -> dict[str, Any]:
        """The stages by task; a variant that the task does not have, which a policy may want, as a number."""
        return {
            task.name: {
                "variant": _variant_name(task, stage.variant),
                "replicas": int(stage.replicas),
                "batch_size": int(stage.batch_size),
            }
            for task, stage in zip(self._pipeline.tasks, configuration, strict=True)
        }

    def _calibration(self, step: Step) -> dict[str, dict[str, Any]]:
        """How the service times of the variants that ran before the decision compare with their profiles, by task."""
        if step.observation is None or step.observation.calibration is None:
            return {}
        running = step.observation.configuration
        known = step.observation.calibration.of_variants(running)
        return {
            task.name: {"variant": variant.name, "factor": _plain(factor), "deviation": _plain(deviation)}
            for task, (variant, _), (factor, deviation) in zip(
                self._pipeline.tasks, self._pipeline.selected(running), known, strict=True
            )
        }


def _variant_name(task: Task, index: int) -> str | int:
    return task.variants[index].name if 0 <= index < len(task.variants) else int(index)


def _plain(value: float | np.ndarray) -> Any:
    """Return a number, or the numbers of a vector, as JSON has them; null if not finite."""
    if np.ndim(value):
        return [_plain(each) for each in np.asarray(value)]
    return round(float(value), 6) if np.isfinite(value) else None
