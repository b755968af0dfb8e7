"""Settings of emulated replicas and of the process that they run in."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from opd.host.documents import DocumentModel
from opd.pipeline import Task, Variant
from opd.serving.settings import ProcessSettings

Failure = Literal["none", "hang", "garbage", "crash"]
"""What a replica does from now on: serve; answer nothing, not even probes; answer with malformed tensors; be gone at
once, with its running requests."""

_Positive = Annotated[float, Field(gt=0.0)]


class ReplicaSettings(DocumentModel):
    """One emulated replica."""

    pipeline: str = Field(min_length=1)
    """Name of the pipeline, for the metrics."""

    task: str = Field(min_length=1)
    """Name of the model that it serves."""

    variant: str = Field(min_length=1)
    """Name of the variant, for the metrics."""

    grpc_port: int = Field(ge=1, le=65535)
    """Port for inference."""

    latency: dict[Annotated[int, Field(ge=1, strict=False)], _Positive] = Field(min_length=1)
    """Profile: mean seconds by batch size."""

    startup_seconds: float = Field(default=0.0, ge=0.0)
    """Seconds until it is ready."""

    noise: float = Field(default=0.0, ge=0.0)
    """Sigma of the lognormal factor, of mean 1, on each service time."""

    seed: int | None = Field(default=None, ge=0)
    """Of the noise; by default another one for every replica."""

    def mean_seconds(self, rows: int) -> float:
        """Profiled seconds of a batch: interpolated between profiled sizes, proportional to its rows beyond them."""
        sizes = sorted(self.latency)
        largest = sizes[-1]
        inside = float(np.interp(min(rows, largest), sizes, [self.latency[size] for size in sizes]))
        return inside * max(rows / largest, 1.0)


class EmulationSettings(ProcessSettings):
    """The process of emulated replicas; those that it does not begin with are added while it runs."""

    module = "opd.serving.emulation"

    replicas: dict[str, ReplicaSettings] = {}
    """Replicas by name that it begins with, as in a pod of a cluster."""


def replica_settings(pipeline: str, task: Task, variant: Variant, grpc_port: int, noise: float) -> ReplicaSettings:
    """Settings of a replica that takes the time of a variant's profile."""
    return ReplicaSettings(
        pipeline=pipeline,
        task=task.name,
        variant=variant.name,
        grpc_port=grpc_port,
        latency=dict(variant.latency),
        startup_seconds=variant.startup_time,
        noise=noise,
    )
