"""The objects of a pipeline: pure functions of the pipeline, its configuration and the settings.

Each task has a queue, and each variant that runs has a workload of its own, so that a change of variant is in both
flavours the same: one workload grows, the other goes. The settings of all variants are there from the start; what
changes with the configuration is only which workloads there are, their replicas, and what the stage's ConfigMap says.
Content and order depend on nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from opd.cluster.manifests_extras import extra_objects
from opd.cluster.manifests_seldon import KIND, seldon_workload
from opd.cluster.names import (
    MODEL,
    QUEUE,
    ROUTER,
    check_names,
    labels,
    match_labels,
    model_name,
    queue_account_name,
    queue_name,
    router_name,
    selector,
    service_host,
    stage_name,
)
from opd.cluster.pods import GRPC, HTTP, METRICS, SETTINGS_FILE, Pod, pod_template
from opd.cluster.settings import SELDON, ClusterSettings
from opd.pipeline import Configuration, Pipeline, StageConfiguration, Task, Variant, check_feasible, used_cores
from opd.serving.server import ServerSettings

STAGE_VARIANT, STAGE_REPLICAS, STAGE_BATCH_SIZE = "variant", "replicas", "batch_size"
"""Keys of a stage's ConfigMap."""

DISCOVERING_QUEUE = "opd.cluster.discovering_queue.DiscoveringQueueRuntime"
"""Import path of the queues' runtime."""

ADDRESS = "0.0.0.0"
"""Servers listen on every address of their pod."""

Manifest = dict[str, Any]


def pipeline_objects(pipeline: Pipeline, configuration: Configuration, settings: ClusterSettings) -> list[Manifest]:
    """Everything that a pipeline needs, in an order in which it can be created.

    Raises:
        BadNameError: if an object's name would not suit the cluster.
        InfeasibleError: if the configuration breaks a limit.
        OverlayError: if the overlay adds a container without an image.
    """
    check_names(pipeline)
    check_feasible(pipeline, configuration)
    queues = [_queue_pod(pipeline, task, settings) for task in pipeline.tasks]
    router = _router_pod(pipeline, settings)
    variants = [_model_pod(pipeline, task, v, settings) for task in pipeline.tasks for v in task.variants]
    chosen = list(zip(pipeline.tasks, pipeline.selected(configuration), strict=True))
    surge = renewed_by_surge(pipeline, configuration)
    return [
        *_queue_account(pipeline, settings),
        *extra_objects(pipeline, settings),
        *(_settings_config(pod, settings) for pod in (router, *queues, *variants)),
        *(stage_config(pipeline, task, stage, settings) for task, (_, stage) in chosen),
        *(_service(pod, settings) for pod in (router, *queues)),
        *(_deployment(pod, 1, {"type": "Recreate"}, settings) for pod in queues),
        *(
            model_workload(pipeline, task, variant, stage.replicas, settings, surge)
            for task, (variant, stage) in chosen
        ),
        _deployment(router, 1, _SURGE, settings),
    ]


def renewed_by_surge(pipeline: Pipeline, configuration: Configuration) -> bool:
    """Whether W_max holds one more replica of every stage, so that new settings reach replicas without a gap.

    Otherwise they are renewed in place, one of each stage at a time; requests wait where a stage has only that one.
    """
    more = sum(variant.cores for variant, _ in pipeline.selected(configuration))
    return float(used_cores(pipeline, configuration)) + more <= pipeline.capacity


def model_workload(
    pipeline: Pipeline, task: Task, variant: Variant, replicas: int, settings: ClusterSettings, surge: bool = False
) -> Manifest:
    """The workload of one variant: a Deployment or a SeldonDeployment, as the flavour is.

    Args:
        pipeline: to which it belongs.
        task: to which it belongs.
        variant: that its replicas serve.
        replicas: how many.
        settings: of the pods.
        surge: renew replicas by one more at a time, not in place, when settings change; Seldon knows only surge.

    Raises:
        ValueError: if the pipeline does not allow as many replicas.
        OverlayError: if the overlay adds a container without an image.
    """
    if not 0 <= replicas <= pipeline.max_replicas:
        raise ValueError(f"task {task.name!r}: {replicas} replicas are not within 0..{pipeline.max_replicas}")
    pod = _model_pod(pipeline, task, variant, settings)
    if settings.flavour == SELDON:
        metadata = _metadata(pod.name, pod.labels, settings)
        return seldon_workload(metadata, replicas, pod_template(pod, settings))
    return _deployment(pod, replicas, _SURGE if surge else _IN_PLACE, settings)


def replicas_of(workload: Mapping[str, Any]) -> int:
    """How many replicas a workload is to have."""
    return int(_scaled(workload).get("replicas", 1))


def template_of(workload: Mapping[str, Any]) -> Mapping[str, Any]:
    """The pod template of a workload."""
    scaled = _scaled(workload)
    template: Mapping[str, Any] = scaled["componentSpecs"][0] if workload["kind"] == KIND else scaled["template"]
    return template


def with_replicas(workload: Mapping[str, Any], replicas: int) -> Manifest:
    """The same workload with another number of replicas, all else as it was, for a replacement of the object."""
    changed = deepcopy(dict(workload))
    _scaled(changed)["replicas"] = replicas
    return changed


def stage_config(pipeline: Pipeline, task: Task, stage: StageConfiguration, settings: ClusterSettings) -> Manifest:
    """The ConfigMap that says what a stage is to run."""
    name, its_labels = stage_name(pipeline.name, task.name), labels(pipeline.name, QUEUE, task.name)
    return _config_map(name, its_labels, stage_data(task, stage), settings)


def stage_data(task: Task, stage: StageConfiguration) -> dict[str, str]:
    """What stands in that ConfigMap."""
    return {
        STAGE_VARIANT: task.variants[stage.variant].name,
        STAGE_REPLICAS: str(stage.replicas),
        STAGE_BATCH_SIZE: str(stage.batch_size),
    }


# ------------------------------------------------------------------------------------------------------ pods


def _model_pod(pipeline: Pipeline, task: Task, variant: Variant, settings: ClusterSettings) -> Pod:
    parameters = {"pipeline": pipeline.name, "task": task.name, "variant": variant.name, "store": settings.store}
    return Pod(
        name=model_name(pipeline.name, task.name, variant.name),
        server=_server(MODEL, task.name, parameters, settings),
        labels=labels(pipeline.name, MODEL, task.name, variant.name),
        millicores=1000 * variant.cores,
        memory=settings.model_memory,
        caches_models=True,
    )


def _queue_pod(pipeline: Pipeline, task: Task, settings: ClusterSettings) -> Pod:
    parameters = {
        "pipeline": pipeline.name,
        "task": task.name,
        "settings": settings.stage.model_dump(),
        "discover": {
            "namespace": settings.namespace,
            "selector": selector(pipeline.name, MODEL, task.name),
            "stage": stage_name(pipeline.name, task.name),
            "port": settings.grpc_port,
        },
    }
    return Pod(
        name=queue_name(pipeline.name, task.name),
        server=_server(DISCOVERING_QUEUE, task.name, parameters, settings),
        labels=labels(pipeline.name, QUEUE, task.name),
        millicores=settings.queue_millicores,
        memory=settings.queue_memory,
        account=queue_account_name(pipeline.name),
        drains=False,  # there is no other queue to send to: the sooner the next one starts, the better
    )


def _router_pod(pipeline: Pipeline, settings: ClusterSettings) -> Pod:
    hosts = {
        task.name: service_host(queue_name(pipeline.name, task.name), settings.namespace) for task in pipeline.tasks
    }
    parameters = {
        "pipeline": pipeline.name,
        "stages": [{"task": task, "address": f"{host}:{settings.grpc_port}"} for task, host in hosts.items()],
        "drop_after": settings.stage.drop_after,
        "call_timeout": settings.stage.call_timeout,
    }
    return Pod(
        name=router_name(pipeline.name),
        server=_server(ROUTER, pipeline.name, parameters, settings),
        labels=labels(pipeline.name, ROUTER),
        millicores=settings.router_millicores,
        memory=settings.router_memory,
    )


def _server(kind: str, name: str, parameters: dict[str, Any], settings: ClusterSettings) -> ServerSettings:
    ports = {name: getattr(settings, name) for name in ("http_port", "grpc_port", "metrics_port")}
    return ServerSettings(kind=kind, name=name, parameters=parameters, host=ADDRESS, **ports)


# --------------------------------------------------------------------------------------------------- objects

_SURGE: Mapping[str, Any] = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
_IN_PLACE: Mapping[str, Any] = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}


def _metadata(name: str, its_labels: Mapping[str, str], settings: ClusterSettings) -> dict[str, Any]:
    return {"name": name, "namespace": settings.namespace, "labels": dict(its_labels)}


def _deployment(pod: Pod, replicas: int, strategy: Mapping[str, Any], settings: ClusterSettings) -> Manifest:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(pod.name, pod.labels, settings),
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 2,
            "strategy": deepcopy(dict(strategy)),
            "selector": {"matchLabels": match_labels(pod.labels)},
            "template": pod_template(pod, settings),
        },
    }


def _scaled(workload: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a workload that says how many replicas it has."""
    spec = workload["spec"]
    return spec["predictors"][0] if workload["kind"] == KIND else spec


def _config_map(name: str, its_labels: Mapping[str, str], data: dict[str, str], settings: ClusterSettings) -> Manifest:
    metadata = _metadata(name, its_labels, settings)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _settings_config(pod: Pod, settings: ClusterSettings) -> Manifest:
    return _config_map(pod.name, pod.labels, {SETTINGS_FILE: pod.server.document}, settings)


def _service(pod: Pod, settings: ClusterSettings) -> Manifest:
    ports = {HTTP: settings.http_port, GRPC: settings.grpc_port, METRICS: settings.metrics_port}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(pod.name, pod.labels, settings),
        "spec": {
            "type": "ClusterIP",
            "selector": match_labels(pod.labels),
            "ports": [
                {"name": name, "port": port, "targetPort": name, "protocol": "TCP"} for name, port in ports.items()
            ],
        },
    }


def _queue_account(pipeline: Pipeline, settings: ClusterSettings) -> list[Manifest]:
    """What queues may do in the cluster: look at pods and at what their stage is to run, and nothing else."""
    name = queue_account_name(pipeline.name)
    metadata = _metadata(name, labels(pipeline.name, QUEUE), settings)
    rule = {"apiGroups": [""], "resources": ["configmaps", "pods"], "verbs": ["get", "list", "watch"]}
    group = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata, "automountServiceAccountToken": False},
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": deepcopy(metadata), "rules": [rule]},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": deepcopy(metadata),
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": settings.namespace}],
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
        },
    ]
