"""Replicas of a variant as a SeldonDeployment of Seldon Core 1.

Router and queues stay plain Deployments: they are not models, and Seldon neither supports the strategy ``Recreate`` nor
leaves a pod's Service to others.

Seldon's operator turns the object into a Deployment, named by a hash or a composition, and two unused Services. The
pods carry our labels, so selectors find them as in the other flavour.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opd.cluster.manifests.objects import Manifest, manifest
from opd.cluster.names import CONTAINER

API_VERSION = "machinelearning.seldon.io/v1"
KIND = "SeldonDeployment"

NO_ENGINE: Mapping[str, str] = {"seldon.io/no-engine": "true"}
"""Keeps Seldon's orchestrator out of the pod; an annotation of the predictor."""

PREDICTOR = "main"


def seldon_workload(
    name: str, object_labels: Mapping[str, str], namespace: str, replicas: int, template: Mapping[str, Any]
) -> Manifest:
    """Return a SeldonDeployment.

    Args:
        name: of the object.
        object_labels: its labels.
        namespace: it belongs to.
        replicas: to run.
        template: of the pods.
    """
    predictor = {
        "name": PREDICTOR,
        "annotations": dict(NO_ENGINE),
        "replicas": replicas,
        "graph": {"name": CONTAINER, "type": "MODEL"},
        "componentSpecs": [dict(template)],
    }
    spec = {"protocol": "v2", "predictors": [predictor]}
    return manifest(API_VERSION, KIND, name, object_labels, namespace, spec=spec)
