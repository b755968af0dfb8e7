"""The Service of a deployed pipeline: connections go to its gateways, as a cluster's proxy lets them."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from itertools import count

from emulator.api_server import ApiServer
from emulator.pods import is_ready


class Service:
    """A local address; each connection goes to the next gateway that is ready, and stays with it.

    If there are only gateways that end, it goes to one of them, as in Kubernetes since 1.26; without any it is refused.
    Connections that exist go on, whatever becomes of the pod in the eyes of the cluster.

    Args:
        api: where the pods are.
        port: of the gateways.

    Attributes:
        address: ``host:port``.
    """

    def __init__(self, api: ApiServer, port: int) -> None:
        self._api, self._port, self._turn = api, port, count()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True, name="service").start()

    def close(self) -> None:
        """Accept no more connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()

    def endpoints(self) -> list[str]:
        """Addresses of the gateways that get new connections."""
        pods = self._api.all("pods", app_kubernetes_io__component="gateway")
        ready = [pod for pod in pods if is_ready(pod)]
        lasting = [pod for pod in ready if not pod["metadata"].get("deletionTimestamp")]
        return [pod["status"]["podIP"] for pod in lasting or ready]

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(connection,), daemon=True).start()

    def _carry(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            if found := self.endpoints():
                target = found[next(self._turn) % len(found)], self._port
                with socket.create_connection(target, timeout=5) as remote:
                    remote.settimeout(None)
                    back = threading.Thread(target=pump, args=(remote, connection), daemon=True)
                    back.start()
                    pump(connection, remote)
                    back.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    """Forward bytes until one side ends, then end the other."""
    with suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
