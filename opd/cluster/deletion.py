"""Deletes a pipeline in an order that loses no accepted request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from opd.cluster.api import Cluster
from opd.cluster.errors import LeftoverError
from opd.cluster.names import GATEWAY, MODEL, PREFETCH, STAGE_VARIANT, selector
from opd.cluster.owned_objects import WORKLOADS, delete_objects, find_owned, role_of
from opd.cluster.pods import has_ended
from opd.cluster.resources import CONFIG_MAP, DAEMON_SET, POD, Object, ObjectChange, resource_of
from opd.host.waiting import wait_while

POLL_SECONDS = 0.5

_STEPS = ("", GATEWAY, MODEL, PREFETCH, "")
"""Order of deletion: state of the stages, components, one after another as their pods end, and everything else."""


def delete_pipeline(cluster: Cluster, pipeline: str, seconds: float, dry_run: bool = False) -> Iterator[ObjectChange]:
    """Delete a pipeline completely without losing a request that it has received.

    The state of the stages is deleted first, because no controller changes anything without it; then the gateways,
    which finish their open requests, then the replicas, then everything else. Events stay until the cluster forgets
    them.

    Args:
        cluster: the namespace.
        pipeline: its name.
        seconds: to wait for each of these at most.
        dry_run: let the cluster check everything and delete nothing.

    Yields:
        what is deleted; nothing if there is no such pipeline.

    Raises:
        LeftoverError: if objects or pods are still there in the end.
        ClusterError: as every call.
    """
    for step, component in enumerate(_STEPS):
        found = [each for each in find_owned(cluster, pipeline)[0] if _step(each) == step]
        yield from delete_objects(cluster, found, dry_run)
        if component and not dry_run:
            _wait_until_gone(partial(_pods, cluster, pipeline, component), seconds)
    if not dry_run:
        _wait_until_gone(lambda: list(map(_name, find_owned(cluster, pipeline)[0])), seconds)


def _step(found: Object) -> int:
    resource, component = resource_of(found), role_of(found)[0]
    if resource == CONFIG_MAP and STAGE_VARIANT in (found.get("data") or {}):
        return 0
    has_pods = resource in (*WORKLOADS, DAEMON_SET)
    return _STEPS.index(component) if has_pods and component in _STEPS else len(_STEPS) - 1


def _pods(cluster: Cluster, pipeline: str, component: str) -> list[str]:
    return [_name(pod) for pod in cluster.list(POD, selector(pipeline, component))[0] if not has_ended(pod)]


def _wait_until_gone(left: Callable[[], list[str]], seconds: float) -> None:
    if names := wait_while(lambda: ", ".join(left()), seconds, POLL_SECONDS):
        raise LeftoverError(
            f"still there after {seconds:g} s: {names}; look for what holds them (finalizers, a node that does not "
            "answer), or for who creates them again, and delete again"
        )


def _name(found: Object) -> str:
    return f"{found['kind']} {found['metadata']['name']}"
