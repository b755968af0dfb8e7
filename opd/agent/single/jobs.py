"""Training jobs: which agents to train and where they are kept; finished ones are not trained again."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from opd.agent.single.deployed import Agent, CheckpointError
from opd.agent.single.network import export
from opd.agent.single.ppo import train
from opd.agent.single.problem import Problem, TrainingParameters
from opd.host.parallel import run_tasks
from opd.objective import objective_fields


@dataclass(frozen=True)
class Job:
    """One agent to train.

    Attributes:
        policy: name of the agent; agents of one name share their objective.
        seed: of the training.
        problem: what to train on.
        parameters: of the training.
        path: the finished agent.
    """

    policy: str
    seed: int
    problem: Problem
    parameters: TrainingParameters
    path: Path

    @cached_property
    def about(self) -> dict[str, Any]:
        """Everything but the pipeline that the trained agent depends on; workloads by checksums and largest load."""
        workloads = self.problem.training, self.problem.validation
        data = [zlib.crc32(part.tobytes()) for w in workloads for part in (w.counts, w.forecasts)]
        return {
            "policy": self.policy,
            "seed": self.seed,
            **objective_fields(self.problem.objective),
            "training": asdict(self.parameters),
            "simulation": asdict(self.problem.simulation),
            "data": data,
            "largest_load": float(self.problem.training.forecasts.max()),
        }

    @property
    def title(self) -> str:
        """The beginning of every line of progress."""
        return f"{self.problem.pipeline.name} {self.policy} {self.seed}"

    @cached_property
    def folder(self) -> Path:
        """Folder of the run; each combination of pipeline, objective, parameters and data has its own."""
        identity = json.dumps([self.about, asdict(self.problem.pipeline)], sort_keys=True)
        return self.path.parent / "runs" / f"{self.policy}-{self.seed}-{zlib.crc32(identity.encode()):08x}"

    @property
    def done(self) -> bool:
        """True if the agent at :attr:`path` is the one that this job would train."""
        try:
            return Agent.load(self.path, self.problem.pipeline).parameters == self.about
        except CheckpointError:
            return False


def run_job(job: Job) -> Path:
    """Train one agent and save it, unless that very agent is there already."""
    if not job.done:
        torch.set_num_threads(1)
        network = train(job.problem, job.parameters, job.seed, job.folder, job.title)
        Agent(job.problem.pipeline, export(network), job.about).save(job.path)
    return job.path


def run_jobs(jobs: Sequence[Job], workers: int) -> list[Path]:
    """Train several agents, ``workers`` at a time; after an interruption only unfinished ones are trained."""
    return list(run_tasks(_run_job, None, jobs, workers))


def _run_job(_: None, job: Job) -> Path:
    return run_job(job)
