"""Demonstrations: situations in which the planner has compared many configurations.

The planner meets situations that the agent has led to (DAgger, Ross et al. 2011). It tells of the plan and of
the configurations around it what each is worth, not only which one is best: most situations have several that are about
as good.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opd.agent.description import Description, Situations, core_price
from opd.agent.practice import Episodes, Load, PracticeProblem, begin_practice, generated_problem
from opd.agent.scoring import ScoringWeights, choose, expected_rewards, plan
from opd.host.archive import load_archive, save_archive
from opd.measurement import SimulationParameters
from opd.pipeline import from_choices, to_choices
from opd.planner.lookahead import Planner, PlannerParameters
from opd.workload.trace import Trace

FORMAT = "opd demonstrations 2"

COMPARED = 12
"""Configurations of a situation that are compared: the plan, and those with the best expected reward beside it."""

EFFORT = PlannerParameters(futures=(16,))
EPISODES, DECISIONS, SHOWN = 6, 20, 0.25
"""Episodes on a pipeline, decisions in each of them, and the share of these in which configurations are compared."""


class PlannerDemonstrations(NamedTuple):
    """The planner's comparisons in S situations of one pipeline.

    Attributes:
        description: of the pipeline.
        situations: S of them.
        choices: (S, 12, N, 3) configurations, the plan first; it fills up where there are fewer.
        values: (S, 12) mean reward of an interval, in cores.
    """

    description: Description
    situations: Situations
    choices: np.ndarray
    values: np.ndarray

    def save(self, path: Path) -> None:
        """Write an archive that :meth:`load` reads."""
        arrays = {f"description_{name}": np.asarray(part) for name, part in self.description._asdict().items()}
        arrays |= {f"situations_{name}": part for name, part in self.situations._asdict().items()}
        save_archive(path, FORMAT, {}, arrays | {"choices": self.choices, "values": self.values})

    @classmethod
    def load(cls, path: Path) -> PlannerDemonstrations:
        """Read demonstrations."""
        _, arrays = load_archive(path, FORMAT)
        known = {name: arrays[f"description_{name}"] for name in Description._fields}
        plain: dict[str, Any] = {name: part if part.ndim else part.item() for name, part in known.items()}
        seen = Situations(*(arrays[f"situations_{name}"] for name in Situations._fields))
        return cls(Description(**plain), seen, arrays["choices"], arrays["values"])


class Lesson(NamedTuple):
    """What demonstrations are made with.

    Attributes:
        simulation: behaviour of devices.
        traces: by name.
        loads: the training days of each of them.
    """

    simulation: SimulationParameters
    traces: Mapping[str, Trace]
    loads: Mapping[str, Load]

    def problem(self, seed: int) -> PracticeProblem:
        """The generated pipeline of a seed; the traces take turns."""
        name = list(self.traces)[seed % len(self.traces)]
        return generated_problem(seed, self.simulation, self.traces[name], "train", self.loads[name])


def demonstrate_on(lesson: Lesson, task: tuple[int, ScoringWeights, Path]) -> Path:
    """Demonstrate on the generated pipeline of a seed, after an agent's decisions; write the file."""
    seed, weights, path = task
    if not path.is_file():
        demonstrate(lesson.problem(seed), weights, np.random.default_rng([seed, 1])).save(path)
    return path


def demonstrate(problem: PracticeProblem, weights: ScoringWeights, rng: np.random.Generator) -> PlannerDemonstrations:
    """Let the planner compare configurations in situations of one problem that an agent leads to.

    Args:
        problem: to demonstrate on.
        weights: of the agent that acts.
        rng: source of everything random.
    """
    planner = Planner(problem.pipeline, problem.objective, problem.simulation, problem.solve, EFFORT)
    episodes = begin_practice(problem, EPISODES, DECISIONS, rng)
    shown: list[tuple[Situations, np.ndarray, np.ndarray]] = []
    for _ in range(DECISIONS):
        seen = episodes.situations()
        for e in np.flatnonzero(rng.random(EPISODES) < SHOWN):
            one = seen.part(slice(e, e + 1))
            shown.append((one, *_compare(planner, problem, episodes, int(e), one, rng)))
        episodes.run(_actions(problem.description, seen, weights, rng))
    situations = Situations(*(np.concatenate(parts) for parts in zip(*(each[0] for each in shown), strict=True)))
    choices, values = (np.stack([each[i] for each in shown]) for i in (1, 2))
    return PlannerDemonstrations(problem.description, situations, choices.astype(np.int16), values)


def _actions(
    description: Description, seen: Situations, weights: ScoringWeights, rng: np.random.Generator
) -> np.ndarray:
    """The agent's choices, now and then drawn."""
    many, tasks = seen.running.shape[:2]
    uniform = np.where(rng.random((many, 1)) < 0.2, rng.random((many, 3 * tasks)), -1.0)
    return choose(weights, description, seen, uniform)[0]


def _compare(
    planner: Planner, problem: PracticeProblem, episodes: Episodes, e: int, seen: Situations, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(12, N, 3) configurations in one episode and (12,) their values in cores."""
    observation = episodes.envs.observation(e)
    planned, prospects = plan(problem.description, seen, 0)
    near = to_choices(planner.candidates(observation, [from_choices(planned)]))
    others = near[(near != planned).any(axis=(1, 2))]
    rewards = expected_rewards(problem.description, seen, 0, prospects, others)
    best = np.argsort(-rewards, kind="stable")[: COMPARED - 1]
    compared = np.concatenate([planned[None], others[best]])
    counts = planner.draw(problem.load.futures, observation, rng)
    values = planner.appraise(observation, from_choices(compared), counts, rng) / core_price(problem.objective)
    fill = np.arange(COMPARED) % len(compared)
    return compared[fill], values[fill]
