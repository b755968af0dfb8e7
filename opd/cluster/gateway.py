"""The process of a gateway in a pod: ``python -m opd.cluster.gateway FILE`` serves until it is stopped.

It finds its replicas itself (:mod:`opd.cluster.discovery`), and is ready once it has.
"""

from __future__ import annotations

import asyncio
import os

from opd.cluster.api import Cluster
from opd.cluster.discovery import Discovery, StageState
from opd.cluster.gateway_settings import POD_NAME_VARIABLE, ClusterGatewaySettings
from opd.serving.gateway.server import endpoints
from opd.serving.gateway.walk import Gateway
from opd.serving.starting import run_server, stopped


async def serve(settings: ClusterGatewaySettings) -> None:
    """Serve until SIGTERM or SIGINT, which let running requests finish."""
    gateway, loop = Gateway(settings), asyncio.get_running_loop()
    gateway.ready = False

    def adopt(stages: dict[str, StageState]) -> None:
        for task, (batch_size, replicas) in stages.items():
            gateway.configure(task, batch_size, replicas)
        gateway.ready = True

    discovery = Discovery(
        Cluster(settings.namespace),
        settings.name,
        gateway.tasks,
        settings.replica_port,
        os.environ[POD_NAME_VARIABLE],
        lambda stages: loop.call_soon_threadsafe(adopt, stages),
    )
    try:
        async with endpoints(gateway, settings, follows="the ConfigMap of each stage"):
            await stopped()
    finally:
        discovery.close()


if __name__ == "__main__":
    run_server(ClusterGatewaySettings, serve)
