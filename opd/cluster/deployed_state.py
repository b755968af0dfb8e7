"""State of a deployed pipeline: its stages' ConfigMaps, its variants' workloads, and the pods of their replicas.

They are the only lasting record of what a pipeline runs: the ConfigMap of a stage holds variant and batch size, and the
workload of the variant has the replicas. All of them exist from the deployment on; here they are only changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from opd.cluster.api import Cluster
from opd.cluster.errors import ClusterError, ConflictError
from opd.cluster.manifests.pipeline import stage_data
from opd.cluster.manifests.workloads import replicas_of
from opd.cluster.manual import ManualChanges, manual_changes
from opd.cluster.names import (
    CONTROLLER_MANAGER,
    INSTANCE_LABEL,
    MODEL,
    STAGE_BATCH_SIZE,
    STAGE_VARIANT,
    model_name,
    selector,
    stage_name,
)
from opd.cluster.owned_objects import role_of
from opd.cluster.pods import has_ended, is_terminating
from opd.cluster.resources import CONFIG_MAP, DEPLOYMENT, POD, SELDON_DEPLOYMENT, Object
from opd.cluster.settings import ClusterSettings
from opd.pipeline import Configuration, Pipeline, StageConfiguration, Task

Key = tuple[int, int]
"""A workload: the positions of its task and of its variant."""


class StageStateError(ClusterError):
    """A stage's ConfigMap does not hold variant and batch size of the stage."""


class DeployedState:
    """What a pipeline runs.

    Args:
        cluster: the namespace of the pipeline.
        pipeline: its definition.
        settings: with which it was deployed.
        manual: knows which changes by others are to be left alone.
    """

    def __init__(self, cluster: Cluster, pipeline: Pipeline, settings: ClusterSettings, manual: ManualChanges) -> None:
        self._cluster, self._pipeline, self._settings, self._manual = cluster, pipeline, settings, manual
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

    def stage(self, n: int) -> Object:
        """Return the ConfigMap of a stage.

        Raises:
            NotFoundError: if the pipeline is not deployed.
        """
        return self._cluster.get(CONFIG_MAP, stage_name(self._pipeline.name, self._pipeline.tasks[n].name))

    def workloads(self) -> dict[Key, Object]:
        """Return the workloads of all variants."""
        found, _ = self._cluster.list(self._kind, selector(self._pipeline.name, MODEL))
        return {key: workload for workload in found if (key := self._key(workload)) is not None}

    def read(self) -> Configuration:
        """Return what all stages run.

        Raises:
            NotFoundError: if the pipeline is not deployed.
            StageStateError: if a ConfigMap does not hold it.
        """
        replicas = replicas_by_role(self.workloads().values())
        tasks = enumerate(self._pipeline.tasks)
        return tuple(read_stage(self._pipeline, task, self.stage(n), replicas) for n, task in tasks)

    def check_untouched(self) -> None:
        """Raise while changes by others are to be left alone, and share the fields of those that no longer are.

        Raises:
            ManualChangeError: naming them.
        """
        workloads = self.workloads()
        stages = [self.stage(n) for n in range(len(self._pipeline.tasks))]
        self._manual.check([*stages, *workloads.values()])
        # A value that was changed in this moment is not taken: it is the next change by hand.
        with suppress(ConflictError):
            for key, workload in workloads.items():
                if manual_changes(workload):
                    self._scale(key, replicas_of(workload))
            for found in filter(manual_changes, stages):
                self._write(found, {key: found["data"][key] for key in (STAGE_VARIANT, STAGE_BATCH_SIZE)})

    def scale(self, key: Key, replicas: int, dry_run: bool = False) -> None:
        """Bring a workload to a number of replicas.

        Raises:
            ManualChangeError: if others have changed it, and that is to be left alone.
            ClusterError: as every call.
        """
        self._impose(lambda force: self._scale(key, replicas, force, dry_run), dry_run)

    def write(self, n: int, stage: StageConfiguration, dry_run: bool = False) -> Object:
        """Write which variant a stage is to run with which batch size, and return its ConfigMap.

        Raises:
            ManualChangeError: if others have changed it, and that is to be left alone.
            ClusterError: as every call.
        """
        found, data = self.stage(n), stage_data(self._pipeline.tasks[n], stage)
        return self._impose(lambda force: self._write(found, data, force, dry_run), dry_run)

    def pods(self) -> list[tuple[Key, Object]]:
        """Return the pods of replicas that hold cores."""
        found, _ = self._cluster.list(POD, selector(self._pipeline.name, MODEL))
        return [(key, pod) for pod in found if (key := self._key(pod)) is not None and not has_ended(pod)]

    def cores_in_use(self, totals: Mapping[Key, int]) -> float:
        """Return the cores of replicas that are there or still end, and of those that are wanted in their place."""
        staying: Counter[Key] = Counter()
        leaving: Counter[Key] = Counter()
        for key, pod in self.pods():
            (leaving if is_terminating(pod) else staying)[key] += 1
        every = {*totals, *staying, *leaving}
        return self.cores({key: max(totals.get(key, 0), staying[key]) + leaving[key] for key in every})

    def owns(self, pod: Object) -> bool:
        """Return whether a pod of any namespace is a replica of this pipeline."""
        its_labels = pod["metadata"].get("labels") or {}
        ours = its_labels.get(INSTANCE_LABEL) == self._pipeline.name and self._key(pod) is not None
        return ours and pod["metadata"].get("namespace") == self._cluster.namespace

    def _impose(self, change: Callable[[bool], Object], dry_run: bool) -> Object:
        """Make a change, by force if it conflicts with nothing that is to be left alone; a dry run disturbs nobody."""
        try:
            return change(dry_run)
        except ConflictError:
            self.check_untouched()
            return change(True)

    def _scale(self, key: Key, replicas: int, force: bool = False, dry_run: bool = False) -> Object:
        return self._cluster.scale(self._kind, self.name(key), replicas, CONTROLLER_MANAGER, force, dry_run)

    def _write(self, found: Object, data: Mapping[str, str], force: bool = False, dry_run: bool = False) -> Object:
        metadata = {key: found["metadata"][key] for key in ("name", "namespace", "uid")}
        fields = {**CONFIG_MAP.type_fields, "metadata": metadata, "data": dict(data)}
        return self._cluster.apply(fields, CONTROLLER_MANAGER, force, dry_run)

    def _key(self, labelled: Object) -> Key | None:
        """Return task and variant of a workload or pod; None if the pipeline's definition does not have them."""
        return self._keys.get(role_of(labelled)[1:])


def replicas_by_role(workloads: Iterable[Object]) -> dict[tuple[str, str], int]:
    """Return the replicas of workloads by task and variant."""
    return {role_of(workload)[1:]: replicas_of(workload) for workload in workloads}


def read_stage(
    pipeline: Pipeline, task: Task, config_map: Mapping[str, Any], replicas: Mapping[tuple[str, str], int]
) -> StageConfiguration:
    """Return the configuration of a stage.

    Args:
        pipeline: defines the limits.
        task: of the stage.
        config_map: holds variant and batch size.
        replicas: of all variants by task and variant. A number that the pipeline does not allow, as in the middle of a
            change, counts as the nearest one that it does.

    Raises:
        StageStateError: if variant or batch size are missing, malformed or outside the pipeline's limits.
    """
    data = config_map.get("data") or {}
    try:
        variant, batch_size = task.variant_index(data[STAGE_VARIANT]), int(data[STAGE_BATCH_SIZE])
        if batch_size not in pipeline.batch_sizes:
            raise ValueError(f"outside the pipeline's batch sizes {pipeline.batch_sizes}")
    except (KeyError, ValueError) as error:
        name = config_map["metadata"]["name"]
        raise StageStateError(
            f"ConfigMap {name!r} has {data}: {error}; correct it, or deploy the pipeline again"
        ) from error
    count = replicas.get((task.name, task.variants[variant].name), 1)
    return StageConfiguration(variant, min(max(count, 1), pipeline.max_replicas), batch_size)


def targets(configuration: Configuration) -> dict[Key, int]:
    """Return the replicas that a configuration needs of each workload."""
    return {(n, stage.variant): stage.replicas for n, stage in enumerate(configuration)}
