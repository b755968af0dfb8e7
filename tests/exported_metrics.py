"""The metrics that gateways, replicas and controller export, read from the collectors that export them."""

from __future__ import annotations

from typing import NamedTuple

from prometheus_client.metrics import MetricWrapperBase

from opd.cluster.record import ControllerMetrics
from opd.serving import metrics

SAMPLES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
"""Endings of the series of a metric, by its type."""


class Exported(NamedTuple):
    """A metric; its name is that of a counter's or gauge's series, or what the series of a histogram begin with."""

    name: str
    type: str
    labels: tuple[str, ...]


def exported() -> dict[str, Exported]:
    """Every metric by its name."""
    of_controller = ControllerMetrics("any").registry._collector_to_names
    collectors = [each for each in (*vars(metrics).values(), *of_controller) if isinstance(each, MetricWrapperBase)]
    found = {}
    for collector in collectors:
        (family,) = collector.describe()
        name = family.name + ("_total" if family.type == "counter" else "")
        found[name] = Exported(name, family.type, tuple(collector._labelnames))
    return found


def series() -> dict[str, set[str]]:
    """Labels of every series by its name, and those that Prometheus adds to it."""
    made = {}
    for name, metric in exported().items():
        for ending in SAMPLES[metric.type]:
            bucket = {"le"} if ending == "_bucket" else set()
            made[name.removesuffix("_total") + ending] = {*metric.labels, *bucket, "namespace"}
    return made
