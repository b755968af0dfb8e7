"""State of a deployed pipeline: its workloads with their pods, its stages, gateways and leader."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from opd.cluster.api import Cluster
from opd.cluster.errors import ClusterError, ForbiddenError, NotFoundError, NotServingError
from opd.cluster.manifests.pods import SETTINGS_ANNOTATION
from opd.cluster.manifests.workloads import replicas_of, template_of
from opd.cluster.manual import manual_changes
from opd.cluster.names import (
    COMPONENT_LABEL,
    CONTROLLER,
    GATEWAY,
    NAME_LABEL,
    PREFETCH,
    STAGE_VARIANT,
    lease_name,
    selector,
)
from opd.cluster.owned_objects import WORKLOADS, find_owned, identity_of, role_of
from opd.cluster.pods import failure_reason, has_ended, is_ready, refusal_reason, unschedulable_reason
from opd.cluster.resources import CONFIG_MAP, DAEMON_SET, DEPLOYMENT, LEASE, POD, SELDON_DEPLOYMENT, Object, resource_of
from opd.cluster.settings import HTTP
from opd.host.waiting import wait_while

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5


class WorkloadStatus(NamedTuple):
    """State of the gateways, or of the replicas of a variant.

    Attributes:
        name: of the object.
        component: ``gateway``, ``model`` or ``prefetch``.
        task: empty for gateways and prefetch.
        variant: empty unless they are replicas.
        wanted: pods.
        ready: pods of the wanted state.
        trouble: why a pod is not ready, or who has changed the replicas by hand; empty if nothing is known.
    """

    name: str
    component: str
    task: str
    variant: str
    wanted: int
    ready: int
    trouble: str

    @property
    def serves(self) -> bool:
        """True if all pods are ready."""
        return self.ready >= self.wanted


def workload_statuses(
    cluster: Cluster, pipeline: str, included: Callable[[Object], bool] = lambda _: True
) -> list[WorkloadStatus]:
    """Return the state of gateways, and of the variants that are to have replicas.

    Args:
        cluster: the namespace.
        pipeline: its name.
        included: selects workloads.

    Raises:
        ClusterError: as every call.
    """
    found = [each for each in find_owned(cluster, pipeline, WORKLOADS)[0] if replicas_of(each) and included(each)]
    pods = [pod for pod in cluster.list(POD, selector(pipeline))[0] if not has_ended(pod)]
    return sorted(workload_status(each, [pod for pod in pods if role_of(pod) == role_of(each)]) for each in found)


def workload_status(workload: Object, pods: Sequence[Object]) -> WorkloadStatus:
    """Return the state of a workload.

    Args:
        workload: the object.
        pods: of it, without those that have ended.
    """
    ready = sum(is_ready(pod) and _is_of_current_template(pod, workload) for pod in pods)
    wanted = replicas_of(workload)
    troubles = [failure_reason(pod) or unschedulable_reason(pod) for pod in pods if not is_ready(pod)]
    troubles += [refusal_reason(workload), *map(str, manual_changes(workload))]
    return WorkloadStatus(
        workload["metadata"]["name"],
        *role_of(workload),
        wanted,
        ready if _is_up_to_date(workload, wanted) else min(ready, max(wanted - 1, 0)),
        next(filter(None, troubles), ""),
    )


def _is_of_current_template(pod: Object, workload: Object) -> bool:
    """Return whether a pod is of the current template; a Deployment reports that itself, see :func:`_is_up_to_date`."""
    if resource_of(workload) != SELDON_DEPLOYMENT:
        return True
    its_hash, wanted = (
        (each.get("metadata", {}).get("annotations") or {}).get(SETTINGS_ANNOTATION)
        for each in (pod, template_of(workload))
    )
    return bool(its_hash == wanted)


def _is_up_to_date(workload: Object, wanted: int) -> bool:
    """Return whether the pods are those of the current specification, as far as the cluster reports it."""
    status = workload.get("status") or {}
    if "observedGeneration" not in status or resource_of(workload) != DEPLOYMENT:
        return status.get("state", "Available") == "Available"
    seen = status["observedGeneration"] >= workload["metadata"]["generation"]
    return seen and status.get("updatedReplicas", 0) == status.get("replicas", 0) == wanted


def prefetch_status(cluster: Cluster, pipeline: str) -> WorkloadStatus | None:
    """Return on how many nodes a prefetch is done; None if there is none, or this account may not see it.

    Raises:
        ClusterError: as every call.
    """
    found = find_owned(cluster, pipeline, [DAEMON_SET])[0]
    if not found:
        return None
    metadata, status = found[0]["metadata"], found[0].get("status") or {}
    wanted = int(status.get("desiredNumberScheduled", 0))
    is_current = status.get("observedGeneration", 0) >= metadata.get("generation", 0)
    ready = min(int(status.get("updatedNumberScheduled", 0)), int(status.get("numberReady", 0)))
    pods = [pod for pod in cluster.list(POD, selector(pipeline, PREFETCH))[0] if not is_ready(pod)]
    trouble = next(filter(None, (failure_reason(pod) or unschedulable_reason(pod) for pod in pods)), "")
    # As long as the cluster has not looked, there is at least one node.
    return WorkloadStatus(metadata["name"], *role_of(found[0]), *((wanted, ready) if is_current else (1, 0)), trouble)


def wait_for_prefetch(cluster: Cluster, pipeline: str, seconds: float, report: Callable[[str], object]) -> None:
    """Wait until a prefetch is done on all nodes; what is missing in the end is reported, and stops nothing.

    Raises:
        ClusterError: as every call.
    """

    def missing() -> str:
        found = prefetch_status(cluster, pipeline)
        reason = f": {found.trouble}" if found and found.trouble else ""
        return "" if found is None or found.serves else f"on {found.ready} of {found.wanted} nodes{reason}"

    report("waiting for the prefetch on the nodes")
    if still_missing := wait_while(missing, seconds, POLL_SECONDS):
        report(f"warning: after {seconds:g} s the prefetch is done {still_missing}; replicas elsewhere start slower")


def wait_until_serving(
    cluster: Cluster,
    pipeline: str,
    seconds: float,
    report: Callable[[str], object] = lambda _: None,
    leaving: Iterable[Object] = (),
) -> None:
    """Wait until every workload of a pipeline has its pods.

    Args:
        cluster: the namespace.
        pipeline: its name.
        seconds: to wait at most.
        report: receives what is still missing whenever that changes.
        leaving: workloads being deleted; their pods are ignored.

    Raises:
        NotServingError: naming what is missing, and why if that is known.
        ClusterError: as every call.
    """
    left_out = set(map(identity_of, leaving))
    reported = reason = ""

    def missing() -> str:
        nonlocal reported, reason
        found = workload_statuses(cluster, pipeline, lambda workload: identity_of(workload) not in left_out)
        late = [each for each in found if not each.serves]
        reason = next((f": {each.trouble}" for each in late if each.trouble), "")
        text = ", ".join(f"{each.name} {each.ready} of {each.wanted}" for each in late)
        if text and text != reported:
            report(text)
            reported = text
        return text

    if still_missing := wait_while(missing, seconds, POLL_SECONDS):
        raise NotServingError(
            f"pipeline {pipeline!r} does not serve after {seconds:g} s: pods are missing ({still_missing}){reason}; "
            "look at their events and logs, correct the settings and deploy again"
        )


def stage_config_maps(cluster: Cluster, pipeline: str) -> dict[str, Object]:
    """Return the ConfigMaps that hold the configuration of stages, by task."""
    found, _ = cluster.list(CONFIG_MAP, selector(pipeline))
    return {role_of(each)[1]: each for each in found if STAGE_VARIANT in (each.get("data") or {})}


def ask_gateways(cluster: Cluster, pipeline: str, task: str) -> list[dict[str, Any]]:
    """Return what every gateway that is ready reports about a stage.

    Raises:
        ClusterError: as every call.
    """
    pods = filter(is_ready, cluster.list(POD, selector(pipeline, GATEWAY))[0])
    asked = [(pod["metadata"]["name"], port) for pod in pods if (port := _http_port(pod))]
    return [dict(cluster.ask_pod(name, port, f"/stages/{task}")) for name, port in asked]


def _http_port(pod: Object) -> int | None:
    ports = {each.get("name"): each["containerPort"] for each in pod["spec"]["containers"][0].get("ports", [])}
    return ports.get(HTTP)


def queued_requests(cluster: Cluster, pipeline: str, task: str) -> str:
    """Return the number of requests that wait at a stage, as the gateways report; ``?`` if they cannot be asked."""
    try:
        if reports := ask_gateways(cluster, pipeline, task):
            return str(sum(int(report["waiting"]) for report in reports))
    except (ClusterError, KeyError, TypeError, ValueError) as error:
        logger.info("the gateways do not report how many requests wait at %s: %s", task, error)
    return "?"


def leader(cluster: Cluster, pipeline: str) -> str:
    """Return the holder of the controllers' Lease; empty if there is none, ``?`` if this account may not see it."""
    try:
        spec = cluster.get(LEASE, lease_name(pipeline)).get("spec") or {}
    except NotFoundError:
        return ""
    except ForbiddenError:
        return "?"
    holder = spec.get("holderIdentity") or ""
    return f"{holder}, renewed {spec.get('renewTime')}" if holder else ""


def controller_states(cluster: Cluster, pipeline: str) -> dict[str, str]:
    """Return what the controllers of a pipeline do, by pod; only those that answer.

    Returns:
        Such as ``warming up``, or ``leading; last interval: 97.2% within 0.5 s, objective 95%``.
    """
    states = {}
    try:
        pods = cluster.list(POD, f"{NAME_LABEL}=opd,{COMPONENT_LABEL}={CONTROLLER}")[0]
        for pod in filter(_http_port, pods):
            found = cluster.ask_pod(pod["metadata"]["name"], _http_port(pod) or 0, "/healthz")
            if pipeline in found["pipelines"]:
                measured = found["pipelines"][pipeline]
                within = f"; last interval: {measured}" if measured else ""
                states[pod["metadata"]["name"]] = f"{found['state']}{within}"
    except (ClusterError, KeyError, TypeError) as error:
        logger.info("the controllers do not report their state: %s", error)
    return states
