"""A queue that discovers its replicas: it follows the pods of its task and the ConfigMap of its stage.

Nothing is pushed to the queue, so it serves on without a controller, and without the API server with the replicas that
it knew last.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mlserver.handlers import custom_handler

from opd.cluster.api import Cluster
from opd.cluster.manifests.pipeline import STAGE_BATCH_SIZE, STAGE_VARIANT
from opd.cluster.names import VARIANT_LABEL
from opd.cluster.pods import is_ready
from opd.cluster.resources import CONFIG_MAP, POD, Object, Resource
from opd.cluster.watching import follow
from opd.serving.protocol import MalformedRequestError
from opd.serving.runtimes import DesiredStage, QueueRuntime
from opd.serving.stage_queue import ReplicaEndpoint

logger = logging.getLogger(__name__)

RESTART_SECONDS = 1.0
"""Pause after an unexpected error, before the cluster is followed again."""


@dataclass(frozen=True)
class DiscoverySettings:
    """Objects that a queue follows.

    Attributes:
        namespace: of pods and ConfigMap.
        selector: of the pods of all variants of the task.
        stage: name of the ConfigMap.
        port: of the replicas, for gRPC.
    """

    namespace: str
    selector: str
    stage: str
    port: int


class Discovery:
    """Follows the cluster in two threads of its own until it is closed.

    Args:
        cluster: where to look.
        settings: what to look at.
        configure: called with batch size and replicas whenever they have changed, by either thread.
    """

    def __init__(
        self, cluster: Cluster, settings: DiscoverySettings, configure: Callable[[int, list[ReplicaEndpoint]], object]
    ) -> None:
        self._cluster, self._settings, self._configure = cluster, settings, configure
        self._stage: Object | None = None
        self._pods: dict[str, Object] | None = None
        self._serving: tuple[int, list[ReplicaEndpoint]] = (0, [])
        self._lock = threading.Lock()
        self._closing = threading.Event()
        for followed in ((CONFIG_MAP, "", f"metadata.name={settings.stage}"), (POD, settings.selector, "")):
            name = f"follow {followed[0].plural}"
            threading.Thread(target=self._follow, args=followed, daemon=True, name=name).start()

    def close(self) -> None:
        """Stop following."""
        self._closing.set()

    def _follow(self, resource: Resource, labels: str, fields: str) -> None:
        while not self._closing.is_set():
            try:
                for objects in follow(self._cluster, resource, labels, fields, self._closing):
                    with self._lock:
                        if resource == POD:
                            self._pods = objects
                        else:  # a stage with a deleted ConfigMap goes on as it is
                            self._stage = objects.get(self._settings.stage, self._stage)
                        self._update()
            except Exception:  # the queue must keep discovering
                logger.exception("following %s failed; starting again", resource.plural)
                self._closing.wait(RESTART_SECONDS)

    def _update(self) -> None:
        if self._stage is None or self._pods is None:
            return
        desired = desired_endpoints(self._stage, self._pods, self._settings.port, self._serving)
        if desired is None:
            logger.warning("ConfigMap %s has %s; serving on as before", self._settings.stage, self._stage.get("data"))
        elif desired != self._serving:
            self._serving = desired
            self._configure(*desired)


def desired_endpoints(
    stage: Mapping[str, Any], pods: Mapping[str, Object], port: int, serving: tuple[int, list[ReplicaEndpoint]]
) -> tuple[int, list[ReplicaEndpoint]] | None:
    """Return batch size and replicas to serve with: the ready pods of the wanted variant.

    Args:
        stage: the ConfigMap.
        pods: of the task, by name.
        port: of the replicas.
        serving: batch size and replicas now. While no pod of the wanted variant is ready, those replicas go on that are
            still ready.

    Returns:
        None if the ConfigMap is malformed.
    """
    data = stage.get("data") or {}
    size = str(data.get(STAGE_BATCH_SIZE, ""))
    if not size.isdecimal() or int(size) < 1 or not data.get(STAGE_VARIANT):
        return None
    ready = {name: _endpoint(pod, port) for name, pod in sorted(pods.items()) if is_ready(pod)}
    wanted = [endpoint for endpoint in ready.values() if endpoint.variant == data[STAGE_VARIANT]]
    return int(size), wanted or [endpoint for endpoint in serving[1] if ready.get(endpoint.name) == endpoint]


def _endpoint(pod: Object, port: int) -> ReplicaEndpoint:
    variant = pod["metadata"]["labels"].get(VARIANT_LABEL, "")
    return ReplicaEndpoint(pod["metadata"]["name"], variant, f"{pod['status']['podIP']}:{port}")


class DiscoveringQueueRuntime(QueueRuntime):
    """A queue that follows the pods of its task and the ConfigMap of its stage.

    Parameters: those of :class:`QueueRuntime`, and ``discover``, the :class:`DiscoverySettings`.
    """

    async def load(self) -> bool:
        """Open the queue and start following the cluster."""
        await super().load()
        loop, settings = asyncio.get_running_loop(), DiscoverySettings(**self._parameters["discover"])
        self._discovery = Discovery(
            Cluster(settings.namespace),
            settings,
            lambda *desired: loop.call_soon_threadsafe(self._queue.configure, *desired),
        )
        return True

    @custom_handler(rest_path="/stage", rest_method="PUT")
    async def configure(self, desired: DesiredStage) -> dict[str, Any]:
        """Refuse: the ConfigMap alone says what the stage runs.

        Raises:
            MalformedRequestError: always.
        """
        stage = self._parameters["discover"]["stage"]
        raise MalformedRequestError(f"this queue follows ConfigMap {stage!r}; change that instead")
