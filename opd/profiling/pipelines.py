"""Pipelines to decide about: a pipeline file joined with its profile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from opd.host.documents import DocumentError
from opd.host.errors import problem_list
from opd.host.paths import project_path
from opd.objective import Objective, Weights
from opd.pipeline import Pipeline, Task, Variant, batch_sizes_up_to
from opd.profiling import profiles
from opd.profiling.pipeline_file import PipelineFile, TaskSection, VariantSection, pipeline_path, read_pipeline_file


def load_pipeline(source: str | Path, profile: str | Path | None = None) -> Pipeline:
    """Load a pipeline: its file, and the profile of its variants.

    Args:
        source: name of a pipeline that ships with the package, the folder of a pipeline, or its YAML file. A path that
            is given as text is relative to the project (:func:`opd.host.paths.project_path`).
        profile: a profile to use instead of ``profile.csv`` beside the file; None or empty text for that. It may have
            more variants than the pipeline.

    Raises:
        FileNotFoundError: if there is no such pipeline, or no profile.
        DocumentError: if the file or the profile is malformed, or the profile lacks variants or batch sizes; it lists
            all problems.
    """
    path = pipeline_path(source)
    content = read_pipeline_file(path)
    table_path = _profile_path(path, profile)
    table = profiles.load_profile(table_path)
    rows = {
        (task.name, variant.name): _rows(table, task, variant) for task in content.tasks for variant in task.variants
    }
    _check_complete(content, table, rows, table_path)
    return Pipeline(
        name=content.name,
        tasks=tuple(
            Task(
                task.name,
                tuple(_variant(entry, rows[task.name, entry.name]) for entry in task.variants),
                task.adapter_steps,
            )
            for task in content.tasks
        ),
        capacity=content.capacity,
        max_replicas=content.limits.replicas,
        max_batch_size=content.limits.batch_size,
        service_level=content.service_level,
    )


def load_objective(source: str | Path, weights: Mapping[str, float] | None = None) -> Objective:
    """Load the objective of a pipeline: its service level, or the weights in its file.

    Args:
        source: as for :func:`load_pipeline`.
        weights: of the paper's objective, to use instead; those left out have their defaults. None or empty for the
            objective in the file.

    Raises:
        FileNotFoundError: if there is no such pipeline.
        DocumentError: if the file is malformed.
    """
    if weights:
        return Weights(**weights)
    content = read_pipeline_file(source)
    return content.weights or content.service_level


def common_objective(sources: Iterable[str | Path], weights: Mapping[str, float] | None = None) -> Objective:
    """Load the objective that several pipelines share, as they must to be compared.

    Arguments and errors are those of :func:`load_objective` for every one of the sources.

    Raises:
        ValueError: if they have different ones.
    """
    by_source = {str(source): load_objective(source, weights) for source in sources}
    if len(set(by_source.values())) != 1:
        listed = "; ".join(f"{source}: {objective}" for source, objective in by_source.items())
        raise ValueError(
            f"pipelines that are evaluated together need one objective, these have several ({listed}); evaluate them "
            "one by one, or set weights"
        )
    return next(iter(by_source.values()))


def _profile_path(file: Path, profile: str | Path | None) -> Path:
    if not profile:
        return file.parent / profiles.FILE_NAME
    return project_path(profile) if isinstance(profile, str) else profile


def _rows(table: pd.DataFrame, task: TaskSection, variant: VariantSection) -> pd.DataFrame:
    """Select the rows of a variant at its own cores."""
    return table[(table["task"] == task.name) & (table["variant"] == variant.name) & (table["cores"] == variant.cores)]


def _check_complete(
    content: PipelineFile, table: pd.DataFrame, rows: dict[tuple[str, str], pd.DataFrame], path: Path
) -> None:
    """Check that the profile has every variant at its cores, with every batch size."""
    problems = []
    for task in content.tasks:
        for variant in task.variants:
            found = rows[task.name, variant.name]
            missing = sorted(set(batch_sizes_up_to(content.limits.batch_size)) - set(found["batch_size"]))
            where = f"variant {variant.name!r} of task {task.name!r}"
            if found.empty:
                measured = table[(table["task"] == task.name) & (table["variant"] == variant.name)]
                others = ", ".join(map(str, sorted(set(measured["cores"]))))
                lacking = f"at {variant.cores} cores, only at {others}" if others else "at all"
                problems.append(f"{where} has no figures {lacking}")
            elif missing:
                problems.append(f"{where} has no figures for batch size {', '.join(map(str, missing))}")
    if problems:
        listed = problem_list(f"{path} does not cover pipeline {content.name!r}", problems)
        raise DocumentError(f"{listed}\nmeasure what is missing with `opd profile`")


def _variant(entry: VariantSection, rows: pd.DataFrame) -> Variant:
    return Variant(
        entry.name,
        entry.accuracy.value,
        entry.cores,
        profiles.latency_by_batch_size(rows),
        float(rows["startup_seconds"].iloc[0]),
        assumed=bool((rows["kind"] == "assumed").any()),
    )


def variant_table(pipeline: Pipeline) -> pd.DataFrame:
    """List a pipeline's variants: accuracy, cores, latency (s), throughput (requests/s), start-up (s), assumed?"""
    rows = [
        {
            "task": task.name,
            "variant": variant.name,
            "accuracy": variant.accuracy,
            "cores": variant.cores,
            "latency at batch 1 (s)": variant.service_time(1),
            "highest throughput (requests/s)": max(variant.throughput(size) for size in pipeline.batch_sizes),
            "start-up (s)": variant.startup_time,
            "assumed": variant.assumed,
        }
        for task in pipeline.tasks
        for variant in task.variants
    ]
    return pd.DataFrame(rows)
