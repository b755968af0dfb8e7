"""Deployed pipeline as a live backend: requests go to its gateways, and policies reconfigure it from here."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from types import TracebackType

from opd.cluster.api import Cluster
from opd.cluster.backend import KubernetesBackend
from opd.cluster.connection import credentials
from opd.cluster.lease import Lease
from opd.cluster.names import selector
from opd.cluster.pods import is_terminating, last_end
from opd.cluster.resources import POD, Object
from opd.cluster.settings import ClusterSettings
from opd.cluster.watching import follow
from opd.pipeline import Pipeline
from opd.serving.monitoring.source import Monitor

logger = logging.getLogger(__name__)

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
        address: ``host:port`` of the gateway's gRPC endpoint as reached from here.

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
        self._stop_following = threading.Event()
        self._lease = Lease(cluster, pipeline.name)
        super().__init__(cluster, pipeline, settings, monitor, interval_seconds, may_act=lambda: self._lease.held)

    def __enter__(self) -> DeployedPipeline:
        """Take the Lease, and warn of servers that end from now on.

        Raises:
            LedByAnotherError: if another controller holds it.
        """
        self._leading.enter_context(self._lease.hold(LEAD_SECONDS))
        pods = follow(self._cluster, POD, selector(self.pipeline.name), stop=self._stop_following)
        threading.Thread(target=warn_of_ends, args=(pods,), daemon=True, name="ends").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        self._stop_following.set()
        self._leading.close()
        self.monitor.close()


def warn_of_ends(states: Iterable[Mapping[str, Object]]) -> None:
    """Log a warning with the reason whenever a container of a pod has ended that was not told to.

    Args:
        states: pods by name, again after every change, as from :func:`opd.cluster.watching.follow`.
    """
    known: dict[str, int] = {}
    for number, pods in enumerate(states):
        for name, pod in pods.items():
            ends = _count_ends(pod)
            if number and ends > known.get(name, 0) and not is_terminating(pod):
                logger.warning("a server ended: %s", last_end(pod))
            known[name] = max(ends, known.get(name, 0))  # a container that waits for its restart counts one less


def _count_ends(pod: Object) -> int:
    """Number of times that containers of a pod have ended."""
    containers = pod.get("status", {}).get("containerStatuses") or []
    return sum(each.get("restartCount", 0) + bool((each.get("state") or {}).get("terminated")) for each in containers)
