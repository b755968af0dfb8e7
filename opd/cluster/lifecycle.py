"""The objects of a pipeline as a whole: made, looked at, waited for, and taken away again.

Ours is what carries the labels of :mod:`opd.cluster.names`. Anything else is left alone, also if it has a name that we
would need, and so is what other objects own, which goes with its owner.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import partial
from typing import NamedTuple

from opd.cluster.api import (
    CONFIG_MAP,
    DEPLOYMENT,
    LEASE,
    POD,
    SELDON_DEPLOYMENT,
    Cluster,
    Object,
    Resource,
    resource_of,
)
from opd.cluster.difference import ObjectChange
from opd.cluster.errors import ClusterError, ConflictError, ForbiddenError, NotFoundError, NotOursError
from opd.cluster.lease import LeaseTimes
from opd.cluster.manifests.pipeline import STAGE_VARIANT
from opd.cluster.manifests.pods import HTTP, SETTINGS_ANNOTATION
from opd.cluster.manifests.workloads import replicas_of, template_of
from opd.cluster.names import (
    COMPONENT_LABEL,
    CONTROLLER,
    INSTANCE_LABEL,
    MANAGED_BY_LABEL,
    MODEL,
    QUEUE,
    ROUTER,
    TASK_LABEL,
    VARIANT_LABEL,
    labels,
    lease_name,
    selector,
)
from opd.cluster.pod_status import failure_reason, has_ended, is_ready, refusal_reason, unschedulable_reason

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5

RENEWED_SECONDS = 1.5 * LeaseTimes().retry
"""A controller that runs renews its Lease within this."""

BUILT_IN = (
    CONFIG_MAP,
    DEPLOYMENT,
    Resource("v1", "Service"),
    Resource("networking.k8s.io/v1", "NetworkPolicy"),
    Resource("policy/v1", "PodDisruptionBudget"),
    Resource("rbac.authorization.k8s.io/v1", "RoleBinding"),
    Resource("rbac.authorization.k8s.io/v1", "Role"),
    Resource("v1", "ServiceAccount"),
)
"""Kinds of our objects that every cluster has, in an order in which they can go."""

INSTALLED = (
    SELDON_DEPLOYMENT,
    Resource("networking.istio.io/v1", "VirtualService"),
    Resource("networking.istio.io/v1", "DestinationRule"),
    Resource("monitoring.coreos.com/v1", "PodMonitor"),
)
"""Those that a cluster need not have."""

WORKLOADS = (DEPLOYMENT, SELDON_DEPLOYMENT)

_LAID_OVER = "Service"
"""The cluster puts addresses into its specification, which must stay."""


class NotServingError(ClusterError):
    """A pipeline does not serve, or not in time."""


class LeftoverError(ClusterError):
    """Objects that were told to go are still there."""


class WorkloadStatus(NamedTuple):
    """A router, a queue, or the replicas of a variant.

    Attributes:
        name: of the object.
        component: ``router``, ``queue`` or ``model``.
        task: empty of the router.
        variant: empty unless they are replicas.
        wanted: pods.
        ready: pods of the state that is wanted.
        trouble: why a pod does not come, empty if none is known.
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
        """Whether all pods are there."""
        return self.ready >= self.wanted


# --------------------------------------------------------------------------------------------------- making


def apply(cluster: Cluster, manifests: Sequence[Object], dry_run: bool = False) -> Iterator[ObjectChange]:
    """Create each object, or bring the one that exists to its manifest, in this order; nothing if all is so already.

    Nothing is written unless every object that exists is ours.

    Args:
        cluster: the namespace.
        manifests: as of :func:`opd.cluster.manifests.pipeline.pipeline_objects`.
        dry_run: let the cluster check everything and keep nothing.

    Yields:
        what became of each.

    Raises:
        NotOursError: if an object exists and is not of this pipeline.
        NotFoundError: if the namespace or a kind of object does not exist.
        ClusterError: as every call.
    """
    for manifest in manifests:
        check_ours(_find(cluster, manifest), manifest)
    for manifest in manifests:
        yield _apply(cluster, manifest, dry_run)


def _apply(cluster: Cluster, manifest: Object, dry_run: bool) -> ObjectChange:
    found = _find(cluster, manifest)
    if not found:
        try:
            return ObjectChange({}, cluster.create(manifest, dry_run, repeat=True))
        except ConflictError:  # it has come meanwhile, perhaps by an attempt of ours that had no answer
            found = _find(cluster, manifest)
    name = manifest["metadata"]["name"]
    after = cluster.modify(resource_of(manifest), name, lambda now: _bring(now, manifest), dry_run)
    return ObjectChange(found, after)


def _find(cluster: Cluster, manifest: Object) -> Object:
    try:
        return cluster.get(resource_of(manifest), manifest["metadata"]["name"])
    except NotFoundError:
        return {}


def _bring(found: Object, manifest: Object) -> None:
    """Put a manifest into an object that exists; labels and annotations of others stay, all else is as we want it."""
    check_ours(found, manifest)
    for name in ("labels", "annotations"):
        entries = {**(found["metadata"].get(name) or {}), **manifest["metadata"].get(name, {})}
        if entries:
            found["metadata"][name] = entries
    for name in manifest.keys() - {"apiVersion", "kind", "metadata"}:
        kept = found[name] if found["kind"] == _LAID_OVER else {}
        found[name] = {**kept, **deepcopy(manifest[name])} if isinstance(manifest[name], Mapping) else manifest[name]


def check_ours(found: Object, manifest: Object) -> None:
    """Raise if an object is not of the pipeline to which its manifest belongs; one that does not exist is empty.

    Raises:
        NotOursError: naming the object and its label.
    """
    wanted = manifest["metadata"]["labels"]
    its_labels = found["metadata"].get("labels") or {} if found else wanted
    for label in (INSTANCE_LABEL, MANAGED_BY_LABEL):
        if its_labels.get(label) != wanted[label]:
            raise NotOursError(
                f"{manifest['kind']} {manifest['metadata']['name']!r} exists and is not of pipeline "
                f"{wanted[INSTANCE_LABEL]!r} ({label} is {its_labels.get(label)!r}); rename the pipeline, or use "
                "another namespace"
            )


def prune(
    cluster: Cluster, pipeline: str, manifests: Iterable[Object], dry_run: bool = False
) -> Iterator[ObjectChange]:
    """Delete what an earlier deployment made and these manifests lack, except replicas: see :func:`superseded`.

    Raises:
        ClusterError: as every call.
    """
    wanted = set(map(_key, manifests))
    for resource, found in owned(cluster, pipeline)[0]:
        if _key(found) not in wanted and not _is_model(resource, found):
            _delete(cluster, resource, found, dry_run)
            yield ObjectChange(found, {})


def superseded(cluster: Cluster, pipeline: str, manifests: Iterable[Object]) -> list[Object]:
    """Workloads of replicas that these manifests lack: of a variant that does not run any more, or of a former task."""
    wanted = set(map(_key, manifests))
    found = _owned(cluster, pipeline, WORKLOADS)[0]
    return [each for resource, each in found if _is_model(resource, each) and _key(each) not in wanted]


def release(cluster: Cluster, workloads: Iterable[Object], dry_run: bool = False) -> Iterator[ObjectChange]:
    """Delete workloads; their replicas finish what they serve.

    Raises:
        ClusterError: as every call.
    """
    for found in workloads:
        _delete(cluster, resource_of(found), found, dry_run)
        yield ObjectChange(found, {})


def _key(found: Object) -> tuple[Resource, str]:
    return resource_of(found), found["metadata"]["name"]


def _is_model(resource: Resource, found: Object) -> bool:
    return resource in WORKLOADS and _place(found)[0] == MODEL


# --------------------------------------------------------------------------------------------------- looking


def owned(cluster: Cluster, pipeline: str) -> tuple[list[tuple[Resource, Object]], list[Resource]]:
    """All objects of a pipeline by their kinds, and the kinds that this account may not look for.

    Raises:
        ForbiddenError: if it may not look for a kind that every cluster has.
        ClusterError: as every call.
    """
    return _owned(cluster, pipeline, (*BUILT_IN, *INSTALLED))


def _owned(
    cluster: Cluster, pipeline: str, kinds: Iterable[Resource]
) -> tuple[list[tuple[Resource, Object]], list[Resource]]:
    chosen = ",".join(f"{key}={value}" for key, value in labels(pipeline).items())
    found: list[tuple[Resource, Object]] = []
    unseen: list[Resource] = []
    for resource in kinds:
        try:
            objects, _ = cluster.list(resource, chosen)
        except NotFoundError:  # the cluster has no such kind
            continue
        except ForbiddenError:
            if resource in BUILT_IN:
                raise
            unseen.append(resource)
            continue
        found += [(resource, each) for each in objects if not each["metadata"].get("ownerReferences")]
    return found, unseen


def stages(cluster: Cluster, pipeline: str) -> dict[str, Object]:
    """The ConfigMaps that say what stages run, by task."""
    found, _ = cluster.list(CONFIG_MAP, selector(pipeline, QUEUE))
    named = ((each["metadata"]["labels"].get(TASK_LABEL, ""), each) for each in found)
    return {task: each for task, each in named if STAGE_VARIANT in (each.get("data") or {})}


def workloads(cluster: Cluster, pipeline: str) -> list[WorkloadStatus]:
    """Router, queues and replicas, with those of their pods that are ready.

    Raises:
        ClusterError: as every call.
    """
    return _look(cluster, pipeline, lambda found: True)


def _look(cluster: Cluster, pipeline: str, which: Callable[[Object], bool]) -> list[WorkloadStatus]:
    found = [each for _, each in _owned(cluster, pipeline, WORKLOADS)[0] if which(each)]
    pods = [pod for pod in cluster.list(POD, selector(pipeline))[0] if not has_ended(pod)]
    return sorted(_workload(each, [pod for pod in pods if _place(pod) == _place(each)]) for each in found)


def _workload(found: Object, pods: Sequence[Object]) -> WorkloadStatus:
    ready = sum(is_ready(pod) and _is_present(pod, found) for pod in pods)
    wanted = replicas_of(found)
    troubles = [failure_reason(pod) or unschedulable_reason(pod) for pod in pods if not is_ready(pod)]
    return WorkloadStatus(
        found["metadata"]["name"],
        *_place(found),
        wanted,
        ready if _is_current(found, wanted) else min(ready, max(wanted - 1, 0)),
        next(filter(None, troubles), refusal_reason(found)),
    )


def _place(labelled: Object) -> tuple[str, str, str]:
    its_labels = labelled["metadata"].get("labels") or {}
    component, task, variant = (its_labels.get(each, "") for each in (COMPONENT_LABEL, TASK_LABEL, VARIANT_LABEL))
    return component, task, variant


def _is_present(pod: Object, found: Object) -> bool:
    """Whether a pod is of the present manifest, where the workload does not say up to which one it speaks: Seldon's."""
    if resource_of(found) != SELDON_DEPLOYMENT:
        return True
    its_hash, wanted = (
        (each.get("metadata", {}).get("annotations") or {}).get(SETTINGS_ANNOTATION)
        for each in (pod, template_of(found))
    )
    return bool(its_hash == wanted)


def _is_current(found: Object, wanted: int) -> bool:
    """Whether the pods are those of the present manifest, as far as the cluster says."""
    status = found.get("status") or {}
    if "observedGeneration" not in status or resource_of(found) != DEPLOYMENT:
        return status.get("state", "Available") == "Available"
    seen = status["observedGeneration"] >= found["metadata"]["generation"]
    return seen and status.get("updatedReplicas", 0) == status.get("replicas", 0) == wanted


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
        report: is told what is still missing whenever that changes.
        leaving: workloads that are to go, whose pods are not waited for.

    Raises:
        NotServingError: naming what is missing, and why if that is known.
        ClusterError: as every call.
    """
    deadline = time.monotonic() + seconds
    said = ""
    left_out = set(map(_key, leaving))
    while True:
        late = [each for each in _look(cluster, pipeline, lambda w: _key(w) not in left_out) if not each.serves]
        if not late:
            return
        missing = ", ".join(f"{each.name} {each.ready} of {each.wanted}" for each in late)
        if missing != said:
            report(missing)
            said = missing
        if time.monotonic() > deadline:
            why = next((f": {each.trouble}" for each in late if each.trouble), "")
            raise NotServingError(
                f"pipeline {pipeline!r} does not serve after {seconds:g} s: pods are missing ({missing}){why}; look "
                "at their events and logs, correct the settings and deploy again"
            )
        time.sleep(POLL_SECONDS)


def waiting(cluster: Cluster, pipeline: str, task: str) -> str:
    """Requests that wait in a task's queue, as it says itself; ``?`` if it cannot be asked."""
    try:
        for pod in cluster.list(POD, selector(pipeline, QUEUE, task))[0]:
            ports = {each.get("name"): each["containerPort"] for each in pod["spec"]["containers"][0].get("ports", [])}
            if is_ready(pod) and HTTP in ports:
                return str(cluster.ask_pod(pod["metadata"]["name"], ports[HTTP], "/stage")["waiting"])
    except (ClusterError, KeyError, TypeError) as error:
        logger.info("the queue of %s does not say how many requests wait: %s", task, error)
    return "?"


def leader(cluster: Cluster, pipeline: str) -> str:
    """Who took the controllers' Lease and has not given it back; empty if nobody, ``?`` if that may not be seen."""
    try:
        spec = cluster.get(LEASE, lease_name(pipeline)).get("spec") or {}
    except NotFoundError:
        return ""
    except ForbiddenError:
        return "?"
    holder = spec.get("holderIdentity") or ""
    return f"{holder}, renewed {spec.get('renewTime')}" if holder else ""


# --------------------------------------------------------------------------------------------------- taking away


def delete(cluster: Cluster, pipeline: str, seconds: float, dry_run: bool = False) -> Iterator[ObjectChange]:
    """Take a pipeline away without losing a request that it has, until nothing is left.

    What stages run goes first, without which no controller can make anything anew; then the router, which finishes what
    it began, then queues and replicas, then all else. Events stay until the cluster forgets them.

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
    if not owned(cluster, pipeline)[0] and not _lease(cluster, pipeline):
        return
    for turn, component in enumerate(_TURNS):
        for resource, found in owned(cluster, pipeline)[0]:
            if _turn(resource, found) == turn:
                _delete(cluster, resource, found, dry_run)
                yield ObjectChange(found, {})
        if component and not dry_run:
            _wait_until_gone(partial(_pods, cluster, pipeline, component), seconds)
    if not dry_run:
        _wait_until_nobody_leads(cluster, pipeline, seconds)
    if lease := _lease(cluster, pipeline):
        _delete(cluster, LEASE, lease, dry_run)
        yield ObjectChange(lease, {})
    if not dry_run:
        _wait_until_gone(lambda: [_words(*each) for each in owned(cluster, pipeline)[0]], seconds)


_TURNS = ("", ROUTER, QUEUE, MODEL, "")
"""What goes after what: the components whose pods have to end, between the states of stages and everything else."""


def _turn(resource: Resource, found: Object) -> int:
    if resource == CONFIG_MAP and STAGE_VARIANT in (found.get("data") or {}):
        return 0
    component = _place(found)[0]
    return _TURNS.index(component) if resource in WORKLOADS and component in _TURNS else len(_TURNS) - 1


def _delete(cluster: Cluster, resource: Resource, found: Object, dry_run: bool) -> None:
    with suppress(NotFoundError):  # it is gone already
        cluster.delete(resource, found["metadata"]["name"], dry_run)


def _lease(cluster: Cluster, pipeline: str) -> Object:
    """The controllers' Lease if there is one and it is ours; who may not see it has not run a controller."""
    try:
        found = cluster.get(LEASE, lease_name(pipeline))
    except (ForbiddenError, NotFoundError):
        return {}
    ours = labels(pipeline, CONTROLLER).items() <= (found["metadata"].get("labels") or {}).items()
    return found if ours else {}


def _wait_until_nobody_leads(cluster: Cluster, pipeline: str, seconds: float) -> None:
    """Wait until the Lease is not renewed any more: a controller that runs would make it anew.

    Raises:
        LeftoverError: naming the Lease and its holder.
    """
    begin = renewed = time.monotonic()
    seen = lease = _lease(cluster, pipeline)
    while holder := (lease.get("spec") or {}).get("holderIdentity"):
        now = time.monotonic()
        if lease != seen:
            seen, renewed = lease, now
        if now - renewed > RENEWED_SECONDS:  # its holder has died
            return
        if now - begin > seconds and renewed > begin:
            raise LeftoverError(
                f"still there after {seconds:g} s: Lease {lease_name(pipeline)}, which {holder} holds and renews: a "
                "controller still runs; stop it, and delete again"
            )
        time.sleep(POLL_SECONDS)
        lease = _lease(cluster, pipeline)


def _pods(cluster: Cluster, pipeline: str, component: str) -> list[str]:
    return [_words(POD, pod) for pod in cluster.list(POD, selector(pipeline, component))[0] if not has_ended(pod)]


def _wait_until_gone(left: Callable[[], list[str]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while names := left():
        if time.monotonic() > deadline:
            raise LeftoverError(
                f"still there after {seconds:g} s: {', '.join(names)}; look what holds them (finalizers, a node that "
                "does not answer), or who makes them anew, and delete again"
            )
        time.sleep(POLL_SECONDS)


def _words(resource: Resource, found: Object) -> str:
    return f"{resource.kind} {found['metadata']['name']}"
