"""Tasks of the study on one to four Ray nodes of this machine, and in its processes.

Two kinds of tasks are measured, each on one core: whole trainings of an agent, and cycles of the evaluation. All go
through :func:`opd.host.parallel.run_tasks`, and must give the same results everywhere. Every measurement begins with
new processes and a new cluster.

On a machine with fewer cores than nodes, nodes share cores, so wall times say little. **CPU-seconds** count: those of
the tasks, and those of everything else, which is the start of processes, Ray's own ones and the one that hands out
tasks.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time, time
from typing import Annotated, Any, NamedTuple
from unittest import mock

import numpy as np
import pandas as pd
import psutil
import typer
import yaml

from opd.agent.single.jobs import Job, run_job
from opd.agent.single.problem import TrainingParameters, build_problem
from opd.control import AGENT
from opd.host.machine import hardware
from opd.host.parallel import RAY_ADDRESS, run_tasks
from opd.host.paths import project_path
from opd.host.progress import progress_bar
from opd.measurement import SimulationParameters
from opd.objective import Weights
from opd.profiling.pipelines import load_pipeline
from opd.solvers import IpaParameters
from opd.study.benchmarks import DisagreementError
from opd.study.benchmarks.budgets import SMOKE_TRAINING
from opd.study.benchmarks.ray_nodes import ray_nodes
from opd.study.benchmarks.ray_report import CYCLES, PROCESSES, RAY, TRAININGS, plot_scaling, scaling_findings
from opd.study.evaluation.cycles import EvaluationCell, Setting, evaluate_cell
from opd.study.plots.style import save_figure
from opd.study.report.files import write_page
from opd.workload.forecast import RecentMaximum
from opd.workload.trace import evaluation_cycles, load_trace


@dataclass(frozen=True)
class RayBudget:
    """How much is measured.

    Attributes:
        nodes: numbers of Ray nodes.
        processes: numbers of local processes; one is that which asks.
        trainings: in a measurement.
        cycles: in a measurement.
        changes: departures of trainings from ``params.yaml``.
    """

    nodes: tuple[int, ...] = (1, 2, 4)
    processes: tuple[int, ...] = (1, 2)
    trainings: int = 4
    cycles: int = 240
    changes: Mapping[str, Any] = field(default_factory=dict)


SMOKE = RayBudget(nodes=(2,), trainings=3, cycles=3, changes=SMOKE_TRAINING)
"""Only shows that everything runs."""


class TimedTask(NamedTuple):
    """A task that has run: what it gave, seconds of the clock, CPU-seconds within it, and its process."""

    result: Any
    begin: float
    end: float
    cpu_seconds: float
    process: int


class Work(NamedTuple):
    """Tasks of one kind: the function of one, what all share, and what differs."""

    function: Callable[[Any, Any], Any]
    shared: Any
    tasks: Sequence[Any]


def run_timed(work: tuple[Callable[[Any, Any], Any], Any], task: Any) -> TimedTask:
    """Run one task on the clock of its process."""
    function, shared = work
    begin, cpu = time(), process_time()
    result = function(shared, task)
    return TimedTask(result, begin, time(), process_time() - cpu, os.getpid())


def train_agent(folder: Path, job: Job) -> bytes:
    """Train an agent in a folder of its own, as often as it is asked for; return its file."""
    with TemporaryDirectory(dir=folder) as own:
        return run_job(replace(job, path=Path(own, job.path.name))).read_bytes()


def run_evaluation(setting: Setting, cell: EvaluationCell) -> tuple[dict[str, object], str]:
    """The row and the timeline of a cycle, without the times that decisions took."""
    row, steps = evaluate_cell(setting, cell)
    return {n: value for n, value in row.items() if n != "decision_ms_mean"}, steps.drop(columns="decision_ms").to_csv()


def study_work(budget: RayBudget, folder: Path) -> dict[str, Work]:
    """The tasks of every kind: agents for pipeline ``video`` on the bundled trace, and cycles of the agent that ships.

    The forecast is the largest recent load, so that nothing has to be trained before.
    """
    given = yaml.safe_load(project_path("params.yaml").read_text(encoding="utf-8"))
    parameters = TrainingParameters(**given["training"] | budget.changes)
    trace, pipeline, forecaster = load_trace("synthetic", given["damping"]), load_pipeline("video"), RecentMaximum()
    objective, simulation = Weights(**given["weights"]), SimulationParameters(**given["simulation"])
    problem = build_problem(pipeline, trace, forecaster, objective, simulation, parameters)  # type: ignore[arg-type]
    jobs = [Job("agent-single", n, problem, parameters, Path(f"{n}.npz")) for n in range(budget.trainings)]
    ipa = IpaParameters(**given["ipa"])
    setting = Setting(trace, forecaster, objective, simulation, ipa, {})  # type: ignore[arg-type]
    stretches = evaluation_cycles(trace, 0)
    seeds = range(-(-budget.cycles // len(stretches)))
    cells = [EvaluationCell(pipeline, AGENT, cycle, seed) for seed, cycle in product(seeds, stretches)]
    return {
        TRAININGS: Work(train_agent, folder, jobs),
        CYCLES: Work(run_evaluation, setting, cells[: budget.cycles]),
    }


def measure_scaling(budget: RayBudget) -> pd.DataFrame:
    """Run all tasks in every place, with progress.

    Returns:
        A row for every kind of tasks and place: ``kind``, ``place`` (``processes`` or ``ray``), ``workers`` (processes,
        or nodes of one core), ``tasks``; ``wall_seconds`` from handing out to the last result, ``start_seconds`` until
        a process began its first task, ``gap_ms`` between two tasks of a process, and ``task_cpu_seconds`` within a
        task, as means; ``cpu_seconds`` of all processes, ``overhead_cpu_seconds`` of them outside of tasks; and
        ``task_megabytes`` that are handed over for a task.

    Raises:
        DisagreementError: if a task gives another result in another place.
    """
    places = [*((PROCESSES, n) for n in budget.processes), *((RAY, n) for n in budget.nodes)]
    with TemporaryDirectory(dir=project_path(), prefix=".ray-scaling-") as folder:
        works = study_work(budget, Path(folder))
        for work in works.values():  # once, so that nothing is compiled while time counts
            _run(work._replace(tasks=work.tasks[:1]), PROCESSES, 1)
        kinds = list(product(works, places))
        rows: list[dict[str, Any]] = []
        results: dict[str, list[Any]] = {}
        for kind, place in progress_bar(kinds, total=len(kinds), desc="tasks on Ray", unit="measurement"):
            figures, found = _run(works[kind], *place)
            if results.setdefault(kind, found) != found:
                raise DisagreementError(f"{kind} give other results in {place[1]} {place[0]} than in {places[0]}")
            rows.append({"kind": kind, "place": place[0], "workers": place[1]} | figures)
    return pd.DataFrame(rows)


def _run(work: Work, place: str, workers: int) -> tuple[dict[str, float], list[Any]]:
    """Figures and results of all tasks in one place."""
    with ray_nodes(workers) if place == RAY else mock.patch.dict(os.environ, {RAY_ADDRESS: ""}):
        begin, cpu = time(), _cpu_seconds()
        # On Ray as many tasks run at a time as there are nodes; one worker would mean this process.
        some = max(workers, 2) if place == RAY else workers
        timed = list(run_tasks(run_timed, (work.function, work.shared), work.tasks, some))
        wall, spent = time() - begin, _cpu_seconds() - cpu
    processes: dict[int, list[TimedTask]] = {}
    for task in sorted(timed, key=lambda task: task.begin):
        processes.setdefault(task.process, []).append(task)
    gaps = [later.begin - task.end for tasks in processes.values() for task, later in pairwise(tasks)]
    return {
        "tasks": len(timed),
        "wall_seconds": wall,
        "start_seconds": float(np.mean([tasks[0].begin - begin for tasks in processes.values()])),
        "gap_ms": 1e3 * float(np.mean(gaps)) if gaps else np.nan,
        "task_cpu_seconds": float(np.mean([task.cpu_seconds for task in timed])),
        "cpu_seconds": spent,
        "overhead_cpu_seconds": spent - sum(task.cpu_seconds for task in timed),
        "task_megabytes": len(pickle.dumps(work.tasks[0])) / 1e6,
    }, [task.result for task in timed]


def _cpu_seconds() -> float:
    """CPU-seconds so far of this process, of its descendants, and of those that have ended."""
    this = psutil.Process()
    total = 0.0
    for process in (this, *this.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])  # user and system, own and of children that have ended
    return total


def main(
    output: Annotated[Path, typer.Option(help="Folder for table, figure and page.")] = Path("reports/benchmarks"),
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Measure next to nothing; the figures then mean nothing.")
    ] = False,
) -> None:
    """Measure tasks of the study on Ray nodes and in processes of this machine, which should have nothing else to do.

    Example: python -m opd.study.benchmarks.ray_scaling
    """
    cores = os.cpu_count() or 1
    table = measure_scaling(SMOKE if smoke else RayBudget())
    folder = project_path(str(output))
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "ray_scaling.csv", index=False, float_format="%.6g")
    save_figure(plot_scaling(table, cores), folder / "ray_scaling.png")
    machine = hardware(("ray",))
    source = (
        f"{machine['processor']}, {cores} cores; Ray {machine['ray']}. `python -m opd.study.benchmarks.ray_scaling`"
    )
    write_page(folder / "ray_scaling.md", "Tasks on Ray nodes", source, scaling_findings(table, cores))
    print(f"wrote ray_scaling.csv, .png and .md to {folder}")


if __name__ == "__main__":
    # Under its own name, by which a process of a Ray node finds the functions of tasks; there `__main__` is Ray's.
    from opd.study.benchmarks.ray_scaling import main as named

    typer.run(named)
