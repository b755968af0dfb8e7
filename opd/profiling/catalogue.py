"""The catalogue of variants and their accuracies, and the pipelines built from it.

The catalogue is a YAML file (``opd/examples/pipelines.yaml`` ships with the package) and says nothing about time.
:func:`load_pipeline` joins it with a table of latency profiles (:mod:`opd.profiling.profiles`), and sets the cores of
the variants and the latency target of the pipeline by the rules of IPA (Ghafouri et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field, model_validator

from opd.host.documents import DocumentModel, as_model, read_as
from opd.host.paths import package_path
from opd.pipeline import Pipeline, ServiceLevel, Task, Variant, batch_sizes_up_to
from opd.profiling.profiles import latency_by_batch_size, load_profiles, variant_rows

SLA_FACTOR = 5.0
"""A stage may take this many times the mean batch-1 latency of its variants (Swayam's heuristic, as in IPA)."""

LEAST_GAIN = 1.25
"""Speed-up by twice the cores below which a replica is not given them."""


class CatalogueVariant(DocumentModel):
    """A model that can serve a task, as the catalogue describes it."""

    accuracy: float = Field(ge=0.0, le=1.0)
    """published quality, a fraction of 0..1 in the metric of the task"""
    source: str
    """where the accuracy is published"""
    architecture: str = Field(min_length=1, examples=["resnet-50", "package.module:Class"])
    """what is measured: a key of opd/profiling/architectures.py, or module:Class"""
    checkpoint: str
    """the published model that the accuracy belongs to"""


class CatalogueTask(DocumentModel):
    """A task with its variants in ascending order of accuracy and size."""

    metric: str
    """quality metric of all variants of the task"""
    variants: dict[str, CatalogueVariant] = Field(min_length=1)
    """models that can serve the task, by name"""


class CataloguePipeline(DocumentModel):
    """A chain of tasks and the limits of its device."""

    tasks: list[str] = Field(min_length=1)
    """names of the tasks in the order in which a request visits them"""
    threshold_rps: float = Field(gt=0.0)
    """requests/s that one replica should carry, from which its cores follow"""
    capacity: int = Field(ge=1)
    """CPU cores of the device"""
    max_replicas: int = Field(ge=1)
    """replicas that a task may have"""
    max_batch_size: int = Field(ge=1)
    """requests that a call may serve, a power of two"""
    latency_sla: float | None = Field(default=None, gt=0.0)
    """end-to-end latency target in seconds; the sum of the stages' targets if left out"""


class Catalogue(DocumentModel):
    """Tasks with their variants, and the pipelines built from them."""

    container_startup: float = Field(ge=0.0)
    """seconds to schedule a container and start a server, added to the measured loading time"""
    tasks: dict[str, CatalogueTask] = Field(min_length=1)
    """tasks by name"""
    pipelines: dict[str, CataloguePipeline] = Field(min_length=1)
    """pipelines by name"""

    @model_validator(mode="after")
    def _check_tasks(self) -> Catalogue:
        for name, pipeline in self.pipelines.items():
            for task in pipeline.tasks:
                if task not in self.tasks:
                    raise ValueError(f"pipeline {name!r} has a task {task!r}, but tasks are {', '.join(self.tasks)}")
        return self

    def pipeline(self, name: str) -> CataloguePipeline:
        """Look up a pipeline.

        Raises:
            KeyError: if there is no such pipeline; it lists the pipelines.
        """
        if name not in self.pipelines:
            raise KeyError(f"the catalogue has no pipeline {name!r}; it has {', '.join(self.pipelines)}")
        return self.pipelines[name]

    def batch_sizes(self, task: str) -> tuple[int, ...]:
        """Batch sizes to profile for a task: powers of two up to the largest that any of its pipelines allows."""
        sizes = (each.max_batch_size for each in self.pipelines.values() if task in each.tasks)
        return batch_sizes_up_to(max(sizes, default=1))


def load_catalogue(catalogue: Path | None = None) -> Catalogue:
    """Read a catalogue.

    Args:
        catalogue: the YAML file; the package's own if not given.

    Raises:
        FileNotFoundError: if there is no such file.
        DocumentError: if it is not a catalogue; it lists all problems.
    """
    return read_as(Catalogue, catalogue or package_path("examples", "pipelines.yaml"))


def stage_sla(profiles: pd.DataFrame, task: str) -> float:
    """Latency target of one stage in seconds: five times the mean over its variants at batch 1 on one core.

    IPA adopts this rule from Swayam; the end-to-end target is the sum over the stages.
    """
    rows = profiles[(profiles["task"] == task) & (profiles["cores"] == 1) & (profiles["batch_size"] == 1)]
    return SLA_FACTOR * float(rows["latency_mean"].mean())


def base_cores(latency: Mapping[int, float], threshold_rps: float, sla: float) -> int:
    """Cores of one replica by IPA's rule.

    These are the fewest cores at which the variant, one request at a time, serves ``threshold_rps`` requests/s and
    answers within ``sla``. If no core count does, it is the largest that still gains: the one from which doubling the
    cores makes the variant less than :data:`LEAST_GAIN` times as fast.

    Args:
        latency: batch-1 latency in seconds by core count.
        threshold_rps: requests/s that one replica should carry.
        sla: seconds, of this stage.
    """
    counts = sorted(latency)
    for count in counts:
        if 1.0 / latency[count] >= threshold_rps and latency[count] <= sla:
            return count
    for count, following in zip(counts, counts[1:], strict=False):
        if latency[count] < LEAST_GAIN * latency[following]:
            return count
    return counts[-1]


def load_pipeline(name: str, catalogue: Path | None = None, profiles: Path | None = None, **overrides: Any) -> Pipeline:
    """Load a pipeline of the catalogue with its latency profiles.

    Cores per replica follow :func:`base_cores`, latencies are the profile's at those cores, a variant starts in
    ``container_startup`` plus its measured loading time, and the latency target is the sum of :func:`stage_sla` unless
    the catalogue names one.

    Args:
        name: pipeline in the catalogue.
        catalogue: its YAML file; the package's own if not given.
        profiles: the profile table; the package's own if not given.
        overrides: settings of :class:`CataloguePipeline` that replace the catalogue's, such as ``capacity``.

    Raises:
        KeyError: if there is no such pipeline.
        FileNotFoundError: if a file is missing.
        DocumentError: if the catalogue is malformed or an override is unknown or out of range.
        ValueError: if a variant or batch size has no profile.
    """
    content, table = load_catalogue(catalogue), load_profiles(profiles)
    given = {**content.pipeline(name).model_dump(), **overrides}
    settings = as_model(CataloguePipeline, given, f"pipeline {name!r}")
    seconds = settings.latency_sla or sum(stage_sla(table, task) for task in settings.tasks)
    return Pipeline(
        name=name,
        tasks=tuple(_task(content, table, task, settings.threshold_rps) for task in settings.tasks),
        capacity=settings.capacity,
        max_replicas=settings.max_replicas,
        max_batch_size=settings.max_batch_size,
        service_level=ServiceLevel(seconds),
    )


def _task(content: Catalogue, table: pd.DataFrame, name: str, threshold_rps: float) -> Task:
    """Build one stage of a pipeline: the catalogue's variants with their profiles."""
    variants = []
    for variant, entry in content.tasks[name].variants.items():
        latency_by_batch_size(table, name, variant, 1)  # the latency targets need every variant on one core
        rows = variant_rows(table, name, variant)
        single = rows[rows["batch_size"] == 1]
        by_cores = dict(zip(single["cores"].astype(int), single["latency_mean"].astype(float), strict=True))
        cores = base_cores(by_cores, threshold_rps, stage_sla(table, name))
        startup = content.container_startup + float(rows["load_seconds"].iloc[0])
        latency = latency_by_batch_size(table, name, variant, cores)
        variants.append(Variant(variant, entry.accuracy, cores, latency, startup))
    return Task(name, tuple(variants))


def variant_table(pipeline: Pipeline) -> pd.DataFrame:
    """List a pipeline's variants: accuracy, cores, latency (s), throughput (requests/s) and start-up (s)."""
    rows = [
        {
            "task": task.name,
            "variant": variant.name,
            "accuracy": variant.accuracy,
            "cores": variant.cores,
            "latency at batch 1 (s)": variant.service_time(1),
            "highest throughput (requests/s)": max(variant.throughput(size) for size in pipeline.batch_sizes),
            "start-up (s)": variant.startup_time,
        }
        for task in pipeline.tasks
        for variant in task.variants
    ]
    return pd.DataFrame(rows)
