"""Deployed pipeline as a live backend: requests go to its router, and policies reconfigure it from here."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from opd.cluster.api import Cluster
from opd.cluster.backend import KubernetesBackend
from opd.cluster.connection import credentials
from opd.cluster.lease import Lease
from opd.cluster.settings import ClusterSettings
from opd.pipeline import Pipeline
from opd.serving.monitoring.source import Monitor

LEAD_SECONDS = 30.0
"""Time limit for taking the Lease. A controller that just stopped keeps it for half of this."""


class DeployedPipeline(KubernetesBackend):
    """Controls a deployed pipeline within its ``with`` block, by holding the controller's Lease.

    The pipeline keeps running afterwards.

    Args:
        pipeline: its definition.
        settings: that it was deployed with.
        monitor: source of metrics; closed with the block.
        interval_seconds: seconds between two decisions.
        address: ``host:port`` of the router's gRPC endpoint as reached from here.

    Raises:
        CredentialsError: if there is no kubeconfig.
        NotFoundError: if the pipeline is not deployed.
        ClusterError: if the cluster does not answer.
    """

    def __init__(
        self, pipeline: Pipeline, settings: ClusterSettings, monitor: Monitor, interval_seconds: float, address: str
    ) -> None:
        cluster = Cluster(settings.namespace, credentials)
        self.address = address
        self._leading = ExitStack()
        self._lease = Lease(cluster, pipeline.name)
        super().__init__(cluster, pipeline, settings, monitor, interval_seconds, may_act=lambda: self._lease.held)

    def __enter__(self) -> DeployedPipeline:
        """Take the Lease.

        Raises:
            LedByAnotherError: if another controller holds it.
        """
        self._leading.enter_context(self._lease.hold(LEAD_SECONDS))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        self._leading.close()
        self.monitor.close()
