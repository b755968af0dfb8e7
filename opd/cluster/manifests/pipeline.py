"""All objects of a pipeline, in an order in which they can be created.

Everything exists from the start, a workload for every variant included, without replicas if the variant does not run.
A change of configuration affects only replicas and the content of the stages' ConfigMaps.
"""

from __future__ import annotations

from opd.cluster.manifests.extras import extra_objects
from opd.cluster.manifests.pods import SETTINGS_FILE, Pod, gateway_pod, model_pod
from opd.cluster.manifests.prefetch import prefetch_set
from opd.cluster.manifests.rights import controller_rights, gateway_account
from opd.cluster.manifests.workloads import SURGE, deployment, model_workload, renewed_by_surge
from opd.cluster.names import (
    CONTROLLER,
    STAGE,
    STAGE_BATCH_SIZE,
    STAGE_VARIANT,
    check_names,
    labels,
    lease_name,
    match_labels,
    stage_name,
)
from opd.cluster.resources import LEASE, Object, manifest
from opd.cluster.settings import ClusterSettings
from opd.pipeline import Configuration, Pipeline, StageConfiguration, Task, check_feasible


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
    stages = list(zip(pipeline.tasks, configuration, strict=True))
    surge = renewed_by_surge(pipeline, configuration)
    return [
        lease(pipeline, settings),
        *gateway_account(pipeline, settings),
        *controller_rights(pipeline, settings),
        *extra_objects(pipeline, settings),
        *([prefetch_set(pipeline, settings)] if settings.prefetch else []),
        *(_settings_config(pod, settings) for pod in (gateway, *models)),
        *(stage_config(pipeline, task, stage, settings) for task, stage in stages),
        _service(gateway, settings),
        *(
            model_workload(pipeline, task, variant, stage.replicas if z == stage.variant else 0, settings, surge)
            for task, stage in stages
            for z, variant in enumerate(task.variants)
        ),
        deployment(gateway, settings.gateways, SURGE, settings),
    ]


def lease(pipeline: Pipeline, settings: ClusterSettings) -> Object:
    """Return the Lease by which one controller of several leads; it exists for them to take."""
    return manifest(*LEASE[:2], lease_name(pipeline.name), labels(pipeline.name, CONTROLLER), settings.namespace)


def stage_config(pipeline: Pipeline, task: Task, stage: StageConfiguration, settings: ClusterSettings) -> Object:
    """Return the ConfigMap that holds the configuration of a stage."""
    name = stage_name(pipeline.name, task.name)
    its_labels, data = labels(pipeline.name, STAGE, task.name), stage_data(task, stage)
    return manifest("v1", "ConfigMap", name, its_labels, settings.namespace, data=data)


def stage_data(task: Task, stage: StageConfiguration) -> dict[str, str]:
    """Return the content of a stage's ConfigMap: what its gateways have to know. The workload has the replicas."""
    return {STAGE_VARIANT: task.variants[stage.variant].name, STAGE_BATCH_SIZE: str(stage.batch_size)}


def _settings_config(pod: Pod, settings: ClusterSettings) -> Object:
    data = {SETTINGS_FILE: pod.server.document}
    return manifest("v1", "ConfigMap", pod.name, pod.labels, settings.namespace, data=data)


def _service(pod: Pod, settings: ClusterSettings) -> Object:
    ports = [
        {"name": name, "port": port, "targetPort": name, "protocol": "TCP"} for name, port in settings.ports.items()
    ]
    spec = {"type": "ClusterIP", "selector": match_labels(pod.labels), "ports": ports}
    return manifest("v1", "Service", pod.name, pod.labels, settings.namespace, spec=spec)
