"""Site of a live evaluation: the simulator, processes of this machine, or a Kubernetes cluster."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

from opd.control.loop import Backend
from opd.measurement import SimulationParameters
from opd.pipeline import Configuration, Pipeline
from opd.serving.local import LocalBackend
from opd.serving.monitoring.prometheus import PROMETHEUS_URL_VARIABLE, PrometheusUrl
from opd.serving.monitoring.source import Monitor, MonitoringError

BackendName = Literal["simulated", "local", "kubernetes"]
BACKENDS = get_args(BackendName)


class LiveBackend(Backend, Protocol):
    """A backend that accepts real requests."""

    pipeline: Pipeline
    monitor: Monitor

    def begin_run(self) -> None:
        """Discard the measurements of earlier runs."""
        ...

    @property
    def address(self) -> str:
        """``host:port`` of the router's gRPC endpoint."""
        ...


@dataclass(frozen=True)
class LiveSite:
    """Where the pipeline of a live evaluation runs.

    Attributes:
        backend: ``simulated``, ``local`` or ``kubernetes``.
        folder: for settings, logs and metrics of local processes, and for the load generator's files.
        standbys: processes that each local stage keeps warm.
        cluster_settings: for ``kubernetes``, YAML file that the pipeline was deployed with.
        router_address: for ``kubernetes``, ``host:port`` of the router's gRPC endpoint as reached from here.

    Raises:
        ValueError: if there is no such backend, or a setting of ``kubernetes`` is missing.
    """

    backend: BackendName
    folder: Path
    standbys: int = 0
    cluster_settings: str = ""
    router_address: str = ""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend {self.backend!r} is not one of {', '.join(BACKENDS)}")
        if self.backend == "kubernetes" and not (self.cluster_settings and self.router_address):
            raise ValueError("backend 'kubernetes' needs cluster_settings and router_address; see docs/kubernetes.md")

    def open_backend(
        self, pipeline: Pipeline, parameters: SimulationParameters, initial: Configuration
    ) -> AbstractContextManager[LiveBackend]:
        """Bring up a local pipeline with configuration ``initial``, or take control of a deployed one.

        A deployed pipeline keeps its configuration until one is applied.

        Raises:
            MonitoringError: if the cluster's Prometheus is not named or does not answer.
        """
        if self.backend == "local":
            return LocalBackend(pipeline, parameters, initial, self.folder, standbys=self.standbys)
        # Only this backend needs the extra `cluster`.
        from opd.cluster.settings import read_settings
        from opd.live.deployed import DeployedPipeline

        url = os.environ.get(PROMETHEUS_URL_VARIABLE, "")
        if not url:
            raise MonitoringError(
                f"a deployed pipeline is monitored by Prometheus; set {PROMETHEUS_URL_VARIABLE} to its URL"
            )
        settings = read_settings(Path(self.cluster_settings))
        monitor = PrometheusUrl(url, labels=settings.series_labels)
        monitor.check()
        return DeployedPipeline(pipeline, settings, monitor, parameters.interval, self.router_address)
