"""The pods of a pipeline: one container each, a server of :mod:`opd.serving.server` with its settings mounted.

The security context is that of the container, because Seldon Core replaces the pod's by its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from opd.cluster.names import COMPONENT_LABEL, CONTAINER
from opd.cluster.settings import ClusterSettings
from opd.serving.settings import ServerSettings
from opd.serving.store import CACHE_VARIABLE

USER = 10001
"""User and group of the processes in containers."""

SETTINGS_FILE = "server.json"
"""Key of a server's settings in its ConfigMap."""

SETTINGS_FOLDER = "/etc/opd"
CACHE_FOLDER = "/cache"

SETTINGS_ANNOTATION = "opd.io/settings"
"""Hash of the settings and the pod template: a change replaces the pods, and identifies the current ones."""

HTTP, GRPC, METRICS = "http", "grpc", "metrics"
"""Names of the ports."""

SECURITY_CONTEXT: Mapping[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "privileged": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


@dataclass(frozen=True)
class Pod:
    """Properties that distinguish the pods of one server.

    Attributes:
        name: of its workload, the ConfigMap with its settings, and its Service if it has one.
        server: settings of the server.
        labels: of the pod.
        millicores: CPU, thousandths of a core.
        memory: as Kubernetes writes it.
        account: ServiceAccount whose token is mounted; none if empty.
        drains: whether a terminating pod still serves for a while, because clients may still send to it.
        caches_models: whether it pulls variants from the model store.
    """

    name: str
    server: ServerSettings
    labels: Mapping[str, str]
    millicores: int
    memory: str
    account: str = ""
    drains: bool = True
    caches_models: bool = False


def pod_template(pod: Pod, settings: ClusterSettings) -> dict[str, Any]:
    """Return the pod template of a workload, with the changes of the user's overlay.

    Raises:
        OverlayError: if the overlay adds a container without an image.
    """
    spec: dict[str, Any] = {
        "automountServiceAccountToken": bool(pod.account),
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": settings.grace_seconds,
        "containers": [_container(pod, settings)],
        "volumes": _volumes(pod),
    }
    if pod.account:
        spec["serviceAccountName"] = pod.account
    metadata = {"labels": dict(pod.labels), "annotations": {SETTINGS_ANNOTATION: ""}}
    template = settings.overlay.apply(pod.labels[COMPONENT_LABEL], {"metadata": metadata, "spec": spec})
    everything = json.dumps([pod.server.document, template], sort_keys=True)
    template["metadata"]["annotations"][SETTINGS_ANNOTATION] = hashlib.sha256(everything.encode()).hexdigest()[:16]
    return template


def _container(pod: Pod, settings: ClusterSettings) -> dict[str, Any]:
    resources = {"cpu": cpu(pod.millicores), "memory": pod.memory}
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "command": ["python", "-m", "opd.serving.server"],
        "args": [f"{SETTINGS_FOLDER}/{SETTINGS_FILE}"],
        "env": _environment(pod),
        "ports": [
            {"name": HTTP, "containerPort": settings.http_port, "protocol": "TCP"},
            {"name": GRPC, "containerPort": settings.grpc_port, "protocol": "TCP"},
            {"name": METRICS, "containerPort": settings.metrics_port, "protocol": "TCP"},
        ],
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        **_probes(pod.server.name, settings.startup_seconds),
        "securityContext": deepcopy(dict(SECURITY_CONTEXT)),
        "volumeMounts": _mounts(pod),
    }
    if pod.caches_models and settings.storage_secret:
        container["envFrom"] = [{"secretRef": {"name": settings.storage_secret}}]
    if pod.drains and settings.drain_seconds:
        # The handler `sleep` needs no program, but older clusters and the schema of SeldonDeployment lack it.
        container["lifecycle"] = {"preStop": {"exec": {"command": ["sleep", str(settings.drain_seconds)]}}}
    return container


def cpu(millicores: int) -> str:
    """Return an amount of CPU in the notation of Kubernetes."""
    return f"{millicores}m" if millicores % 1000 else str(millicores // 1000)


def _environment(pod: Pod) -> list[dict[str, str]]:
    variables = {"HOME": "/tmp", "OMP_NUM_THREADS": str(max(pod.millicores // 1000, 1))}
    if pod.caches_models:
        variables[CACHE_VARIABLE] = CACHE_FOLDER
    return [{"name": name, "value": value} for name, value in variables.items()]


def _probes(model: str, startup_seconds: int) -> dict[str, Any]:
    """Return the probes; a busy server answers slowly and must not be restarted for that."""
    live, ready = "/v2/health/live", f"/v2/models/{model}/ready"
    return {
        "startupProbe": _probe(live, period=1, timeout=2, failures=startup_seconds),
        "readinessProbe": _probe(ready, period=2, timeout=2, failures=3),
        "livenessProbe": _probe(live, period=10, timeout=5, failures=6),
    }


def _probe(path: str, period: int, timeout: int, failures: int) -> dict[str, Any]:
    get = {"path": path, "port": HTTP}
    return {"httpGet": get, "periodSeconds": period, "timeoutSeconds": timeout, "failureThreshold": failures}


def _volumes(pod: Pod) -> list[dict[str, Any]]:
    cache = [{"name": "cache", "emptyDir": {}}] if pod.caches_models else []
    return [{"name": "settings", "configMap": {"name": pod.name}}, {"name": "tmp", "emptyDir": {}}, *cache]


def _mounts(pod: Pod) -> list[dict[str, Any]]:
    cache = [{"name": "cache", "mountPath": CACHE_FOLDER}] if pod.caches_models else []
    return [
        {"name": "settings", "mountPath": SETTINGS_FOLDER, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
        *cache,
    ]
