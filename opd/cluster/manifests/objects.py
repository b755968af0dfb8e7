"""The shape that all objects share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opd.cluster.names import labels, match_labels

Manifest = dict[str, Any]


def manifest(
    api_version: str, kind: str, name: str, object_labels: Mapping[str, str], namespace: str, **content: Any
) -> Manifest:
    """Return an object with its own copy of the labels.

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


def config_map(name: str, object_labels: Mapping[str, str], namespace: str, data: Mapping[str, str]) -> Manifest:
    """Return a ConfigMap."""
    return manifest("v1", "ConfigMap", name, object_labels, namespace, data=dict(data))


def pod_selector(pipeline: str, component: str = "", task: str = "") -> dict[str, Any]:
    """Return a label selector for the pods of a component and task; an empty part selects all."""
    return {"matchLabels": match_labels(labels(pipeline, component, task))}
