"""State of a deployed pipeline: its stages' ConfigMaps, its variants' workloads, and the pods of their replicas.

The ConfigMaps are the only lasting record of what a pipeline runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from opd.cluster.api import Cluster
from opd.cluster.errors import ClusterError, NotFoundError
from opd.cluster.manifests.pipeline import STAGE_BATCH_SIZE, STAGE_REPLICAS, STAGE_VARIANT, stage_config
from opd.cluster.manifests.workloads import model_workload, with_replicas
from opd.cluster.names import INSTANCE_LABEL, MODEL, model_name, selector, stage_name
from opd.cluster.owned_objects import apply_object, check_ours, role_of
from opd.cluster.pods import has_ended
from opd.cluster.resources import CONFIG_MAP, DEPLOYMENT, POD, SELDON_DEPLOYMENT, Object
from opd.cluster.settings import ClusterSettings
from opd.pipeline import Configuration, Pipeline, StageConfiguration, Task


class StageStateError(ClusterError):
    """A stage's ConfigMap does not hold a configuration of the stage."""


class StageStates:
    """The ConfigMaps of all stages of a pipeline.

    Args:
        cluster: the namespace of the pipeline.
        pipeline: its definition.
        settings: with which it was deployed.
    """

    def __init__(self, cluster: Cluster, pipeline: Pipeline, settings: ClusterSettings) -> None:
        self._cluster, self._pipeline, self._settings = cluster, pipeline, settings

    def get(self, n: int) -> Object:
        """Return the ConfigMap of a stage.

        Raises:
            NotFoundError: if the pipeline is not deployed.
        """
        return self._cluster.get(CONFIG_MAP, self._name(n))

    def read(self) -> Configuration:
        """Return what all stages are to run.

        Raises:
            NotFoundError: if the pipeline is not deployed.
            StageStateError: if a ConfigMap does not hold it.
        """
        return tuple(read_stage(self._pipeline, task, self.get(n)) for n, task in enumerate(self._pipeline.tasks))

    def write(self, n: int, stage: StageConfiguration, dry_run: bool = False) -> Object:
        """Write what a stage is to run, and return its ConfigMap."""
        data = stage_config(self._pipeline, self._pipeline.tasks[n], stage, self._settings)["data"]

        def change(config_map: Object) -> None:
            config_map["data"] = {**(config_map.get("data") or {}), **data}

        return self._cluster.modify(CONFIG_MAP, self._name(n), change, dry_run)

    def _name(self, n: int) -> str:
        return stage_name(self._pipeline.name, self._pipeline.tasks[n].name)


def read_stage(pipeline: Pipeline, task: Task, config_map: Mapping[str, Any]) -> StageConfiguration:
    """Return the configuration that a stage's ConfigMap holds.

    Raises:
        StageStateError: if that is missing, malformed or outside the pipeline's limits.
    """
    data = config_map.get("data") or {}
    try:
        stage = StageConfiguration(
            task.variant_index(data[STAGE_VARIANT]), int(data[STAGE_REPLICAS]), int(data[STAGE_BATCH_SIZE])
        )
        if not 1 <= stage.replicas <= pipeline.max_replicas or stage.batch_size not in pipeline.batch_sizes:
            limits = f"1..{pipeline.max_replicas} replicas, batch sizes {pipeline.batch_sizes}"
            raise ValueError(f"outside the pipeline's limits ({limits})")
    except (KeyError, ValueError) as error:
        name = config_map["metadata"]["name"]
        raise StageStateError(
            f"ConfigMap {name!r} has {data}: {error}; correct it, or deploy the pipeline again"
        ) from error
    return stage


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
        self._keys = {(t.name, v.name): (n, z) for n, t in enumerate(pipeline.tasks) for z, v in enumerate(t.variants)}

    def name(self, key: Key) -> str:
        """Return the name of a workload."""
        task = self._pipeline.tasks[key[0]]
        return model_name(self._pipeline.name, task.name, task.variants[key[1]].name)

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
            NotOursError: if an object of this name does not belong to the pipeline.
            ClusterError: as every call.
        """
        task = self._pipeline.tasks[key[0]]
        manifest = model_workload(self._pipeline, task, task.variants[key[1]], replicas, self._settings)

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

    def owns(self, pod: Object) -> bool:
        """Return whether a pod of any namespace is a replica of this pipeline."""
        its_labels = pod["metadata"].get("labels") or {}
        ours = its_labels.get(INSTANCE_LABEL) == self._pipeline.name and self._key(pod) is not None
        return ours and pod["metadata"].get("namespace") == self._cluster.namespace

    def _all(self) -> list[tuple[Key | None, Object]]:
        found, _ = self._cluster.list(self._kind, selector(self._pipeline.name, MODEL))
        return [(self._key(workload), workload) for workload in found]

    def _key(self, labelled: Object) -> Key | None:
        """Return task and variant of a workload or pod; None if the pipeline's definition does not have them."""
        return self._keys.get(role_of(labelled)[1:])


def targets(configuration: Configuration) -> dict[Key, int]:
    """Return the replicas that a configuration needs of each workload."""
    return {(n, stage.variant): stage.replicas for n, stage in enumerate(configuration)}
