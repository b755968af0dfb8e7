"""The replicas of one stage on this machine, reconciled with their desired state.

:meth:`LocalStage.reconcile` looks at what is running and takes the next steps towards the target. It is called several
times a second, never waits, and nothing else touches the processes. A change of variant, a scale-up and the replacement
of a dead replica are therefore the same thing: start what is missing, wait until it is ready, switch the gateways
over, drain the other replicas and stop them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import requests

from opd.pipeline import StageConfiguration, Task, Variant
from opd.serving.emulation.host import EmulationHost, HostedReplica
from opd.serving.local_gateways import LocalGateways
from opd.serving.processes import ServerProcess, model_process
from opd.serving.replicas import ReplicaEndpoint
from opd.serving.supervised_server import PROBE_SECONDS, StartBackoff

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class LocalReplica:
    """A process with a variant; draining once it gets no new requests."""

    process: ServerProcess | HostedReplica
    variant: int
    draining: bool = False


@dataclass
class LocalStage:
    """The processes of one stage.

    Attributes:
        pipeline: name of the pipeline.
        task: task of the stage.
        gateways: send it requests.
        store: URL of the model store.
        folder: folder for settings and logs of its processes.
        target: desired configuration; change it with :meth:`set_target`.
        standbys: number of processes kept running without a variant, so that a new replica starts faster; none are
            if replicas are emulated.
        closing: once it is set, nothing is started any more.
        backoff: failed starts of the target's replicas.
        settled: whether the stage runs its target.
        emulation: starts its replicas, which are emulated then; None if they are real.
    """

    pipeline: str
    task: Task
    gateways: LocalGateways
    store: str
    folder: Path
    target: StageConfiguration
    standbys: int = 0
    closing: threading.Event = field(default_factory=threading.Event)
    backoff: StartBackoff = field(default_factory=StartBackoff)
    replicas: list[LocalReplica] = field(default_factory=list)
    settled: bool = False
    emulation: EmulationHost | None = None
    _standby: list[ServerProcess] = field(default_factory=list)
    _standby_backoff: StartBackoff = field(default_factory=StartBackoff)
    _stopping: list[ServerProcess | HostedReplica] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)
    _next_probe: float = 0.0
    _switched: bool = False

    # ------------------------------------------------------------------------------------------- for the backend

    def set_target(self, target: StageConfiguration) -> None:
        """Set the desired configuration."""
        if target != self.target:
            self.target, self.backoff, self.settled = target, StartBackoff(), False
        self.backoff.error = ""  # only failures from now on end the wait for the target

    def missing(self) -> str:
        """Describe what the stage lacks to run its target."""
        replicas = self._of_target()
        ready = sum(replica.process.was_ready for replica in replicas)
        variant = self._variant_name(self.target.variant)
        parts = [f"{ready} of {self.target.replicas} replicas of {variant!r} at {self.task.name!r} are ready"]
        for process in (replica.process for replica in replicas if not replica.process.was_ready):
            seconds = time.monotonic() - process.started
            parts.append(f"{process.name} began {seconds:.0f} s ago ({process.last_words()})")
        return ", ".join([*parts, *filter(None, [self.backoff.last_failure])])

    def processes(self) -> list[ServerProcess | HostedReplica]:
        """All processes of the stage."""
        return [*(replica.process for replica in self.replicas), *self._standby, *self._stopping]

    def reconcile(self) -> None:
        """Take the next steps towards the target, without waiting."""
        for step in (
            self._remove_ended,
            self._note_ready,
            self._drain_surplus,
            self._start_missing,
            self._switch,
            self._kill_unresponsive,
            self._stop_drained,
            self._start_standby,
        ):
            if self.closing.is_set():
                return
            step()

    # ------------------------------------------------------------------------------------------ the replicas

    def _remove_ended(self) -> None:
        for replica in [replica for replica in self.replicas if self._has_ended(replica.process)]:
            self.replicas.remove(replica)
            if not replica.draining:
                self._record_death(replica)
        for standby in [standby for standby in self._standby if self._has_ended(standby)]:
            self._standby.remove(standby)
            if standby.was_ready:
                logger.warning("stage %s: standby %s died: %s", self.task.name, standby.name, standby.last_words())
            else:
                self._record_standby_failure(standby.failure_reason())
        self._stopping = [process for process in self._stopping if not process.ended()]

    def _has_ended(self, process: ServerProcess | HostedReplica) -> bool:
        """Check whether a process has ended; one that is late to become ready is killed."""
        if process.late:
            self._kill(process)
            return True
        return process.ended()

    def _kill(self, process: ServerProcess | HostedReplica) -> None:
        process.kill()
        self._stopping.append(process)

    def _record_death(self, replica: LocalReplica) -> None:
        self.settled = False
        reason = replica.process.failure_reason()
        logger.warning("stage %s: replica %s died: %s", self.task.name, replica.process.name, reason)
        if not replica.process.was_ready and replica.variant == self.target.variant:
            self.backoff.failed(f"variant {self._variant_name(replica.variant)!r} of {self.task.name!r}", reason)

    def _record_standby_failure(self, reason: str) -> None:
        self._standby_backoff.failed(f"a standby of {self.task.name!r}", reason)
        logger.warning("%s", self._standby_backoff.last_failure)

    def _note_ready(self) -> None:
        for process in (replica.process for replica in self.replicas if not replica.draining):
            if not process.was_ready and process.ready():
                process.was_ready = True
                self.backoff.succeeded()
        for standby in self._standby:
            if not standby.was_ready and standby.live():
                standby.was_ready = True
                self._standby_backoff.succeeded()

    def _drain_surplus(self) -> None:
        ready_first = sorted(self._of_target(), key=lambda replica: not replica.process.was_ready)
        for replica in ready_first[self.target.replicas :]:
            replica.draining = True

    def _start_missing(self) -> None:
        # Assigning a standby may take seconds, in which the backend may close.
        while len(self._of_target()) < self.target.replicas and self.backoff.due and not self.closing.is_set():
            variant = self.task.variants[self.target.variant]
            try:
                process = self._assigned_standby() or self._new_replica(variant)
            except OSError as error:  # such as a full disk; must not keep the other stages from being reconciled
                self.backoff.failed(f"variant {variant.name!r} of {self.task.name!r}", str(error))
                logger.warning("%s", self.backoff.last_failure)
                return
            self.replicas.append(LocalReplica(process, self.target.variant))

    def _of_target(self) -> list[LocalReplica]:
        return [r for r in self.replicas if r.variant == self.target.variant and not r.draining]

    def _variant_name(self, variant: int) -> str:
        return self.task.variants[variant].name

    def _assigned_standby(self) -> ServerProcess | None:
        """Take a standby and assign it the target's variant; None if there is none that is up."""
        variant = self.task.variants[self.target.variant]
        for standby in list(self._standby):
            try:
                standby.http("PUT", "/variant", {"variant": variant.name, "cores": variant.cores})
            except requests.ReadTimeout:  # it may or may not have taken the variant
                self._standby.remove(standby)
                self._kill(standby)
            except requests.RequestException:  # it is still starting
                continue
            else:
                self._standby.remove(standby)
                standby.started, standby.was_ready = time.monotonic(), False
                return standby
        return None

    def _new_replica(self, variant: Variant) -> ServerProcess | HostedReplica:
        if self.emulation is None:
            return self._new_process(variant)
        return self.emulation.replica(f"{self.task.name}-{next(self._numbers)}", self.pipeline, self.task, variant)

    def _new_process(self, variant: Variant | None) -> ServerProcess:
        """Start a replica of a variant; a standby if that is None."""
        process = f"{self.task.name}-{next(self._numbers)}"
        name, cores = (variant.name, variant.cores) if variant else (None, 1)
        return model_process(process, self.pipeline, self.task.name, name, self.store, self.folder, cores)

    def _switch(self) -> None:
        """Point the gateways at the target's replicas once all are ready; until then the others keep serving."""
        ready = [replica for replica in self._of_target() if replica.process.was_ready]
        others = [r for r in self.replicas if r.variant != self.target.variant and not r.draining]
        complete = len(ready) >= self.target.replicas
        for replica in others:
            # A replica that was still starting for an earlier target is no longer needed.
            replica.draining = complete or not replica.process.was_ready
        serving = [replica for replica in others if not replica.draining] or ready
        endpoints = [
            ReplicaEndpoint(replica.process.name, self._variant_name(replica.variant), replica.process.grpc_address)
            for replica in serving
        ]
        self._switched = self.gateways.configure(self.task.name, self.target.batch_size, endpoints)
        self.settled = complete and self._switched

    def _kill_unresponsive(self) -> None:
        """Kill replicas that do not answer a gateway although their process is running."""
        if time.monotonic() < self._next_probe:
            return
        self._next_probe = time.monotonic() + PROBE_SECONDS
        failed = {replica["name"] for replica in self.gateways.replicas(self.task.name) or [] if replica["failed"]}
        for process in (replica.process for replica in self.replicas):
            if process.was_ready and process.name in failed:
                process.kill()

    def _stop_drained(self) -> None:
        """Stop draining replicas that no gateway uses any more; only gateways that are up to date can tell."""
        draining = [replica for replica in self.replicas if replica.draining]
        known = self.gateways.replicas(self.task.name) if draining and self._switched else None
        if known is None:
            return
        in_use = {replica["name"] for replica in known}
        for replica in draining:
            if replica.process.name not in in_use:
                replica.process.stop()
                self.replicas.remove(replica)
                self._stopping.append(replica.process)

    def _start_standby(self) -> None:
        """Start a missing standby; the stage works without those that do not start."""
        if self.emulation is not None:
            return
        if not self.settled or not self._standby_backoff.due or len(self._standby) >= self.standbys:
            return
        try:
            self._standby.append(self._new_process(None))
        except OSError as error:  # must not keep the other stages from being reconciled
            self._record_standby_failure(str(error))
