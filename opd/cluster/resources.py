"""Kinds of Kubernetes objects, their paths in the API, and changes of objects, which are plain dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import unified_diff
from typing import Any, NamedTuple
from urllib.parse import quote

import yaml

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
    def group(self) -> str:
        """The API group, empty for the core."""
        return self.api_version.rpartition("/")[0]

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
DAEMON_SET = Resource("apps/v1", "DaemonSet")
SELDON_DEPLOYMENT = Resource("machinelearning.seldon.io/v1", "SeldonDeployment")
LEASE = Resource("coordination.k8s.io/v1", "Lease")
SCALE = Resource("autoscaling/v1", "Scale")
ADMISSION_POLICY = Resource("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy", namespaced=False)
ADMISSION_BINDING = Resource("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding", namespaced=False)

_CLUSTER_WIDE = {each[:2]: each for each in (NODE, ADMISSION_POLICY, ADMISSION_BINDING)}


def resource_of(manifest: Mapping[str, Any]) -> Resource:
    """Return the kind of a manifest."""
    named = (manifest["apiVersion"], manifest["kind"])
    return _CLUSTER_WIDE.get(named) or Resource(*named)


def manifest(
    api_version: str, kind: str, name: str, object_labels: Mapping[str, str], namespace: str, **content: Any
) -> Object:
    """Return a new object with its own copy of the labels.

    Args:
        api_version: group and version of the kind.
        kind: of the object.
        name: of the object.
        object_labels: its labels.
        namespace: it belongs to; empty if its kind belongs to none.
        content: everything else at the top level, such as ``spec`` or ``data``.
    """
    metadata = {"name": name, **({"namespace": namespace} if namespace else {}), "labels": dict(object_labels)}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}


_KEPT_BY_CLUSTER = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp")


class ObjectChange(NamedTuple):
    """An object before and after; empty before it was created and after it was deleted."""

    before: Object
    after: Object

    @property
    def outcome(self) -> str:
        """``created``, ``changed``, ``unchanged`` or ``deleted``."""
        if not self.before:
            return "created"
        if not self.after:
            return "deleted"
        return "changed" if self.difference() else "unchanged"

    def difference(self) -> str:
        """Return a unified diff of YAML, without fields that the cluster maintains."""
        named = self.after or self.before
        name = f"{named['kind']}/{named['metadata']['name']}"
        old, new = (_as_yaml(each).splitlines(keepends=True) for each in self)
        return "".join(unified_diff(old, new, f"{name} now", f"{name} then"))


def _as_yaml(given: Object) -> str:
    if not given:
        return ""
    metadata = {name: value for name, value in given["metadata"].items() if name not in _KEPT_BY_CLUSTER}
    shown = {name: value for name, value in given.items() if name != "status"}
    return yaml.safe_dump({**shown, "metadata": metadata}, sort_keys=True)
