"""A cluster as a backend of the control loop.

What a stage runs stands in its ConfigMap, which its queue follows. A change of variant starts the new workload beside
the old one, waits until its replicas are ready, writes the ConfigMap, waits until the queue says that it serves with
the new variant, and only then lets the old workload go. Every step begins from what the cluster says, not from what
this process remembers, so that a change that was interrupted anywhere is completed or cleared away by the next one.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Any

from opd.cluster.api import CONFIG_MAP, DEPLOYMENT, NODE, POD, SELDON_DEPLOYMENT, Cluster, Object
from opd.cluster.difference import ObjectChange
from opd.cluster.errors import (
    ClusterError,
    ConflictError,
    NoAnswerError,
    NotFoundError,
    ServerFailedError,
    TooManyRequestsError,
)
from opd.cluster.lifecycle import check_ours
from opd.cluster.manifests.pipeline import stage_config
from opd.cluster.manifests.workloads import model_workload, replicas_of, with_replicas
from opd.cluster.names import (
    INSTANCE_LABEL,
    MODEL,
    QUEUE,
    TASK_LABEL,
    VARIANT_LABEL,
    model_name,
    selector,
    stage_name,
)
from opd.cluster.node_capacity import free_cores
from opd.cluster.pod_status import (
    failure_reason,
    has_ended,
    is_ready,
    is_terminating,
    refusal_reason,
    unschedulable_reason,
)
from opd.cluster.settings import ClusterSettings
from opd.cluster.stage_state import StageStateError, read_stage
from opd.cluster.transition import Move, describe, plan
from opd.control.loop import ApplyError, ObservationError
from opd.pipeline import Configuration, Pipeline, StageConfiguration
from opd.serving.monitoring import Monitor
from opd.serving.telemetry_backend import TelemetryBackend

logger = logging.getLogger(__name__)

Key = tuple[int, int]
"""A workload: the positions of its task and of its variant."""

PASSING = (ConflictError, ServerFailedError, TooManyRequestsError, NoAnswerError)
"""What the cluster may answer now and not a moment later."""


class UnreadyError(ClusterError):
    """New replicas do not serve, or old ones do not end."""


class StoppedError(ClusterError):
    """This controller may not act any longer: it is being stopped, or another one leads."""


@dataclass(frozen=True)
class ChangeTimes:
    """How long parts of a change may take.

    Attributes:
        poll_seconds: between two looks at the pods.
        unschedulable_seconds: a pod that no node takes for so long counts as failed.
        switch_seconds: a queue has this long to take up what its ConfigMap says.
    """

    poll_seconds: float = 0.5
    unschedulable_seconds: float = 15.0
    switch_seconds: float = 20.0


class KubernetesBackend(TelemetryBackend):
    """A deployed pipeline, which is brought to the configuration that its ConfigMaps hold.

    Args:
        cluster: the namespace of the pipeline.
        pipeline: its definition.
        settings: with which it was deployed.
        monitor: source of metrics.
        interval_seconds: between two decisions.
        read_nodes: look at the nodes for the cores that are free; W_max of the pipeline is a limit in any case.
        times: how long parts of a change may take.
        announce: is told the reason and the details of what is being done, for people.
        may_act: whether this controller leads; asked before everything is changed.

    Raises:
        NotFoundError: if the pipeline is not deployed.
        StageStateError: if a ConfigMap does not say what its stage runs.
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
    ) -> None:
        self._cluster = cluster.guarded(self._check_may_act)
        self._settings, self._read_nodes = settings, read_nodes
        self._times, self._announce, self._may_act = times or ChangeTimes(), announce, may_act
        self._kind = SELDON_DEPLOYMENT if settings.flavour == "seldon" else DEPLOYMENT
        self._capacity = float(pipeline.capacity)
        self._leaving = False
        super().__init__(pipeline, self._read_configuration(pipeline), monitor, interval_seconds)

    # ------------------------------------------------------------------------------------- for the control loop

    def available_cores(self) -> float:
        """W_max of the pipeline, or what the nodes have for it if that is less."""
        if self._read_nodes:
            try:
                nodes, _ = self._cluster.list(NODE)
                pods, _ = self._cluster.list(POD, everywhere=True)
            except ClusterError as error:
                raise ObservationError(f"the cores of the nodes cannot be seen: {error}") from error
            free = free_cores(nodes, pods, self._is_replica, self._settings.overlay.spec(MODEL))
            self._capacity = min(float(self.pipeline.capacity), free)
        return self._capacity

    def apply(self, configuration: Configuration) -> None:
        """Bring the cluster to ``configuration``; returns when it serves, while what it replaces still ends.

        If the cluster is there already, as after most decisions, nothing is written.

        Raises:
            ApplyError: naming why it cannot be reached; the last good configuration has been restored, as far as the
                cluster let it be.
        """
        deadline = time.monotonic() + self._settings.apply_seconds
        try:
            self._reach(configuration, deadline)
        except StoppedError as error:
            self._clear_away()
            raise ApplyError(str(error)) from error
        except ClusterError as error:
            outcome = self._roll_back(str(error))
            raise ApplyError(f"{error} ({outcome})") from error
        self.configuration = configuration

    def preview(self, configuration: Configuration) -> list[ObjectChange]:
        """Return every change that :meth:`apply` would make.

        The cluster checks the changes without keeping them.

        Raises:
            ClusterError: if it refuses one.
        """
        changes: list[ObjectChange] = []
        workloads = self._workloads()
        targets = self._targets(configuration)
        for key in sorted(workloads.keys() | targets.keys()):
            found, wanted = workloads.get(key), targets.get(key, 0)
            if found is None:
                changes.append(ObjectChange({}, self._cluster.create(self._manifest(key, wanted), dry_run=True)))
            elif replicas_of(found) != wanted:
                changes.append(ObjectChange(found, self._set_replicas(key, wanted, dry_run=True)))
        for n, stage in enumerate(configuration):
            found = self._cluster.get(CONFIG_MAP, stage_name(self.pipeline.name, self.pipeline.tasks[n].name))
            entered = self._write_stage(n, stage, dry_run=True)
            if entered["data"] != found.get("data"):
                changes.append(ObjectChange(found, entered))
        return changes

    def close(self) -> None:
        """End waiting, also that of a change which is under way; the pipeline runs on. Any thread may call this."""
        self._closing.set()

    # ----------------------------------------------------------------------------------------- changing

    def _reach(self, wanted: Configuration, deadline: float) -> None:
        running = self._running()
        needed = self._targets(running).keys() | self._targets(wanted).keys()
        self._release(lambda key: key not in needed)
        rounds = plan(self.pipeline, running, wanted, self._capacity)
        if rounds:
            self._announce("Reconfiguring", describe(self.pipeline, rounds, self._capacity))
        changing = {move.stage for moves in rounds for move in moves}
        unchanged = {(n, s.variant): s.replicas for n, s in enumerate(wanted) if n not in changing}
        if self._scale(unchanged, deadline):
            self._wait_until_ready(unchanged, deadline)
        for moves in rounds:
            self._carry_out(moves, deadline)

    def _carry_out(self, moves: list[Move], deadline: float) -> None:
        """One round: make room, start, wait, switch the queues, let go, and fill up what had no room before."""
        self._scale({(m.stage, m.old.variant): m.kept for m in moves if m.in_place}, deadline)
        starting = {(m.stage, m.new.variant): m.first for m in moves}
        growing = {
            key: max(first, m.old.replicas if m.old.variant == m.new.variant else 0)
            for (key, first), m in zip(starting.items(), moves, strict=True)
        }
        self._scale(growing, deadline)
        self._wait_until_ready(starting, deadline)
        for move in moves:
            self._write_stage(move.stage, move.new)
        for move in moves:
            self._wait_for_queue(move, deadline)
        gone = {(m.stage, m.old.variant) for m in moves if m.old.variant != m.new.variant}
        self._release(lambda key: key in gone)
        complete = {(m.stage, m.new.variant): m.new.replicas for m in moves}
        if self._scale(complete, deadline):
            self._wait_until_ready(complete, deadline)

    def _roll_back(self, why: str) -> str:
        """Return to the last good configuration; says what came of it."""
        self._announce("RollingBack", why)
        try:
            self._reach(self.configuration, time.monotonic() + self._settings.apply_seconds)
        except StoppedError:
            self._clear_away()
            return "stopped while going back"
        except ClusterError as error:
            logger.warning("the way back failed: %s", error)
            return f"the last good configuration is not fully restored yet: {error}"
        return "the last good configuration is restored"

    def _clear_away(self) -> None:
        """Take away what a change began and bring back what it took, without waiting for either.

        So nothing that is not wanted holds cores while nobody is there, and what the ConfigMaps say runs on. Where old
        and new replicas do not fit together, the cluster starts the former as the latter end.
        """
        self._leaving = True
        try:
            running = self._targets(self._running())
            self._release(lambda key: key not in running)
            found = self._workloads()
            for key, replicas in running.items():
                if key not in found or replicas_of(found[key]) != replicas:
                    self._set_replicas(key, replicas)
        except ClusterError as error:
            logger.warning("what the unfinished change began stays until the next start: %s", error)
        finally:
            self._leaving = False

    # ----------------------------------------------------------------------------------------- workloads

    def _targets(self, configuration: Configuration) -> dict[Key, int]:
        return {(n, stage.variant): stage.replicas for n, stage in enumerate(configuration)}

    def _workloads(self) -> dict[Key, Object]:
        return {key: workload for key, workload in self._all_workloads() if key is not None}

    def _all_workloads(self) -> list[tuple[Key | None, Object]]:
        found, _ = self._cluster.list(self._kind, selector(self.pipeline.name, MODEL))
        return [(self._key(workload), workload) for workload in found]

    def _key(self, labelled: Object) -> Key | None:
        """Task and variant of a workload or pod; None of what the pipeline's definition does not have."""
        its_labels = labelled["metadata"].get("labels") or {}
        for n, task in enumerate(self.pipeline.tasks):
            if task.name == its_labels.get(TASK_LABEL):
                names = [variant.name for variant in task.variants]
                variant = its_labels.get(VARIANT_LABEL)
                return (n, names.index(variant)) if variant in names else None
        return None

    def _scale(self, wanted: dict[Key, int], deadline: float) -> bool:
        """Bring workloads to these replicas, when there is room; says whether that was a change."""
        found = self._workloads()
        now = {key: replicas_of(found[key]) if key in found else 0 for key in wanted}
        growing = {key: replicas for key, replicas in wanted.items() if replicas > now[key]}
        for key, replicas in wanted.items():
            if replicas < now[key]:
                self._set_replicas(key, replicas)
        if growing:
            totals = {key: replicas_of(workload) for key, workload in found.items()} | wanted
            self._wait_for_room(totals, growing.keys() - found.keys(), deadline)
        for key, replicas in growing.items():
            self._set_replicas(key, replicas)
        return wanted != now

    def _set_replicas(self, key: Key, replicas: int, dry_run: bool = False) -> Object:
        manifest = self._manifest(key, replicas)

        def change(workload: Object) -> None:
            check_ours(workload, manifest)
            workload.update(with_replicas(workload, replicas))

        try:
            return self._cluster.modify(self._kind, self._workload_name(key), change, dry_run)
        except NotFoundError:
            return self._cluster.put(manifest, dry_run)

    def _manifest(self, key: Key, replicas: int) -> Object:
        task = self.pipeline.tasks[key[0]]
        return model_workload(self.pipeline, task, task.variants[key[1]], replicas, self._settings)

    def _workload_name(self, key: Key) -> str:
        task = self.pipeline.tasks[key[0]]
        return model_name(self.pipeline.name, task.name, task.variants[key[1]].name)

    def _release(self, which: Callable[[Key | None], bool]) -> None:
        """Delete workloads, None standing for those of no variant that we know; replicas finish what they serve."""
        for key, workload in self._all_workloads():
            if which(key):
                self._delete(workload["metadata"]["name"])

    def _delete(self, name: str) -> None:
        try:
            self._cluster.delete(self._kind, name)
        except NotFoundError:
            logger.info("workload %s is gone already", name)

    # ----------------------------------------------------------------------------------------- state of stages

    def _read_configuration(self, pipeline: Pipeline) -> Configuration:
        return tuple(
            read_stage(pipeline, task, self._cluster.get(CONFIG_MAP, stage_name(pipeline.name, task.name)))
            for task in pipeline.tasks
        )

    def _running(self) -> Configuration:
        """What the ConfigMaps say; the last good configuration if somebody has spoilt one."""
        try:
            return self._read_configuration(self.pipeline)
        except StageStateError as error:
            logger.warning("%s; it is written anew", error)
        for n, stage in enumerate(self.configuration):
            self._write_stage(n, stage)
        return self.configuration

    def _write_stage(self, n: int, stage: StageConfiguration, dry_run: bool = False) -> Object:
        name = stage_name(self.pipeline.name, self.pipeline.tasks[n].name)
        return self._cluster.modify(CONFIG_MAP, name, lambda config_map: self._enter(config_map, n, stage), dry_run)

    def _enter(self, config_map: Object, n: int, stage: StageConfiguration) -> None:
        """Write what a stage is to run into its ConfigMap."""
        manifest = stage_config(self.pipeline, self.pipeline.tasks[n], stage, self._settings)
        config_map["data"] = {**(config_map.get("data") or {}), **manifest["data"]}

    # ----------------------------------------------------------------------------------------- waiting

    def _looks(self, deadline: float) -> Iterator[None]:
        """Turns of waiting, until the deadline or the end of the backend."""
        yield
        while time.monotonic() < deadline:
            self._check_may_act()
            self._closing.wait(self._times.poll_seconds)
            self._check_may_act()
            yield

    def _check_may_act(self) -> None:
        """Raise if this controller may not change anything now; asked before every attempt to."""
        if self._closing.is_set() and not self._leaving:
            raise StoppedError("the controller is being stopped; the next start completes or clears away the change")
        if not self._may_act():
            raise StoppedError("another controller leads now; it completes or clears away the change")

    def _replicas(self) -> list[tuple[Key, Object]]:
        """Pods of replicas that hold cores."""
        found, _ = self._cluster.list(POD, selector(self.pipeline.name, MODEL))
        return [(key, pod) for pod in found if (key := self._key(pod)) is not None and not has_ended(pod)]

    def _is_replica(self, pod: Any) -> bool:
        its_labels = pod["metadata"].get("labels") or {}
        ours = its_labels.get(INSTANCE_LABEL) == self.pipeline.name and self._key(pod) is not None
        return ours and VARIANT_LABEL in its_labels and pod["metadata"].get("namespace") == self._cluster.namespace

    def _wait_for_room(self, totals: dict[Key, int], absent: Set[Key], deadline: float) -> None:
        """Wait until replicas that end have given back the cores that the wanted ones need.

        Args:
            totals: replicas of all workloads once the wanted ones run.
            absent: workloads that do not exist. The cluster ends replicas a moment after their workload is deleted;
                those must not be taken for replicas of a new workload of the same variant.
            deadline: monotonic seconds.
        """
        limit = max(self._capacity, self._cores_of(totals))
        in_use = 0.0
        for _ in self._looks(deadline):
            staying: Counter[Key] = Counter()
            leaving: Counter[Key] = Counter()
            try:
                for key, pod in self._replicas():
                    (leaving if is_terminating(pod) else staying)[key] += 1
            except PASSING as error:
                logger.warning("the pods cannot be seen now: %s", error)
                continue
            most = {key: max(totals.get(key, 0), staying[key]) + leaving[key] for key in {*totals, *staying, *leaving}}
            in_use = self._cores_of(most)
            if in_use <= limit and not absent & staying.keys():
                return
        raise UnreadyError(
            f"replicas that are to end have not after {self._settings.apply_seconds:g} s: {in_use:g} cores would be "
            f"in use, the limit is {limit:g}; look why their pods do not end"
        )

    def _cores_of(self, replicas: dict[Key, int]) -> float:
        return float(sum(count * self.pipeline.tasks[n].variants[z].cores for (n, z), count in replicas.items()))

    def _wait_until_ready(self, wanted: dict[Key, int], deadline: float) -> None:
        """Wait until every workload has its replicas ready.

        Raises:
            UnreadyError: if they are not in time, or at once if they cannot become so.
        """
        since: dict[str, float] = {}
        missing = "nothing was seen of them"
        for _ in self._looks(deadline):
            try:
                replicas = self._replicas()
                self._check_hope(wanted, replicas, since)
            except PASSING as error:
                missing = str(error)
                continue
            ready = Counter(key for key, pod in replicas if is_ready(pod))
            late = [
                f"{self._workload_name(key)} has {ready[key]} of {n}" for key, n in wanted.items() if ready[key] < n
            ]
            if not late:
                return
            missing = ", ".join(late)
        raise UnreadyError(
            f"not every replica is ready after {self._settings.apply_seconds:g} s: {missing}; look at their logs, or "
            "raise apply_seconds"
        )

    def _check_hope(self, wanted: dict[Key, int], replicas: list[tuple[Key, Object]], since: dict[str, float]) -> None:
        """Raise if the wanted replicas cannot come, however long one waits."""
        now = time.monotonic()
        for key, pod in replicas:
            if key not in wanted or is_terminating(pod):
                continue
            reason = failure_reason(pod)
            without_node = unschedulable_reason(pod)
            if (
                without_node
                and now - since.setdefault(pod["metadata"]["name"], now) > self._times.unschedulable_seconds
            ):
                reason = without_node
            if reason:
                raise UnreadyError(f"{self._workload_name(key)} cannot become ready: {reason}")
        for key, workload in self._workloads().items():
            if key in wanted and (reason := refusal_reason(workload)):
                raise UnreadyError(f"{self._workload_name(key)} gets no pods: {reason}")

    def _wait_for_queue(self, move: Move, deadline: float) -> None:
        """Wait until the queue serves with the new variant and batch size.

        Raises:
            UnreadyError: if it does not in time; the old replicas must not go then.
        """
        task = self.pipeline.tasks[move.stage]
        variant = task.variants[move.new.variant].name
        answer = "no queue pod is ready"
        for _ in self._looks(min(deadline, time.monotonic() + self._times.switch_seconds)):
            try:
                status = self._ask_queue(task.name)
            except ClusterError as error:
                answer = str(error)
                continue
            if status is None:
                continue
            serving = [replica["variant"] for replica in status["replicas"] if not replica["retired"]]
            least = min(move.first, move.new.replicas)
            if status["batch_size"] == move.new.batch_size and set(serving) == {variant} and len(serving) >= least:
                return
            answer = f"it serves with {serving}, batch size {status['batch_size']}"
        raise UnreadyError(
            f"the queue of {task.name!r} does not serve with {move.first} replicas of {variant!r}, batch size "
            f"{move.new.batch_size}, after {self._times.switch_seconds:g} s: {answer}; look at its log, and whether "
            "the API server may connect to it"
        )

    def _ask_queue(self, task: str) -> dict[str, Any] | None:
        pods, _ = self._cluster.list(POD, selector(self.pipeline.name, QUEUE, task))
        for pod in filter(is_ready, pods):
            return dict(self._cluster.ask_pod(pod["metadata"]["name"], self._settings.http_port, "/stage"))
        return None
