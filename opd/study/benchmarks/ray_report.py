"""What the measurement of tasks on Ray nodes says: a figure, tables, and the projection to more cores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import ceil
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from opd.study.plots.style import PALETTE, legend_below
from opd.study.report.files import markdown_table

PROCESSES, RAY = "processes", "ray"
TRAININGS, CYCLES = "trainings", "cycles"

WAYS: Mapping[str, Sequence[int]] = {
    "`make study`": (10,) * 6 + (135,),
    "`train` of all pipelines side by side": (60, 135),
    "all of them together": (195,),
}
"""Ways to hand out the trainings from nothing of ``study/dvc.yaml``: how many go out together, one call after another.

Stage ``train`` has ten for each of six pipelines, stage ``ablations`` 135.
"""

CORES = (2, 64)
"""That the projection is made for."""


class TrainingCost(NamedTuple):
    """What a projection is made of, seconds.

    Attributes:
        training: CPU time of a training on one core.
        gap: between two trainings of a worker.
        start: until workers begin their first training.
    """

    training: float
    gap: float
    start: float


def training_cost(table: pd.DataFrame, workers: int = 2) -> TrainingCost:
    """The cost of trainings on ``workers`` Ray nodes, which should each have had a core."""
    row = table.query("kind == @TRAININGS and place == @RAY and workers == @workers").iloc[0]
    gap = float(np.nan_to_num(row["gap_ms"])) / 1e3  # none where no process had two trainings
    return TrainingCost(float(row["task_cpu_seconds"]), gap, float(row["start_seconds"]))


def rounds(batches: Sequence[int], cores: int) -> int:
    """Rounds of all cores for batches of trainings, one batch after another."""
    return sum(ceil(batch / cores) for batch in batches)


def projected_seconds(cost: TrainingCost, batches: Sequence[int], cores: int) -> float:
    """Seconds for batches of trainings, each of which begins workers."""
    return len(batches) * cost.start + rounds(batches, cores) * (cost.training + cost.gap)


def cost_times(table: pd.DataFrame) -> pd.Series:
    """CPU-seconds of every row, times those of one local process with the same tasks."""
    one = table[(table["place"] == PROCESSES) & (table["workers"] == 1)].set_index("kind")
    return table["cpu_seconds"] / table["kind"].map(one["cpu_seconds"])


def plot_scaling(table: pd.DataFrame, cores: int) -> Figure:
    """Draw CPU-seconds within tasks and outside of them, for every kind and place, on a machine of ``cores``."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    figure.suptitle(f"What the same tasks cost in processes and on Ray nodes, all on one machine of {cores} cores")
    for axes, (kind, rows) in zip(panels, table.groupby("kind", sort=False), strict=True):
        places = [f"{row.workers} {'Ray' if row.place == RAY else 'local'}" for row in rows.itertuples()]
        outside = rows["overhead_cpu_seconds"]
        within = rows["cpu_seconds"] - outside
        axes.bar(places, within, color=PALETTE[0], label="within tasks")
        axes.bar(places, outside, bottom=within, color=PALETTE[1], label="processes that start, Ray, handing out")
        axes.set(title=f"{rows['tasks'].iloc[0]} {kind}", xlabel="processes, or Ray nodes", ylabel="CPU-seconds")
    legend_below(figure, panels[0])
    return figure


def scaling_findings(table: pd.DataFrame, cores: int) -> Mapping[str, str]:
    """Text by heading: what was measured, and the projection."""
    # Processes count their time in hundredths, so next to nothing can come out negative.
    outside = table["overhead_cpu_seconds"].clip(lower=0.0)
    measured = table.assign(cpu_times=cost_times(table), overhead_cpu_seconds=outside)
    shown = ["kind", "place", "workers", "tasks", "cpu_seconds", "cpu_times", "task_cpu_seconds"]
    shown += ["overhead_cpu_seconds", "wall_seconds", "start_seconds"]
    note = (
        f"The machine has {cores} cores, so wall times cannot fall beyond {cores} nodes, and starts are then those of "
        "nodes that share cores. Anything else that runs on the machine lengthens both, too; CPU-seconds change "
        "little. `cpu_times` is relative to one process without Ray. All results were the same everywhere, to "
        "the last digit."
    )
    return {
        "Measured": f"{note}\n\n![CPU-seconds](ray_scaling.png)\n\n{markdown_table(measured[shown])}",
        "Projection": _projection(training_cost(table), table["task_megabytes"].max()),
    }


def _terms(batches: Sequence[int], cores: int) -> str:
    counted = Counter(batches).items()
    return " + ".join(f"{times} × ⌈{batch} / {cores}⌉".removeprefix("1 × ") for batch, times in counted)


def _projection(cost: TrainingCost, megabytes: float) -> str:
    fewest, most = CORES
    trainings = sum(WAYS["`make study`"])
    ways = pd.DataFrame(
        {
            "handed out": way,
            "calls": len(batches),
            f"rounds on {most} cores": f"{_terms(batches, most)} = {rounds(batches, most)}",
            f"minutes on {most} cores": projected_seconds(cost, batches, most) / 60.0,
            f"minutes on {fewest} cores": projected_seconds(cost, batches, fewest) / 60.0,
        }
        for way, batches in WAYS.items()
    )
    lines = [
        f"This was not measured: there were no {most} cores. Measured were, on two Ray nodes of this machine,",
        f"- `training` = {cost.training:.1f} CPU-seconds for one training;",
        f"- `gap` = {cost.gap:.3f} s between two trainings of a node;",
        f"- `start` = {cost.start:.1f} s until the first one began;",
        f"- {megabytes:.1f} MB handed over for a training.",
        "",
        f"The study has {trainings} trainings from nothing. seconds = calls × start + rounds × (training + gap):",
        "",
        markdown_table(ways, digits=1),
        "",
        "Not in the arithmetic: fine-tuning and cycles, trainings for other pipelines, which take longer or shorter, "
        "cores that are slower when all of them compute, nodes that are lost, and the network "
        f"({most} trainings that begin together fetch {most * megabytes:.0f} MB).",
    ]
    return "\n".join(lines)
