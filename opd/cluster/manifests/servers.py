"""Pods of a pipeline: its router, a queue for each task, and the replicas of each variant."""

from __future__ import annotations

from typing import Any

from opd.cluster.manifests.pods import Pod
from opd.cluster.names import (
    MODEL,
    QUEUE,
    ROUTER,
    labels,
    model_name,
    queue_account_name,
    queue_name,
    router_name,
    selector,
    service_host,
    stage_name,
)
from opd.cluster.settings import ClusterSettings
from opd.pipeline import Pipeline, Task, Variant
from opd.serving.settings import ServerSettings

DISCOVERING_QUEUE = "opd.cluster.discovering_queue.DiscoveringQueueRuntime"
"""Import path of the queues' runtime."""

ADDRESS = "0.0.0.0"
"""Servers listen on every address of their pod."""


def router_pod(pipeline: Pipeline, settings: ClusterSettings) -> Pod:
    """Return the router's pod, which knows the Services of the queues in the order of the tasks."""
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


def queue_pod(pipeline: Pipeline, task: Task, settings: ClusterSettings) -> Pod:
    """Return the pod of a task's queue, which discovers the task's replicas by their labels."""
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
        drains=False,  # the router has no other queue to send to, so the next one should start at once
    )


def model_pod(pipeline: Pipeline, task: Task, variant: Variant, settings: ClusterSettings) -> Pod:
    """Return the pod of one replica of a variant."""
    parameters = {"pipeline": pipeline.name, "task": task.name, "variant": variant.name, "store": settings.store}
    return Pod(
        name=model_name(pipeline.name, task.name, variant.name),
        server=_server(MODEL, task.name, parameters, settings),
        labels=labels(pipeline.name, MODEL, task.name, variant.name),
        millicores=1000 * variant.cores,
        memory=settings.model_memory,
        caches_models=True,
    )


def _server(kind: str, name: str, parameters: dict[str, Any], settings: ClusterSettings) -> ServerSettings:
    ports = {name: getattr(settings, name) for name in ("http_port", "grpc_port", "metrics_port")}
    return ServerSettings(kind=kind, name=name, parameters=parameters, host=ADDRESS, **ports)
