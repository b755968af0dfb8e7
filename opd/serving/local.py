"""The processes of this machine as a backend of the control loop: one process per replica.

.. code-block:: python

    with LocalBackend(pipeline, parameters, configuration, folder) as backend:
        for step in run(backend, pipeline, policy, forecast, weights, decisions=18, interval_seconds=10): ...
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO

from opd.control.loop import ApplyError
from opd.pipeline import Configuration, Pipeline, check_feasible
from opd.serving.local_stage import LocalStage
from opd.serving.monitoring import Monitor, open_monitor
from opd.serving.processes import STOP_SECONDS, ServerProcess, StartError
from opd.serving.server import ServerSettings
from opd.serving.stage_queue import StageSettings
from opd.serving.store import store_url
from opd.serving.supervised_server import SupervisedServer
from opd.serving.telemetry_backend import TelemetryBackend
from opd.simulator.parameters import SimulationParameters
from opd.waiting import wait_until

logger = logging.getLogger(__name__)

TEND_SECONDS = 0.1
"""Between two looks at the processes."""


class AlreadyControlledError(RuntimeError):
    """Another controller runs the pipeline already."""


class LocalBackend(TelemetryBackend):
    """A pipeline of real processes on the loopback interface.

    Args:
        pipeline: what runs; its variants are in the model store.
        parameters: interval, batch timeout and drop age, as for the simulator.
        configuration: what runs first.
        folder: for settings, logs and metrics of this run; one controller at a time.
        store: URL of the model store, the default one if not given.
        monitor: source of metrics; by default what :func:`opd.serving.monitoring.open_monitor` finds.
        spares: processes a stage keeps warm.
        max_queue: requests that may wait at a stage.
        apply_seconds: a change that is not done after this long is taken back.

    Raises:
        AlreadyControlledError: if another controller uses ``folder``.
        InfeasibleError: if the configuration breaks a limit.
        StartError: if the pipeline does not come up in ``apply_seconds``; nothing is left running.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        parameters: SimulationParameters,
        configuration: Configuration,
        folder: Path,
        store: str | None = None,
        monitor: Monitor | None = None,
        spares: int = 0,
        max_queue: int = 1000,
        apply_seconds: float = 60.0,
    ) -> None:
        check_feasible(pipeline, configuration)
        settings = StageSettings(
            batch_timeout=parameters.batch_timeout, drop_after=parameters.drop_after, max_queue=max_queue
        )
        url = store if store is not None else store_url()
        self._apply_seconds = apply_seconds
        self._request_seconds = settings.request_seconds
        self._targets: dict[str, str] = {}
        self._changed = threading.Condition()
        self.stages: list[LocalStage] = []
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as acquired:
            acquired.enter_context(_lock(folder, pipeline.name))
            source = monitor if monitor is not None else open_monitor(folder / "monitor")
            acquired.callback(source.close)
            super().__init__(pipeline, configuration, source, parameters.interval)
            acquired.callback(self._end_processes)
            for task, stage in zip(pipeline.tasks, configuration, strict=True):
                self.stages.append(LocalStage(pipeline.name, task, settings, url, folder, stage, spares, self._closing))
            self.router = self._start_router(settings, folder)
            self._keeper = threading.Thread(target=self._keep, daemon=True, name="keeper")
            self._keeper.start()
            try:
                self._reach(configuration)
            except ApplyError as error:
                raise StartError(str(error)) from error
            self._telemetry.wait(apply_seconds)
            self._acquired = acquired.pop_all()

    @property
    def address(self) -> str:
        """``host:port`` to which requests are sent, for the model named like the pipeline."""
        return self.router.grpc_address

    def apply(self, configuration: Configuration) -> None:
        """Run ``configuration``: returns when it serves; what it replaces finishes its work in the background.

        Raises:
            ApplyError: if it could not be reached; then the previous configuration goes on.
        """
        if configuration == self.configuration:
            return
        try:
            self._reach(configuration)
        except ApplyError:
            with self._changed:
                for stage, wanted in zip(self.stages, self.configuration, strict=True):
                    stage.want(wanted)
            raise
        self.configuration = configuration

    # ----------------------------------------------------------------------------------------------- processes

    def processes(self) -> list[ServerProcess]:
        """Everything that runs."""
        router = [self.router] if hasattr(self, "router") else []
        return router + [process for stage in self.stages for process in stage.processes()]

    def _start_router(self, settings: StageSettings, folder: Path) -> SupervisedServer:
        stages = [{"task": stage.task.name, "address": stage.queue.grpc_address} for stage in self.stages]
        parameters = {
            "pipeline": self.pipeline.name,
            "stages": stages,
            "drop_after": settings.drop_after,
            "call_timeout": settings.call_timeout,
        }
        server = ServerSettings(kind="router", name=self.pipeline.name, parameters=parameters)
        return SupervisedServer("router", server, folder)

    def _reach(self, configuration: Configuration) -> None:
        """Wait until every stage runs its part of ``configuration``, and the router answers."""
        with self._changed:
            for stage, wanted in zip(self.stages, configuration, strict=True):
                stage.want(wanted)
            self._changed.wait_for(lambda: self._errors() or self._settled(), self._apply_seconds)
            errors, missing = self._errors(), self._missing()
        if errors:
            raise ApplyError("; ".join(errors))
        if missing:
            raise ApplyError(f"not everything is ready after {self._apply_seconds:g} s: {'; '.join(missing)}")

    def _errors(self) -> list[str]:
        """Why what is wanted cannot be had."""
        stages = [starts for stage in self.stages for starts in (stage.queue.starts, stage.starts)]
        return [starts.error for starts in (self.router.starts, *stages) if starts.error]

    def _settled(self) -> bool:
        """Whether what is wanted runs."""
        return self.router.answers and all(stage.settled for stage in self.stages)

    def _missing(self) -> list[str]:
        """What is still wanting."""
        router = [] if self.router.answers else [f"the router does not answer ({self.router.last_words()})"]
        return router + [stage.missing() for stage in self.stages if not stage.settled]

    def _keep(self) -> None:
        """Tend the stages until the backend closes."""
        while not self._closing.wait(TEND_SECONDS):
            try:
                with self._changed:
                    self._tend()
                    self._changed.notify_all()
            except Exception:  # whatever it was, the pipeline must not be left untended
                logger.exception("tending the processes failed; trying again")

    def _tend(self) -> None:
        for stage in self.stages:
            stage.tend()
        if self._closing.is_set():
            return
        self.router.tend()
        targets = {process.name: process.metrics_address for process in self.processes()}
        if targets != self._targets:
            self.monitor.set_targets(targets)
            self._targets = targets

    def close(self) -> None:
        """Stop taking requests, finish those that run, and end every process."""
        self._acquired.close()

    def _end_processes(self) -> None:
        self._closing.set()
        if hasattr(self, "_keeper"):
            self._keeper.join(STOP_SECONDS)
        # No longer than the longest request lives; whoever has none to finish ends at once.
        if hasattr(self, "router"):
            _stop([self.router], self._request_seconds)
        _stop([stage.queue for stage in self.stages], self._request_seconds)
        _stop([process for stage in self.stages for process in stage.processes()])

    def __enter__(self) -> LocalBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _stop(processes: Sequence[ServerProcess], finish: float = 0.0) -> None:
    """End servers that have ``finish`` seconds to answer what they serve; returns when they have ended."""
    for process in processes:
        process.stop(finish)
    wait_until(lambda: all(process.ended() for process in processes), finish + STOP_SECONDS + 2.0)


def _lock(folder: Path, pipeline: str) -> IO[str]:
    """Take the folder for this controller; the operating system releases it when the process ends, however it does."""
    path = folder / "controller.lock"
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise AlreadyControlledError(
            f"pipeline {pipeline!r} in {folder} is controlled by process {holder}; stop that one, or run in another "
            "folder"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
