"""The replicas of a variant as a SeldonDeployment of Seldon Core 1.

Router and queues stay plain Deployments: they are no models, and Seldon neither restarts a pod in place of the old one
(strategy ``Recreate``) nor leaves a pod's Service to others.

Seldon's operator makes of it a Deployment named by a hash or a composition, whose pods carry our labels, so that
selectors find them as in the other flavour, and two Services that nobody uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opd.cluster.names import CONTAINER

API_VERSION = "machinelearning.seldon.io/v1"
KIND = "SeldonDeployment"

NO_ENGINE: Mapping[str, str] = {"seldon.io/no-engine": "true"}
"""Without an orchestrator of Seldon's in the pod; read from the predictor."""

PREDICTOR = "main"


def seldon_workload(metadata: Mapping[str, Any], replicas: int, template: Mapping[str, Any]) -> dict[str, Any]:
    """A SeldonDeployment.

    Args:
        metadata: of the object.
        replicas: that run.
        template: of the pods.
    """
    predictor = {
        "name": PREDICTOR,
        "annotations": dict(NO_ENGINE),
        "replicas": replicas,
        "graph": {"name": CONTAINER, "type": "MODEL"},
        "componentSpecs": [dict(template)],
    }
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": dict(metadata),
        "spec": {"protocol": "v2", "predictors": [predictor]},
    }
