"""A deployed pipeline as the live evaluation meets it: requests go to its router, policies reconfigure it from here."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from opd.cluster.api import Cluster
from opd.cluster.connection import credentials
from opd.cluster.backend import KubernetesBackend
from opd.cluster.lease import Lease
from opd.cluster.settings import ClusterSettings
from opd.pipeline import Pipeline
from opd.serving.monitoring import Monitor

LEAD_SECONDS = 30.0
"""A controller that has just ended leaves its Lease for half of this."""


class DeployedPipeline(KubernetesBackend):
    """Holds the controller's Lease within its ``with`` block, so that nobody else reconfigures; the pipeline runs on.

    Args:
        pipeline: its definition.
        settings: with which it was deployed.
        monitor: source of metrics.
        interval_seconds: between two decisions.
        address: ``host:port`` at which the router's gRPC endpoint can be reached from here.

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
        """Begin to lead.

        Raises:
            LedByAnotherError: if another controller does.
        """
        self._leading.enter_context(self._lease.hold(LEAD_SECONDS))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        self._leading.close()
        self.monitor.close()
