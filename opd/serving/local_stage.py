"""One stage on this machine: its queue and its replicas, brought to what is wanted and kept there.

:meth:`LocalStage.tend` looks at what runs and does the next thing that is missing; it is called several times a second
and nothing else touches the processes. So a change of variant, a scale-up and the replacement of a replica that died
are one and the same: start what is wanted, wait until it is ready, switch the queue over, let the others finish, stop
them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import requests

from opd.pipeline import StageConfiguration, Task
from opd.serving.backoff import StartBackoff, is_late, why_it_ended
from opd.serving.processes import ServerProcess, model_process
from opd.serving.server import ServerSettings
from opd.serving.stage_queue import StageSettings
from opd.serving.supervised_server import LOOK_SECONDS, SupervisedServer

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class LocalSpare:
    """One process without a variant, and whether it has come up."""

    process: ServerProcess
    ready: bool = False


@dataclass(eq=False, kw_only=True)
class LocalReplica(LocalSpare):
    """One process and what it is for; ready once it has loaded its variant."""

    variant: int
    leaving: bool = False


Kept = TypeVar("Kept", bound=LocalSpare)


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
        closing: once it is set, nothing is started any more.
        starts: failed ones of replicas of the target, and why these cannot be had.
    """

    pipeline: str
    task: Task
    settings: StageSettings
    store: str
    folder: Path
    target: StageConfiguration
    spares: int = 0
    closing: threading.Event = field(default_factory=threading.Event)
    starts: StartBackoff = field(default_factory=StartBackoff)
    replicas: list[LocalReplica] = field(default_factory=list)
    _spare: list[LocalSpare] = field(default_factory=list)
    _spare_starts: StartBackoff = field(default_factory=StartBackoff)
    _stopped: list[ServerProcess] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)
    _next_look: float = 0.0
    _pushed: dict[str, Any] | None = None
    _settled: bool = False

    def __post_init__(self) -> None:
        parameters = {"pipeline": self.pipeline, "task": self.task.name, "settings": self.settings.model_dump()}
        settings = ServerSettings(kind="queue", name=self.task.name, parameters=parameters)
        self.queue = SupervisedServer(f"{self.task.name}-queue", settings, self.folder)

    # ------------------------------------------------------------------------------------------- for the backend

    def want(self, target: StageConfiguration) -> None:
        """Set what is to run from now on."""
        if target != self.target:
            self.target, self.starts, self._settled = target, StartBackoff(), False
        self.starts.error = ""  # only what fails from now on ends the wait for it

    @property
    def settled(self) -> bool:
        """Whether the stage runs its target."""
        return self._settled

    def missing(self) -> str:
        """What the stage lacks to run its target, for people; empty if nothing."""
        if self._settled:
            return ""
        if not self.queue.answers:
            return f"{self.queue.name} does not answer ({self.queue.last_words()})"
        wanted = self._of_target()
        ready = sum(replica.ready for replica in wanted)
        variant = self.task.variants[self.target.variant].name
        parts = [f"{ready} of {self.target.replicas} replicas of {variant!r} at {self.task.name!r} are ready"]
        for replica in wanted:
            if not replica.ready:
                seconds = time.monotonic() - replica.process.started
                parts.append(f"{replica.process.name} began {seconds:.0f} s ago ({replica.process.last_words()})")
        return ", ".join([*parts, *filter(None, [self.starts.last_failure])])

    def processes(self) -> list[ServerProcess]:
        """Everything that runs for the stage."""
        return [self.queue, *(each.process for each in [*self.replicas, *self._spare]), *self._stopped]

    def tend(self) -> None:
        """Do what is missing now, without waiting for it."""
        for step in (
            self._tend_queue,
            self._bury_dead,
            self._see_ready,
            self._start_missing,
            self._switch,
            self._see_hanging,
            self._release_leaving,
            self._keep_spares,
        ):
            if self.closing.is_set():
                return
            step()

    # --------------------------------------------------------------------------------------------- the queue

    def _tend_queue(self) -> None:
        if self.queue.tend():
            self._pushed = None

    def _ask_queue(self, method: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """What the queue says of its stage; None if it does not answer."""
        if not self.queue.answers:  # a look at it may take seconds; one a second is enough
            return None
        try:
            return dict(self.queue.http(method, "/stage", body))
        except requests.RequestException:  # it has died or hangs, which the next looks will tell
            return None

    # ------------------------------------------------------------------------------------------ the replicas

    def _bury_dead(self) -> None:
        for replica in self._remove_dead(self.replicas):
            if not replica.leaving:
                self._note_death(replica)
        for spare in self._remove_dead(self._spare):
            self._note_dead_spare(spare)
        self._stopped = [process for process in self._stopped if not process.ended()]

    def _remove_dead(self, kept: list[Kept]) -> list[Kept]:
        """Take out of ``kept``, and return, those that have ended or have had their time to start."""
        late = [each for each in kept if is_late(each.process, each.ready)]
        for each in late:
            each.process.kill()
            self._stopped.append(each.process)
        dead = [each for each in kept if each in late or each.process.ended()]
        kept[:] = [each for each in kept if each not in dead]
        return dead

    def _note_death(self, replica: LocalReplica) -> None:
        self._settled = False
        variant = self.task.variants[replica.variant].name
        reason = why_it_ended(replica.process, replica.ready)
        logger.warning("stage %s: replica %s died: %s", self.task.name, replica.process.name, reason)
        if replica.ready or replica.variant != self.target.variant:
            return
        self.starts.failed(f"variant {variant!r} of {self.task.name!r}", reason)

    def _note_dead_spare(self, spare: LocalSpare) -> None:
        reason = why_it_ended(spare.process, spare.ready)
        if spare.ready:
            logger.warning("stage %s: spare %s died: %s", self.task.name, spare.process.name, reason)
        else:
            self._note_failed_spare(reason)

    def _note_failed_spare(self, reason: str) -> None:
        self._spare_starts.failed(f"a spare of {self.task.name!r}", reason)
        logger.warning("%s", self._spare_starts.last_failure)

    def _see_ready(self) -> None:
        for replica in self.replicas:
            if not replica.ready and not replica.leaving and replica.process.ready():
                replica.ready = True
                self.starts.succeeded()
        for spare in self._spare:
            if not spare.ready and spare.process.live():
                spare.ready = True
                self._spare_starts.succeeded()

    def _start_missing(self) -> None:
        wanted = self._of_target()
        for replica in sorted(wanted, key=lambda replica: not replica.ready)[self.target.replicas :]:
            replica.leaving = True
        if not self.starts.due:
            return
        for _ in range(self.target.replicas - len(wanted)):
            if self.closing.is_set():  # asking spares may take seconds
                return
            process = self._process_for(self.target.variant)
            self.replicas.append(LocalReplica(process, variant=self.target.variant))

    def _of_target(self) -> list[LocalReplica]:
        return [r for r in self.replicas if r.variant == self.target.variant and not r.leaving]

    def _process_for(self, variant: int) -> ServerProcess:
        name = self.task.variants[variant].name
        for spare in list(self._spare):
            try:
                spare.process.http("PUT", "/variant", {"variant": name})
            except requests.ReadTimeout:  # whether it has taken the variant is not known
                self._spare.remove(spare)
                spare.process.kill()
                self._stopped.append(spare.process)
                continue
            except requests.RequestException:  # it is starting
                continue
            self._spare.remove(spare)
            spare.process.started = time.monotonic()
            return spare.process
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
        """Tell the queue unless it knows; whether it does."""
        if wanted != self._pushed:
            self._pushed = wanted if self._ask_queue("PUT", wanted) is not None else None
        return self._pushed is not None

    def _see_hanging(self) -> None:
        """A replica that the queue gets no answer from, though its process runs, is as good as dead."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        status = self._ask_queue("GET") or {"replicas": []}
        failed = {replica["name"] for replica in status["replicas"] if replica["failed"]}
        for replica in self.replicas:
            if replica.ready and replica.process.name in failed:
                replica.process.kill()

    def _release_leaving(self) -> None:
        """Stop those that leave and have finished, which only a queue that knows that they leave can tell."""
        leaving = [replica for replica in self.replicas if replica.leaving]
        status = self._ask_queue("GET") if leaving and self._pushed is not None else None
        if status is None:
            return
        busy = {replica["name"] for replica in status["replicas"]}
        for replica in leaving:
            if replica.process.name not in busy:
                replica.process.stop()
                self.replicas.remove(replica)
                self._stopped.append(replica.process)

    def _keep_spares(self) -> None:
        """Start a spare that is missing; the stage does without those that do not start."""
        if not self._settled or not self._spare_starts.due or len(self._spare) >= self.spares:
            return
        try:
            self._spare.append(LocalSpare(self._new_process(None)))
        except OSError as error:  # the other stages must be tended all the same
            self._note_failed_spare(str(error))
