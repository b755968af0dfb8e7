"""The process of a replica: MLServer with one model, configured by one JSON document.

``python -m opd.serving.server FILE`` serves until it is stopped. There is one process per replica and no parallel
workers: the operating system, or the cluster, is the process manager.
"""

from __future__ import annotations

import logging

from mlserver import MLServer
from mlserver.settings import ModelParameters, ModelSettings, Settings
from prometheus_client import start_http_server

from opd.serving.message_server import MessageServer
from opd.serving.protocol import GRPC_MESSAGE_BYTES, SERVER_OPTIONS
from opd.serving.settings import ServerSettings
from opd.serving.starting import GRACE_SECONDS, run_server


class DrainingServer(MLServer):
    """MLServer that answers every running call before it stops, however long that takes.

    Attributes:
        failed: whether it stopped because its model did not load.
    """

    failed = False

    def _create_servers(self) -> None:
        super()._create_servers()
        self._grpc_server = MessageServer(self._settings, self._data_plane, self._model_repository_handlers)

    async def stop(self, sig: int | None = None) -> None:
        """Refuse new calls, finish those that are running, then stop."""
        self.failed = self.failed or sig is None  # MLServer stops without a signal only when loading failed
        # MLServer cancels running gRPC calls after five seconds; by the time it stops gRPC, none is left.
        await self._grpc_server._server.stop(GRACE_SECONDS)
        await super().stop(sig)


async def serve(settings: ServerSettings) -> None:
    """Serve until SIGTERM, which lets running requests finish.

    Raises:
        SystemExit: with code 1 if the model fails to load, so whoever started this process knows that it failed.
    """
    server_settings = Settings(
        debug=False,
        parallel_workers=0,
        host=settings.host,
        http_port=settings.http_port,
        grpc_port=settings.grpc_port,
        grpc_max_message_length=GRPC_MESSAGE_BYTES,
        metrics_endpoint=None,
        gzip_enabled=False,
    )
    server_settings._custom_grpc_server_settings = dict(SERVER_OPTIONS)
    model = ModelSettings(
        name=settings.name,
        implementation=settings.runtime,
        parameters=ModelParameters(extra=settings.parameters),
    )
    metrics_server, _ = start_http_server(settings.metrics_port, settings.host)
    server = DrainingServer(server_settings)
    try:
        await server.start([model])
    finally:
        metrics_server.shutdown()
    if server.failed:
        raise SystemExit(1)


if __name__ == "__main__":
    # MLServer logs a stack trace for every request that fails, including those that are refused.
    logging.getLogger("mlserver.grpc").setLevel(logging.CRITICAL)
    run_server(ServerSettings, serve)
