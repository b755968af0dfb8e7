"""The workloads of a pipeline's variants, and the pods of their replicas."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from opd.cluster.api import Cluster
from opd.cluster.errors import NotFoundError
from opd.cluster.manifests.workloads import model_workload, with_replicas
from opd.cluster.names import INSTANCE_LABEL, MODEL, TASK_LABEL, VARIANT_LABEL, model_name, selector
from opd.cluster.ownership import check_ours
from opd.cluster.pod_status import has_ended
from opd.cluster.resources import DEPLOYMENT, POD, SELDON_DEPLOYMENT, Object
from opd.cluster.rollout import apply_object
from opd.cluster.settings import ClusterSettings
from opd.pipeline import Configuration, Pipeline

logger = logging.getLogger(__name__)

Key = tuple[int, int]
"""A workload: the positions of its task and of its variant."""


class VariantWorkloads:
    """One workload for each variant that runs.

    Args:
        cluster: the namespace of the pipeline.
        pipeline: its definition.
        settings: with which it was deployed.
    """

    def __init__(self, cluster: Cluster, pipeline: Pipeline, settings: ClusterSettings) -> None:
        self._cluster, self._pipeline, self._settings = cluster, pipeline, settings
        self._kind = SELDON_DEPLOYMENT if settings.flavour == "seldon" else DEPLOYMENT

    def name(self, key: Key) -> str:
        """Return the name of a workload."""
        task = self._pipeline.tasks[key[0]]
        return model_name(self._pipeline.name, task.name, task.variants[key[1]].name)

    def manifest(self, key: Key, replicas: int) -> Object:
        """Return the manifest of a workload."""
        task = self._pipeline.tasks[key[0]]
        return model_workload(self._pipeline, task, task.variants[key[1]], replicas, self._settings)

    def cores(self, replicas: Mapping[Key, int]) -> float:
        """Return the cores of so many replicas."""
        tasks = self._pipeline.tasks
        return float(sum(count * tasks[n].variants[z].cores for (n, z), count in replicas.items()))

    def found(self) -> dict[Key, Object]:
        """Return the workloads that exist."""
        return {key: workload for key, workload in self._all() if key is not None}

    def scale(self, key: Key, replicas: int, dry_run: bool = False) -> Object:
        """Bring a workload to a number of replicas, and create it if there is none.

        Raises:
            NotOursError: if an object of this name belongs to somebody else.
            ClusterError: as every call.
        """
        manifest = self.manifest(key, replicas)

        def change(workload: Object) -> None:
            check_ours(workload, manifest)
            workload.update(with_replicas(workload, replicas))

        try:
            return self._cluster.modify(self._kind, self.name(key), change, dry_run)
        except NotFoundError:
            return apply_object(self._cluster, manifest, dry_run).after

    def delete(self, which: Callable[[Key | None], bool]) -> None:
        """Delete workloads, None standing for those of unknown variants; replicas finish what they serve."""
        for key, workload in self._all():
            if which(key):
                with suppress(NotFoundError):
                    self._cluster.delete(self._kind, workload["metadata"]["name"])

    def pods(self) -> list[tuple[Key, Object]]:
        """Return the pods of replicas that hold cores."""
        found, _ = self._cluster.list(POD, selector(self._pipeline.name, MODEL))
        return [(key, pod) for pod in found if (key := self._key(pod)) is not None and not has_ended(pod)]

    def owns(self, pod: Mapping[str, Any]) -> bool:
        """Return whether a pod, of whatever namespace, is a replica of this pipeline."""
        its_labels = pod["metadata"].get("labels") or {}
        ours = its_labels.get(INSTANCE_LABEL) == self._pipeline.name and self._key(pod) is not None
        return ours and pod["metadata"].get("namespace") == self._cluster.namespace

    def _all(self) -> list[tuple[Key | None, Object]]:
        found, _ = self._cluster.list(self._kind, selector(self._pipeline.name, MODEL))
        return [(self._key(workload), workload) for workload in found]

    def _key(self, labelled: Mapping[str, Any]) -> Key | None:
        """Return task and variant of a workload or pod; None if the pipeline's definition does not have them."""
        its_labels = labelled["metadata"].get("labels") or {}
        for n, task in enumerate(self._pipeline.tasks):
            if task.name == its_labels.get(TASK_LABEL):
                names = [variant.name for variant in task.variants]
                variant = its_labels.get(VARIANT_LABEL)
                return (n, names.index(variant)) if variant in names else None
        return None


def targets(configuration: Configuration) -> dict[Key, int]:
    """Return the replicas that a configuration needs of each workload."""
    return {(n, stage.variant): stage.replicas for n, stage in enumerate(configuration)}
