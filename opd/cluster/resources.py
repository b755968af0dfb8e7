"""Kinds of Kubernetes objects, and where the API has them. Objects are plain dictionaries, as in a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

Object = dict[str, Any]
"""A Kubernetes object, as in a manifest."""


class Resource(NamedTuple):
    """A kind of objects."""

    api_version: str
    kind: str
    namespaced: bool = True

    @property
    def plural(self) -> str:
        """The kind as paths name it."""
        lower = self.kind.lower()
        return f"{lower[:-1]}ies" if lower.endswith("y") else f"{lower}s"

    @property
    def type_fields(self) -> Object:
        """The fields by which an object states its kind."""
        return {"apiVersion": self.api_version, "kind": self.kind}

    def path(self, namespace: str, name: str = "") -> str:
        """Return the path of one object, or of all objects of a namespace (of all namespaces if empty)."""
        root = f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"
        scope = f"/namespaces/{quote(namespace, safe='')}" if self.namespaced and namespace else ""
        return f"{root}{scope}/{self.plural}" + (f"/{quote(name, safe='')}" if name else "")


POD = Resource("v1", "Pod")
CONFIG_MAP = Resource("v1", "ConfigMap")
NODE = Resource("v1", "Node", namespaced=False)
DEPLOYMENT = Resource("apps/v1", "Deployment")
SELDON_DEPLOYMENT = Resource("machinelearning.seldon.io/v1", "SeldonDeployment")
LEASE = Resource("coordination.k8s.io/v1", "Lease")


def resource_of(manifest: Mapping[str, Any]) -> Resource:
    """Return the kind of a namespaced manifest."""
    return Resource(manifest["apiVersion"], manifest["kind"])


def manifest(
    api_version: str, kind: str, name: str, object_labels: Mapping[str, str], namespace: str, **content: Any
) -> Object:
    """Return a new object with its own copy of the labels.

    Args:
        api_version: group and version of the kind.
        kind: of the object.
        name: of the object.
        object_labels: its labels.
        namespace: it belongs to.
        content: everything else at the top level, such as ``spec`` or ``data``.
    """
    metadata = {"name": name, "namespace": namespace, "labels": dict(object_labels)}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}
