"""The controller as a service: it runs until a signal, and serves its health and metrics over HTTP."""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from opd.cluster.api import Cluster
from opd.cluster.connection import RetryPolicy, credentials
from opd.cluster.controller import Controller, ControllerSettings
from opd.cluster.settings import ClusterSettings
from opd.control.policies import Policy
from opd.pipeline import Pipeline
from opd.serving.monitoring.source import Monitor

logger = logging.getLogger(__name__)


@contextmanager
def health_server(controller: Controller, host: str, port: int) -> Iterator[int]:
    """Serve ``/healthz``, ``/readyz`` and ``/metrics`` of a controller; yields the port."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 5.0

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, generate_latest(controller.metrics.registry), CONTENT_TYPE_LATEST)
            elif path == "/healthz":
                self._answer_state(controller.healthy)
            elif path == "/readyz":
                self._answer_state(controller.ready)
            else:
                self._answer(404, b"there are /healthz, /readyz and /metrics\n")

        def _answer_state(self, good: bool) -> None:
            self._answer(200 if good else 503, json.dumps({"state": controller.state}).encode(), "application/json")

        def _answer(self, code: int, content: bytes, kind: str = "text/plain") -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Log nothing: probes come every few seconds."""

    server = ThreadingHTTPServer((host, port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True, name="health").start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def run_controller(
    pipeline: Pipeline,
    settings: ClusterSettings,
    monitor: Monitor,
    policy: Policy,
    forecast: Callable[[np.ndarray], float],
    options: ControllerSettings | None = None,
    kubeconfig: str | None = None,
    context: str | None = None,
) -> int:
    """Control a deployed pipeline until SIGTERM or SIGINT; for the main thread.

    Args:
        pipeline: what is controlled.
        settings: with which it was deployed.
        monitor: source of metrics, for example :class:`opd.serving.monitoring.prometheus.PrometheusUrl`.
        policy: decides.
        forecast: predicted maximum load (requests/s) for a history of per-second counts.
        options: of the controller.
        kubeconfig: file to reach the cluster with; by default see :func:`credentials`.
        context: of the kubeconfig.

    Returns:
        the exit code.

    Raises:
        CredentialsError: if there is nothing to log in with.
        NotDeployedError: see :meth:`Controller.run`.
        LedByAnotherError: see :meth:`Controller.run`.
    """
    options = options or ControllerSettings()
    retry_policy = RetryPolicy(read_seconds=settings.call_seconds)
    cluster = Cluster(settings.namespace, lambda: credentials(kubeconfig, context), retry_policy)
    controller = Controller(cluster, pipeline, settings, monitor, policy, forecast, options)
    # A handler interrupts whatever the main thread does, so it must not take locks that the main thread may hold.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=controller.stop, name="stop").start())
    with health_server(controller, options.host, options.port) as port:
        logger.info("controller %s of %s serves its state on port %d", controller.holder, pipeline.name, port)
        controller.run()
    return 0
