"""The pods of a pipeline: its gateways, and the replicas of each variant.

Each has one container, a server process with its settings mounted.

The security context is that of the container, because Seldon Core replaces the pod's by its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from opd.cluster.gateway_settings import POD_NAME_VARIABLE, ClusterGatewaySettings
from opd.cluster.names import COMPONENT_LABEL, CONTAINER, GATEWAY, MODEL, gateway_name, labels, match_labels, model_name
from opd.cluster.settings import HTTP, ClusterSettings
from opd.pipeline import Pipeline, Task, Variant
from opd.serving.emulation.settings import EmulationSettings, replica_settings
from opd.serving.settings import GatewayStage, ProcessSettings, ServerSettings
from opd.serving.store import CACHE_VARIABLE

USER = 10001
"""User and group of the processes in containers."""

SETTINGS_FILE = "server.json"
"""Key of a server's settings in its ConfigMap."""

SETTINGS_FOLDER = "/etc/opd"
CACHE_FOLDER = "/cache"

SETTINGS_ANNOTATION = "opd.io/settings"
"""Hash of the settings and the pod template: a change replaces the pods, and identifies the current ones."""

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
        caches_models: whether it pulls variants from the model store.
        drain_seconds: that it still serves after it was told to end.
        spread: whether the pods of this kind go to different nodes, as far as there are cores for them.
    """

    name: str
    server: ProcessSettings
    labels: Mapping[str, str]
    millicores: int
    memory: str
    drain_seconds: int
    account: str = ""
    caches_models: bool = False
    spread: bool = True


def pod_template(pod: Pod, settings: ClusterSettings) -> dict[str, Any]:
    """Return the pod template of a workload, with the changes of the user's overlay.

    Raises:
        OverlayError: if the overlay adds a container without an image.
    """
    spec: dict[str, Any] = {
        "automountServiceAccountToken": bool(pod.account),
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": settings.grace_seconds(pod.drain_seconds),
        "containers": [_container(pod, settings)],
        "volumes": [{"name": "settings", "configMap": {"name": pod.name}}, {"name": "tmp", "emptyDir": {}}],
    }
    if pod.caches_models:
        spec["volumes"].append({"name": "cache", "emptyDir": {}})
    if pod.account:
        spec["serviceAccountName"] = pod.account
    if settings.priority_class:
        spec["priorityClassName"] = settings.priority_class
    if pod.spread:
        spec["topologySpreadConstraints"] = [_over_nodes(pod)]
    metadata = {"labels": dict(pod.labels), "annotations": {SETTINGS_ANNOTATION: ""}}
    template = settings.overlay.apply(pod.labels[COMPONENT_LABEL], {"metadata": metadata, "spec": spec})
    everything = json.dumps([pod.server.document, template], sort_keys=True)
    template["metadata"]["annotations"][SETTINGS_ANNOTATION] = hashlib.sha256(everything.encode()).hexdigest()[:16]
    return template


def _over_nodes(pod: Pod) -> dict[str, Any]:
    """Spread the pods over nodes, so one lost node leaves some; a pod that fits on one node only goes there."""
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": match_labels(pod.labels)},
    }


def _container(pod: Pod, settings: ClusterSettings) -> dict[str, Any]:
    resources = {"cpu": cpu(pod.millicores), "memory": pod.memory}
    live, ready = "/v2/health/live", f"/v2/models/{pod.server.name}/ready"
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "command": ["python", "-m", pod.server.module],
        "args": [f"{SETTINGS_FOLDER}/{SETTINGS_FILE}"],
        "env": [
            {"name": "HOME", "value": "/tmp"},
            {"name": "OMP_NUM_THREADS", "value": str(max(pod.millicores // 1000, 1))},
        ],
        "ports": [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in settings.ports.items()],
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        # A busy server answers slowly and must not be restarted for that.
        "startupProbe": _probe(live, period=1, timeout=2, failures=settings.startup_seconds),
        "readinessProbe": _probe(ready, period=2, timeout=2, failures=3),
        "livenessProbe": _probe(live, period=10, timeout=5, failures=6),
        # The cluster keeps the last lines of a server that failed, and errors can quote them.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": deepcopy(dict(SECURITY_CONTEXT)),
        "volumeMounts": [
            {"name": "settings", "mountPath": SETTINGS_FOLDER, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    if pod.account:  # it looks for itself among the pods
        own_name = {"fieldRef": {"fieldPath": "metadata.name"}}
        container["env"].append({"name": POD_NAME_VARIABLE, "valueFrom": own_name})
    if pod.caches_models:
        container["env"].append({"name": CACHE_VARIABLE, "value": CACHE_FOLDER})
        container["volumeMounts"].append({"name": "cache", "mountPath": CACHE_FOLDER})
        if settings.storage_secret:
            container["envFrom"] = [{"secretRef": {"name": settings.storage_secret}}]
    if pod.drain_seconds:
        # The handler `sleep` needs no program, but older clusters and the schema of SeldonDeployment lack it.
        container["lifecycle"] = {"preStop": {"exec": {"command": ["sleep", str(pod.drain_seconds)]}}}
    return container


def cpu(millicores: int) -> str:
    """Return an amount of CPU in the notation of Kubernetes."""
    return f"{millicores}m" if millicores % 1000 else str(millicores // 1000)


def _probe(path: str, period: int, timeout: int, failures: int) -> dict[str, Any]:
    get = {"path": path, "port": HTTP}
    return {"httpGet": get, "periodSeconds": period, "timeoutSeconds": timeout, "failureThreshold": failures}


def gateway_pod(pipeline: Pipeline, settings: ClusterSettings) -> Pod:
    """Return the pod of a gateway, which discovers the replicas by their labels."""
    server = ClusterGatewaySettings(
        name=pipeline.name,
        stages=[GatewayStage(task=task.name, adapter=dict(task.adapter or {})) for task in pipeline.tasks],
        queue=settings.stage,
        objective=pipeline.service_level.seconds,
        namespace=settings.namespace,
        replica_port=settings.grpc_port,
        **_listening(settings),
    )
    return Pod(
        name=gateway_name(pipeline.name),
        server=server,
        labels=labels(pipeline.name, GATEWAY),
        millicores=settings.gateway_millicores,
        memory=settings.gateway_memory,
        drain_seconds=settings.gateway_drain_seconds,
        account=gateway_name(pipeline.name),
        spread=settings.gateways > 1,
    )


def model_pod(pipeline: Pipeline, task: Task, variant: Variant, settings: ClusterSettings) -> Pod:
    """Return the pod of one replica of a variant; it is emulated if the settings say so."""
    if settings.emulated:
        return _emulated_pod(pipeline, task, variant, settings)
    parameters = {"pipeline": pipeline.name, "task": task.name, "variant": variant.name, "store": settings.store}
    return Pod(
        name=model_name(pipeline.name, task.name, variant.name),
        server=ServerSettings(name=task.name, parameters=parameters, **_listening(settings)),
        labels=labels(pipeline.name, MODEL, task.name, variant.name),
        millicores=1000 * variant.cores,
        memory=settings.model_memory,
        drain_seconds=settings.drain_seconds,
        caches_models=True,
    )


def _emulated_pod(pipeline: Pipeline, task: Task, variant: Variant, settings: ClusterSettings) -> Pod:
    replica = replica_settings(pipeline.name, task, variant, settings.grpc_port, settings.emulated_noise)
    return Pod(
        name=model_name(pipeline.name, task.name, variant.name),
        server=EmulationSettings(name=task.name, replicas={variant.name: replica}, **_listening(settings)),
        labels=labels(pipeline.name, MODEL, task.name, variant.name),
        millicores=settings.emulated_millicores,
        memory=settings.emulated_memory,
        drain_seconds=settings.drain_seconds,
    )


def _listening(settings: ClusterSettings) -> dict[str, Any]:
    return {"host": "0.0.0.0", **{f"{name}_port": port for name, port in settings.ports.items()}}
