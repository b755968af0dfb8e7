"""Emulated pipelines: the same variants and profiles under a name that says so."""

from __future__ import annotations

from dataclasses import replace

from opd.pipeline import Pipeline

SUFFIX = "-emulated"
"""End of the name of every emulated pipeline."""


def emulated_pipeline(pipeline: Pipeline) -> Pipeline:
    """Return a pipeline to be served by emulated replicas.

    Its name ends in :data:`SUFFIX`. It has no adapters: emulated stages answer with what they get, which the adapters
    of real models would refuse.
    """
    if is_emulated(pipeline.name):
        return pipeline
    tasks = tuple(replace(task, adapter=None) for task in pipeline.tasks)
    return replace(pipeline, name=pipeline.name + SUFFIX, tasks=tasks)


def is_emulated(name: str) -> bool:
    """Check whether a name is that of an emulated pipeline."""
    return name.endswith(SUFFIX)


def original_name(name: str) -> str:
    """Return the name of the pipeline that is emulated; any other name stays as it is."""
    return name.removesuffix(SUFFIX)
