"""The gateway's HTTP endpoint: the Open Inference Protocol in JSON, health checks, and the state of the stages."""

from __future__ import annotations

import json

from aiohttp import web
from pydantic import BaseModel, Field

from opd import __version__
from opd.host.documents import DocumentError, as_model
from opd.serving.gateway.grpc_service import SERVER_NAME, unknown_model
from opd.serving.gateway.walk import Gateway
from opd.serving.http_errors import errors_as_json
from opd.serving.json_requests import JsonRequest, answer_document
from opd.serving.protocol import GRPC_MESSAGE_BYTES
from opd.serving.replicas import ReplicaEndpoint


class DesiredStage(BaseModel):
    """Desired state of a stage."""

    batch_size: int = Field(ge=1)
    replicas: list[ReplicaEndpoint]


class GatewayHttp:
    """Routes of a gateway.

    Args:
        gateway: answers.
        follows: what tells the gateway the state of its stages, which then cannot be set here; empty if it can.
    """

    def __init__(self, gateway: Gateway, follows: str = "") -> None:
        self._gateway, self._follows = gateway, follows

    def application(self) -> web.Application:
        """Return the application with all routes."""
        application = web.Application(client_max_size=GRPC_MESSAGE_BYTES, middlewares=[errors_as_json])
        application.router.add_get("/v2", self._server)
        application.router.add_get("/v2/health/live", _live)
        application.router.add_get("/v2/health/ready", self._ready)
        application.router.add_get("/v2/models/{model}", self._metadata)
        application.router.add_get("/v2/models/{model}/ready", self._ready)
        application.router.add_post("/v2/models/{model}/infer", self._infer)
        application.router.add_get("/stages/{task}", self._status)
        application.router.add_put("/stages/{task}", self._configure)
        return application

    async def _server(self, request: web.Request) -> web.Response:
        return web.json_response({"name": SERVER_NAME, "version": __version__, "extensions": []})

    async def _metadata(self, request: web.Request) -> web.Response:
        self._require_model(request)
        return web.json_response({"name": self._gateway.name, "platform": SERVER_NAME, "inputs": [], "outputs": []})

    async def _ready(self, request: web.Request) -> web.Response:
        if "model" in request.match_info:
            self._require_model(request)
        ready = self._gateway.ready
        return web.json_response({"name": self._gateway.name, "ready": ready}, status=200 if ready else 503)

    async def _infer(self, request: web.Request) -> web.Response:
        self._require_model(request)
        try:
            content = json.loads(await request.read())
        except (ValueError, RecursionError) as error:
            raise DocumentError(f"the request is not JSON: {error}") from error
        asked = as_model(JsonRequest, content, "the request")
        return web.json_response(answer_document(await self._gateway.infer(asked.message())))

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(self._gateway.status(self._task(request)))

    async def _configure(self, request: web.Request) -> web.Response:
        task = self._task(request)
        if self._follows:
            raise web.HTTPConflict(text=f"this gateway follows {self._follows}; change that instead")
        desired = DesiredStage.model_validate_json(await request.read())
        self._gateway.configure(task, desired.batch_size, desired.replicas)
        return web.json_response(self._gateway.status(task))

    def _require_model(self, request: web.Request) -> None:
        model = request.match_info["model"]
        if model != self._gateway.name:
            raise web.HTTPNotFound(text=unknown_model(model, self._gateway))

    def _task(self, request: web.Request) -> str:
        task = request.match_info["task"]
        if task not in self._gateway.tasks:
            raise web.HTTPNotFound(text=f"there is no stage {task!r}; the stages are {', '.join(self._gateway.tasks)}")
        return task


async def _live(request: web.Request) -> web.Response:
    return web.json_response({"live": True})
