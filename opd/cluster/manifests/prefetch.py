"""A pod on every node that replicas may go to, so that the node has their image, and their models, before they start.

It is made of the pod of a replica with the user's overlay, so it goes to the same nodes with the same rights, and it
requests no cores. Its container only sleeps: the kubelet removes no image that a container uses. Models are pulled
where they outlive a pod, which is where an overlay has put the cache on the node.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from opd.cluster.manifests.pods import SETTINGS_ANNOTATION, model_pod, pod_template
from opd.cluster.names import CONTAINER, PREFETCH, TASK_LABEL, VARIANT_LABEL, labels, match_labels, prefetch_name
from opd.cluster.resources import DAEMON_SET, Object, manifest
from opd.cluster.settings import ClusterSettings
from opd.pipeline import Pipeline

_WORK = ("containers", "initContainers", "volumes", "topologySpreadConstraints", "resources", "resourceClaims")
"""Fields of a replica's pod that are for its work, or for its place beside others."""

_IDLE = {"cpu": "0", "memory": "16Mi"}
"""Requests: without cores, or a node with whole cores free would have one less for replicas."""


def prefetch_set(pipeline: Pipeline, settings: ClusterSettings) -> Object:
    """Return the DaemonSet of a pipeline.

    Raises:
        OverlayError: if the overlay adds a container without an image.
    """
    first = pipeline.tasks[0]
    replica = pod_template(model_pod(pipeline, first, first.variants[0], settings), settings)
    its_labels = labels(pipeline.name, PREFETCH)
    spec = {
        "selector": {"matchLabels": match_labels(its_labels)},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%"}},  # they serve nothing
        "template": {"metadata": _metadata(replica["metadata"], its_labels), "spec": _pod(pipeline, settings, replica)},
    }
    return manifest(*DAEMON_SET[:2], prefetch_name(pipeline.name), its_labels, settings.namespace, spec=spec)


def _metadata(of_replica: Mapping[str, Any], its_labels: Mapping[str, str]) -> dict[str, Any]:
    """The user's labels and annotations, and our labels."""
    theirs = {key: value for key, value in of_replica["labels"].items() if key not in (TASK_LABEL, VARIANT_LABEL)}
    noted = {key: value for key, value in of_replica["annotations"].items() if key != SETTINGS_ANNOTATION}
    return {"labels": {**theirs, **its_labels}, **({"annotations": noted} if noted else {})}


def _pod(pipeline: Pipeline, settings: ClusterSettings, replica: Mapping[str, Any]) -> dict[str, Any]:
    spec = {name: value for name, value in replica["spec"].items() if name not in _WORK}
    if nodes := (spec.pop("affinity", None) or {}).get("nodeAffinity"):
        spec["affinity"] = {"nodeAffinity": nodes}
    server = next(each for each in replica["spec"]["containers"] if each["name"] == CONTAINER)
    sleeping = {
        "name": PREFETCH,
        **_parts(server, "image", "imagePullPolicy", "securityContext"),
        "command": ["sleep", "infinity"],
        "resources": {"requests": _IDLE, "limits": {"cpu": "100m", "memory": "32Mi"}},
    }
    spec |= {"terminationGracePeriodSeconds": 1, "containers": [sleeping]}
    volumes = [each for each in replica["spec"]["volumes"] if each["name"] != "settings"]
    if "://" in settings.store and any(each["name"] == "cache" and "emptyDir" not in each for each in volumes):
        spec |= {"initContainers": [_pulling(pipeline, settings, server)], "volumes": volumes}
    return deepcopy(spec)  # objects share no parts


def _pulling(pipeline: Pipeline, settings: ClusterSettings, server: Mapping[str, Any]) -> dict[str, Any]:
    """The container that pulls the models of all variants, with the cache and the credentials of a replica."""
    return {
        "name": "models",
        **_parts(server, "image", "imagePullPolicy", "env", "envFrom", "securityContext"),
        "command": ["python", "-m", "opd.serving.prefetch"],
        "args": [settings.store, *(f"{task.name}/{each.name}" for task in pipeline.tasks for each in task.variants)],
        "resources": {"requests": _IDLE, "limits": {"cpu": "1", "memory": settings.model_memory}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [each for each in server["volumeMounts"] if each["name"] != "settings"],
    }


def _parts(server: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: server[name] for name in names if name in server}
