"""The runtime of a stage: its queue, and the HTTP route that sets batch size and replicas live."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from mlserver.handlers import custom_handler
from mlserver.types import InferenceRequest, InferenceResponse
from pydantic import BaseModel, Field

from opd.serving.client import Client
from opd.serving.protocol import age_of, infer_response, payloads_of
from opd.serving.runtime import Runtime
from opd.serving.settings import StageSettings
from opd.serving.stage_queue import ReplicaEndpoint, StageQueue


class DesiredReplica(BaseModel):
    """A replica that the stage should use."""

    name: str = Field(min_length=1)
    variant: str = Field(min_length=1)
    address: str = Field(pattern=r"^[^\s:]+:\d{1,5}$")


class DesiredStage(BaseModel):
    """Desired state of a stage."""

    batch_size: int = Field(ge=1)
    replicas: list[DesiredReplica]


class QueueRuntime(Runtime):
    """One stage of the pipeline behind one endpoint.

    Parameters: ``pipeline``, ``task`` and ``settings``, those of :class:`StageSettings`.
    """

    async def load(self) -> bool:
        """Open the queue; its replicas are set by :meth:`configure`."""
        pipeline, task = self._parameters["pipeline"], self._parameters["task"]
        settings = StageSettings(**self._parameters.get("settings", {}))
        self._queue = StageQueue(pipeline, task, settings, partial(Client, model=task))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Queue the payloads and answer once all of them are served."""
        age = age_of(payload)
        requests = [self._queue.submit(element, age) for element in payloads_of(payload)]
        return infer_response(self.name, await asyncio.gather(*requests))

    @custom_handler(rest_path="/stage", rest_method="PUT")
    async def configure(self, desired: DesiredStage) -> dict[str, Any]:
        """Switch to these replicas and this batch size."""
        endpoints = [ReplicaEndpoint(replica.name, replica.variant, replica.address) for replica in desired.replicas]
        self._queue.configure(desired.batch_size, endpoints)
        return self._queue.status()

    @custom_handler(rest_path="/stage", rest_method="GET")
    async def status(self) -> dict[str, Any]:
        """Report the state of the stage."""
        return self._queue.status()
