"""All objects of a pipeline, in an order in which they can be created.

The settings of all variants exist from the start. A change of configuration affects only which workloads exist, their
replicas, and the content of the stages' ConfigMaps.
"""

from __future__ import annotations

from opd.cluster.manifests.extras import extra_objects
from opd.cluster.manifests.pods import SETTINGS_FILE, Pod, gateway_pod, model_pod
from opd.cluster.manifests.workloads import SURGE, deployment, model_workload, renewed_by_surge
from opd.cluster.names import GATEWAY, STAGE, check_names, gateway_name, labels, match_labels, stage_name
from opd.cluster.resources import Object, manifest
from opd.cluster.settings import ClusterSettings
from opd.pipeline import Configuration, Pipeline, StageConfiguration, Task, check_feasible

STAGE_VARIANT, STAGE_REPLICAS, STAGE_BATCH_SIZE = "variant", "replicas", "batch_size"
"""Keys of a stage's ConfigMap."""

RBAC = "rbac.authorization.k8s.io"


def pipeline_objects(pipeline: Pipeline, configuration: Configuration, settings: ClusterSettings) -> list[Object]:
    """Return everything a pipeline needs, in an order in which it can be created.

    Raises:
        BadNameError: if the cluster would not accept an object's name.
        InfeasibleError: if the configuration breaks a limit.
        OverlayError: if the overlay adds a container without an image.
    """
    check_names(pipeline)
    check_feasible(pipeline, configuration)
    gateway = gateway_pod(pipeline, settings)
    models = [model_pod(pipeline, task, variant, settings) for task in pipeline.tasks for variant in task.variants]
    chosen = list(zip(pipeline.tasks, pipeline.selected(configuration), strict=True))
    surge = renewed_by_surge(pipeline, configuration)
    return [
        *_gateway_account(pipeline, settings),
        *extra_objects(pipeline, settings),
        *(_settings_config(pod, settings) for pod in (gateway, *models)),
        *(stage_config(pipeline, task, stage, settings) for task, (_, stage) in chosen),
        _service(gateway, settings),
        *(
            model_workload(pipeline, task, variant, stage.replicas, settings, surge)
            for task, (variant, stage) in chosen
        ),
        deployment(gateway, settings.gateways, SURGE, settings),
    ]


def stage_config(pipeline: Pipeline, task: Task, stage: StageConfiguration, settings: ClusterSettings) -> Object:
    """Return the ConfigMap that holds the configuration of a stage."""
    data = {
        STAGE_VARIANT: task.variants[stage.variant].name,
        STAGE_REPLICAS: str(stage.replicas),
        STAGE_BATCH_SIZE: str(stage.batch_size),
    }
    name = stage_name(pipeline.name, task.name)
    return manifest("v1", "ConfigMap", name, labels(pipeline.name, STAGE, task.name), settings.namespace, data=data)


def _settings_config(pod: Pod, settings: ClusterSettings) -> Object:
    data = {SETTINGS_FILE: pod.server.document}
    return manifest("v1", "ConfigMap", pod.name, pod.labels, settings.namespace, data=data)


def _service(pod: Pod, settings: ClusterSettings) -> Object:
    ports = [
        {"name": name, "port": port, "targetPort": name, "protocol": "TCP"} for name, port in settings.ports.items()
    ]
    spec = {"type": "ClusterIP", "selector": match_labels(pod.labels), "ports": ports}
    return manifest("v1", "Service", pod.name, pod.labels, settings.namespace, spec=spec)


def _gateway_account(pipeline: Pipeline, settings: ClusterSettings) -> list[Object]:
    """Return the account of the gateways, which may only look at pods and at the configuration of the stages."""
    name, its_labels, namespace = gateway_name(pipeline.name), labels(pipeline.name, GATEWAY), settings.namespace
    rule = {"apiGroups": [""], "resources": ["configmaps", "pods"], "verbs": ["get", "list", "watch"]}
    subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
    role = {"apiGroup": RBAC, "kind": "Role", "name": name}
    return [
        manifest("v1", "ServiceAccount", name, its_labels, namespace, automountServiceAccountToken=False),
        manifest(f"{RBAC}/v1", "Role", name, its_labels, namespace, rules=[rule]),
        manifest(f"{RBAC}/v1", "RoleBinding", name, its_labels, namespace, subjects=[subject], roleRef=role),
    ]
