"""The process of a gateway: its endpoints, from its start to the end of its last request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import start_http_server

from opd.serving.gateway.grpc_service import grpc_server
from opd.serving.gateway.http_service import GatewayHttp
from opd.serving.gateway.walk import Gateway
from opd.serving.settings import GatewaySettings
from opd.serving.starting import GRACE_SECONDS, stopped


async def serve(settings: GatewaySettings) -> None:
    """Serve until SIGTERM or SIGINT, which let running requests finish."""
    gateway = Gateway(settings)
    async with endpoints(gateway, settings):
        await stopped()


@asynccontextmanager
async def endpoints(gateway: Gateway, settings: GatewaySettings, follows: str = "") -> AsyncIterator[None]:
    """Open the endpoints of a gateway; after the block new requests are refused, and running ones finished.

    Args:
        gateway: answers.
        settings: where to listen.
        follows: see :class:`GatewayHttp`.

    Raises:
        OSError: if a port is taken.
    """
    metrics_server, _ = start_http_server(settings.metrics_port, settings.host)
    calls = grpc_server(gateway, f"{settings.host}:{settings.grpc_port}")
    runner = web.AppRunner(GatewayHttp(gateway, follows).application(), access_log=None, shutdown_timeout=GRACE_SECONDS)
    await runner.setup()
    try:
        await calls.start()
        await web.TCPSite(runner, settings.host, settings.http_port).start()
        yield
    finally:
        await asyncio.gather(calls.stop(GRACE_SECONDS), runner.cleanup())
        metrics_server.shutdown()
