"""Tasks and pipelines with service times that are easy to calculate with, and assertions on their simulation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opd.pipeline import Pipeline, ServiceLevel, Task, Variant
from opd.simulator.simulator import Simulator


def make_task(*service_times: float, name: str = "task", startup_time: float = 0.0, max_batch_size: int = 1) -> Task:
    """A task with one variant for each service time, the same for every batch size."""
    profile = (1, max_batch_size)
    variants = (
        Variant(f"variant{z}", 0.5, 1, dict.fromkeys(profile, seconds), startup_time)
        for z, seconds in enumerate(service_times)
    )
    return Task(name, tuple(variants))


def make_pipeline(*tasks: Task, max_replicas: int = 4, max_batch_size: int = 1) -> Pipeline:
    capacity = len(tasks) * max_replicas
    return Pipeline("test", tasks, capacity, max_replicas, max_batch_size, service_level=ServiceLevel(1.0))


def assert_equal(actual: npt.ArrayLike, expected: npt.ArrayLike, tolerance: float = 1e-9, message: str = "") -> None:
    """Assert equality up to an absolute tolerance."""
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=0.0, atol=tolerance, err_msg=message)


def inside(simulator: Simulator) -> np.ndarray:
    """(E,) requests that are neither completed nor dropped: waiting or in service anywhere."""
    return simulator._state.queue_length.sum(axis=1)
