"""Emulated pipelines: the same variants and profiles under a name that says so, and requests for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from opd.pipeline import Pipeline
from opd.serving.contents import PAYLOAD

SUFFIX = "-emulated"
"""End of the name of every emulated pipeline."""

REQUESTS = 16
"""Different requests in the file of samples."""


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


def emulated_samples(folder: Path) -> Path:
    """Write requests for emulated pipelines: texts, which the pipeline returns.

    Returns:
        The file, see :mod:`opd.serving.samples`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "emulated_requests.parquet"
    texts = [f"emulated request {number}".encode() for number in range(REQUESTS)]
    pd.DataFrame({PAYLOAD: texts}).to_parquet(path, index=False)
    return path
