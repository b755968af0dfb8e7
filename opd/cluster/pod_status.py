"""Reads the state of pods and workloads: whether a pod serves, why it fails, and why a workload gets no pods."""

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
"""Reasons of a waiting container that do not pass by themselves."""

UNSCHEDULABLE = "Unschedulable"


def is_terminating(pod: Pod) -> bool:
    """Return whether a pod is being deleted; it may serve a little longer, but gets no new requests."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def has_ended(pod: Pod) -> bool:
    """Return whether all containers of a pod have ended for good, so it holds no cores."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def is_ready(pod: Pod) -> bool:
    """Return whether a pod serves and is not being deleted."""
    ready = _condition(pod, "Ready").get("status") == "True"
    return ready and not is_terminating(pod) and bool(pod["status"].get("podIP"))


def failure_reason(pod: Pod) -> str:
    """Return why a pod cannot become ready without intervention; empty while it may."""
    for container in _containers(pod):
        waiting = container.get("state", {}).get("waiting") or {}
        if waiting.get("reason") in TERMINAL_REASONS:
            ended = container.get("lastState", {}).get("terminated") or {}
            words = [waiting["reason"], waiting.get("message", ""), _describe_end(ended)]
            return f"pod {pod['metadata']['name']!r}: {': '.join(filter(None, words))}"
    return ""


def unschedulable_reason(pod: Pod) -> str:
    """Return why no node takes a pod now; empty if one does. This may pass, because other pods may make room."""
    condition = _condition(pod, "PodScheduled")
    if condition.get("status") != "False" or condition.get("reason") != UNSCHEDULABLE:
        return ""
    return f"pod {pod['metadata']['name']!r}: {UNSCHEDULABLE}: {condition.get('message', 'no node takes it')}"


def refusal_reason(workload: Mapping[str, Any]) -> str:
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


def _condition(pod: Pod, kind: str) -> Mapping[str, Any]:
    found = pod.get("status", {}).get("conditions") or []
    return next((condition for condition in found if condition["type"] == kind), {})


def _containers(pod: Pod) -> Iterator[Mapping[str, Any]]:
    status = pod.get("status", {})
    for kind in ("initContainerStatuses", "containerStatuses"):
        yield from status.get(kind) or []


def _describe_end(terminated: Mapping[str, Any]) -> str:
    if not terminated:
        return ""
    words = str(terminated.get("message") or terminated.get("reason") or "").strip()
    return f"its last run ended with {terminated.get('exitCode')} {words}".strip()
