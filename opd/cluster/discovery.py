"""How a queue finds its replicas in a cluster: it follows the pods of its task and the ConfigMap of its stage.

Nobody needs to push anything to it, so it serves on while the controller is away, and while the API server is away
with what it knew last.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from opd.cluster.api import Cluster
from opd.cluster.manifests.pipeline import STAGE_BATCH_SIZE, STAGE_VARIANT
from opd.cluster.names import VARIANT_LABEL
from opd.cluster.pod_status import is_ready
from opd.cluster.resources import CONFIG_MAP, POD, Object, Resource
from opd.cluster.watching import follow
from opd.serving.stage_queue import ReplicaEndpoint

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 1.0
"""After something unexpected, until the cluster is looked at again."""


@dataclass(frozen=True)
class DiscoverySettings:
    """What a queue looks at.

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
        configure: is told the batch size and the places whenever they may have changed, by either thread.
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
        fields = f"metadata.name={settings.stage}"
        self._start(CONFIG_MAP, "", fields, self._see_stage)
        self._start(POD, settings.selector, "", self._see_pods)

    def close(self) -> None:
        """Follow no longer."""
        self._closing.set()

    def _start(self, resource: Resource, labels: str, fields: str, see: Callable[[dict[str, Object]], object]) -> None:
        def follow_resource() -> None:
            for objects in follow(self._cluster, resource, labels, fields, self._closing):
                with self._lock:
                    see(objects)
                    self._update()

        def follow_always() -> None:
            while not self._closing.is_set():
                try:
                    follow_resource()
                except Exception:  # whatever it was, the queue must not go blind for ever
                    logger.exception("following %s failed; beginning again", resource.plural)
                    self._closing.wait(AGAIN_SECONDS)

        threading.Thread(target=follow_always, daemon=True, name=f"follow {resource.plural}").start()

    def _see_stage(self, objects: dict[str, Object]) -> None:
        # Without its ConfigMap the stage goes on as it is.
        self._stage = objects.get(self._settings.stage, self._stage)

    def _see_pods(self, objects: dict[str, Object]) -> None:
        self._pods = objects

    def _update(self) -> None:
        if self._stage is None or self._pods is None:
            return
        chosen = choose(self._stage, self._pods, self._settings.port, self._serving)
        if chosen is None:
            logger.warning("ConfigMap %s has %s; serving on as before", self._settings.stage, self._stage.get("data"))
            return
        if chosen != self._serving:
            self._serving = chosen
            self._configure(*chosen)


def choose(
    stage: Mapping[str, Any], pods: Mapping[str, Object], port: int, serving: tuple[int, list[ReplicaEndpoint]]
) -> tuple[int, list[ReplicaEndpoint]] | None:
    """Batch size and places to serve with: the ready pods of the wanted variant.

    Args:
        stage: the ConfigMap.
        pods: of the task, by name.
        port: of the replicas.
        serving: what the queue serves with now. While no pod of the wanted variant is ready, those pods of it that are
            still ready go on.

    Returns:
        None if the ConfigMap is not to be understood.
    """
    data = stage.get("data") or {}
    size = str(data.get(STAGE_BATCH_SIZE, ""))
    if not size.isdecimal() or int(size) < 1 or not data.get(STAGE_VARIANT):
        return None
    ready = {
        name: ReplicaEndpoint(
            name, pod["metadata"]["labels"].get(VARIANT_LABEL, ""), f"{pod['status']['podIP']}:{port}"
        )
        for name, pod in sorted(pods.items())
        if is_ready(pod)
    }
    wanted = [place for place in ready.values() if place.variant == data[STAGE_VARIANT]]
    return int(size), wanted or [place for place in serving[1] if ready.get(place.name) == place]
