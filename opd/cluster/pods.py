"""Reads pods, workloads and nodes: whether a pod serves, why it fails, and the cores that are free or requested."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kubernetes.utils import parse_quantity

from opd.cluster.resources import Object
from opd.serving.processes import last_error

TERMINAL_REASONS = frozenset(
    {
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)
"""Reasons of a waiting container that do not pass without intervention."""


def is_terminating(pod: Object) -> bool:
    """Return whether a pod is being deleted; it may serve a little longer, but gets no new requests."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def has_ended(pod: Object) -> bool:
    """Return whether all containers of a pod have ended for good, so it holds no cores."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def is_ready(pod: Object) -> bool:
    """Return whether a pod serves and is not being deleted."""
    ready = _condition(pod, "Ready").get("status") == "True"
    return ready and not is_terminating(pod) and bool(pod["status"].get("podIP"))


def failure_reason(pod: Object) -> str:
    """Return why a pod cannot become ready without intervention; empty while it may."""
    status = pod.get("status", {})
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = container.get("state", {}).get("waiting") or {}
        if waiting.get("reason") in TERMINAL_REASONS:
            ended = container.get("lastState", {}).get("terminated") or {}
            words = [waiting["reason"], waiting.get("message", ""), _describe_end(ended)]
            return f"pod {pod['metadata']['name']!r}: {': '.join(filter(None, words))}"
    return ""


def last_end(pod: Object) -> str:
    """Describe how a container of a pod last ended: its exit code and last words; empty if none has ended."""
    for container in pod.get("status", {}).get("containerStatuses") or []:
        for state in (container.get("state"), container.get("lastState")):
            if ended := (state or {}).get("terminated"):
                return f"pod {pod['metadata']['name']!r}: {_describe_end(ended)}"
    return ""


def unschedulable_reason(pod: Object) -> str:
    """Return why no node takes a pod now; empty if one does. This may pass, because other pods may make room."""
    condition = _condition(pod, "PodScheduled")
    if condition.get("status") != "False" or condition.get("reason") != "Unschedulable":
        return ""
    return f"pod {pod['metadata']['name']!r}: Unschedulable: {condition.get('message', 'no node takes it')}"


def refusal_reason(workload: Object) -> str:
    """Return why the cluster creates no pods of a workload, such as a quota; empty if it does."""
    status, generation = workload.get("status") or {}, workload["metadata"].get("generation", 0)
    if status.get("observedGeneration", generation) < generation:  # the status is of an earlier specification
        return ""
    if status.get("state") == "Failed":  # only SeldonDeployments have this field
        return str(status.get("description") or "Seldon says that it failed")
    for condition in status.get("conditions") or []:
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            return str(condition.get("message", condition.get("reason", "")))
    return ""


def _condition(pod: Object, kind: str) -> Object:
    found = pod.get("status", {}).get("conditions") or []
    return next((condition for condition in found if condition["type"] == kind), {})


def _describe_end(terminated: Object) -> str:
    if not terminated:
        return ""
    words = last_error(str(terminated.get("message") or terminated.get("reason") or "no reason given"))
    return f"its last run ended with exit code {terminated.get('exitCode')}: {words}"


_REPELLING = ("NoSchedule", "NoExecute")

_CORDONED: Object = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
"""Taint of a cordoned node, which may not have it yet."""


def free_cores(
    nodes: Iterable[Object],
    pods: Iterable[Object],
    is_ours: Callable[[Object], bool],
    pod_spec: Object | None = None,
) -> float:
    """Return the cores of all nodes that accept the pipeline's replicas, minus what other pods request there.

    Args:
        nodes: of the cluster. Those count that are ready, are selected by the replicas, and have no taints (or cordon)
            that the replicas do not tolerate.
        pods: of all namespaces.
        is_ours: whether a pod is a replica of the pipeline, so its cores can be used again.
        pod_spec: of the replicas; ``tolerations`` and ``nodeSelector`` matter, none if not given.
    """
    accepting = [node for node in nodes if _accepts(node, pod_spec or {})]
    usable = {node["metadata"]["name"]: _cores(node["status"].get("allocatable", {})) for node in accepting}
    taken = sum(
        requested_cores(pod)
        for pod in pods
        if pod["spec"].get("nodeName") in usable and not has_ended(pod) and not is_ours(pod)
    )
    return max(sum(usable.values()) - taken, 0.0)


def requested_cores(pod: Mapping[str, Any]) -> float:
    """Return the cores that are reserved for a pod.

    These are the cores of its containers and sidecars together, or those of its largest init step if that needs more.
    A sidecar is an init container with restart policy ``Always``.
    """
    spec = pod["spec"]
    sidecars, largest = 0.0, 0.0
    for container in spec.get("initContainers") or []:
        cores = _requested(container)
        if container.get("restartPolicy") == "Always":
            sidecars += cores
            largest = max(largest, sidecars)
        else:
            largest = max(largest, sidecars + cores)
    together = sidecars + sum(_requested(container) for container in spec["containers"])
    return max(together, largest) + _cores(spec.get("overhead") or {})


def _requested(container: Object) -> float:
    return _cores((container.get("resources") or {}).get("requests") or {})


def _cores(quantities: Object) -> float:
    return float(parse_quantity(quantities.get("cpu", 0)))


def _accepts(node: Object, pod_spec: Object) -> bool:
    spec, tolerations = node.get("spec", {}), pod_spec.get("tolerations") or []
    conditions = {each["type"]: each["status"] for each in node["status"].get("conditions") or []}
    taints = [*(spec.get("taints") or []), *([_CORDONED] if spec.get("unschedulable") else [])]
    return (
        conditions.get("Ready") == "True"
        and (pod_spec.get("nodeSelector") or {}).items() <= (node["metadata"].get("labels") or {}).items()
        and all(any(_tolerates(t, taint) for t in tolerations) for taint in taints if taint["effect"] in _REPELLING)
    )


def _tolerates(toleration: Object, taint: Object) -> bool:
    """Return whether a toleration matches a taint, as the scheduler does: only an omitted value means an empty one."""
    exists = toleration.get("operator") == "Exists"
    equal = toleration.get("operator", "Equal") == "Equal" and toleration.get("value", "") == taint.get("value", "")
    return (
        toleration.get("effect") in (None, "", taint["effect"])
        and toleration.get("key") in ((None, "", taint["key"]) if exists else (taint["key"],))
        and (exists or equal)
    )
