"""A cluster as a backend of the control loop.

Every variant has a workload, and the ConfigMap of a stage, which the gateways follow, says which one it runs; nothing
is created or deleted here. A change of variant gives the new workload replicas next to the old one, waits until they
are ready, writes the ConfigMap, waits until every gateway reports that it serves with the new variant, and only then
takes the replicas of the old one. Every step begins from the state of the cluster, not from what this process
remembers, so a change that was interrupted anywhere is completed or cleared away by the next one. What others have
changed by hand is left alone for a while (:mod:`opd.cluster.manual`).
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from opd.cluster.api import Cluster
from opd.cluster.deployed_state import DeployedState, Key, StageStateError, targets
from opd.cluster.errors import (
    ClusterError,
    ConflictError,
    NoAnswerError,
    ServerFailedError,
    StoppedError,
    TooManyRequestsError,
    UnreadyError,
)
from opd.cluster.manifests.workloads import replicas_of
from opd.cluster.manual import ManualChangeError, ManualChanges
from opd.cluster.names import MODEL
from opd.cluster.pods import (
    failure_reason,
    free_cores,
    is_ready,
    is_terminating,
    last_end,
    refusal_reason,
    unschedulable_reason,
)
from opd.cluster.resources import NODE, POD, Object
from opd.cluster.settings import ClusterSettings
from opd.cluster.status import ask_gateways
from opd.cluster.transition import Move, Plan, describe, plan
from opd.control.loop import ApplyError, ObservationError
from opd.host.waiting import wait_while
from opd.pipeline import Configuration, Pipeline
from opd.serving.monitoring.source import Monitor
from opd.serving.telemetry import TelemetryBackend

logger = logging.getLogger(__name__)

PASSING = (ConflictError, ServerFailedError, TooManyRequestsError, NoAnswerError)
"""Errors that may be gone a moment later."""


@dataclass(frozen=True)
class ChangeTimes:
    """Time limits of the parts of a change.

    Attributes:
        poll_seconds: between two looks at the pods.
        unschedulable_seconds: a pod that no node takes for this long counts as failed.
        switch_seconds: the gateways have this long to adopt what a ConfigMap holds.
    """

    poll_seconds: float = 0.5
    unschedulable_seconds: float = 15.0
    switch_seconds: float = 20.0


class KubernetesBackend(TelemetryBackend):
    """A deployed pipeline, which is brought to the configuration in its ConfigMaps.

    Args:
        cluster: the namespace of the pipeline.
        pipeline: its definition.
        settings: with which it was deployed.
        monitor: source of metrics.
        interval_seconds: between two decisions.
        read_nodes: look at the nodes for free cores; W_max of the pipeline is a limit in any case.
        times: how long parts of a change may take.
        announce: receives the reason and the details of what is being done, for people.
        may_act: whether this controller leads; asked before every change.
        limit: cores that others on the same device leave for this pipeline, less what their replicas hold that still
            end; asked at every change, and a change that needs more waits for them. None if the device is its own.

    Raises:
        NotFoundError: if the pipeline is not deployed.
        StageStateError: if a ConfigMap does not hold variant and batch size of its stage.
        ClusterError: if the cluster does not answer.
    """

    def __init__(
        self,
        cluster: Cluster,
        pipeline: Pipeline,
        settings: ClusterSettings,
        monitor: Monitor,
        interval_seconds: float,
        read_nodes: bool = False,
        times: ChangeTimes | None = None,
        announce: Callable[[str, str], object] = lambda reason, note: logger.info("%s: %s", reason, note),
        may_act: Callable[[], bool] = lambda: True,
        limit: Callable[[], float] | None = None,
    ) -> None:
        self._cluster = cluster.guarded(self._check_may_act)
        manual = ManualChanges(settings.manual_seconds, announce)
        self._state = DeployedState(self._cluster, pipeline, settings, manual)
        self._settings, self._read_nodes = settings, read_nodes
        self._times, self._announce, self._may_act = times or ChangeTimes(), announce, may_act
        self._capacity, self._limit = float(pipeline.capacity), limit
        self._clearing_away = False
        self.left_alone = False  # whether a change by hand is, now
        super().__init__(pipeline, self._state.read(), monitor, interval_seconds)

    # ------------------------------------------------------------------------------------- for the control loop

    def available_cores(self) -> float:
        """Return W_max of the pipeline, or what the nodes have for it if that is less."""
        if self._read_nodes:
            try:
                nodes, _ = self._cluster.list(NODE)
                pods, _ = self._cluster.list(POD, everywhere=True)
            except ClusterError as error:
                raise ObservationError(f"the cores of the nodes cannot be seen: {error}") from error
            free = free_cores(nodes, pods, self._state.owns, self._settings.overlay.spec(MODEL))
            self._capacity = min(float(self.pipeline.capacity), free)
        return self._capacity

    def cores_in_use(self) -> float:
        """Return the cores of what runs, of what still ends, and of what an unfinished change has started.

        Raises:
            ClusterError: if the cluster does not answer.
        """
        return self._state.cores_in_use(targets(self.configuration))

    def apply(self, configuration: Configuration) -> None:
        """Bring the cluster to ``configuration``; return when it serves, while what it replaces still ends.

        If the cluster is there already, as after most decisions, nothing is written.

        Raises:
            ManualChangeError: if what runs was changed by hand, and is left alone; it counts as the configuration then.
            ApplyError: naming why it cannot be reached; the last good configuration has been restored, as far as the
                cluster allowed it.
        """
        deadline, self.left_alone = time.monotonic() + self._settings.apply_seconds, False
        try:
            self._reach(configuration, deadline)
        except ManualChangeError:
            self.left_alone = True
            with suppress(ClusterError):
                self.configuration = self._state.read()
            raise
        except StoppedError as error:
            self._clear_away()
            raise ApplyError(str(error)) from error
        except ClusterError as error:
            outcome = self._roll_back(str(error))
            raise ApplyError(f"{error} ({outcome})") from error
        finally:
            if configuration != self.configuration:
                self.note_change()
        self.configuration = configuration

    def close(self) -> None:
        """End waiting, also that of a change in progress; the pipeline runs on. Any thread may call this."""
        self._closing.set()

    # ----------------------------------------------------------------------------------------- changing

    def _reach(self, wanted: Configuration, deadline: float) -> None:
        self._state.check_untouched()
        running = self._running()
        needed = targets(running).keys() | targets(wanted).keys()
        self._scale({key: 0 for key in self._state.workloads() if key not in needed}, deadline)
        rounds: Plan = []
        if running != wanted:  # after most decisions there is nothing to ask of others on the device
            self._wait_for_others(running, wanted, deadline)
            room = self._room()
            rounds = plan(self.pipeline, running, wanted, room)
            self._announce("Reconfiguring", describe(self.pipeline, rounds, room))
        changing = {move.stage for moves in rounds for move in moves}
        unchanged = {(n, s.variant): s.replicas for n, s in enumerate(wanted) if n not in changing}
        if self._scale(unchanged, deadline):
            self._wait_until_ready(unchanged, deadline)
        for moves in rounds:
            self._carry_out(moves, deadline)

    def _room(self) -> float:
        """Return the cores that may be in use during a change."""
        return self._capacity if self._limit is None else min(self._capacity, self._limit())

    def _carry_out(self, moves: list[Move], deadline: float) -> None:
        """Carry out one round: make room, start, wait, switch gateways, end, and start what had no room before."""
        self._scale({(m.stage, m.old.variant): m.kept for m in moves if m.in_place}, deadline)
        starting = {(m.stage, m.new.variant): m.first for m in moves}
        growing = {
            key: max(first, m.old.replicas if m.old.variant == m.new.variant else 0)
            for (key, first), m in zip(starting.items(), moves, strict=True)
        }
        self._scale(growing, deadline)
        self._wait_until_ready(starting, deadline)
        for move in moves:
            self._state.write(move.stage, move.new)
        for move in moves:
            self._wait_for_gateways(move, deadline)
        self._scale({(m.stage, m.old.variant): 0 for m in moves if m.old.variant != m.new.variant}, deadline)
        complete = {(m.stage, m.new.variant): m.new.replicas for m in moves}
        if self._scale(complete, deadline):
            self._wait_until_ready(complete, deadline)

    def _running(self) -> Configuration:
        """Return what the stages run; the last good configuration is written if a ConfigMap has been spoilt."""
        try:
            return self._state.read()
        except StageStateError as error:
            logger.warning("%s; it is replaced by the last good configuration", error)
        for n, stage in enumerate(self.configuration):
            self._state.write(n, stage)
        return self.configuration

    def _scale(self, wanted: dict[Key, int], deadline: float) -> bool:
        """Bring workloads to these replicas when there is room; return whether that was a change."""
        if not wanted:
            return False
        now = {key: replicas_of(workload) for key, workload in self._state.workloads().items()}
        growing = {key: replicas for key, replicas in wanted.items() if replicas > now.get(key, 0)}
        for key, replicas in wanted.items():
            if replicas < now.get(key, 0):
                self._state.scale(key, replicas)
        if growing:
            self._wait_for_room(now | wanted, deadline)
        for key, replicas in growing.items():
            self._state.scale(key, replicas)
        return any(now.get(key) != replicas for key, replicas in wanted.items())

    def _roll_back(self, reason: str) -> str:
        """Return to the last good configuration, and return the outcome."""
        self._announce("RollingBack", reason)
        try:
            self._reach(self.configuration, time.monotonic() + self._settings.apply_seconds)
        except StoppedError:
            self._clear_away()
            return "stopped while rolling back"
        except (ClusterError, ManualChangeError) as error:
            logger.warning("rolling back failed: %s", error)
            return f"the last good configuration is not fully restored yet: {error}"
        return "the last good configuration is restored"

    def _clear_away(self) -> None:
        """Take back what a change began and bring back what it removed, without waiting for either.

        So nothing unwanted holds cores while no controller runs, and what the ConfigMaps hold runs on. Where old and
        new replicas do not fit together, the cluster starts the former as the latter end.
        """
        self._clearing_away = True
        try:
            pairs = zip(self.configuration, self._running(), strict=True)
            running = targets(tuple(last if last.variant == now.variant else now for last, now in pairs))
            for key, workload in self._state.workloads().items():
                if replicas_of(workload) != running.get(key, 0):
                    self._state.scale(key, running.get(key, 0))
        except (ClusterError, ManualChangeError) as error:
            logger.warning("what the unfinished change began stays until the next start: %s", error)
        finally:
            self._clearing_away = False

    def _check_may_act(self) -> None:
        """Raise if this controller may not change anything now; asked before every attempt to."""
        if self._closing.is_set() and not self._clearing_away:
            raise StoppedError("the controller is being stopped; the next start completes or clears away the change")
        if not self._may_act():
            stated = "another controller leads now, or the API server did not answer"
            raise StoppedError(f"{stated}; the next leader completes or clears away the change")

    # ----------------------------------------------------------------------------------------- waiting

    def _wait_while(
        self, problem: Callable[[], str], deadline: float, late: str, remedy: str, seconds: float | None = None
    ) -> None:
        """Wait while there is a problem, until the deadline or the end of the backend.

        Raises:
            UnreadyError: that it is ``late``, after ``seconds`` (apply_seconds), with the last problem and the remedy.
        """

        def look() -> str:
            self._check_may_act()
            try:
                return problem()
            except PASSING as error:
                return str(error)

        if last := wait_while(look, deadline - time.monotonic(), self._times.poll_seconds):
            raise UnreadyError(f"{late} after {seconds or self._settings.apply_seconds:g} s: {last}; {remedy}")

    def _wait_for_room(self, totals: dict[Key, int], deadline: float) -> None:
        """Wait until replicas that end have given back the cores that the wanted ones need.

        Args:
            totals: replicas of all workloads once the wanted ones run.
            deadline: monotonic seconds.
        """
        limit = max(self._room(), self._state.cores(totals))

        def missing() -> str:
            in_use = self._state.cores_in_use(totals)
            return "" if in_use <= limit else f"{in_use:g} cores would be in use, the limit is {limit:g}"

        self._wait_while(missing, deadline, "replicas that are to end have not ended", "look why their pods do not end")

    def _wait_for_others(self, running: Configuration, wanted: Configuration, deadline: float) -> None:
        """Wait until others on the device have given back the cores that a change needs more.

        Raises:
            UnreadyError: if they do not in time.
        """
        limit, needed = self._limit, self._state.cores(targets(wanted))
        if limit is None or needed <= self._state.cores(targets(running)):
            return

        def missing() -> str:
            left = limit()
            return "" if needed <= left else f"{needed:g} cores are needed, the others leave {left:g}"

        late = "others on the device still hold its cores"
        self._wait_while(missing, deadline, late, "look why their pods do not end")

    def _wait_until_ready(self, wanted: dict[Key, int], deadline: float) -> None:
        """Wait until every workload has its replicas ready.

        Raises:
            UnreadyError: if they are not in time, or at once if they cannot become ready.
        """
        unschedulable_since: dict[str, float] = {}

        def missing() -> str:
            pods = self._state.pods()
            self._check_can_become_ready(wanted, pods, unschedulable_since)
            ready = Counter(key for key, pod in pods if is_ready(pod))
            late = {key: n for key, n in wanted.items() if ready[key] < n}
            ends = [end for key, pod in pods if key in late and (end := last_end(pod))]
            return ", ".join([*(f"{self._state.name(key)} has {ready[key]} of {n}" for key, n in late.items()), *ends])

        remedy = "look at their logs, or raise apply_seconds"
        self._wait_while(missing, deadline, "not every replica is ready", remedy)

    def _check_can_become_ready(
        self, wanted: dict[Key, int], pods: list[tuple[Key, Object]], unschedulable_since: dict[str, float]
    ) -> None:
        """Raise if wanted replicas cannot become ready, however long one waits."""
        now = time.monotonic()
        for key, pod in pods:
            if key not in wanted or is_terminating(pod):
                continue
            reason, unschedulable = failure_reason(pod), unschedulable_reason(pod)
            if unschedulable:
                since = unschedulable_since.setdefault(pod["metadata"]["name"], now)
                reason = unschedulable if now - since > self._times.unschedulable_seconds else reason
            if reason:
                raise UnreadyError(f"{self._state.name(key)} cannot become ready: {reason}")
        for key, workload in self._state.workloads().items():
            if key in wanted and (reason := refusal_reason(workload)):
                raise UnreadyError(f"{self._state.name(key)} gets no pods: {reason}")

    def _wait_for_gateways(self, move: Move, deadline: float) -> None:
        """Wait until every gateway serves with the new variant and batch size.

        Raises:
            UnreadyError: if one does not in time; the old replicas must stay then.
        """
        task = self.pipeline.tasks[move.stage]
        variant = task.variants[move.new.variant].name

        def missing() -> str:
            try:
                found = ask_gateways(self._cluster, self.pipeline.name, task.name)
            except ClusterError as error:
                return str(error)
            serving = [each for status in found for each in status["replicas"] if not each["retired"]]
            sizes, variants = {status["batch_size"] for status in found}, {each["variant"] for each in serving}
            enough = len({each["name"] for each in serving}) >= min(move.first, move.new.replicas)
            if sizes == {move.new.batch_size} and variants == {variant} and enough:
                return ""
            return f"{len(found)} gateways serve with {sorted(variants)}, batch sizes {sorted(sizes)}"

        seconds = self._times.switch_seconds
        wanted = f"{move.first} replicas of {variant!r}, batch size {move.new.batch_size},"
        late = f"the gateways do not serve {task.name!r} with {wanted}"
        remedy = "look at their logs, and whether the API server may connect to them"
        self._wait_while(missing, min(deadline, time.monotonic() + seconds), late, remedy, seconds)
