"""The one agent beside other policies on validation days, for the pipelines that ship with the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from opd.agent.demonstrations import Lesson
from opd.control import AGENT
from opd.objective import Weights
from opd.profiling.pipelines import load_pipeline
from opd.solvers import IpaParameters
from opd.study.analysis.tuning import validation_cycles
from opd.study.evaluation.cycles import EvaluationCell, Setting, evaluate
from opd.workload.forecast import Forecaster


def compare_on_validation(
    lesson: Lesson,
    forecasters: Mapping[str, Forecaster],
    names: Sequence[str],
    policies: Sequence[str],
    agent: Path,
    cycles: int,
    seed: int,
    workers: int,
) -> pd.DataFrame:
    """Run policies on cycles of the validation days of each trace.

    Args:
        lesson: traces and devices that the agent learned from.
        forecasters: by name of their trace.
        names: of the pipelines.
        policies: by name; ``agent`` is the one in the file.
        agent: its file.
        cycles: number of them for each trace.
        seed: that chooses the cycles.
        workers: processes.

    Returns:
        The table of :func:`opd.study.evaluation.cycles.evaluate`, with the column ``trace``.
    """
    devices, tables = [load_pipeline(name) for name in names], []
    files = {(device.name, AGENT, 0): agent for device in devices}
    for name, trace in lesson.traces.items():
        setting = Setting(trace, forecasters[name], Weights(), lesson.simulation, IpaParameters(), files)
        chosen = validation_cycles(trace, seed)[:cycles]
        cells = [EvaluationCell(*each, 0) for each in ((d, p, c) for d in devices for p in policies for c in chosen)]
        tables.append(evaluate(cells, setting, workers)[0].assign(trace=name))
    return pd.concat(tables, ignore_index=True)
