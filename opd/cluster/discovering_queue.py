"""The runtime of a stage in a cluster: a queue that discovers its replicas itself."""

from __future__ import annotations

import asyncio
from typing import Any

from mlserver.handlers import custom_handler

from opd.cluster.api import Cluster
from opd.cluster.discovery import Discovery, DiscoverySettings
from opd.serving.protocol import MalformedRequestError
from opd.serving.runtimes import DesiredStage, QueueRuntime
from opd.serving.stage_queue import ReplicaEndpoint


class DiscoveringQueueRuntime(QueueRuntime):
    """A queue that follows the pods of its task and the ConfigMap of its stage.

    Parameters: those of :class:`QueueRuntime`, and ``discover``, the :class:`DiscoverySettings`.
    """

    async def load(self) -> bool:
        """Open the queue and start following the cluster."""
        await super().load()
        loop = asyncio.get_running_loop()
        settings = DiscoverySettings(**self._parameters["discover"])

        def configure(batch_size: int, endpoints: list[ReplicaEndpoint]) -> None:
            loop.call_soon_threadsafe(self._queue.configure, batch_size, endpoints)

        self._discovery = Discovery(Cluster(settings.namespace), settings, configure)
        return True

    @custom_handler(rest_path="/stage", rest_method="PUT")
    async def configure(self, desired: DesiredStage) -> dict[str, Any]:
        """Refuse: the ConfigMap alone says what the stage runs.

        Raises:
            MalformedRequestError: always.
        """
        stage = self._parameters["discover"]["stage"]
        raise MalformedRequestError(f"this queue follows ConfigMap {stage!r}; change that instead")
