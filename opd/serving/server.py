"""The process of a replica, a stage queue or a router: MLServer with one model, configured by one JSON document.

``python -m opd.serving.server FILE`` serves until it is told to stop. One process per replica and no parallel workers:
the operating system, or the cluster, is the process manager.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RUNTIMES = {
    "model": "opd.serving.model_runtime.ModelRuntime",
    "queue": "opd.serving.queue_runtime.QueueRuntime",
    "router": "opd.serving.router_runtime.RouterRuntime",
}


@dataclass(frozen=True)
class ServerSettings:
    """What one server process runs.

    Attributes:
        kind: ``model``, ``queue`` or ``router``.
        name: of the model it serves: the task, or for a router the pipeline.
        parameters: of the runtime.
        host: address to listen on.
        http_port: for health, the runtime's own routes and REST inference.
        grpc_port: for inference.
        metrics_port: for ``/metrics``.
        end_with_parent: stop when standard input ends, which it does when the process that started this one has gone.
    """

    kind: str
    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    host: str = "127.0.0.1"
    http_port: int = 8080
    grpc_port: int = 8081
    metrics_port: int = 8082
    end_with_parent: bool = False

    def __post_init__(self) -> None:
        if self.kind not in RUNTIMES:
            raise ValueError(f"kind {self.kind!r} is not one of {', '.join(RUNTIMES)}")

    def write(self, path: Path) -> Path:
        """Write the document that :func:`main` reads."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")
        return path


def end_with_parent() -> None:
    """End this process when its standard input does: at once, for nobody is left to drain for."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os._exit(0)

    threading.Thread(target=watch, daemon=True, name="parent").start()


async def serve(settings: ServerSettings) -> None:
    """Serve until SIGTERM, when requests that run are finished first, or until the model turns out not to load."""
    from mlserver.settings import ModelParameters, ModelSettings, Settings
    from prometheus_client import start_http_server

    from opd.serving.finishing_server import FinishingServer
    from opd.serving.protocol import MAX_MESSAGE_BYTES

    server_settings = Settings(
        debug=False,
        parallel_workers=0,
        host=settings.host,
        http_port=settings.http_port,
        grpc_port=settings.grpc_port,
        grpc_max_message_length=MAX_MESSAGE_BYTES,
        metrics_endpoint=None,
        gzip_enabled=False,
    )
    # Otherwise two servers could listen on one port and each get some of the requests.
    server_settings._custom_grpc_server_settings = {"grpc.so_reuseport": 0}
    model = ModelSettings(
        name=settings.name,
        implementation=RUNTIMES[settings.kind],
        parameters=ModelParameters(extra=settings.parameters),
    )
    metrics_server, _ = start_http_server(settings.metrics_port, settings.host)
    server = FinishingServer(server_settings)
    try:
        await server.start([model])
    finally:
        metrics_server.shutdown()


def main() -> int:
    """Run the server that the file named on the command line describes."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    settings = ServerSettings(**json.loads(Path(sys.argv[1]).read_text()))
    if settings.end_with_parent:
        end_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    # MLServer writes a stack trace for every request that gets an error, a refused one included.
    logging.getLogger("mlserver.grpc").setLevel(logging.CRITICAL)
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
