"""Objects that belong to a pipeline: those with the labels of :mod:`opd.cluster.names`.

Anything else is left alone, even if it has a name that a pipeline needs, and so is what other objects own, which goes
with its owner.
"""

from __future__ import annotations

from collections.abc import Iterable

from opd.cluster.api import Cluster
from opd.cluster.errors import ForbiddenError, NotFoundError, NotOursError
from opd.cluster.names import COMPONENT_LABEL, INSTANCE_LABEL, MANAGED_BY_LABEL, TASK_LABEL, VARIANT_LABEL, labels
from opd.cluster.resources import CONFIG_MAP, DEPLOYMENT, SELDON_DEPLOYMENT, Object, Resource, resource_of

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
"""Kinds of our objects that every cluster has, in an order in which they can be deleted."""

INSTALLED = (
    SELDON_DEPLOYMENT,
    Resource("networking.istio.io/v1", "VirtualService"),
    Resource("networking.istio.io/v1", "DestinationRule"),
    Resource("monitoring.coreos.com/v1", "PodMonitor"),
)
"""Kinds that a cluster need not have."""

WORKLOADS = (DEPLOYMENT, SELDON_DEPLOYMENT)

OwnedObjects = list[tuple[Resource, Object]]
"""Objects with their kinds."""


def find_owned(
    cluster: Cluster, pipeline: str, kinds: Iterable[Resource] = (*BUILT_IN, *INSTALLED)
) -> tuple[OwnedObjects, list[Resource]]:
    """Return all objects of a pipeline by their kinds, and the kinds that this account may not list.

    Raises:
        ForbiddenError: if it may not list a kind that every cluster has.
        ClusterError: as every call.
    """
    chosen = ",".join(f"{key}={value}" for key, value in labels(pipeline).items())
    found: OwnedObjects = []
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


def check_ours(found: Object, manifest: Object) -> None:
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
