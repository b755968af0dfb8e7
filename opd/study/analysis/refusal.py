"""What runs when an action is refused: what ran before, as in the environment and by the control loop's guard."""

from __future__ import annotations

import numpy as np

from opd.measurement import NODE_FEATURES, TASK_FEATURES
from opd.pipeline import Pipeline, used_cores


def admit(pipeline: Pipeline, running: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What runs once actions are refused that exceed the capacity: there, what ran before.

    Args:
        pipeline: the pipeline, N tasks.
        running: (E, N, 3) configurations that run.
        wanted: (E, N, 3) configurations that were chosen.

    Returns:
        (E, N, 3) configurations, and (E,) which were refused.
    """
    refused = used_cores(pipeline, wanted) > pipeline.capacity
    return np.where(refused[:, None, None], running, wanted), refused


def running_configurations(pipeline: Pipeline, states: np.ndarray) -> np.ndarray:
    """(E, N, 3) configurations that run in states (E, S) of Eq. 5."""
    tasks = states[:, len(NODE_FEATURES) :].reshape(len(states), len(pipeline.tasks), len(TASK_FEATURES))
    first = TASK_FEATURES.index("variant")
    return tasks[..., first : first + 3].astype(np.int64)
