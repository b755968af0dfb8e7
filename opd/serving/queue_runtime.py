"""The runtime of a stage: its queue, and the route by which a controller sets batch size and replicas live."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from mlserver import MLModel
from mlserver.handlers import custom_handler
from mlserver.settings import ModelSettings
from mlserver.types import InferenceRequest, InferenceResponse
from pydantic import BaseModel, Field

from opd.serving.client import Client
from opd.serving.protocol import MalformedRequestError, age_of, infer_response, payloads_of
from opd.serving.stage_queue import Place, StageQueue, StageSettings

if TYPE_CHECKING:
    from opd.cluster.discovery import Discovery


class WantedReplica(BaseModel):
    """Where a replica is."""

    name: str = Field(min_length=1)
    variant: str = Field(min_length=1)
    address: str = Field(pattern=r"^[^\s:]+:\d{1,5}$")


class WantedStage(BaseModel):
    """What a stage is to run."""

    batch_size: int = Field(ge=1)
    replicas: list[WantedReplica]


class QueueRuntime(MLModel):
    """One stage of the pipeline behind one endpoint.

    Parameters of the model settings: ``pipeline``, ``task`` and ``settings`` of :class:`StageSettings`; in a cluster
    ``discover``, the :class:`opd.cluster.discovery.DiscoverySettings` by which the queue finds its replicas itself.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self._parameters: dict[str, Any] = dict(settings.parameters.extra or {})  # type: ignore[union-attr]

    async def load(self) -> bool:
        """Open the queue; replicas come by :meth:`configure`, or are found in the cluster."""
        pipeline, task = self._parameters["pipeline"], self._parameters["task"]
        settings = StageSettings(**self._parameters.get("settings", {}))
        self._queue = StageQueue(pipeline, task, settings, partial(Client, model=task))
        if "discover" in self._parameters:
            self._discovery = self._discover(self._parameters["discover"])
        return True

    def _discover(self, parameters: dict[str, Any]) -> Discovery:
        from opd.cluster.api import Cluster
        from opd.cluster.discovery import Discovery, DiscoverySettings

        loop = asyncio.get_running_loop()
        settings = DiscoverySettings(**parameters)

        def configure(batch_size: int, places: list[Place]) -> None:
            loop.call_soon_threadsafe(self._queue.configure, batch_size, places)

        return Discovery(Cluster(settings.namespace), settings, configure)

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Queue the payloads and answer when they are served."""
        age = age_of(payload)
        requests = [self._queue.submit(element, age) for element in payloads_of(payload)]
        return infer_response(self.name, await asyncio.gather(*requests))

    @custom_handler(rest_path="/stage", rest_method="PUT")
    async def configure(self, wanted: WantedStage) -> dict[str, Any]:
        """Serve with these replicas and this batch size from now on.

        Raises:
            MalformedRequestError: if the queue finds its replicas itself.
        """
        if "discover" in self._parameters:
            stage = self._parameters["discover"]["stage"]
            raise MalformedRequestError(f"this queue follows ConfigMap {stage!r}; change that instead")
        places = [Place(replica.name, replica.variant, replica.address) for replica in wanted.replicas]
        self._queue.configure(wanted.batch_size, places)
        return self._queue.status()

    @custom_handler(rest_path="/stage", rest_method="GET")
    async def status(self) -> dict[str, Any]:
        """What the stage runs."""
        return self._queue.status()
