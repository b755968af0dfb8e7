"""What a stage is to run, as it stands in its ConfigMap: the one lasting record of the current configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opd.cluster.errors import ClusterError
from opd.cluster.manifests.pipeline import STAGE_BATCH_SIZE, STAGE_REPLICAS, STAGE_VARIANT
from opd.pipeline import Pipeline, StageConfiguration, Task


class StageStateError(ClusterError):
    """A stage's ConfigMap does not say what the stage is to run."""


def read_stage(pipeline: Pipeline, task: Task, config_map: Mapping[str, Any]) -> StageConfiguration:
    """What a stage's ConfigMap says.

    Raises:
        StageStateError: if that is missing, malformed or outside the pipeline's limits.
    """
    data = config_map.get("data") or {}
    try:
        stage = StageConfiguration(
            task.variant_index(data[STAGE_VARIANT]), int(data[STAGE_REPLICAS]), int(data[STAGE_BATCH_SIZE])
        )
    except (KeyError, ValueError) as error:
        raise _bad(config_map, f"has {data}: {error}") from error
    if not 1 <= stage.replicas <= pipeline.max_replicas or stage.batch_size not in pipeline.batch_sizes:
        limits = f"1..{pipeline.max_replicas} replicas, batch sizes {pipeline.batch_sizes}"
        raise _bad(config_map, f"has {data}, outside the pipeline's limits ({limits})")
    return stage


def _bad(config_map: Mapping[str, Any], what: str) -> StageStateError:
    name = config_map["metadata"]["name"]
    return StageStateError(f"ConfigMap {name!r} {what}; correct it, or deploy the pipeline again")
