"""The Grafana dashboard of a pipeline: load, latency, stages, and decisions.

``python -m opd.cluster.manifests.dashboard`` prints the one for all pipelines, which ``deploy/grafana/`` holds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from opd.cluster.names import APPLICATION, labels
from opd.cluster.resources import Object, manifest
from opd.serving import metrics

SIDECAR_LABEL = "grafana_dashboard"
"""Label by which Grafana's sidecar finds ConfigMaps with dashboards, by default."""

SOURCE = {"type": "prometheus", "uid": "${source}"}
FILTER = '{namespace=~"$namespace", pipeline="$pipeline"}'
RATE = "[$__rate_interval]"

COLUMNS, WIDTH, HEIGHT = 24, 12, 8
"""Columns of Grafana's grid, and size of a panel in it."""


def dashboard(pipeline: str = "") -> dict[str, Any]:
    """Return the dashboard that Grafana imports.

    Args:
        pipeline: shown first; any if empty.
    """
    return {
        "uid": f"{APPLICATION}-{pipeline}" if pipeline else APPLICATION,
        "title": f"Pipeline {pipeline}" if pipeline else "Inference pipelines",
        "tags": [APPLICATION],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": _variables(pipeline)},
        "panels": [_panel(number, *each) for number, each in enumerate(_panels())],
    }


def dashboard_config(pipeline: str, namespace: str) -> Object:
    """Return a ConfigMap that Grafana's sidecar loads."""
    data = {f"{APPLICATION}-{pipeline}.json": dashboard_text(pipeline)}
    its_labels = {SIDECAR_LABEL: "1", **labels(pipeline)}
    return manifest("v1", "ConfigMap", f"{pipeline}-dashboard", its_labels, namespace, data=data)


def dashboard_text(pipeline: str = "") -> str:
    """Return :func:`dashboard` as JSON."""
    return json.dumps(dashboard(pipeline), indent=2) + "\n"


def _panels() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield title and unit of each panel, and the expressions of its series by their legends."""
    arrived = f"sum(rate({metrics.REQUESTS}_total{FILTER}{RATE}))"
    answered, forecast = _rate(f"{metrics.ANSWERS}_total", "outcome"), f"max(opd_controller_forecast{FILTER})"
    yield "Load", "reqps", {"arrived": arrived, "{{outcome}}": answered, "forecast maximum": forecast}
    median, late = (f"histogram_quantile({share}, {_rate(f'{metrics.LATENCY}_bucket', 'le')})" for share in (0.5, 0.99))
    mean = _mean(metrics.LATENCY)
    yield "Latency, end to end", "s", {"median": median, "99th percentile": late, "mean": mean}
    share = f"sum(rate({metrics.WITHIN}_total{FILTER}{RATE})) / sum(rate({metrics.ANSWERS}_total{FILTER}{RATE}))"
    yield "Share of requests within the objective", "percentunit", {"within": share}
    replicas = f"sum by (task, variant) ({metrics.STAGE_REPLICAS}{FILTER})"
    yield "Replicas in service", "short", {"{{task}} {{variant}}": replicas}
    yield "Batch size", "short", {"{{task}}": _mean(metrics.STAGE_BATCH, "task")}
    latency, wait = _mean(metrics.STAGE_LATENCY, "task"), _mean(metrics.STAGE_WAIT, "task")
    yield "Latency of each stage", "s", {"{{task}}": latency, "{{task}} waiting": wait}
    yield "Requests waiting", "short", {"{{task}}": f"sum by (task) ({metrics.STAGE_QUEUE}{FILTER})"}
    calls = _mean(metrics.MODEL_SECONDS, "task, variant")
    yield "Duration of an inference call", "s", {"{{task}} {{variant}}": calls}
    known, device = f"max by (task, variant) (opd_controller_service_factor{FILTER})", "opd_controller_device_factor"
    factors = {"{{task}} {{variant}}": known, "device": f"max({device}{FILTER})"}
    yield "Service time relative to the profile", "short", factors
    yield "Retries after a replica failed", "reqps", {"{{task}}": _rate(f"{metrics.STAGE_RETRIES}_total", "task")}
    decisions = f"sum by (outcome) (increase(opd_decisions_total{FILTER}[1m]))"
    yield "Decisions", "short", {"{{outcome}} per minute": decisions}
    scores = {name: f"max(opd_controller_{name}{FILTER})" for name in ("reward", "qos", "cost")}
    yield "Reward, QoS and cost", "short", scores


def _rate(series: str, by: str) -> str:
    return f"sum by ({by}) (rate({series}{FILTER}{RATE}))"


def _mean(histogram: str, by: str = "") -> str:
    return f"{_rate(f'{histogram}_sum', by)} / {_rate(f'{histogram}_count', by)}"


def _panel(number: int, title: str, unit: str, series: dict[str, str]) -> dict[str, Any]:
    column, row = number * WIDTH % COLUMNS, number * WIDTH // COLUMNS
    return {
        "id": number + 1,
        "title": title,
        "type": "timeseries",
        "datasource": SOURCE,
        "gridPos": {"x": column, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for place, (legend, expression) in enumerate(series.items())
        ],
    }


def _variables(pipeline: str) -> list[dict[str, Any]]:
    chosen = {"current": {"text": pipeline, "value": pipeline}} if pipeline else {}
    everything = {"includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}}
    queried = [
        {
            "name": name,
            "type": "query",
            "datasource": SOURCE,
            "query": f"label_values({metrics.REQUESTS}_total, {name})",
            "refresh": 2,
            **more,
        }
        for name, more in (("namespace", everything), ("pipeline", chosen))
    ]
    return [{"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}, *queried]


if __name__ == "__main__":
    sys.stdout.write(dashboard_text())
