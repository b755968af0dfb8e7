"""The process of emulated replicas: it opens, closes and breaks them by HTTP, and exports their metrics."""

from __future__ import annotations

import asyncio
import logging
import selectors
from typing import Any

from aiohttp import web
from prometheus_client import start_http_server
from pydantic import BaseModel

from opd.serving.emulation.replica import EmulatedReplica
from opd.serving.emulation.settings import EmulationSettings, Failure, ReplicaSettings
from opd.serving.http_errors import errors_as_json
from opd.serving.starting import GRACE_SECONDS, stopped

logger = logging.getLogger(__name__)

MAX_REPLICAS = 200
"""Replicas of one process; its event loop waits with ``select``, which takes 1024 descriptors at most."""


class DesiredFailure(BaseModel):
    """The failure that a replica should show."""

    kind: Failure


def precise_event_loop() -> asyncio.AbstractEventLoop:
    """Make an event loop that wakes up within a fraction of a millisecond; epoll and uvloop count in whole ones."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


class EmulatedReplicas:
    """The emulated replicas of one process, by name.

    Args:
        host: address to listen on.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._replicas: dict[str, EmulatedReplica] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def open(self, name: str, settings: ReplicaSettings) -> None:
        """Start a replica.

        Raises:
            ValueError: if there are too many, or one of this name.
            RuntimeError: if its port is taken.
        """
        if name in self._replicas:
            raise ValueError(f"there is a replica {name!r} already; choose another name")
        if len(self._replicas) >= MAX_REPLICAS:
            raise ValueError(f"{MAX_REPLICAS} replicas are emulated, the limit of one process; start another process")
        replica = EmulatedReplica(settings, self._host)
        await replica.start()
        self._replicas[name] = replica
        logger.info("replica %s emulates %s/%s", name, settings.task, settings.variant)

    def close(self, name: str, grace: float | None) -> None:
        """Begin to stop a replica, see :meth:`EmulatedReplica.stop`; it stays listed until it has ended."""

        async def stop() -> None:
            await self._replicas[name].stop(grace)
            self._replicas.pop(name, None)

        task = asyncio.get_running_loop().create_task(stop())
        self._closing.add(task)  # the event loop keeps only a weak reference
        task.add_done_callback(self._closing.discard)

    async def close_all(self) -> None:
        """Stop all replicas once their running requests are answered."""
        await asyncio.gather(*(replica.stop(GRACE_SECONDS) for replica in self._replicas.values()))

    def fail(self, name: str, failure: Failure) -> None:
        """Let a replica fail from now on."""
        self._replicas[name].failure = failure
        if failure == "crash":
            self.close(name, None)

    def states(self) -> dict[str, dict[str, Any]]:
        """State of every replica: what it emulates, whether it is ready, and how it fails."""
        return {
            name: {"task": each.settings.task, "variant": each.settings.variant, "emulated": True}
            | {"ready": each.ready, "failure": each.failure}
            for name, each in self._replicas.items()
        }

    # ----------------------------------------------------------------------------------------------- HTTP routes

    def application(self) -> web.Application:
        """Return the application with all routes."""
        application = web.Application(middlewares=[errors_as_json])
        application.router.add_get("/v2/health/live", self._live)
        application.router.add_get("/v2/models/{model}/ready", self._ready)
        application.router.add_get("/replicas", self._states)
        application.router.add_put("/replicas/{name}", self._open)
        application.router.add_delete("/replicas/{name}", self._close)
        application.router.add_put("/replicas/{name}/failure", self._fail)
        return application

    async def _live(self, request: web.Request) -> web.Response:
        return web.json_response({"live": True, "emulated": True})

    async def _ready(self, request: web.Request) -> web.Response:
        """Tell whether the replicas of a model are ready; a process without replicas is ready for its own name."""
        model = request.match_info["model"]
        ready = all(each.ready for each in self._replicas.values() if each.settings.task == model)
        return web.json_response({"name": model, "ready": ready}, status=200 if ready else 503)

    async def _states(self, request: web.Request) -> web.Response:
        return web.json_response(self.states())

    async def _open(self, request: web.Request) -> web.Response:
        settings = ReplicaSettings.model_validate_json(await request.read())
        try:
            await self.open(request.match_info["name"], settings)
        except (ValueError, RuntimeError) as error:
            raise web.HTTPConflict(text=str(error)) from error
        return web.json_response(self.states())

    async def _close(self, request: web.Request) -> web.Response:
        self.close(self._known(request), GRACE_SECONDS)
        return web.json_response(self.states())

    async def _fail(self, request: web.Request) -> web.Response:
        desired = DesiredFailure.model_validate_json(await request.read())
        self.fail(self._known(request), desired.kind)
        return web.json_response(self.states())

    def _known(self, request: web.Request) -> str:
        name = request.match_info["name"]
        if name not in self._replicas:
            raise web.HTTPNotFound(
                text=f"there is no replica {name!r}; there are {', '.join(self._replicas) or 'none'}"
            )
        return name


async def serve(settings: EmulationSettings) -> None:
    """Serve until SIGTERM or SIGINT, which let running requests finish."""
    ended = asyncio.create_task(stopped())  # from the start, so that a signal ends it properly before it serves, too
    replicas = EmulatedReplicas(settings.host)
    metrics_server, _ = start_http_server(settings.metrics_port, settings.host)
    runner = web.AppRunner(replicas.application(), access_log=None)
    await runner.setup()
    try:
        for name, each in settings.replicas.items():
            await replicas.open(name, each)
        await web.TCPSite(runner, settings.host, settings.http_port).start()
        await ended
        await replicas.close_all()
    finally:
        await runner.cleanup()
        metrics_server.shutdown()
