"""Server processes of this machine: started, asked whether they are ready, stopped.

Children get a session of their own, so that Ctrl-C reaches only the controller, which drains before it stops them; and
a pipe as standard input, whose end tells them that the controller has crashed. Nothing runs between fork and exec
(``preexec_fn``), which in a process that uses gRPC kills children silently.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from opd.serving.server import ServerSettings
from opd.waiting import wait_until

HTTP_TIMEOUT = 2.0
"""Seconds one call to a server's HTTP endpoint may take."""

STOP_SECONDS = 8.0
"""A server has this long to end when it is told to stop, and what it serves is finished; then it is killed."""

# How the last line of a stack trace begins.
_EXCEPTION = re.compile(r"[\w.]+(Error|Exception|Interrupt|Exit)\b")


class StartError(RuntimeError):
    """A server did not start; the message ends with what it last wrote."""


def hold_port() -> socket.socket:
    """A socket whose port on the loopback interface is given to nobody as a free one while the socket is open.

    It does not listen, so that a server that is told the port can: between the choice of a port and the start of its
    server lie seconds.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder


def port_of(holder: socket.socket) -> int:
    """The port that a socket of :func:`hold_port` holds."""
    return int(holder.getsockname()[1])


def direct_session() -> requests.Session:
    """A session that heeds no proxy of the environment: those are not for the loopback interface."""
    session = requests.Session()
    session.trust_env = False
    return session


def _close(holders: Iterable[socket.socket]) -> None:
    for holder in holders:
        holder.close()


class ServerProcess:
    """One server.

    Args:
        name: of its files in ``folder``.
        settings: what it runs; its ports are chosen here.
        folder: for its settings and its log.
    """

    def __init__(self, name: str, settings: ServerSettings, folder: Path) -> None:
        holders = [hold_port() for _ in range(3)]  # for as long as it may be started again
        weakref.finalize(self, _close, holders)
        http, grpc, metrics = map(port_of, holders)
        self.name, self.folder = name, folder
        ports = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics}
        self.settings = settings.model_copy(update={**ports, "end_with_parent": True})
        self._log = folder / f"{name}.log"
        self._stop_by: float | None = None
        self._start()

    def _start(self) -> None:
        document = self.folder / f"{self.name}.json"
        document.write_text(self.settings.document)
        self.started = time.monotonic()
        with self._log.open("ab") as log:
            self._log_begin = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "opd.serving.server", str(document)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    @property
    def pid(self) -> int:
        """Process number."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def grpc_address(self) -> str:
        """``host:port`` for inference."""
        return f"{self.settings.host}:{self.settings.grpc_port}"

    @property
    def metrics_address(self) -> str:
        """``host:port`` of ``/metrics``."""
        return f"{self.settings.host}:{self.settings.metrics_port}"

    def http(self, method: str, path: str, body: Any = None) -> Any:
        """Call one of the server's routes.

        Returns:
            what it answers, from JSON.

        Raises:
            requests.RequestException: if it does not answer in time, or with an error.
        """
        url = f"http://{self.settings.host}:{self.settings.http_port}{path}"
        with direct_session() as session:
            answer = session.request(method, url, json=body, timeout=HTTP_TIMEOUT)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def ready(self) -> bool:
        """Whether its model is loaded."""
        return self._confirms(f"/v2/models/{self.settings.name}/ready")

    def live(self) -> bool:
        """Whether it has come up; a spare, which has no model, gets no further."""
        return self._confirms("/v2/health/live")

    def _confirms(self, path: str) -> bool:
        try:
            self.http("GET", path)
        except requests.RequestException:
            return False
        return True

    def last_words(self) -> str:
        """The last error it wrote to its log, or else its last line; servers before it wrote there too."""
        with self._log.open("rb") as log:
            log.seek(self._log_begin)
            lines = log.read().decode(errors="replace").strip().splitlines() or ["it wrote nothing"]
        return next((line for line in reversed(lines) if _EXCEPTION.match(line)), lines[-1])

    def stop(self, finish: float = 0.0) -> None:
        """Tell it to finish what it serves, for which it has ``finish`` seconds, and end; :meth:`ended` says when."""
        if self._stop_by is None:
            self._stop_by = time.monotonic() + finish + STOP_SECONDS
            self._process.terminate()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def ended(self) -> bool:
        """Whether it has ended; after :meth:`stop` it is killed when its time is over."""
        if self.alive and self._stop_by is not None and time.monotonic() > self._stop_by:
            self.kill()
            self._process.wait(HTTP_TIMEOUT)
        if self.alive:
            return False
        if self._process.stdin is not None:
            self._process.stdin.close()
        return True


def model_process(name: str, pipeline: str, task: str, variant: str | None, store: str, folder: Path) -> ServerProcess:
    """A replica of a variant, or with none a spare that takes one later; ``store`` is the URL of the model store."""
    parameters = {"pipeline": pipeline, "task": task, "variant": variant, "store": store}
    return ServerProcess(name, ServerSettings(kind="model", name=task, parameters=parameters), folder)


@contextmanager
def running(process: ServerProcess, seconds: float) -> Iterator[None]:
    """Wait until a server is ready, and end it after the block.

    Raises:
        StartError: if it ends, or is not ready after ``seconds``.
    """
    try:
        wait_until(lambda: process.ready() or not process.alive, seconds)
        if not process.ready():
            raise StartError(f"{process.name} is not ready after {seconds:g} s: {process.last_words()}")
        yield
    finally:
        process.stop()
        wait_until(process.ended, STOP_SECONDS + HTTP_TIMEOUT)
