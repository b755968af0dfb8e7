"""A small study of real trainings, evaluations and cycles, in a module that the nodes of a Ray cluster can import."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from deadlines import PATIENCE, eventually
from ray_jobs import Errand, node_id
from small_pipelines import ocr_pipeline, varying_workload
from small_situations import load_of, small_practice, untrained
from small_study import CYCLE, setting_on, waves
from small_trainings import SHORT, problem_for

from opd.agent import fine_tuning
from opd.agent.course import CourseParameters, run_course
from opd.agent.demonstrations import Lesson
from opd.agent.fine_tuning import FineTuning
from opd.agent.ppo import PpoParameters
from opd.agent.single.jobs import Job, run_jobs
from opd.agent.single.ppo import CHECKPOINT, PPOTrainer
from opd.agent.tuning import TuningJob, run_tuning_jobs
from opd.agent.weights import TrainedAgent
from opd.study.evaluation.cycles import EvaluationCell, evaluate

BRIEF_COURSE = CourseParameters(pipelines=(3,), cloning_steps=(3,), updates=2, pool=3, width=8, blocks=1)
BRIEF_PPO = PpoParameters(problems=2, episodes=2, decisions=3, epochs=1, minibatch=6)
BRIEF_TUNING = FineTuning(updates=2, rollouts=1, validate_every=1, episodes=2, decisions=4)
POLICIES = ("myopic", "lookahead", "agent", "agent-tuned", "agent-single")
SAVED = "saved"
"""Note of the training that is lost with its node."""


@dataclass(frozen=True)
class NotedJob(Job):
    """A training that notes where it begins; on a node that will be lost it waits for that after its first checkpoint.

    Attributes:
        errand: where it notes, and the node that will be lost.
    """

    errand: Errand

    @property
    def done(self) -> bool:
        here, how = node_id(), "resumed" if (self.folder / CHECKPOINT).is_file() else "new"
        (self.errand.folder / f"{self.path.stem}_{how}_{here}").touch()
        if self.errand.lost == here != "":
            _wait_after_saving(self.errand)
        elif self.errand.lost:
            eventually((self.errand.folder / SAVED).exists)
        return super().done


def _wait_after_saving(errand: Errand) -> None:
    """Change the trainer of this process, which is killed with its node."""
    save = PPOTrainer.save

    def save_and_wait(trainer: PPOTrainer, folder: Path) -> None:
        save(trainer, folder)
        (errand.folder / SAVED).touch()
        time.sleep(PATIENCE)
        raise AssertionError("the node was not lost")

    PPOTrainer.save = save_and_wait  # type: ignore[method-assign]


@dataclass(frozen=True)
class NotedTuning(TuningJob):
    """Fine-tuning that notes when it begins; that of seed 0 loses its process after an update, if a node is lost, too.

    Attributes:
        errand: as of a training.
    """

    errand: Errand

    @property
    def done(self) -> bool:
        begun = len(list(self.errand.folder.glob(f"{self.path.stem}_*")))
        (self.errand.folder / f"{self.path.stem}_{begun}").touch()
        if self.errand.lost and self.seed == 0 and not begun:
            _die_after_an_update()
        return super().done


def _die_after_an_update() -> None:
    improve = fine_tuning.improve

    def improve_and_die(*given: object) -> None:
        improve(*given)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGKILL)

    fine_tuning.improve = improve_and_die  # type: ignore[assignment]


def run_study(lesson: Lesson, folder: Path, errand: Errand, workers: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A course, trainings for one pipeline, fine-tuning, and cycles of the agents that they made; rows and timelines.

    Args:
        lesson: of the course.
        folder: for all files.
        errand: where jobs note that they begin.
        workers: processes.
    """
    run_course(lesson, folder / "course", BRIEF_COURSE, BRIEF_PPO, workers).save(folder / "course" / "agent.npz")
    problem, agents = problem_for(), folder / "agents"
    jobs = [NotedJob("agent-single", n, problem, SHORT, agents / f"agent-single-{n}.npz", errand) for n in range(4)]
    run_jobs(jobs, workers)
    agent, practice = TrainedAgent(untrained(0).weights(), {}), small_practice()
    validation = practice._replace(load=load_of(varying_workload(decisions=60), bursts=(20,)))
    shared = agent, practice, validation, BRIEF_TUNING
    tunings = [NotedTuning("agent-tuned", n, *shared, agents / f"agent-tuned-{n}.npz", errand) for n in range(2)]
    run_tuning_jobs(tunings, workers)
    trained = {("ocr", job.policy, job.seed): job.path for job in (*jobs, *tunings)}
    cells = [EvaluationCell(ocr_pipeline(), policy, CYCLE, seed) for policy in POLICIES for seed in (0, 1)]
    return evaluate(cells, setting_on(waves(), trained), workers)
