"""State of the compiled simulator: queues and replicas of many copies of one pipeline."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class SimulatorState(NamedTuple):
    """All that survives an interval; E environments, N tasks, Q queue places, R replica places.

    Stage N of the queues holds the requests that have left the last task.

    Attributes:
        now: (E,) seconds.
        queue_length: (E, N + 1) entries in each queue, including those that arrive after ``now``.
        queue_time: (E, N + 1, Q) time each entry joins the queue, ascending.
        queue_birth: (E, N + 1, Q) time the same request entered the pipeline.
        replicas: (E, N) replica places in use.
        replica_variant: (E, N, R) index of the variant a replica runs.
        replica_ready: (E, N, R) time from which it serves.
        replica_free: (E, N, R) time from which it is idle.
        replica_retire: (E, N, R) time at which it stops taking work.
    """

    now: np.ndarray
    queue_length: np.ndarray
    queue_time: np.ndarray
    queue_birth: np.ndarray
    replicas: np.ndarray
    replica_variant: np.ndarray
    replica_ready: np.ndarray
    replica_free: np.ndarray
    replica_retire: np.ndarray


def empty_state(environments: int, tasks: int, queue_places: int, replica_places: int) -> SimulatorState:
    """A state without requests or replicas."""
    queues = (environments, tasks + 1, queue_places)
    replicas = (environments, tasks, replica_places)
    return SimulatorState(
        now=np.zeros(environments),
        queue_length=np.zeros(queues[:2], dtype=np.int64),
        queue_time=np.zeros(queues),
        queue_birth=np.zeros(queues),
        replicas=np.zeros(replicas[:2], dtype=np.int64),
        replica_variant=np.zeros(replicas, dtype=np.int64),
        replica_ready=np.zeros(replicas),
        replica_free=np.zeros(replicas),
        replica_retire=np.zeros(replicas),
    )
