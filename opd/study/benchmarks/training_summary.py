"""The table of the training benchmark: speed and reward of every method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from opd.agent.rollout import Validation
from opd.study.analysis.estimates import spread
from opd.study.benchmarks.training_observer import MODES

MYOPIC = "myopic"
"""The row of the exact solver, which is not trained."""


class TrainingResult(NamedTuple):
    """One training: its learning curve, a row an observation, and the test of its best checkpoint."""

    method: str
    seed: int
    curve: pd.DataFrame
    test: Validation


def first_above(curve: pd.DataFrame, level: float) -> float:
    """CPU-seconds of the first row of a learning curve with a reward above a level; NaN if there is none."""
    above = curve.loc[curve["reward"] > level, "cpu_seconds"]
    return float(above.iloc[0]) if len(above) else np.nan


def above_for_good(curve: pd.DataFrame, level: float) -> float:
    """CPU-seconds of the row of a learning curve from which all rewards are above a level; NaN if there is none."""
    below = np.flatnonzero(~(curve["reward"] > level))
    first = below[-1] + 1 if len(below) else 0
    return float(curve["cpu_seconds"].iloc[first]) if first < len(curve) else np.nan


def summarise_training(runs: Sequence[TrainingResult], validation: Validation, test: Validation) -> pd.DataFrame:
    """Summarise the trainings: one row a method, and one for the myopic solver.

    Args:
        runs: of all methods, in the order of rows; all methods with the same seeds.
        validation: of the myopic solver.
        test: of the myopic solver, on the test days.

    Returns:
        A frame with ``method``, ``seeds`` (runs), ``steps`` of a run, ``reached`` (how many runs passed the myopic
        solver in validation, or ``not reached``), and, each as the seeds' mean with ``_min`` and ``_max``:

        * ``cpu_seconds`` and ``gradient_steps`` of a run, ``steps_per_cpu_second``;
        * ``to_myopic_cpu_seconds`` and ``above_myopic_cpu_seconds``: until the first evaluation with a reward above the
          solver's, and until the one after which all are; of those runs that got there, NaN if none did;
        * ``final_reward`` in validation after the last step, ``test_reward`` and ``test_dropped`` of the checkpoint
          that was best in validation, reward in the units of Eq. 7 and requests;
        * for ``agent`` and ``agent-unaided``, where they are among the runs, ``..._times_speed``: their steps per
          CPU-second divided by this row's, and ``..._more_reward``: their test reward minus this row's; seed by seed.
    """
    methods = list(dict.fromkeys(run.method for run in runs))
    groups = {method: [run for run in runs if run.method == method] for method in methods}
    ours = [method for method in methods if method in MODES]
    rows = [_method_row(group, validation.reward) for group in groups.values()]
    for row, group in zip(rows, groups.values(), strict=True):
        for own in ours:
            name = own.replace("-", "_")
            row |= spread(f"{name}_times_speed", _speeds(groups[own]) / _speeds(group))
            row |= spread(f"{name}_more_reward", _test_rewards(groups[own]) - _test_rewards(group))
    solver = {"method": MYOPIC, "seeds": 0, "steps": 0, "reached": ""}
    solver |= spread("final_reward", [validation.reward])
    solver |= spread("test_reward", [test.reward]) | spread("test_dropped", [test.dropped])
    for own in ours:
        solver |= spread(f"{own.replace('-', '_')}_more_reward", _test_rewards(groups[own]) - test.reward)
    return pd.DataFrame([*rows, solver])


def _speeds(group: Sequence[TrainingResult]) -> np.ndarray:
    return np.array([run.curve["steps"].iloc[-1] / run.curve["cpu_seconds"].iloc[-1] for run in group])


def _test_rewards(group: Sequence[TrainingResult]) -> np.ndarray:
    return np.array([run.test.reward for run in group])


def _method_row(group: Sequence[TrainingResult], level: float) -> dict[str, Any]:
    """The summary of one method's runs."""
    ends = pd.DataFrame([run.curve.iloc[-1] for run in group])
    first = [first_above(run.curve, level) for run in group]
    reached = int(np.isfinite(first).sum())
    return {
        "method": group[0].method,
        "seeds": len(group),
        "steps": int(ends["steps"].iloc[0]),
        "reached": f"{reached} of {len(group)}" if reached else "not reached",
        **spread("cpu_seconds", ends["cpu_seconds"].to_numpy()),
        **spread("steps_per_cpu_second", _speeds(group)),
        **spread("gradient_steps", ends["gradient_steps"].to_numpy()),
        **spread("to_myopic_cpu_seconds", first),
        **spread("above_myopic_cpu_seconds", [above_for_good(run.curve, level) for run in group]),
        **spread("final_reward", ends["reward"].to_numpy()),
        **spread("test_reward", _test_rewards(group)),
        **spread("test_dropped", [run.test.dropped for run in group]),
    }
