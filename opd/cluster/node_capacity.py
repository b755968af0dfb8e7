"""Cores that the nodes have for a pipeline's replicas: allocatable, minus what foreign pods request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kubernetes.utils import parse_quantity

from opd.cluster.pod_status import has_ended

_REPELLING = ("NoSchedule", "NoExecute")

_CORDONED: Mapping[str, Any] = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
"""Taint of a cordoned node, which may not have it yet."""


def free_cores(
    nodes: Iterable[Mapping[str, Any]],
    pods: Iterable[Mapping[str, Any]],
    is_ours: Callable[[Mapping[str, Any]], bool],
    pod_spec: Mapping[str, Any] | None = None,
) -> float:
    """Return the cores of all nodes that accept the pipeline's replicas, minus what other pods request there.

    Args:
        nodes: of the cluster. Those count that are ready, are selected by the replicas, and have no taints (or cordon)
            that the replicas do not tolerate.
        pods: of all namespaces.
        is_ours: whether a pod is a replica of the pipeline, so its cores can be used again.
        pod_spec: of the replicas; ``tolerations`` and ``nodeSelector`` matter, none if not given.
    """
    spec = pod_spec or {}
    accepting = (
        node for node in nodes if _accepts(node, spec.get("tolerations") or [], spec.get("nodeSelector") or {})
    )
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


def _requested(container: Mapping[str, Any]) -> float:
    return _cores((container.get("resources") or {}).get("requests") or {})


def _cores(quantities: Mapping[str, Any]) -> float:
    return float(parse_quantity(quantities.get("cpu", 0)))


def _accepts(node: Mapping[str, Any], tolerations: Sequence[Mapping[str, Any]], selector: Mapping[str, str]) -> bool:
    spec = node.get("spec", {})
    conditions = {each["type"]: each["status"] for each in node["status"].get("conditions") or []}
    taints = [*(spec.get("taints") or []), *([_CORDONED] if spec.get("unschedulable") else [])]
    return (
        conditions.get("Ready") == "True"
        and selector.items() <= (node["metadata"].get("labels") or {}).items()
        and all(any(_tolerates(t, taint) for t in tolerations) for taint in taints if taint["effect"] in _REPELLING)
    )


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    """Return whether a toleration matches a taint, as the scheduler does: only an omitted value means an empty one."""
    exists = toleration.get("operator") == "Exists"
    equal = toleration.get("operator", "Equal") == "Equal" and toleration.get("value", "") == taint.get("value", "")
    return (
        toleration.get("effect") in (None, "", taint["effect"])
        and toleration.get("key") in ((None, "", taint["key"]) if exists else (taint["key"],))
        and (exists or equal)
    )
