"""The course of the one agent: a figure of imitation and PPO, and a comparison on the validation days of its traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opd.agent.course import LOSSES, METRICS
from opd.agent.demonstrations import Lesson
from opd.control import AGENT
from opd.objective import Weights
from opd.pipeline import Pipeline
from opd.solvers import IpaParameters
from opd.study.analysis.tuning import validation_cycles
from opd.study.evaluation.cycles import EvaluationCell, Setting, evaluate
from opd.study.plots.style import policy_style, save_figure
from opd.workload.forecast import Forecaster

_SMOOTHED = 20
"""Values that a thick line averages."""


def plot_course(folder: Path, title: str, path: str | Path) -> Figure:
    """Draw the imitation loss of every round, and PPO's lead over the exact solver in training episodes.

    It is the median over the episodes: where the solver drops requests, a lead can be many times its cores.

    Args:
        folder: of :func:`opd.agent.course.run_course`.
        title: of the figure.
        path: image file to write.
    """
    rounds = [pd.read_csv(file)["loss"] for file in sorted(folder.glob(LOSSES.format("*")))]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    figure.suptitle(title)
    begin = 0
    for number, losses in enumerate(rounds):
        _draw(left, begin + np.arange(len(losses)), losses)
        begin += len(losses)
        if number + 1 < len(rounds):
            left.axvline(begin, color="0.6", linestyle=":")
    left.set(xlabel="gradient step; dotted: the next round of demonstrations", ylabel="imitation loss")
    if (folder / METRICS).is_file():
        metrics = pd.read_csv(folder / METRICS)
        _draw(right, metrics["update"].to_numpy(), 100.0 * metrics["median_lead"])
    right.axhline(0.0, color="0.4", linestyle="--", linewidth=1)
    lead = "median lead over the myopic solver\nwith backlog in training, % of its cores"
    right.set(xlabel="update of PPO", ylabel=lead)
    return save_figure(figure, path)


def _draw(axes: Axes, places: np.ndarray, values: pd.Series) -> None:
    """Draw values thin and their moving average thick."""
    colour = policy_style(AGENT).colour
    axes.plot(places, values, color=colour, linewidth=0.6, alpha=0.4)
    axes.plot(places, values.rolling(_SMOOTHED, min_periods=1).mean(), color=colour, linewidth=1.8)


def compare_on_validation_days(
    agent: Path,
    lesson: Lesson,
    forecasters: Mapping[str, Forecaster],
    pipelines: Sequence[Pipeline],
    policies: Sequence[str],
    cycles: int,
    workers: int,
) -> pd.DataFrame:
    """Run policies on cycles of the validation days of every trace.

    Args:
        agent: file of the agent.
        lesson: its traces, and the behaviour of devices.
        forecasters: by name of their trace.
        pipelines: none of which the agent has learned from.
        policies: names; ``agent`` decides by the file.
        cycles: of each trace.
        workers: cycles simulated at the same time.

    Returns:
        Rows of :func:`opd.study.evaluation.cycles.evaluate`, with the trace in a column and in the names of cycles.
    """
    file = {(pipeline.name, AGENT, 0): agent for pipeline in pipelines}
    tables = []
    for name, trace in lesson.traces.items():
        setting = Setting(trace, forecasters[name], Weights(), lesson.simulation, IpaParameters(), file)
        runs = product(pipelines, policies, validation_cycles(trace, 0)[:cycles])
        cells = [EvaluationCell(pipeline, policy, cycle, 0) for pipeline, policy, cycle in runs]
        rows, _ = evaluate(cells, setting, workers)
        tables.append(rows.assign(trace=name, cycle=f"{name} " + rows["cycle"]))
    return pd.concat(tables, ignore_index=True)
