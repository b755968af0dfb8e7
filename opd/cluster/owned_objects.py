"""Finds, creates, updates and deletes the objects of a pipeline: those with the labels of :mod:`opd.cluster.names`.

Anything else is left alone, even if it has a name that a pipeline needs, and so is what other objects own, which goes
with its owner.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from opd.cluster.api import Cluster
from opd.cluster.errors import ForbiddenError, NotFoundError, NotOursError
from opd.cluster.names import (
    COMPONENT_LABEL,
    DEPLOY_MANAGER,
    INSTANCE_LABEL,
    MANAGED_BY_LABEL,
    MODEL,
    NAMESPACE_LABEL,
    TASK_LABEL,
    VARIANT_LABEL,
    labels,
)
from opd.cluster.resources import (
    ADMISSION_BINDING,
    ADMISSION_POLICY,
    CONFIG_MAP,
    DAEMON_SET,
    DEPLOYMENT,
    LEASE,
    SELDON_DEPLOYMENT,
    Object,
    ObjectChange,
    Resource,
    resource_of,
)

BUILT_IN = (
    CONFIG_MAP,
    DEPLOYMENT,
    Resource("v1", "Service"),
    Resource("networking.k8s.io/v1", "NetworkPolicy"),
    Resource("policy/v1", "PodDisruptionBudget"),
    Resource("rbac.authorization.k8s.io/v1", "RoleBinding"),
    Resource("rbac.authorization.k8s.io/v1", "Role"),
    Resource("v1", "ServiceAccount"),
    LEASE,
)
"""Kinds of our objects that every cluster has, in an order in which they can be deleted."""

INSTALLED = (
    SELDON_DEPLOYMENT,
    DAEMON_SET,  # which an account that never prefetches needs no right for
    Resource("networking.istio.io/v1", "VirtualService"),
    Resource("networking.istio.io/v1", "DestinationRule"),
    Resource("monitoring.coreos.com/v1", "PodMonitor"),
    Resource("monitoring.coreos.com/v1", "PrometheusRule"),
    ADMISSION_BINDING,
    ADMISSION_POLICY,
)
"""Kinds that a cluster need not have, or that an account of one namespace may not list."""

WORKLOADS = (DEPLOYMENT, SELDON_DEPLOYMENT)


def find_owned(
    cluster: Cluster, pipeline: str, kinds: Iterable[Resource] = (*BUILT_IN, *INSTALLED)
) -> tuple[list[Object], list[Resource]]:
    """Return all objects of a pipeline, and the kinds that this account may not list.

    Raises:
        ForbiddenError: if it may not list a kind that every cluster has.
        ClusterError: as every call.
    """
    ours = labels(pipeline)
    found: list[Object] = []
    unseen: list[Resource] = []
    for resource in kinds:
        chosen = ours if resource.namespaced else {**ours, NAMESPACE_LABEL: cluster.namespace}
        try:
            objects, _ = cluster.list(resource, ",".join(f"{key}={value}" for key, value in chosen.items()))
        except NotFoundError:  # the cluster has no such kind
            continue
        except ForbiddenError:
            if resource in BUILT_IN:
                raise
            unseen.append(resource)
            continue
        found += [each for each in objects if not each["metadata"].get("ownerReferences")]
    return found, unseen


def _check_ours(found: Object, manifest: Object) -> None:
    """Raise if an object is not of the pipeline of its manifest; one that does not exist is empty.

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


def role_of(labelled: Object) -> tuple[str, str, str]:
    """Return component, task and variant of an object or pod, from its labels; empty where it has none."""
    its_labels = labelled["metadata"].get("labels") or {}
    component, task, variant = (its_labels.get(each, "") for each in (COMPONENT_LABEL, TASK_LABEL, VARIANT_LABEL))
    return component, task, variant


def identity_of(found: Object) -> tuple[Resource, str]:
    """Return kind and name of an object."""
    return resource_of(found), found["metadata"]["name"]


def apply_objects(cluster: Cluster, manifests: Sequence[Object], dry_run: bool = False) -> Iterator[ObjectChange]:
    """Create each object, or bring the one that exists to its manifest, in this order.

    What others have set in fields that a manifest lacks stays. Nothing is written unless every object that exists
    belongs to the pipeline.

    Args:
        cluster: the namespace.
        manifests: see :func:`opd.cluster.manifests.pipeline.pipeline_objects`.
        dry_run: let the cluster check everything and keep nothing.

    Yields:
        the change of each.

    Raises:
        NotOursError: if an object exists and is not of this pipeline.
        NotFoundError: if the namespace or a kind of object does not exist.
        ClusterError: as every call.
    """
    found = [_find(cluster, manifest) for manifest in manifests]
    for each, manifest in zip(found, manifests, strict=True):
        _check_ours(each, manifest)
    for each, manifest in zip(found, manifests, strict=True):
        yield ObjectChange(each, cluster.apply(manifest, DEPLOY_MANAGER, force=True, dry_run=dry_run))


def _find(cluster: Cluster, manifest: Object) -> Object:
    try:
        return cluster.get(*identity_of(manifest))
    except NotFoundError:
        return {}


def prune_objects(
    cluster: Cluster, pipeline: str, manifests: Iterable[Object], dry_run: bool = False
) -> Iterator[ObjectChange]:
    """Delete what an earlier deployment made and these manifests lack, except replicas, which may still serve.

    Raises:
        ClusterError: as every call.
    """
    wanted = set(map(identity_of, manifests))
    found, _ = find_owned(cluster, pipeline)
    lacking = [each for each in found if identity_of(each) not in wanted and not is_model(each)]
    yield from delete_objects(cluster, lacking, dry_run)


def delete_objects(cluster: Cluster, objects: Iterable[Object], dry_run: bool = False) -> Iterator[ObjectChange]:
    """Delete objects, if they still exist; replicas of workloads finish what they serve.

    Raises:
        ClusterError: as every call.
    """
    for found in objects:
        with suppress(NotFoundError):
            cluster.delete(*identity_of(found), dry_run)
        yield ObjectChange(found, {})


def is_model(found: Object) -> bool:
    """Return whether an object is the workload of a variant."""
    return resource_of(found) in WORKLOADS and role_of(found)[0] == MODEL
