"""One stage on this machine: its queue and its replicas, brought to what is wanted and kept there.

:meth:`LocalStage.tend` looks at what runs and does the next thing that is missing; it is called several times a second
and nothing else touches the processes. So a change of variant, a scale-up and the replacement of a replica that died
are one and the same: start what is wanted, wait until it is ready, switch the queue over, let the others finish, stop
them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import requests

from opd.pipeline import StageConfiguration, Task
from opd.serving.processes import ServerProcess, model_process
from opd.serving.server import ServerSettings
from opd.serving.stage_queue import StageSettings

logger = logging.getLogger(__name__)

START_SECONDS = 30.0
"""A replica that is not ready after this long counts as failed."""

START_ATTEMPTS = 2
"""So many replicas of a variant in a row may fail to start before the variant counts as broken."""

LONGEST_PAUSE = 30.0
"""Seconds between two attempts to replace a replica whose variant does not start, at most."""

LOOK_SECONDS = 1.0
"""Between two questions to the queue about replicas that do not answer."""


@dataclass(eq=False)
class LocalReplica:
    """One process and what it is for."""

    process: ServerProcess
    variant: int
    ready: bool = False
    leaving: bool = False


@dataclass
class LocalStage:
    """One stage.

    Attributes:
        pipeline: name of the pipeline.
        task: its task.
        settings: of its queue.
        store: URL of the model store.
        folder: for settings and logs of its processes.
        target: what it is to run.
        spares: processes kept ready with everything but a model, so that a new replica starts faster.
        error: why the target cannot be reached; empty while there is hope.
    """

    pipeline: str
    task: Task
    settings: StageSettings
    store: str
    folder: Path
    target: StageConfiguration
    spares: int = 0
    error: str = ""
    replicas: list[LocalReplica] = field(default_factory=list)
    _spare: list[ServerProcess] = field(default_factory=list)
    _stopped: list[ServerProcess] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)
    _failures: int = 0
    _next_start: float = 0.0
    _next_look: float = 0.0
    _pushed: dict[str, Any] | None = None
    _settled: bool = False

    def __post_init__(self) -> None:
        self.queue = self._new_queue(None)

    # ------------------------------------------------------------------------------------------- for the backend

    def want(self, target: StageConfiguration) -> None:
        """Set what is to run from now on."""
        if target != self.target:
            self.target, self._failures, self._next_start = target, 0, 0.0
            self._settled = False
        self.error = ""

    @property
    def settled(self) -> bool:
        """Whether the stage runs its target."""
        return self._settled

    def processes(self) -> list[ServerProcess]:
        """Everything that runs for the stage."""
        return [self.queue, *(replica.process for replica in self.replicas), *self._spare, *self._stopped]

    def tend(self) -> None:
        """Do what is missing now, without waiting for it."""
        self._tend_queue()
        self._bury_dead()
        self._see_ready()
        self._start_missing()
        self._switch()
        self._see_hanging()
        self._release_leaving()
        self._keep_spares()

    # --------------------------------------------------------------------------------------------- the queue

    def _new_queue(self, previous: ServerProcess | None) -> ServerProcess:
        parameters = {"pipeline": self.pipeline, "task": self.task.name, "settings": asdict(self.settings)}
        settings = ServerSettings("queue", self.task.name, parameters) if previous is None else previous.settings
        return ServerProcess(f"{self.task.name}-queue", settings, self.folder, keep_ports=previous is not None)

    def _tend_queue(self) -> None:
        if self.queue.ended():
            logger.warning("stage %s: the queue died (%s); starting it again", self.task.name, self.queue.last_words())
            self.queue = self._new_queue(self.queue)
            self._pushed = None

    # ------------------------------------------------------------------------------------------ the replicas

    def _bury_dead(self) -> None:
        for replica in list(self.replicas):
            late = not replica.ready and time.monotonic() - replica.process.started > START_SECONDS
            if late:
                replica.process.kill()
            if not replica.process.ended() and not late:
                continue
            self.replicas.remove(replica)
            if late:
                self._stopped.append(replica.process)
            if not replica.leaving:
                self._note_death(replica)
        self._stopped = [process for process in self._stopped if not process.ended()]
        self._spare = [process for process in self._spare if not process.ended()]

    def _note_death(self, replica: LocalReplica) -> None:
        self._settled = False
        variant = self.task.variants[replica.variant].name
        logger.warning(
            "stage %s: replica %s died: %s", self.task.name, replica.process.name, replica.process.last_words()
        )
        if replica.ready or replica.variant != self.target.variant:
            return
        self._failures += 1
        self._next_start = time.monotonic() + min(2.0**self._failures, LONGEST_PAUSE)
        if self._failures >= START_ATTEMPTS:
            self.error = (
                f"variant {variant!r} of {self.task.name!r} did not start {self._failures} times in a row: "
                f"{replica.process.last_words()}"
            )

    def _see_ready(self) -> None:
        for replica in self.replicas:
            if not replica.ready and not replica.leaving and replica.process.ready():
                replica.ready = True
                self._failures = 0

    def _start_missing(self) -> None:
        wanted = self._of_target()
        for replica in sorted(wanted, key=lambda replica: not replica.ready)[self.target.replicas :]:
            replica.leaving = True
        if time.monotonic() < self._next_start:
            return
        for _ in range(self.target.replicas - len(wanted)):
            self.replicas.append(LocalReplica(self._process_for(self.target.variant), self.target.variant))

    def _of_target(self) -> list[LocalReplica]:
        return [r for r in self.replicas if r.variant == self.target.variant and not r.leaving]

    def _process_for(self, variant: int) -> ServerProcess:
        name = self.task.variants[variant].name
        for process in self._spare:
            try:
                process.http("PUT", "/variant", {"variant": name})
            except requests.RequestException:
                continue
            self._spare.remove(process)
            process.started = time.monotonic()
            return process
        return self._new_process(name)

    def _new_process(self, variant: str | None) -> ServerProcess:
        name = f"{self.task.name}-{next(self._numbers)}"
        return model_process(name, self.pipeline, self.task.name, variant, self.store, self.folder)

    def _switch(self) -> None:
        """Tell the queue who serves: the wanted variant once all its replicas are ready, until then the others."""
        wanted = [replica for replica in self._of_target() if replica.ready]
        others = [r for r in self.replicas if r.variant != self.target.variant and not r.leaving]
        complete = len(wanted) >= self.target.replicas
        for replica in others:
            # What has not started for an earlier target is not needed any more.
            replica.leaving = complete or not replica.ready
        serving = [replica for replica in others if not replica.leaving] or wanted
        places = [
            {
                "name": replica.process.name,
                "variant": self.task.variants[replica.variant].name,
                "address": replica.process.grpc_address,
            }
            for replica in serving
        ]
        pushed = self._push({"batch_size": self.target.batch_size, "replicas": places})
        self._settled = complete and pushed

    def _push(self, wanted: dict[str, Any]) -> bool:
        if wanted != self._pushed:
            try:
                self.queue.http("PUT", "/stage", wanted)
            except requests.RequestException:  # it is starting, or has died, which the next look will tell
                return False
            self._pushed = wanted
        return True

    def _see_hanging(self) -> None:
        """A replica that the queue gets no answer from, though its process runs, is as good as dead."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        failed = {replica["name"] for replica in self._queue_replicas() if replica["failed"]}
        for replica in self.replicas:
            if replica.ready and replica.process.name in failed:
                replica.process.kill()

    def _queue_replicas(self) -> list[dict[str, Any]]:
        try:
            return list(self.queue.http("GET", "/stage")["replicas"])
        except requests.RequestException:
            return []

    def _release_leaving(self) -> None:
        leaving = [replica for replica in self.replicas if replica.leaving]
        if not leaving or self._pushed is None:
            return
        busy = {replica["name"] for replica in self._queue_replicas()}
        for replica in leaving:
            if replica.process.name not in busy:
                replica.process.stop()
                self.replicas.remove(replica)
                self._stopped.append(replica.process)

    def _keep_spares(self) -> None:
        if self._settled and len(self._spare) < self.spares:
            self._spare.append(self._new_process(None))
