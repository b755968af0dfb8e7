"""A Prometheus server that answers the queries of the control loop for a pipeline with a steady load."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from emulator.http_server import Handler, Server


class Prometheus:
    """The server; ``url`` is its address.

    Args:
        pipeline: the one to report on.
        load: requests/s.

    Attributes:
        state: ``good``, ``empty``, ``stale``, ``nan``, ``late`` or ``failing``.
    """

    def __init__(self, pipeline: Any, load: float = 5.0) -> None:
        self.pipeline, self.load, self.state = pipeline, load, "good"
        self._server = Server(_PrometheusHandler, prometheus=self)
        self.url = self._server.url

    def close(self) -> None:
        """Stop listening."""
        self._server.stop()

    def reopen(self) -> None:
        """Listen again, at the same address."""
        self._server = Server(_PrometheusHandler, self._server.port, prometheus=self)

    def answer(self, query: str) -> list[dict]:
        """The series of a query such as ``metric{pipeline="p"}[10000ms]``."""
        metric = re.split(r"[{\[]", query)[0]
        wanted = dict(re.findall(r'(\w+)="([^"]*)"', query))
        seconds = float(re.findall(r"\[(\d+)ms\]", query)[0]) / 1000
        end = time.time() - (60 if self.state == "stale" else 0)
        times = [end - age for age in range(int(seconds), -1, -1)]
        found = [] if self.state == "empty" else self._series(metric)
        return [
            {"metric": labels, "values": [[t, "NaN" if self.state == "nan" else str(value(t))] for t in times]}
            for labels, value in found
            if wanted.items() <= labels.items()
        ]

    def _series(self, metric: str) -> list[tuple[dict, Callable[[float], float]]]:
        labels = {"__name__": metric, "pipeline": self.pipeline.name, "instance": "all"}
        tasks = [{**labels, "task": task.name} for task in self.pipeline.tasks]

        def counter(t: float) -> float:
            return self.load * (t - 1e9)

        def zero(_: float) -> float:
            return 0.0

        def one(_: float) -> float:
            return 1.0

        if metric == "opd_requests_total":
            return [(labels, counter)]
        if metric == "opd_answers_total":
            return [({**labels, "outcome": "completed"}, counter)]
        if metric == "opd_answers_within_objective_total":
            return [(labels, counter)]
        if metric == "opd_stage_queue_length":
            return [(each, zero) for each in tasks]
        if metric == "opd_stage_replicas":
            first = zip(tasks, self.pipeline.tasks, strict=True)
            return [({**each, "variant": task.variants[0].name}, one) for each, task in first]
        return [({"__name__": "up", "instance": "all"}, one)] if metric == "up" else []


class _PrometheusHandler(Handler):
    prometheus: Prometheus

    def respond(self, body: Any) -> None:
        query = parse_qs(urlsplit(self.path).query).get("query", [""])[0]
        if self.prometheus.state == "late":
            time.sleep(5)
        if self.prometheus.state == "failing":
            self.send(500, {"status": "error", "error": "out of order"})
        else:
            result = self.prometheus.answer(query)
            self.send(200, {"status": "success", "data": {"resultType": "matrix", "result": result}})
