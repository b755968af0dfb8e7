"""Cores that the nodes have for a pipeline's replicas: allocatable, minus what pods request that are not its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kubernetes.utils import parse_quantity

from opd.cluster.pod_status import is_over

_REPELLING = ("NoSchedule", "NoExecute")


def free_cores(
    nodes: Iterable[Mapping[str, Any]],
    pods: Iterable[Mapping[str, Any]],
    is_ours: Callable[[Mapping[str, Any]], bool],
) -> float:
    """Cores of all nodes that take pods, less those that others request there.

    Args:
        nodes: of the cluster; those that are not ready, cordoned or tainted do not count.
        pods: of all namespaces.
        is_ours: whether a pod's cores are for the pipeline to use again.
    """
    usable = {node["metadata"]["name"]: _cores(node["status"].get("allocatable", {})) for node in nodes if _takes(node)}
    taken = sum(
        requested_cores(pod)
        for pod in pods
        if pod["spec"].get("nodeName") in usable and not is_over(pod) and not is_ours(pod)
    )
    return max(sum(usable.values()) - taken, 0.0)


def requested_cores(pod: Mapping[str, Any]) -> float:
    """Cores that are kept for a pod: its containers and sidecars together, or its largest initial step if that is more.

    A sidecar is an initial container that is restarted for ever.
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


def _takes(node: Mapping[str, Any]) -> bool:
    spec = node.get("spec", {})
    conditions = {each["type"]: each["status"] for each in node["status"].get("conditions") or []}
    tainted = any(taint["effect"] in _REPELLING for taint in spec.get("taints") or [])
    return conditions.get("Ready") == "True" and not spec.get("unschedulable") and not tainted
