"""Pipelines of users, described in YAML files, with their own models in the model store.

.. code-block:: yaml

    name: shop
    capacity: 8          # cores that all replicas may use together
    max_replicas: 4      # of each task
    max_batch_size: 4    # a power of two
    latency_sla: 1.0     # seconds
    tasks:
      - name: detect
        variants:
          - name: small
            accuracy: 0.81
            cores: 1                              # of one replica
            latency: {1: 0.02, 2: 0.03, 4: 0.05}  # seconds of a call, by batch size
            startup_time: 3.0                     # seconds

Every key is required and no other is allowed. Where a pipeline runs is given on the command line, never in its file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from opd.host.documents import DocumentModel, read_as
from opd.pipeline import Pipeline, ServiceLevel, Task, Variant


class _Section(DocumentModel):
    """Part of a pipeline file. It is checked by building the object that it describes, so errors name its place."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.build()
        return self

    def build(self) -> Any:
        raise NotImplementedError


class _VariantSection(_Section):
    name: str
    """name of the variant, unique within its task"""
    accuracy: float = Field(ge=0.0, le=1.0)
    """quality as a fraction of 0..1"""
    cores: int = Field(ge=1, le=256)
    """CPU cores of one replica"""
    latency: dict[int, float] = Field(min_length=1, examples=["{1: 0.02, 2: 0.03}"])
    """seconds of a call by batch size"""
    startup_time: float
    """seconds until a new replica serves"""

    def build(self) -> Variant:
        return Variant(self.name, self.accuracy, self.cores, self.latency, self.startup_time)


class _TaskSection(_Section):
    name: str
    """name of the task, unique within the pipeline"""
    variants: list[_VariantSection] = Field(min_length=1)
    """models that can serve the task"""

    def build(self) -> Task:
        return Task(self.name, tuple(section.build() for section in self.variants))


class _PipelineSection(_Section):
    name: str
    """name of the pipeline"""
    capacity: int = Field(ge=1, le=10_000)
    """cores that all replicas may use together"""
    max_replicas: int = Field(ge=1, le=1000)
    """replicas that each task may have"""
    max_batch_size: int = Field(ge=1, le=1024)
    """requests that a call may serve, a power of two"""
    latency_sla: float = Field(gt=0.0, allow_inf_nan=False)
    """end-to-end latency target in seconds"""
    tasks: list[_TaskSection] = Field(min_length=1)
    """stages in the order in which a request visits them"""

    def build(self) -> Pipeline:
        limits = self.capacity, self.max_replicas, self.max_batch_size, ServiceLevel(self.latency_sla)
        return Pipeline(self.name, tuple(section.build() for section in self.tasks), *limits)


def read_pipeline(path: Path) -> Pipeline:
    """Read the pipeline that a file describes.

    Raises:
        FileNotFoundError: if there is no such file.
        DocumentError: if it is not a plain YAML document of limited size, or describes no pipeline; it lists all
            problems.
    """
    return read_as(_PipelineSection, path).build()
