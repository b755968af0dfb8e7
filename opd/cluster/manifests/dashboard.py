"""The Grafana dashboard of a pipeline: load and latency, what each stage does, what runs.

``python -m opd.cluster.manifests.dashboard`` prints the one for all pipelines, which ``deploy/grafana/`` holds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from opd.cluster.names import APPLICATION, labels
from opd.serving import metrics

SIDECAR_LABEL = "grafana_dashboard"
"""By which Grafana's sidecar finds ConfigMaps with dashboards, unless it is set up otherwise."""

SOURCE = {"type": "prometheus", "uid": "${source}"}
WANTED = '{namespace=~"$namespace", pipeline="$pipeline"}'
RATE = "[$__rate_interval]"

COLUMNS, WIDTH, HEIGHT = 24, 12, 8
"""Of Grafana's grid, and of one panel in it."""

Query = tuple[str, str]
"""An expression and the legend of its series."""


def dashboard(pipeline: str = "") -> dict[str, Any]:
    """The dashboard as Grafana imports it.

    Args:
        pipeline: that is shown first; any if not given.
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


def dashboard_config(pipeline: str, namespace: str) -> dict[str, Any]:
    """A ConfigMap that Grafana's sidecar loads."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"{pipeline}-dashboard",
            "namespace": namespace,
            "labels": {SIDECAR_LABEL: "1", **labels(pipeline)},
        },
        "data": {f"{APPLICATION}-{pipeline}.json": dashboard_text(pipeline)},
    }


def dashboard_text(pipeline: str = "") -> str:
    """:func:`dashboard` as JSON."""
    return json.dumps(dashboard(pipeline), indent=2) + "\n"


def _panels() -> list[tuple[str, str, Sequence[Query]]]:
    """Title, unit and queries of each."""
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
                (f"sum(rate({metrics.REQUESTS}_total{WANTED}{RATE}))", "arrived"),
                (f"sum by (outcome) (rate({metrics.ANSWERS}_total{WANTED}{RATE}))", "{{outcome}}"),
                (f"max(opd_controller_forecast{WANTED})", "forecast maximum"),
            ],
        ),
        ("Latency, end to end", "s", whole),
        ("Replicas that take work", "short", [(_sum(metrics.STAGE_REPLICAS, "task, variant"), "{{task}} {{variant}}")]),
        ("Batch size", "short", [(_mean(metrics.STAGE_BATCH, "task"), "{{task}}")]),
        ("Latency of stages", "s", stages),
        ("Requests waiting", "short", [(_sum(metrics.STAGE_QUEUE, "task"), "{{task}}")]),
        ("One inference", "s", [(_mean(metrics.MODEL_SECONDS, "task, variant"), "{{task}} {{variant}}")]),
        (
            "Requests sent again because a replica failed",
            "reqps",
            [(f"sum by (task) (rate({metrics.STAGE_RETRIES}_total{WANTED}{RATE}))", "{{task}}")],
        ),
        (
            "Decisions",
            "short",
            [(f"sum by (outcome) (increase(opd_decisions_total{WANTED}[1m]))", "{{outcome}} a minute")],
        ),
        (
            "What the configuration is worth",
            "short",
            [(f"max(opd_controller_{name}{WANTED})", name) for name in ("reward", "qos", "cost")],
        ),
    ]


def _sum(metric: str, by: str) -> str:
    return f"sum by ({by}) ({metric}{WANTED})"


def _quantile(share: float) -> str:
    return f"histogram_quantile({share}, sum by (le) (rate({metrics.LATENCY}_bucket{WANTED}{RATE})))"


def _mean(histogram: str, by: str = "") -> str:
    total, count = (f"sum by ({by}) (rate({histogram}_{part}{WANTED}{RATE}))" for part in ("sum", "count"))
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
