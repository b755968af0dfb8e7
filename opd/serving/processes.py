"""Server processes of this machine.

Every child has a session of its own, so that Ctrl-C reaches only the controller, which drains before it stops the
children. Its standard input is a pipe that closes if the controller crashes, upon which it ends. Nothing runs between
fork and exec (``preexec_fn``): in a process that uses gRPC, that kills children silently.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import requests

from opd.host.waiting import wait_until
from opd.serving.settings import ProcessSettings, ServerSettings

START_SECONDS = 30.0
"""A server that is not ready after this time has failed to start."""

STOP_SECONDS = 8.0
"""Seconds a server has to end after it has finished its requests; then it is killed."""

REPLICA_NICENESS = 5
"""Replicas yield to the gateway: a request that waits for the gateway to run holds up a replica that could serve it."""

KILL_SECONDS = 2.0
"""Seconds a killed server has to end."""

HTTP_TIMEOUT = 2.0
"""Seconds one HTTP call to a server of this machine may take."""

# Beginning of the last line of a stack trace.
_EXCEPTION = re.compile(r"[\w.]+(Error|Exception|Interrupt|Exit)\b")


class StartError(RuntimeError):
    """A server did not start; the message ends with its last words."""


def hold_port(owner: object) -> int:
    """Reserve a free port until ``owner`` is gone; a server can listen on it at any time, and again after a restart."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))  # without listening, which is left to the server
    weakref.finalize(owner, holder.close)
    return int(holder.getsockname()[1])


def direct_session() -> requests.Session:
    """HTTP session that ignores the environment's proxies, which are not meant for the loopback interface."""
    session = requests.Session()
    session.trust_env = False
    return session


def responds(url: str) -> bool:
    """Check whether a GET of ``url`` succeeds within :data:`HTTP_TIMEOUT`."""
    with direct_session() as session:
        try:
            return session.get(url, timeout=HTTP_TIMEOUT).ok
        except requests.RequestException:
            return False


def last_words(log: Path, begin: int = 0) -> str:
    """Return :func:`last_error` of a log from byte ``begin`` on."""
    return last_error(log.read_bytes()[begin:].decode(errors="replace"))


def last_error(text: str) -> str:
    """Return the last line of a text that begins with the name of an exception, or else its last line.

    Names of our own exceptions are left out: their messages need none.
    """
    lines = text.strip().splitlines() or ["it wrote nothing"]
    found = next((line for line in reversed(lines) if _EXCEPTION.match(line)), lines[-1])
    return re.sub(r"^opd\.[\w.]+: ", "", found)


def describe_exit(code: int) -> str:
    """Name an exit code, or the signal that a negative one stands for."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


class ServerProcess:
    """One server process.

    Args:
        name: name of its files in ``folder``.
        settings: what it runs; its ports are chosen here.
        folder: folder for its settings and its log.
        threads: threads that numerical libraries of the process use by default.
        niceness: by how much it yields to this process and its other children where cores are few.
        project: folder that it works in, where it looks for modules of users; by default that of this process.

    Attributes:
        started: monotonic time at which it was started.
        was_ready: whether it has been ready since then; the owner sets it.
    """

    def __init__(
        self,
        name: str,
        settings: ProcessSettings,
        folder: Path,
        threads: int = 1,
        niceness: int = 0,
        project: Path | None = None,
    ) -> None:
        ports = {name: hold_port(self) for name in ("http_port", "grpc_port", "metrics_port")}
        self.name, self.folder, self._project = name, folder.resolve(), project
        self._threads, self._niceness = threads, niceness
        self.settings = settings.model_copy(update={**ports, "end_with_parent": True})
        self._log = self.folder / f"{name}.log"
        self._stop_by: float | None = None
        self._start()

    def _start(self) -> None:
        document = self.folder / f"{self.name}.json"
        document.write_text(self.settings.document)
        self.started, self.was_ready = time.monotonic(), False
        with self._log.open("ab") as log:
            self._log_begin = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.settings.module, str(document)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self._project,
                env={**os.environ, "OMP_NUM_THREADS": str(self._threads)},
            )
        os.setpriority(os.PRIO_PROCESS, self.pid, os.getpriority(os.PRIO_PROCESS, 0) + self._niceness)

    @property
    def pid(self) -> int:
        """Process number."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """True while the process is running."""
        return self._process.poll() is None

    @property
    def grpc_address(self) -> str:
        """``host:port`` for inference."""
        return f"{self.settings.host}:{self.settings.grpc_port}"

    @property
    def metrics_address(self) -> str:
        """``host:port`` of ``/metrics``."""
        return f"{self.settings.host}:{self.settings.metrics_port}"

    def _url(self, path: str) -> str:
        return f"http://{self.settings.host}:{self.settings.http_port}{path}"

    def http(self, method: str, path: str, body: Any = None) -> Any:
        """Call one of the server's HTTP routes.

        Returns:
            its answer, parsed from JSON.

        Raises:
            requests.RequestException: if it does not answer in time, or answers with an error.
        """
        with direct_session() as session:
            answer = session.request(method, self._url(path), json=body, timeout=HTTP_TIMEOUT)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def ready(self) -> bool:
        """Check whether its model is loaded."""
        return responds(self._url(f"/v2/models/{self.settings.name}/ready"))

    def live(self) -> bool:
        """Check whether it is up, with or without a model."""
        return responds(self._url("/v2/health/live"))

    def last_words(self) -> str:
        """Return :func:`last_words` of the running process; earlier ones wrote to the same log."""
        return last_words(self._log, self._log_begin)

    @property
    def late(self) -> bool:
        """True if it has not been ready for longer than :data:`START_SECONDS`."""
        return not self.was_ready and time.monotonic() - self.started > START_SECONDS

    def failure_reason(self) -> str:
        """Describe its end: its last words, its exit code or signal, and its age; the limit if it was late."""
        words, code = self.last_words(), self._process.poll()
        if self.late:
            return f"not ready after {START_SECONDS:g} s; {words}"
        age = time.monotonic() - self.started
        return f"{words} ({describe_exit(code)} after {age:.1f} s)" if code is not None else words

    def stop(self, drain_seconds: float = 0.0) -> None:
        """Ask it to end after its running requests, which have ``drain_seconds``; poll :meth:`ended` afterwards."""
        if self._stop_by is None:
            self._stop_by = time.monotonic() + drain_seconds + STOP_SECONDS
            self._process.terminate()

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()

    def ended(self) -> bool:
        """Check whether it has ended; kills it once the time given by :meth:`stop` is over."""
        if self.alive and self._stop_by is not None and time.monotonic() > self._stop_by:
            self.kill()
            self._process.wait(KILL_SECONDS)
        if self.alive:
            return False
        if self._process.stdin is not None:
            self._process.stdin.close()
        return True


def model_process(
    name: str, pipeline: str, task: str, variant: str | None, store: str, folder: Path, cores: int = 1
) -> ServerProcess:
    """Start a replica.

    Args:
        name: name of its files in ``folder``.
        pipeline: name of the pipeline, for the metrics.
        task: name of the task in the store.
        variant: name of the variant in the store; None starts a standby.
        store: URL of the model store.
        folder: folder for its settings and its log.
        cores: threads of the model; a standby gets them with its variant.
    """
    parameters = {"pipeline": pipeline, "task": task, "variant": variant, "store": store}
    return ServerProcess(name, ServerSettings(name=task, parameters=parameters), folder, cores, REPLICA_NICENESS)


class Stoppable(Protocol):
    """What is asked to end, and then watched until it has; for example a :class:`ServerProcess`."""

    def stop(self, drain_seconds: float = 0.0) -> None:
        """Ask it to end after its running requests."""

    def ended(self) -> bool:
        """Check whether it has ended."""


def stop_all(processes: Iterable[Stoppable], drain_seconds: float = 0.0) -> None:
    """Stop servers after their running requests, which have ``drain_seconds``; returns when all have ended."""
    stopping = list(processes)
    for process in stopping:
        process.stop(drain_seconds)
    wait_until(lambda: all(process.ended() for process in stopping), drain_seconds + STOP_SECONDS + KILL_SECONDS)


@contextmanager
def running(process: ServerProcess, seconds: float) -> Iterator[None]:
    """Wait until a server is ready, and stop it after the block.

    Raises:
        StartError: at once if it ends; if it is not ready after ``seconds``.
    """
    try:
        ready = wait_until(lambda: not process.alive or process.ready(), seconds)
        if not process.alive:
            raise StartError(f"{process.name} ended before it was ready: {process.failure_reason()}")
        if not ready:
            raise StartError(f"{process.name} is not ready after {seconds:g} s: {process.last_words()}")
        yield
    finally:
        stop_all([process])
