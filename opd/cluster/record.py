"""Records of every decision: a line in the log, metrics, and an Event for changes and refusals.

One Event every interval would hide those that matter.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.registry import Collector

from opd.cluster.api import Cluster
from opd.cluster.errors import ClusterError
from opd.cluster.log import FIELDS
from opd.cluster.names import gateway_name, labels
from opd.cluster.resources import DEPLOYMENT, Object
from opd.control.loop import OUTCOMES, Step
from opd.control.record import append_entry, step_entry
from opd.pipeline import Pipeline, configuration_text

logger = logging.getLogger(__name__)

MAX_NOTE = 1000
"""Characters that an Event may have."""

COMPONENT = "opd-controller"

DECISIONS, LEFT_ALONE = "opd_decisions", "opd_controller_left_alone"
"""Metrics that alerts are about; the exported name of a counter also ends in ``_total``."""

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
        self.decisions = Counter(DECISIONS, "decisions, by outcome", (*names, "outcome"), registry=self.registry)
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


class MetricsTogether(Collector):
    """Metrics of several pipelines as one page has them: every name once."""

    def __init__(self, metrics: Sequence[ControllerMetrics]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """All series, by metric."""
        found: dict[str, Metric] = {}
        for metric in (each for metrics in self._metrics for each in metrics.registry.collect()):
            known = found.setdefault(metric.name, metric)
            if known is not metric:
                known.samples += metric.samples
        return found.values()


class Recorder:
    """Records what a controller decides and does.

    Args:
        cluster: where Events go.
        pipeline: what is controlled.
        metrics: where decisions are counted.
        holder: name of this controller.
        events: whether to create Events.
        file: of a record that gets every decision as well; None for none.
    """

    def __init__(
        self,
        cluster: Cluster,
        pipeline: Pipeline,
        metrics: ControllerMetrics,
        holder: str,
        events: bool = True,
        file: Path | None = None,
    ) -> None:
        self._cluster, self._pipeline, self._metrics, self._holder = cluster, pipeline, metrics, holder
        self._events, self._file = events, file
        self._gateway_uid = ""

    def decision(self, step: Step) -> None:
        """Record one step of the control loop."""
        self._metrics.count(step)
        entry = step_entry(self._pipeline, step)
        if step.observation and step.observation.calibration:
            self._metrics.calibrate(entry["calibration"], step.observation.calibration.device)
        words = configuration_text(self._pipeline, step.configuration)
        logger.info("%s: %s", step.outcome, words, extra={FIELDS: {"controller": self._holder, **entry}})
        append_entry(self._file, entry)
        if step.forecast_failure:
            instead = f"the largest load of the last 20 s, {step.predicted_load:g} requests/s, replaces it"
            self.event("ForecastFailed", f"{step.forecast_failure}; {instead}", "Warning")
        if step.refused:
            replaced = step.fallback and step.decided == step.configuration
            source = "is the decision of the fallback policy" if replaced else "goes on"
            self.event("Refused", f"{step.refused}; {words} {source}", "Warning")
        if step.changed:
            self.event("Reconfigured", f"{words}; forecast {step.predicted_load:g} requests/s")

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
