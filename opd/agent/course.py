"""The course: the one agent trained from nothing. Every step leaves a file, so an interrupted course goes on there.

Rounds of imitation come first. In each, the planner demonstrates on generated pipelines in situations that the agent
of the round before has led to, and the network learns from all demonstrations so far. Then PPO goes on from the last
of them. Loads come from the training days of every trace given; pipelines are generated from seeds that evaluation
never uses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from opd.agent.checkpoints import load_checkpoint, save_checkpoint
from opd.agent.cloning import Lessons, imitate
from opd.agent.demonstrations import Lesson, PlannerDemonstrations, demonstrate_on
from opd.agent.network import AgentNetwork
from opd.agent.ppo import PpoParameters, Rollout, decay_learning_rate, improve, roll_out
from opd.agent.practice import PracticeProblem
from opd.agent.scoring import ScoringWeights
from opd.agent.weights import TrainedAgent
from opd.host.archive import written_whole
from opd.host.parallel import task_pool
from opd.host.progress import progress_bar
from opd.workload.forecast_training import training_data

ABOUT, CHECKPOINT, METRICS, LOSSES = "course.json", "checkpoint.pt", "metrics.csv", "round-{}.csv"
"""Files of a course: its parameters, the state of PPO and its figures, and the imitation loss of every round."""

_FORMAT, _ROUND_FORMAT = "opd course 1", "opd course round 1"

_SAVE_EVERY = 10


_Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config={"extra": "forbid", "allow_inf_nan": False})
class CourseParameters:
    """What a course does.

    Attributes:
        pipelines: that are demonstrated on in each round.
        cloning_steps: gradient steps of imitation in each round.
        cloning_rate: peak of its learning rate.
        updates: of PPO.
        pool: generated pipelines that PPO practises on.
        width: neurons of every hidden layer of the network.
        blocks: residual blocks.
        seed: of everything random.
    """

    pipelines: tuple[_Count, ...] = (800, 800)
    cloning_steps: tuple[_Count, ...] = (1000, 1000)
    cloning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    updates: Annotated[int, Field(ge=0)] = 100
    pool: _Count = 240
    width: _Count = 64
    blocks: _Count = 2
    seed: Annotated[int, Field(ge=0, le=9)] = 0

    def __post_init__(self) -> None:
        if len(self.pipelines) != len(self.cloning_steps):
            raise ValueError(
                f"pipelines has {len(self.pipelines)} rounds and cloning_steps {len(self.cloning_steps)}; "
                "give both as many"
            )


class _Practice(NamedTuple):
    """A rollout to collect: seed of the pipeline, weights, seed of the episodes."""

    pipeline: int
    weights: ScoringWeights
    seed: int
    parameters: PpoParameters


def run_course(
    lesson: Lesson, folder: Path, parameters: CourseParameters, ppo: PpoParameters, workers: int
) -> TrainedAgent:
    """Train the agent.

    Args:
        lesson: traces and devices.
        folder: for everything that an interrupted course needs to go on.
        parameters: of the course.
        ppo: of its last part.
        workers: processes.

    Raises:
        ValueError: if PPO needs more pipelines than there are to practise on, or the folder holds another course.
    """
    p = parameters
    if p.updates and ppo.problems > p.pool:
        raise ValueError(f"{ppo.problems} problems of a rollout are more than the {p.pool} of pool; raise pool")
    traces = {name: training_data(trace) for name, trace in lesson.traces.items()}
    about = {"course": asdict(p), "ppo": asdict(ppo), "traces": traces}
    _claim(folder, about | {"course": asdict(replace(p, updates=0))})  # it may be made longer
    torch.manual_seed(p.seed)
    network = AgentNetwork(p.width, p.blocks)
    shown: list[Lessons] = []
    weights = network.copied_weights()
    for number, steps in enumerate(p.cloning_steps):
        shown += _demonstrations(lesson, folder / f"round-{number}", number, p, weights, workers)
        path = folder / f"round-{number}.pt"
        if not path.is_file():
            losses = imitate(network, shown, steps, p.cloning_rate, np.random.default_rng([p.seed, number]))
            with written_whole(folder / LOSSES.format(number)) as unfinished:
                pd.DataFrame({"loss": losses}).to_csv(unfinished, index_label="step")
            print(f"round {number + 1} of {len(p.pipelines)}: imitation loss {np.mean(losses[-100:]):.3f}", flush=True)
            save_checkpoint(path, _ROUND_FORMAT, {"network": network.state_dict()})
        network.load_state_dict(load_checkpoint(path, _ROUND_FORMAT)["network"])
        weights = network.copied_weights()
    _practise(lesson, network, shown, folder, p, ppo, workers)
    return TrainedAgent(network.copied_weights(), about)


def _claim(folder: Path, about: Mapping[str, Any]) -> None:
    """Leave the parameters of a course in its folder; refuse a folder that holds another one."""
    path, mine = folder / ABOUT, json.loads(json.dumps(about))
    if not path.is_file():
        with written_whole(path) as unfinished:
            unfinished.write_text(json.dumps(mine, indent=2) + "\n", encoding="utf-8")
        return
    known = json.loads(path.read_text(encoding="utf-8"))
    other = [part for part in mine if known.get(part) != mine[part]]
    if other:
        raise ValueError(
            f"{folder} holds a course with other settings of {', '.join(other)}, see {path.name} there; delete the "
            "folder, or name another one"
        )


def _demonstrations(
    lesson: Lesson, folder: Path, number: int, p: CourseParameters, weights: ScoringWeights, workers: int
) -> Iterator[Lessons]:
    """Demonstrate in one round, with progress; what is there already is read."""
    first = p.seed * SEEDS_OF_A_COURSE + sum(p.pipelines[:number])
    tasks = [(seed, weights, folder / f"{seed}.npz") for seed in range(first, first + p.pipelines[number])]
    with task_pool(demonstrate_on, lesson, 1 if all(path.is_file() for *_, path in tasks) else workers) as run:
        done = progress_bar(run(tasks), total=len(tasks), desc=f"demonstrations {number + 1}", unit="pipeline")
        yield from (Lessons.of(PlannerDemonstrations.load(path)) for path in done)


def _practise(
    lesson: Lesson,
    network: AgentNetwork,
    shown: Sequence[Lessons],
    folder: Path,
    p: CourseParameters,
    ppo: PpoParameters,
    workers: int,
) -> None:
    """PPO from the last checkpoint on."""
    optimizer = torch.optim.Adam(network.parameters(), lr=ppo.learning_rate, eps=1e-5)
    metrics = _resume(folder, network, optimizer)
    with task_pool(_collect, _Problems(lesson), workers) as run:
        for update in range(len(metrics), p.updates):
            decay_learning_rate(optimizer, ppo.learning_rate, update, p.updates)
            rng = np.random.default_rng([p.seed, 1_000, update])
            rollouts = _rollouts(run, network, p, ppo, rng)
            metrics.append(improve(network, optimizer, rollouts, shown, ppo, rng))
            if (update + 1) % _SAVE_EVERY == 0 or update + 1 == p.updates:
                _save(folder, network, optimizer, metrics)
                recent = np.mean([each["lead"] for each in metrics[-_SAVE_EVERY:]])
                print(f"update {update + 1} of {p.updates}: lead {recent:+.2%} of the cores", flush=True)


def _rollouts(
    run: Callable[[Sequence[_Practice]], Iterator[Rollout]],
    network: AgentNetwork,
    p: CourseParameters,
    ppo: PpoParameters,
    rng: np.random.Generator,
) -> list[Rollout]:
    """Collect the experience of one update."""
    weights = network.copied_weights()
    chosen = FIRST_PRACTICE + p.seed * p.pool + rng.choice(p.pool, ppo.problems, replace=False)
    return list(run([_Practice(int(seed), weights, int(rng.integers(2**31)), ppo) for seed in chosen]))


SEEDS_OF_A_COURSE = 50_000
"""Pipelines of courses with different seeds are different ones."""

FIRST_PRACTICE = 500_000
"""Seeds from here on are those of pipelines that PPO practises on."""


class _Problems(dict[int, PracticeProblem]):
    """Problems of a lesson by seed, each made once in a process: solving for the loads of one can take a second."""

    def __init__(self, lesson: Lesson) -> None:
        super().__init__()
        self.lesson = lesson

    def __missing__(self, seed: int) -> PracticeProblem:
        problem = self[seed] = self.lesson.problem(seed)
        return problem


def _collect(problems: _Problems, task: _Practice) -> Rollout:
    return roll_out(problems[task.pipeline], task.weights, task.seed, task.parameters)


def _save(
    folder: Path, network: AgentNetwork, optimizer: torch.optim.Optimizer, metrics: list[dict[str, float]]
) -> None:
    with written_whole(folder / METRICS) as unfinished:
        pd.DataFrame(metrics).to_csv(unfinished, index_label="update")
    state: dict[str, Any] = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "metrics": metrics}
    save_checkpoint(folder / CHECKPOINT, _FORMAT, state)


def _resume(folder: Path, network: AgentNetwork, optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    """Restore the checkpoint of a folder, if there is one; return its metrics."""
    path = folder / CHECKPOINT
    if not path.is_file():
        return []
    state = load_checkpoint(path, _FORMAT)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return list(state["metrics"])
