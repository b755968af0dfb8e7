"""The Grafana dashboard of a pipeline: load, latency, stages, and decisions.

``python -m opd.cluster.manifests.dashboard`` prints the one for all pipelines, which ``deploy/grafana/`` holds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from opd.cluster.manifests.objects import Manifest, config_map
from opd.cluster.names import APPLICATION, labels
from opd.serving import metrics

SIDECAR_LABEL = "grafana_dashboard"
"""Label by which Grafana's sidecar finds ConfigMaps with dashboards, by default."""

SOURCE = {"type": "prometheus", "uid": "${source}"}
FILTER = '{namespace=~"$namespace", pipeline="$pipeline"}'
RATE = "[$__rate_interval]"

COLUMNS, WIDTH, HEIGHT = 24, 12, 8
"""Columns of Grafana's grid, and size of a panel in it."""

Query = tuple[str, str]
"""Expression and legend of its series."""


def dashboard(pipeline: str = "") -> dict[str, Any]:
    """Return the dashboard that Grafana imports.

    Args:
        pipeline: shown first; any if empty.
    """
    panels = [_panel(number, *each) for number, each in enumerate(_panels())]
    return {
        "uid": f"{APPLICATION}-{pipeline}" if pipeline else APPLICATION,
        "title": f"Pipeline {pipeline}" if pipeline else "Inference pipelines",
        "tags": [APPLICATION],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": _variables(pipeline)},
        "panels": panels,
    }


def dashboard_config(pipeline: str, namespace: str) -> Manifest:
    """Return a ConfigMap that Grafana's sidecar loads."""
    data = {f"{APPLICATION}-{pipeline}.json": dashboard_text(pipeline)}
    return config_map(f"{pipeline}-dashboard", {SIDECAR_LABEL: "1", **labels(pipeline)}, namespace, data)


def dashboard_text(pipeline: str = "") -> str:
    """Return :func:`dashboard` as JSON."""
    return json.dumps(dashboard(pipeline), indent=2) + "\n"


def _panels() -> list[tuple[str, str, Sequence[Query]]]:
    """Return title, unit and queries of each panel."""
    stages = [
        (_mean(metrics.STAGE_LATENCY, "task"), "{{task}}"),
        (_mean(metrics.STAGE_WAIT, "task"), "{{task}} waiting"),
    ]
    whole = [(_quantile(0.5), "median"), (_quantile(0.99), "99th percentile"), (_mean(metrics.LATENCY), "mean")]
    return [
        (
            "Load",
            "reqps",
            [
                (f"sum(rate({metrics.REQUESTS}_total{FILTER}{RATE}))", "arrived"),
                (f"sum by (outcome) (rate({metrics.ANSWERS}_total{FILTER}{RATE}))", "{{outcome}}"),
                (f"max(opd_controller_forecast{FILTER})", "forecast maximum"),
            ],
        ),
        ("Latency, end to end", "s", whole),
        ("Replicas in service", "short", [(_sum(metrics.STAGE_REPLICAS, "task, variant"), "{{task}} {{variant}}")]),
        ("Batch size", "short", [(_mean(metrics.STAGE_BATCH, "task"), "{{task}}")]),
        ("Latency of each stage", "s", stages),
        ("Requests waiting", "short", [(_sum(metrics.STAGE_QUEUE, "task"), "{{task}}")]),
        (
            "Duration of an inference call",
            "s",
            [(_mean(metrics.MODEL_SECONDS, "task, variant"), "{{task}} {{variant}}")],
        ),
        (
            "Retries after a replica failed",
            "reqps",
            [(f"sum by (task) (rate({metrics.STAGE_RETRIES}_total{FILTER}{RATE}))", "{{task}}")],
        ),
        (
            "Decisions",
            "short",
            [(f"sum by (outcome) (increase(opd_decisions_total{FILTER}[1m]))", "{{outcome}} per minute")],
        ),
        (
            "Reward, QoS and cost",
            "short",
            [(f"max(opd_controller_{name}{FILTER})", name) for name in ("reward", "qos", "cost")],
        ),
    ]


def _sum(metric: str, by: str) -> str:
    return f"sum by ({by}) ({metric}{FILTER})"


def _quantile(share: float) -> str:
    return f"histogram_quantile({share}, sum by (le) (rate({metrics.LATENCY}_bucket{FILTER}{RATE})))"


def _mean(histogram: str, by: str = "") -> str:
    total, count = (f"sum by ({by}) (rate({histogram}_{part}{FILTER}{RATE}))" for part in ("sum", "count"))
    return f"{total} / {count}"


def _panel(number: int, title: str, unit: str, queries: Sequence[Query]) -> dict[str, Any]:
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
            for place, (expression, legend) in enumerate(queries)
        ],
    }


def _variables(pipeline: str) -> list[dict[str, Any]]:
    requests = f"{metrics.REQUESTS}_total"
    chosen = {"current": {"text": pipeline, "value": pipeline}} if pipeline else {}
    everything = {"includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}}
    return [
        {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        _variable("namespace", f"label_values({requests}, namespace)", everything),
        _variable("pipeline", f"label_values({requests}, pipeline)", chosen),
    ]


def _variable(name: str, query: str, more: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "type": "query", "datasource": SOURCE, "query": query, "refresh": 2, **more}


if __name__ == "__main__":
    sys.stdout.write(dashboard_text())
