"""Workloads: the Deployment of the gateways, and one workload per variant in the chosen flavour.

Gateways are a plain Deployment in both flavours: they are not models, and Seldon Core 1 does not leave a pod's Service
to others.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from opd.cluster.manifests.pods import Pod, model_pod, pod_template
from opd.cluster.names import CONTAINER, match_labels
from opd.cluster.resources import SELDON_DEPLOYMENT, Object, manifest
from opd.cluster.settings import ClusterSettings
from opd.pipeline import Configuration, Pipeline, Task, Variant, used_cores

SURGE: Mapping[str, Any] = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
IN_PLACE: Mapping[str, Any] = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
"""Deployment strategies: start the new pod first, or stop an old one first."""


def renewed_by_surge(pipeline: Pipeline, configuration: Configuration) -> bool:
    """Return whether W_max has room for one more replica of every stage, so settings roll out without a gap.

    Otherwise replicas are renewed in place, one of each stage at a time; requests of a single replica wait.
    """
    more = sum(variant.cores for variant, _ in pipeline.selected(configuration))
    return float(used_cores(pipeline, configuration)) + more <= pipeline.capacity


def model_workload(
    pipeline: Pipeline, task: Task, variant: Variant, replicas: int, settings: ClusterSettings, surge: bool = False
) -> Object:
    """Return the workload of one variant: a Deployment or a SeldonDeployment, depending on the flavour.

    Args:
        pipeline: it belongs to.
        task: it belongs to.
        variant: its replicas serve.
        replicas: how many.
        settings: of the pods.
        surge: when settings change, start each new replica before an old one stops; Seldon always does.

    Raises:
        ValueError: if the pipeline does not allow that many replicas.
        OverlayError: if the overlay adds a container without an image.
    """
    if not 0 <= replicas <= pipeline.max_replicas:
        raise ValueError(f"task {task.name!r}: {replicas} replicas are not within 0..{pipeline.max_replicas}")
    pod = model_pod(pipeline, task, variant, settings)
    if settings.flavour == "seldon":
        return _seldon_deployment(pod, replicas, settings)
    return deployment(pod, replicas, SURGE if surge else IN_PLACE, settings)


def deployment(pod: Pod, replicas: int, strategy: Mapping[str, Any], settings: ClusterSettings) -> Object:
    """Return a Deployment of a pod."""
    spec = {
        "replicas": replicas,
        "revisionHistoryLimit": 2,
        "strategy": deepcopy(dict(strategy)),
        "selector": {"matchLabels": match_labels(pod.labels)},
        "template": pod_template(pod, settings),
    }
    return manifest("apps/v1", "Deployment", pod.name, pod.labels, settings.namespace, spec=spec)


def _seldon_deployment(pod: Pod, replicas: int, settings: ClusterSettings) -> Object:
    """Return a SeldonDeployment of a pod.

    Seldon's operator turns it into a Deployment, named by a hash or a composition, and two unused Services. The pods
    carry our labels, so selectors find them as in the other flavour. The replicas are those of the whole, which its
    scale subresource sets: they hold while predictor and componentSpec have none of their own.
    """
    predictor = {
        "name": "main",
        "annotations": {"seldon.io/no-engine": "true"},  # keeps Seldon's orchestrator out of the pod
        "graph": {"name": CONTAINER, "type": "MODEL"},
        "componentSpecs": [pod_template(pod, settings)],
    }
    spec = {"protocol": "v2", "replicas": replicas, "predictors": [predictor]}
    api_version, kind, _ = SELDON_DEPLOYMENT
    return manifest(api_version, kind, pod.name, pod.labels, settings.namespace, spec=spec)


def replicas_of(workload: Mapping[str, Any]) -> int:
    """Return the number of replicas that a workload specifies."""
    return int(workload["spec"].get("replicas", 1))


def template_of(workload: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the pod template of a workload."""
    spec = workload["spec"]
    is_seldon = workload["kind"] == SELDON_DEPLOYMENT.kind
    template: Mapping[str, Any] = spec["predictors"][0]["componentSpecs"][0] if is_seldon else spec["template"]
    return template


def with_replicas(workload: Mapping[str, Any], replicas: int) -> Object:
    """Return a copy of a workload that differs only in its number of replicas."""
    return {**workload, "spec": {**workload["spec"], "replicas": replicas}}
