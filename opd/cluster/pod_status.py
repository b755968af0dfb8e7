"""What the state of a pod says: whether it serves, and why it never will; and why a workload gets none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Pod = Mapping[str, Any]

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
"""Why a container waits, if it does not help to wait with it."""

UNSCHEDULABLE = "Unschedulable"


def is_terminating(pod: Pod) -> bool:
    """Whether it has been told to end; it may serve a little longer, but gets nothing new."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def has_ended(pod: Pod) -> bool:
    """Whether all its containers have ended for good, so that it holds no cores."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def is_ready(pod: Pod) -> bool:
    """Whether it serves and will go on doing so."""
    ready = _condition(pod, "Ready").get("status") == "True"
    return ready and not is_terminating(pod) and bool(pod["status"].get("podIP"))


def failure_reason(pod: Pod) -> str:
    """Why it cannot become ready without somebody's help; empty while there is hope."""
    for container in _containers(pod):
        waiting = container.get("state", {}).get("waiting") or {}
        if waiting.get("reason") in TERMINAL_REASONS:
            ended = container.get("lastState", {}).get("terminated") or {}
            words = [waiting["reason"], waiting.get("message", ""), _ending(ended)]
            return f"pod {pod['metadata']['name']!r}: {': '.join(filter(None, words))}"
    return ""


def unschedulable_reason(pod: Pod) -> str:
    """Why no node takes it now; empty if one does. Other pods may make room, so this may pass."""
    condition = _condition(pod, "PodScheduled")
    if condition.get("status") != "False" or condition.get("reason") != UNSCHEDULABLE:
        return ""
    return f"pod {pod['metadata']['name']!r}: {UNSCHEDULABLE}: {condition.get('message', 'no node takes it')}"


def refusal_reason(workload: Mapping[str, Any]) -> str:
    """Why the cluster makes no pods of a workload, such as a quota; empty if it does."""
    status, generation = workload.get("status") or {}, workload["metadata"].get("generation", 0)
    if status.get("observedGeneration", generation) < generation:  # it speaks of a state before
        return ""
    if status.get("state") == "Failed":  # of a SeldonDeployment; a Deployment has no such entry
        return str(status.get("description") or "Seldon says that it failed")
    for condition in status.get("conditions") or []:
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            return str(condition.get("message", condition.get("reason", "")))
    return ""


def _condition(pod: Pod, kind: str) -> Mapping[str, Any]:
    found = pod.get("status", {}).get("conditions") or []
    return next((condition for condition in found if condition["type"] == kind), {})


def _containers(pod: Pod) -> Iterator[Mapping[str, Any]]:
    status = pod.get("status", {})
    for kind in ("initContainerStatuses", "containerStatuses"):
        yield from status.get(kind) or []


def _ending(terminated: Mapping[str, Any]) -> str:
    if not terminated:
        return ""
    words = str(terminated.get("message") or terminated.get("reason") or "").strip()
    return f"its last run ended with {terminated.get('exitCode')} {words}".strip()
