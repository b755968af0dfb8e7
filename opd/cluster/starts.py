"""How long replicas take to start where a pipeline is deployed, by the stamps that the cluster puts on their pods.

A start has three phases. Each is the difference of two stamps of one clock, so clocks that differ do not matter, ours
least of all:

* until a node takes the pod: ``creationTimestamp`` and ``PodScheduled``, both by the API server;
* until its container runs, with sandbox, volumes, and the pull of the image unless the node has it: ``startTime`` and
  ``startedAt``, both by the node;
* until it is ready, with the pull of the model from the store: ``startedAt`` and ``Ready``, both by the node.

The milliseconds between ``PodScheduled`` and ``startTime`` belong to none of them. Stamps are whole seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from statistics import median
from typing import NamedTuple

from opd.cluster.api import Cluster
from opd.cluster.errors import InvalidError, UnreadyError
from opd.cluster.manifests.workloads import replicas_of
from opd.cluster.manual import manual_changes
from opd.cluster.names import CONTAINER, CONTROLLER_MANAGER, MODEL, selector
from opd.cluster.owned_objects import WORKLOADS, find_owned, identity_of, is_model, role_of
from opd.cluster.pods import failure_reason, has_ended, is_ready, is_terminating, last_end, unschedulable_reason
from opd.cluster.resources import POD, Object
from opd.host.waiting import wait_while
from opd.pipeline import Pipeline

POLL_SECONDS = 0.5

Key = tuple[str, str]
"""Names of a task and a variant."""


class Start(NamedTuple):
    """A start of a replica, or the typical one of several.

    Attributes:
        node: where it was, or the nodes by name.
        scheduling: seconds until a node took the pod.
        image: seconds from then until its container ran.
        loading: seconds from then until it was ready.
    """

    node: str
    scheduling: float
    image: float
    loading: float

    @property
    def seconds(self) -> float:
        """Seconds from ordering the replica until it serves."""
        return self.scheduling + self.image + self.loading


def start_of(pod: Object) -> Start | None:
    """Return the start of a pod that has just become ready; None unless the cluster has stamped all of it.

    A pod that loses readiness and gets it back is stamped again, so this is right only soon after its start.
    """
    status = pod.get("status") or {}
    since = {each["type"]: each.get("lastTransitionTime") for each in status.get("conditions") or []}
    containers = {each["name"]: each for each in status.get("containerStatuses") or []}
    running = (containers.get(CONTAINER, {}).get("state") or {}).get("running") or {}
    stamps = (
        (pod["metadata"].get("creationTimestamp"), since.get("PodScheduled")),
        (status.get("startTime"), running.get("startedAt")),
        (running.get("startedAt"), since.get("Ready")),
    )
    if not is_ready(pod) or not all(begin and end for begin, end in stamps):
        return None
    return Start(pod["spec"].get("nodeName", ""), *(_seconds(str(begin), str(end)) for begin, end in stamps))


def _seconds(begin: str, end: str) -> float:
    """Seconds between two stamps, not below 0: there may be several API servers."""
    return max((datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds(), 0.0)


def typical_start(starts: Iterable[Start]) -> Start:
    """Return the median of each phase: the first start on a node may have pulled the image, the next ones have not."""
    nodes, *phases = zip(*starts, strict=True)
    return Start(", ".join(sorted(set(nodes))), *map(median, phases))


def measure_starts(
    cluster: Cluster, pipeline: Pipeline, number: int, seconds: float, report: Callable[[str], object]
) -> Iterator[tuple[Key, list[Start] | str]]:
    """Start a replica of every variant of a deployed pipeline beside what runs, one after another, and end it again.

    The stages' ConfigMaps stay as they are, so what runs serves on as before.

    Args:
        cluster: the namespace; no controller may lead meanwhile, which would end the replicas.
        pipeline: that is deployed.
        number: starts of each variant.
        seconds: that a start may take, and the end of a replica.
        report: receives a line about progress.

    Yields:
        each variant with its starts, or with the reason why it was not started, or did not become ready.

    Raises:
        ClusterError: if the cluster does not answer.
    """
    site = _Site(cluster, pipeline, seconds)
    for key in site.cores:
        try:
            found = []
            for turn in range(number):
                report(f"starting {'/'.join(key)}, {turn + 1} of {number}")
                found.append(site.start(key))
            outcome: list[Start] | str = found
        except (InvalidError, UnreadyError) as error:
            outcome = str(error)
        yield key, outcome


class _Site:
    """Starts and ends replicas of a deployed pipeline; arguments as of :func:`measure_starts`."""

    def __init__(self, cluster: Cluster, pipeline: Pipeline, seconds: float) -> None:
        self._cluster, self._pipeline, self._seconds = cluster, pipeline, seconds
        self.cores = {(task.name, each.name): each.cores for task in pipeline.tasks for each in task.variants}

    def start(self, key: Key) -> Start:
        """Start one replica more of a variant, and end it again.

        Raises:
            UnreadyError: if it is not deployed, there is no room for it, or it does not become ready in time.
            InvalidError: if the API server does not allow it.
        """
        workload = self._workload_with_room(key)
        self._wait(lambda: self._unsettled(key, replicas_of(workload)), "replicas that are to end have not ended")
        before = {pod["metadata"]["name"] for pod in self._pods(key)}
        try:
            self._scale(workload, replicas_of(workload) + 1)
            self._wait(lambda: self._missing(key, before), "no new replica is ready")
            found = next(filter(None, map(start_of, self._new(key, before))), None)
        finally:
            self._scale(workload, replicas_of(workload))
        if found is None:
            raise UnreadyError(f"the cluster has not stamped the start of a replica of {'/'.join(key)}; measure again")
        return found

    def _workload_with_room(self, key: Key) -> Object:
        found = {role_of(each)[1:]: each for each in find_owned(self._cluster, self._pipeline.name, WORKLOADS)[0]}
        workloads = {each: workload for each, workload in found.items() if is_model(workload)}
        if key not in workloads:
            raise UnreadyError(f"{'/'.join(key)} is not deployed with the pipeline; deploy again, then measure")
        if changes := manual_changes(workloads[key]):
            raise UnreadyError(f"{'; '.join(map(str, changes))}, and is left alone; deploy again, then measure")
        used = sum(self.cores.get(each, 0) * replicas_of(workload) for each, workload in workloads.items())
        room = used + self.cores[key] <= self._pipeline.capacity
        if not room or replicas_of(workloads[key]) >= self._pipeline.max_replicas:
            raise UnreadyError(
                f"there is no room for one replica more of {'/'.join(key)}: it has {replicas_of(workloads[key])} of "
                f"{self._pipeline.max_replicas}, and what runs has {used} of {self._pipeline.capacity} cores; deploy a "
                "smaller configuration with --stage, then measure"
            )
        return workloads[key]

    def _scale(self, workload: Object, replicas: int) -> None:
        self._cluster.scale(*identity_of(workload), replicas, CONTROLLER_MANAGER, force=True)

    def _pods(self, key: Key | None = None) -> list[Object]:
        """The pods of a variant, or of all, that hold cores."""
        found, _ = self._cluster.list(POD, selector(self._pipeline.name, MODEL, *(key or ())))
        return [pod for pod in found if not has_ended(pod)]

    def _new(self, key: Key, before: set[str]) -> list[Object]:
        return [pod for pod in self._pods(key) if pod["metadata"]["name"] not in before]

    def _unsettled(self, key: Key, replicas: int) -> str:
        """What keeps the cluster from starting a new pod: one too many that it has not told to end, or no room."""
        staying = sum(not is_terminating(pod) for pod in self._pods(key))
        held = sum(self.cores.get(role_of(pod)[1:], 0) for pod in self._pods())
        if held + self.cores[key] > self._pipeline.capacity:
            return f"{held} of {self._pipeline.capacity} cores are in use"
        return "" if staying == replicas else f"{'/'.join(key)} has {staying} pods for {replicas} replicas"

    def _missing(self, key: Key, before: set[str]) -> str:
        """What keeps a new replica from being ready, empty if one is; raises if none can become ready."""
        new = self._new(key, before)
        if any(map(is_ready, new)):
            return ""
        for pod in new:
            if reason := failure_reason(pod):
                raise UnreadyError(f"{'/'.join(key)} cannot become ready: {reason}")
        return next(filter(None, (unschedulable_reason(pod) or last_end(pod) for pod in new)), "it is starting")

    def _wait(self, problem: Callable[[], str], what: str) -> None:
        if left := wait_while(problem, self._seconds, POLL_SECONDS):
            raise UnreadyError(f"{what} after {self._seconds:g} s: {left}; look at their events and logs")
