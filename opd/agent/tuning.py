"""Fine-tuning jobs: for which pipelines and seeds, and where the agents are kept; finished ones are not tuned again."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from opd.agent.description import core_price
from opd.agent.fine_tuning import FineTuning, fine_tune
from opd.agent.practice import Load, PracticeProblem, practice_problem
from opd.agent.weights import TrainedAgent, WeightsError
from opd.host.parallel import run_tasks
from opd.measurement import SimulationParameters
from opd.objective import Objective, objective_fields
from opd.pipeline import Pipeline
from opd.workload.forecast import Forecaster
from opd.workload.trace import Trace


@dataclass(frozen=True)
class TuningJob:
    """The agent to fine-tune for one pipeline.

    Attributes:
        policy: name of the tuned agent.
        seed: of the training.
        agent: to begin with.
        training: the pipeline under the load of the training days.
        validation: the same under the load of the validation days.
        parameters: effort.
        path: the tuned agent.
    """

    policy: str
    seed: int
    agent: TrainedAgent
    training: PracticeProblem
    validation: PracticeProblem
    parameters: FineTuning
    path: Path

    @cached_property
    def about(self) -> dict[str, Any]:
        """Everything that the tuned agent depends on; weights, pipeline and workloads by checksums."""
        workloads = [problem.load.workload for problem in (self.training, self.validation)]
        data = [zlib.crc32(part.tobytes()) for w in workloads for part in (w.counts, w.forecasts)]
        return {
            "seed": self.seed,
            "weights": [zlib.crc32(part.tobytes()) for part in self.agent.weights],
            "pipeline": zlib.crc32(json.dumps(asdict(self.training.pipeline)).encode()),
            "objective": objective_fields(self.training.objective),
            "parameters": asdict(self.parameters),
            "simulation": asdict(self.training.simulation),
            "data": data,
        }

    @property
    def metrics(self) -> Path:
        """CSV file with the figures of every update."""
        return self.path.parent / "runs" / f"{self.path.stem}.csv"

    @property
    def done(self) -> bool:
        """True if the agent at :attr:`path` is the one that this job would make."""
        try:
            return self.metrics.is_file() and TrainedAgent.load(self.path).about.get("tuning") == self.about
        except WeightsError:
            return False

    def curve(self) -> pd.DataFrame:
        """Columns policy, seed, update, and ``validation``, which is the reward less 0.05 for a dropped request."""
        table = pd.read_csv(self.metrics)[["update", "validation"]].dropna()
        price = core_price(self.training.objective)
        return table.assign(policy=self.policy, seed=self.seed, validation=price * table["validation"])


def tuning_problems(
    pipeline: Pipeline, objective: Objective, simulation: SimulationParameters, trace: Trace, forecaster: Forecaster
) -> tuple[PracticeProblem, PracticeProblem]:
    """A pipeline under the load of the training days, and under that of the validation days."""
    problem = practice_problem(
        pipeline, objective, simulation, Load.of(trace, "train", forecaster, simulation.interval)
    )
    return problem, problem._replace(load=Load.of(trace, "validation", forecaster, simulation.interval))


def tuning_jobs(
    policy: str,
    seeds: Sequence[int],
    problems: tuple[PracticeProblem, PracticeProblem],
    parameters: Mapping[str, Any],
    folder: Path,
) -> list[TuningJob]:
    """Make the jobs that begin with the agent that ships, one for each seed.

    Args:
        policy: name of the tuned agent.
        seeds: of the trainings.
        problems: of :func:`tuning_problems`.
        parameters: departures from the defaults of :class:`FineTuning`.
        folder: of the tuned agents.
    """
    agent, effort = TrainedAgent.load(), FineTuning(**parameters)
    return [TuningJob(policy, seed, agent, *problems, effort, folder / f"{policy}-{seed}.npz") for seed in seeds]


def run_tuning_job(job: TuningJob) -> Path:
    """Fine-tune one agent and save it, unless that very agent is there already."""
    if not job.done:
        torch.set_num_threads(1)
        title = f"{job.training.pipeline.name} {job.policy} {job.seed}"
        tuned = fine_tune(job.agent, job.training, job.validation, job.parameters, job.seed, job.metrics, title)
        replace(tuned, about={**tuned.about, "tuning": job.about}).save(job.path)
    return job.path


def run_tuning_jobs(jobs: Sequence[TuningJob], workers: int) -> list[Path]:
    """Fine-tune several agents, ``workers`` at a time; after an interruption only unfinished ones are tuned."""
    return list(run_tasks(_run_job, None, jobs, workers))


def _run_job(_: None, job: TuningJob) -> Path:
    return run_tuning_job(job)
