"""Tell whether the server of this container is alive: ``python -m opd.host.health``, the health check of the image.

Kubernetes asks by probes of its own; Docker and Podman run this. One image has several servers, so it asks for the
paths of all: those of gateways and replicas, and that of the controller.
"""

from __future__ import annotations

import sys
from http.client import HTTPConnection, HTTPException

PATHS = ("/v2/health/live", "/healthz")
PORT = 8080
SECONDS = 3.0
"""Time limit of an answer."""


def alive(port: int = PORT) -> bool:
    """Tell whether a server on the loopback address answers one of :data:`PATHS` with status 200."""
    return any(_status(port, path) == 200 for path in PATHS)


def _status(port: int, path: str) -> int:
    """Status of the answer; 0 if there is none."""
    connection = HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, HTTPException):
        return 0
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if alive(*map(int, sys.argv[1:2])) else 1)
