"""The process of emulated replicas, seen from its controller: each replica looks like a server process of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from opd.pipeline import Pipeline, Task, Variant
from opd.serving.emulation.names import is_emulated
from opd.serving.emulation.settings import EmulationSettings, Failure, ReplicaSettings, replica_settings
from opd.serving.processes import START_SECONDS, ServerProcess, hold_port, running

logger = logging.getLogger(__name__)

STATES_SECONDS = 0.1
"""Age at which the known states of the replicas are asked for again."""

OPEN_SECONDS = 120.0
"""Time limit for the start of the process. It may be long, because a process that has failed is noticed at once."""

PROCESS = "emulated"
"""Name of the process and of its files."""


class EmulationHost:
    """Starts emulated replicas in one process, which is started again if it has ended.

    Args:
        folder: folder for the settings and the log of the process.
        noise: sigma of the lognormal factor on service times.
    """

    def __init__(self, folder: Path, noise: float) -> None:
        self.folder, self.noise = folder, noise
        self.process = self._new_process()
        self._states: dict[str, dict[str, Any]] = {}
        self._known_until = 0.0

    def _new_process(self) -> ServerProcess:
        return ServerProcess(PROCESS, EmulationSettings(name=PROCESS), self.folder)

    def replica(self, name: str, pipeline: str, task: Task, variant: Variant) -> HostedReplica:
        """Start a replica of a variant.

        Raises:
            RuntimeError: if the process refuses it.
        """
        if not self.process.alive:
            logger.warning(
                "the emulated replicas ended: %s; starting their process again", self.process.failure_reason()
            )
            self.process = self._new_process()
        return HostedReplica(self, name, pipeline, task, variant)

    def states(self) -> dict[str, dict[str, Any]]:
        """State of every replica by name; empty if the process has ended, as known before if it does not answer."""
        if not self.process.alive:
            self._states = {}
        elif time.monotonic() > self._known_until:
            try:
                self.call("GET", "/replicas")
            except requests.RequestException:  # it is still starting, or busy
                self._known_until = time.monotonic() + STATES_SECONDS
        return self._states

    def call(self, method: str, path: str, body: Any = None) -> None:
        """Call one of the routes of the process, which all answer with the states.

        Raises:
            requests.RequestException: if it does not answer in time, or answers with an error.
        """
        self._states = self.process.http(method, path, body)
        self._known_until = time.monotonic() + STATES_SECONDS


@contextmanager
def emulation_host(folder: Path, noise: float) -> Iterator[EmulationHost]:
    """Start the process of emulated replicas, and stop it after the block.

    Args:
        folder: for its settings and log.
        noise: sigma of the lognormal factor on service times.

    Raises:
        StartError: if it does not start.
    """
    host = EmulationHost(folder, noise)
    first = host.process
    with running(first, OPEN_SECONDS):
        try:
            yield host
        finally:
            if host.process is not first:
                host.process.kill()


@contextmanager
def emulation_of(pipeline: Pipeline, folder: Path, noise: float) -> Iterator[EmulationHost | None]:
    """Open :func:`emulation_host` if the pipeline is an emulated one; else give None."""
    if not is_emulated(pipeline.name):
        yield None
        return
    with emulation_host(folder, noise) as host:
        yield host


class HostedReplica:
    """An emulated replica with the interface of :class:`opd.serving.processes.ServerProcess`.

    Args:
        host: runs it.
        name: of the replica.
        pipeline: name of the pipeline, for the metrics.
        task: its task.
        variant: whose profile it takes the time of.

    Attributes:
        started: monotonic time at which it was started.
        was_ready: whether it has been ready since then; the owner sets it.

    Raises:
        RuntimeError: if the process refuses it.
    """

    def __init__(self, host: EmulationHost, name: str, pipeline: str, task: Task, variant: Variant) -> None:
        self.name, self._host, self._process = name, host, host.process
        port = hold_port(self)
        self.settings: ReplicaSettings = replica_settings(pipeline, task, variant, port, host.noise)
        self.started, self.was_ready = time.monotonic(), False
        self._opened = self._stopping = False
        self._open()

    def _open(self) -> None:
        """Ask the process for it, which may still be starting; :meth:`ready` asks again."""
        try:
            self._host.call("PUT", f"/replicas/{self.name}", self.settings.model_dump())
        except requests.HTTPError as error:
            reason = error if error.response is None else error.response.text
            raise RuntimeError(f"replica {self.name} was refused: {reason}") from error
        except requests.RequestException:
            return
        self._opened = True

    @property
    def pid(self) -> int:
        """Number of the process that it shares."""
        return self._process.pid

    @property
    def grpc_address(self) -> str:
        """``host:port`` for inference."""
        return f"{self._process.settings.host}:{self.settings.grpc_port}"

    @property
    def metrics_address(self) -> str:
        """``host:port`` of ``/metrics`` of the process that it shares."""
        return self._process.metrics_address

    @property
    def late(self) -> bool:
        """True if it has not been ready for longer than its start-up time and :data:`START_SECONDS`."""
        limit = self.settings.startup_seconds + START_SECONDS
        return not self.was_ready and time.monotonic() - self.started > limit

    @property
    def alive(self) -> bool:
        """True while it runs, or is about to."""
        if self._host.process is not self._process or not self._process.alive:
            return False
        return not self._opened or self.name in self._host.states()

    def ready(self) -> bool:
        """Check whether it has started up."""
        if not self._opened:
            self._opened = self.name in self._host.states()  # it was asked for, and the answer came too late
        if not self._opened:
            self._open()
        return bool(self._host.states().get(self.name, {}).get("ready"))

    def ended(self) -> bool:
        """Check whether it has ended."""
        return not self.alive

    def fail(self, kind: Failure) -> None:
        """Let it fail from now on.

        Raises:
            requests.RequestException: if the process does not answer, or does not have it.
        """
        self._host.call("PUT", f"/replicas/{self.name}/failure", {"kind": kind})

    def stop(self, drain_seconds: float = 0.0) -> None:
        """Ask it to end after its running requests; poll :meth:`ended` afterwards."""
        if not self._stopping and self.alive:
            self._stopping = True
            try:
                self._host.call("DELETE", f"/replicas/{self.name}")
            except requests.RequestException as error:
                logger.warning("emulated replica %s was not stopped: %s", self.name, error)

    def kill(self) -> None:
        """End it with its running requests."""
        try:
            self.fail("crash")
        except requests.RequestException as error:
            logger.warning("emulated replica %s was not killed: %s", self.name, error)

    def last_words(self) -> str:
        """Describe its state: it has no log of its own."""
        return f"emulated replica of {self.settings.variant!r}, start-up time {self.settings.startup_seconds:g} s"

    def failure_reason(self) -> str:
        """Describe its end."""
        if not self._process.alive:
            return f"the process of the emulated replicas ended: {self._process.failure_reason()}"
        return f"{self.last_words()}: it ended after {time.monotonic() - self.started:.1f} s"
