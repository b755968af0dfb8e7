"""Discovery of replicas: a gateway follows the pods of its pipeline and the ConfigMaps of the stages.

Nothing is pushed to a gateway, so it serves on without a controller, and without the API server with the replicas that
it knew last. Several gateways see the same pods, themselves among them, and divide the replicas without talking to one
another.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from opd.cluster.api import Cluster
from opd.cluster.names import GATEWAY, MODEL, STAGE, STAGE_BATCH_SIZE, STAGE_VARIANT, selector, stage_name
from opd.cluster.owned_objects import role_of
from opd.cluster.pods import has_ended, is_ready, is_terminating
from opd.cluster.resources import CONFIG_MAP, POD, Object, Resource
from opd.cluster.watching import follow
from opd.serving.replicas import ReplicaEndpoint, share_of

logger = logging.getLogger(__name__)

RESTART_SECONDS = 1.0
"""Pause after an unexpected error, before the cluster is followed again."""

StageState: TypeAlias = tuple[int, list[ReplicaEndpoint]]
"""Batch size and replicas of a stage."""


class Discovery:
    """Follows the cluster in two threads of its own until it is closed.

    Args:
        cluster: where to look.
        pipeline: name of the pipeline.
        tasks: names of its tasks.
        port: of the replicas, for gRPC.
        gateway: name of the own pod.
        adopt: called with the stages whose batch size or replicas have changed, by either thread; for the first time
            as soon as pods and ConfigMaps are known.
    """

    def __init__(
        self,
        cluster: Cluster,
        pipeline: str,
        tasks: Iterable[str],
        port: int,
        gateway: str,
        adopt: Callable[[dict[str, StageState]], object],
    ) -> None:
        self._cluster, self._port, self._own, self._adopt = cluster, port, gateway, adopt
        self._names = {task: stage_name(pipeline, task) for task in tasks}
        self._stages: dict[str, Object] | None = None
        self._pods: dict[str, Object] | None = None
        self._serving: dict[str, StageState] = {}
        self._told: dict[str, StageState] | None = None
        self._unready: set[str] = set()  # tasks whose replicas serve on though none is ready
        self._lock = threading.Lock()
        self._closing = threading.Event()
        for followed in ((CONFIG_MAP, selector(pipeline, STAGE)), (POD, selector(pipeline))):
            name = f"follow {followed[0].plural}"
            threading.Thread(target=self._follow, args=followed, daemon=True, name=name).start()

    def close(self) -> None:
        """Stop following."""
        self._closing.set()

    def _follow(self, resource: Resource, labels: str) -> None:
        while not self._closing.is_set():
            try:
                for objects in follow(self._cluster, resource, labels, stop=self._closing):
                    with self._lock:
                        if resource == POD:
                            self._pods = objects
                        else:  # a stage with a deleted ConfigMap goes on as it is
                            self._stages = {**(self._stages or {}), **objects}
                        self._update()
            except Exception:  # the gateway must keep discovering
                logger.exception("following %s failed; starting again", resource.plural)
                self._closing.wait(RESTART_SECONDS)

    def _update(self) -> None:
        if self._stages is None or self._pods is None:
            return
        gateways = gateways_of(self._pods, self._own)
        for task, name in self._names.items():
            if name in self._stages:
                self._update_stage(task, self._stages[name], self._pods)
        states = {
            task: (size, share_of(endpoints, gateways.index(self._own), len(gateways)))
            for task, (size, endpoints) in self._serving.items()
        }
        changed = {task: state for task, state in states.items() if state != (self._told or {}).get(task)}
        if changed or self._told is None:
            self._told = states
            self._adopt(changed)

    def _update_stage(self, task: str, stage: Object, pods: Mapping[str, Object]) -> None:
        of_task = {name: pod for name, pod in pods.items() if role_of(pod)[:2] == (MODEL, task)}
        desired = desired_state(stage, of_task, self._port, self._serving.get(task, (0, [])))
        if desired is None:
            name, data = stage["metadata"]["name"], stage.get("data")
            logger.warning("ConfigMap %s has %s; serving on as before", name, data)
        else:
            self._serving[task] = desired
            self._tell_unready(task, [each.name for each in desired[1] if not is_ready(of_task[each.name])])

    def _tell_unready(self, task: str, unready: list[str]) -> None:
        if unready and task not in self._unready:
            logger.warning("no replica of %s is ready; those known serve on: %s", task, ", ".join(unready))
        (self._unready.add if unready else self._unready.discard)(task)


def gateways_of(pods: Mapping[str, Object], own: str) -> list[str]:
    """Return the names of the gateways that divide the replicas, in order: those that are ready, and ``own``."""
    ready = {name for name, pod in pods.items() if role_of(pod)[0] == GATEWAY and is_ready(pod)}
    return sorted(ready | {own})


def desired_state(
    stage: Mapping[str, Any], pods: Mapping[str, Object], port: int, serving: StageState
) -> StageState | None:
    """Return batch size and replicas to serve with: the ready pods of the wanted variant.

    Args:
        stage: the ConfigMap.
        pods: of the task, by name.
        port: of the replicas.
        serving: batch size and replicas now. While no pod of the wanted variant is ready, those replicas go on that are
            still ready; and if none of them is, those that have not been told to end: a node that the cluster has
            lost sight of makes all its pods unready, though they may serve on.

    Returns:
        None if the ConfigMap is malformed.
    """
    data = stage.get("data") or {}
    size = str(data.get(STAGE_BATCH_SIZE, ""))
    if not size.isdecimal() or int(size) < 1 or not data.get(STAGE_VARIANT):
        return None
    staying = {name: pod for name, pod in pods.items() if not (is_terminating(pod) or has_ended(pod))}
    ready = [_endpoint(pod, port) for _, pod in sorted(staying.items()) if is_ready(pod)]
    wanted = [endpoint for endpoint in ready if endpoint.variant == data[STAGE_VARIANT]]
    known = [endpoint for endpoint in serving[1] if endpoint.name in staying]
    return int(size), wanted or [endpoint for endpoint in known if endpoint in ready] or known


def _endpoint(pod: Object, port: int) -> ReplicaEndpoint:
    return ReplicaEndpoint(pod["metadata"]["name"], role_of(pod)[2], f"{pod['status']['podIP']}:{port}")
