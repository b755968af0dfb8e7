"""The configuration of stages, as their ConfigMaps hold it: the one lasting record of what a pipeline runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opd.cluster.api import Cluster
from opd.cluster.errors import ClusterError
from opd.cluster.manifests.pipeline import STAGE_BATCH_SIZE, STAGE_REPLICAS, STAGE_VARIANT, stage_config
from opd.cluster.names import stage_name
from opd.cluster.resources import CONFIG_MAP, Object
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
    except (KeyError, ValueError) as error:
        raise _malformed(config_map, f"has {data}: {error}") from error
    if not 1 <= stage.replicas <= pipeline.max_replicas or stage.batch_size not in pipeline.batch_sizes:
        limits = f"1..{pipeline.max_replicas} replicas, batch sizes {pipeline.batch_sizes}"
        raise _malformed(config_map, f"has {data}, outside the pipeline's limits ({limits})")
    return stage


def _malformed(config_map: Mapping[str, Any], what: str) -> StageStateError:
    name = config_map["metadata"]["name"]
    return StageStateError(f"ConfigMap {name!r} {what}; correct it, or deploy the pipeline again")
