"""A pipeline on this machine, as a backend of the control loop: a gateway, and one process per replica.

.. code-block:: python

    with LocalBackend(pipeline, parameters, configuration, folder) as backend:
        for step in run(backend, pipeline, policy, forecast, weights, decisions=18): ...
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from opd.control.loop import ApplyError
from opd.host.errors import reason_of
from opd.measurement import SimulationParameters
from opd.pipeline import Configuration, Pipeline, check_feasible
from opd.serving.emulation.host import HostedReplica, emulation_of
from opd.serving.local_gateways import LocalGateways
from opd.serving.local_stage import LocalStage
from opd.serving.monitoring.prometheus import open_monitor
from opd.serving.processes import STOP_SECONDS, ServerProcess, StartError, stop_all
from opd.serving.settings import GatewaySettings, GatewayStage, StageSettings
from opd.serving.store import store_url
from opd.serving.telemetry import TelemetryBackend

logger = logging.getLogger(__name__)

APPLY_SECONDS = 60.0
"""Time a reconfiguration may take before it is rolled back."""

RECONCILE_SECONDS = 0.1
"""Interval at which the processes are reconciled."""


class AlreadyControlledError(RuntimeError):
    """Another controller already runs the pipeline."""


class LocalBackend(TelemetryBackend):
    """A pipeline of server processes on the loopback interface.

    Args:
        pipeline: the pipeline; its variants are in the model store. The replicas of an emulated one
            (:func:`opd.serving.emulation.names.emulated_pipeline`) are emulated, and need no store.
        parameters: interval, batch timeout and maximum age of requests, as for the simulator.
        configuration: first configuration.
        folder: folder for settings, logs and metrics of this run; only one controller at a time may use it.
        store: URL of the model store; by default :func:`opd.serving.store.store_url`.
        standbys: processes without a variant that each stage keeps running; none if replicas are emulated.
        max_queue: requests that may wait at a stage, in each gateway.
        gateways: number of gateways side by side.
        project: folder with modules of the adapters; by default the working directory.

    Raises:
        AlreadyControlledError: if another controller uses ``folder``.
        InfeasibleError: if the configuration breaks a limit.
        StartError: if the pipeline is not up after :data:`APPLY_SECONDS`; nothing is left running.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        parameters: SimulationParameters,
        configuration: Configuration,
        folder: Path,
        store: str | None = None,
        standbys: int = 0,
        max_queue: int = 1000,
        gateways: int = 1,
        project: Path | None = None,
    ) -> None:
        check_feasible(pipeline, configuration)
        settings = StageSettings(
            batch_timeout=parameters.batch_timeout, drop_after=parameters.drop_after, max_queue=max_queue
        )
        url = store if store is not None else store_url()
        self._targets: dict[str, str] = {}
        self._changed = threading.Condition()
        self.stages: list[LocalStage] = []
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as acquired:
            acquired.enter_context(_lock(folder, pipeline.name))
            monitor = open_monitor(folder / "monitor")
            acquired.callback(monitor.close)
            super().__init__(pipeline, configuration, monitor, parameters.interval)
            self.emulation = acquired.enter_context(emulation_of(pipeline, folder, parameters.service_noise))
            acquired.callback(self._stop_stages)
            self.gateways = LocalGateways(_gateway_settings(pipeline, settings), folder, gateways, project)
            # Before the replicas, which its running requests still need.
            acquired.callback(stop_all, self.gateways.servers, settings.request_seconds)
            for task, stage in zip(pipeline.tasks, configuration, strict=True):
                common = pipeline.name, task, self.gateways, url, folder, stage, standbys, self._closing
                self.stages.append(LocalStage(*common, emulation=self.emulation))
            reconciler = threading.Thread(target=self._reconcile_until_closed, daemon=True, name="reconciler")
            reconciler.start()
            acquired.callback(reconciler.join, STOP_SECONDS)
            acquired.callback(self._closing.set)
            try:
                self._reach(configuration)
            except ApplyError as error:
                raise StartError(f"pipeline {pipeline.name!r} does not start: {error}; logs are in {folder}") from error
            self._telemetry.wait(APPLY_SECONDS)
            self._acquired = acquired.pop_all()

    @property
    def address(self) -> str:
        """Target of gRPC for requests, ``host:port`` of a single gateway; the model is named like the pipeline."""
        return self.gateways.address

    def apply(self, configuration: Configuration) -> None:
        """Run ``configuration``; returns once it serves, while replaced replicas drain in the background.

        Raises:
            ApplyError: if it cannot be reached; the previous configuration has been restored.
        """
        if configuration == self.configuration:
            return
        try:
            self._reach(configuration)
        except ApplyError:
            with self._changed:
                self._set_targets(self.configuration)
            raise
        finally:
            self.note_change()
        self.configuration = configuration

    # ----------------------------------------------------------------------------------------------- processes

    def processes(self) -> list[ServerProcess | HostedReplica]:
        """All running processes; emulated replicas share one."""
        shared = [self.emulation.process] if self.emulation else []
        return [*self.gateways.servers, *shared, *(process for stage in self.stages for process in stage.processes())]

    def _set_targets(self, configuration: Configuration) -> None:
        for stage, target in zip(self.stages, configuration, strict=True):
            stage.set_target(target)

    def _reach(self, configuration: Configuration) -> None:
        """Wait until every stage runs its part of ``configuration`` and the gateways answer."""
        with self._changed:
            self._set_targets(configuration)
            self._changed.wait_for(lambda: self._errors() or self._is_settled(), APPLY_SECONDS)
            errors, missing = self._errors(), self._missing()
        if errors:
            raise ApplyError("; ".join(errors))
        if missing:
            raise ApplyError(f"not everything is ready after {APPLY_SECONDS:g} s: {'; '.join(missing)}")

    def _errors(self) -> list[str]:
        """Reasons why the targets cannot be reached."""
        return self.gateways.errors() + [stage.backoff.error for stage in self.stages if stage.backoff.error]

    def _is_settled(self) -> bool:
        """Check whether the targets are running."""
        return self.gateways.answer and all(stage.settled for stage in self.stages)

    def _missing(self) -> list[str]:
        """Descriptions of what is not running yet."""
        return self.gateways.missing() + [stage.missing() for stage in self.stages if not stage.settled]

    def _reconcile_until_closed(self) -> None:
        logged = ""
        while not self._closing.wait(RECONCILE_SECONDS):
            try:
                with self._changed:
                    try:
                        self._reconcile()
                    finally:  # what it did before an error counts: whoever waits for it looks again
                        self._changed.notify_all()
            except Exception as error:  # no error may leave the pipeline unattended
                if (reason := reason_of(error)) != logged:  # it may come ten times a second
                    logger.exception("reconciling the processes failed; trying again")
                logged = reason
            else:
                logged = ""

    def _reconcile(self) -> None:
        self.gateways.reconcile()
        for stage in self.stages:
            stage.reconcile()
        if self._closing.is_set():
            return
        named = {process.metrics_address: process.name for process in reversed(self.processes())}
        targets = {name: address for address, name in named.items()}
        if targets != self._targets:
            self.monitor.set_targets(targets)
            self._targets = targets

    def close(self) -> None:
        """Refuse new requests, finish the running ones, and end every process."""
        self._acquired.close()

    def _stop_stages(self) -> None:
        stop_all([process for stage in self.stages for process in stage.processes()])

    def __enter__(self) -> LocalBackend:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _gateway_settings(pipeline: Pipeline, queue: StageSettings) -> GatewaySettings:
    stages = [GatewayStage(task=task.name, adapter=dict(task.adapter or {})) for task in pipeline.tasks]
    return GatewaySettings(name=pipeline.name, stages=stages, queue=queue, objective=pipeline.service_level.seconds)


def _lock(folder: Path, pipeline: str) -> IO[str]:
    """Lock ``folder`` for this controller; the operating system unlocks it when the process ends."""
    path = folder / "controller.lock"
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise AlreadyControlledError(
            f"pipeline {pipeline!r} in {folder} is controlled by process {holder}; stop it, or use another folder"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
