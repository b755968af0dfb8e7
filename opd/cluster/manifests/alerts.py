"""Alerts on a pipeline: a PrometheusRule for the Prometheus operator.

Few, each about something that somebody has to do: ``docs/kubernetes.md`` has a line for each of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from opd.cluster.names import labels
from opd.cluster.record import DECISIONS, LEFT_ALONE
from opd.cluster.resources import Object, manifest
from opd.cluster.settings import ClusterSettings
from opd.control.loop import REFUSED
from opd.pipeline import Pipeline, ServiceLevel
from opd.serving import metrics
from opd.serving.monitoring.source import SCRAPE_SECONDS
from opd.serving.outcomes import COMPLETED

RUNBOOK = "docs/kubernetes.md#alerts"
"""Where each alert has a line that says what to do."""

LOST_SHARE = 0.01
"""Share of requests that may be rejected, dropped or failed."""

CRITICAL, WARNING, INFO = "critical", "warning", "info"


class Alert(NamedTuple):
    """An alert.

    Attributes:
        name: of the alert, which the runbook lists.
        severity: label ``severity``.
        minutes: for which the expression must hold.
        expression: in PromQL.
        summary: what is so, for people.
    """

    name: str
    severity: str
    minutes: int
    expression: str
    summary: str


def alert_rules(pipeline: Pipeline, settings: ClusterSettings) -> Object:
    """Return the PrometheusRule of a pipeline."""
    rules = [_rule(alert, pipeline, settings) for alert in alerts(pipeline, settings)]
    its_labels = {**settings.monitoring_labels, **labels(pipeline.name)}
    spec = {"groups": [{"name": f"{settings.namespace}-{pipeline.name}", "rules": rules}]}
    return manifest(
        "monitoring.coreos.com/v1", "PrometheusRule", pipeline.name, its_labels, settings.namespace, spec=spec
    )


def _rule(alert: Alert, pipeline: Pipeline, settings: ClusterSettings) -> dict[str, Any]:
    where = f"pipeline {pipeline.name} in namespace {settings.namespace}"
    return {
        "alert": alert.name,
        "expr": alert.expression,
        "for": f"{alert.minutes}m",
        "labels": {"severity": alert.severity, "namespace": settings.namespace, "pipeline": pipeline.name},
        "annotations": {"summary": f"{where}: {alert.summary}", "runbook": RUNBOOK},
    }


class Selection(NamedTuple):
    """Series of one pipeline in PromQL, by the matchers of their labels."""

    matchers: tuple[str, ...]

    def series(self, name: str, *more: str) -> str:
        """The series of a metric, with further matchers."""
        return f"{name}{{{', '.join((*self.matchers, *more))}}}"

    def rate(self, counter: str, window: str, *more: str, by: str = "") -> str:
        """The summed rate of a counter, per second."""
        return f"sum{by and f' by ({by})'} (rate({self.series(f'{counter}_total', *more)}[{window}]))"


def alerts(pipeline: Pipeline, settings: ClusterSettings) -> Iterator[Alert]:
    """Yield the alerts on a pipeline: on its requests, what serves them and its controller."""
    known = {**settings.series_labels, "pipeline": pipeline.name}
    ours = Selection(tuple(f"{label}={json.dumps(value)}" for label, value in known.items()))
    yield from _of_requests(ours, pipeline.service_level)
    yield from _of_servers(ours, settings.gateways)
    yield from _of_control(ours, settings.apply_seconds)


def _of_requests(ours: Selection, level: ServiceLevel) -> Iterator[Alert]:
    lost = ours.rate(metrics.ANSWERS, "5m", f'outcome!="{COMPLETED}"')
    summary = f"more than {LOST_SHARE:.0%} of the requests are rejected, dropped or failed"
    too_many = f"{lost} > {LOST_SHARE:g} * {ours.rate(metrics.ANSWERS, '5m')}"
    yield Alert("OpdRequestsLost", CRITICAL, 2, too_many, summary)
    late = f"{ours.rate(metrics.WITHIN, '10m')} < {level.percentile / 100:g} * {ours.rate(metrics.ANSWERS, '10m')}"
    summary = f"fewer than {level.percentile:g}% of the requests are answered within {level.seconds:g} s"
    yield Alert("OpdLatencyBeyondObjective", WARNING, 5, late, summary)
    # By Little's law a request then waits longer for this stage alone than the whole pipeline may take.
    waiting = f"sum by (task) ({ours.series(metrics.STAGE_QUEUE)})"
    beyond = f"{waiting} > {level.seconds:g} * {ours.rate(metrics.STAGE_REQUESTS, '1m', by='task')}"
    summary = f"requests wait longer than {level.seconds:g} s for stage {{{{ $labels.task }}}}"
    yield Alert("OpdLoadUnmet", WARNING, 5, beyond, summary)


def _of_servers(ours: Selection, gateways: int) -> Iterator[Alert]:
    replicas, waiting = (
        f"sum by (task) ({ours.series(each)})" for each in (metrics.STAGE_REPLICAS, metrics.STAGE_QUEUE)
    )
    none = f"({replicas} or 0 * {waiting}) == 0"  # a gateway that has never seen a replica has no series of replicas
    yield Alert("OpdStageWithoutReplica", CRITICAL, 1, none, "no replica of stage {{ $labels.task }} takes work")
    arrived = ours.series(f"{metrics.REQUESTS}_total")  # every gateway has it from its start
    missing = f"(count({arrived}) or vector(0)) < {gateways}"
    yield Alert("OpdGatewayMissing", CRITICAL, 2, missing, f"fewer than {gateways} gateways report to Prometheus")
    fewest = math.ceil(60 / SCRAPE_SECONDS / 2)
    sparse = f"min(count_over_time({arrived}[1m])) < {fewest}"
    summary = f"Prometheus has fewer than {fewest} samples of a gateway's last minute, too few to decide from"
    yield Alert("OpdSamplesMissing", WARNING, 2, sparse, summary)


def _of_control(ours: Selection, apply_seconds: float) -> Iterator[Alert]:
    alone = f"max({ours.series(LEFT_ALONE)}) == 1"
    yield Alert("OpdLeftAlone", INFO, 1, alone, "what runs was changed by hand, so nothing is decided for a while")
    minutes = math.ceil(2 * apply_seconds / 60) + 1  # a change and its undoing may take that long
    made = ours.series(f"{DECISIONS}_total", f'outcome!="{REFUSED}"')
    known = ours.series(f"{DECISIONS}_total")
    none = (
        f"(sum(increase({made}[{minutes}m])) or vector(0)) == 0 and on () count(count_over_time({known}[1d])) > 0 "
        f"unless on () {alone}"
    )
    summary = f"no decision has come through for {minutes} minutes, though a controller ran within the last day"
    yield Alert("OpdNoDecision", WARNING, 1, none, summary)
