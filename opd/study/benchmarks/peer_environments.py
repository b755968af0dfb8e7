"""What the peers of Stable-Baselines3 step: actions that suit their masks, environments that cost as little as ours.

As their users would have it, Gymnasium environments are stepped one after the other. :class:`BatchedEnvironments` take
that cost away, to show how much of a comparison it is; observations, actions, refusals, rewards and ends are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv

from opd.agent.problem import Problem
from opd.pipeline import Pipeline, as_array, from_choices
from opd.simulator.actions import admit
from opd.simulator.environment import PipelineEnv
from opd.simulator.vector_environment import PipelineVectorEnv

EPISODE_LENGTH = 120
"""Decisions, as in the Gymnasium environment."""


class StageActions(gymnasium.ActionWrapper):
    """The same environment with one entry a stage, the index of its (variant, replicas, batch size).

    Args:
        environment: the environment to wrap.
    """

    def __init__(self, environment: PipelineEnv) -> None:
        super().__init__(environment)
        pipeline = environment.pipeline
        replicas, batch_sizes = pipeline.max_replicas, len(pipeline.batch_sizes)
        self.shapes = [(len(task.variants), replicas, batch_sizes) for task in pipeline.tasks]
        self.action_space = gymnasium.spaces.MultiDiscrete([int(np.prod(shape)) for shape in self.shapes])
        self._entries = [np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), axis=1) for shape in self.shapes]
        self._masks = np.concatenate([_stage_mask(pipeline, n, shape) for n, shape in enumerate(self.shapes)])

    def action(self, action: np.ndarray) -> np.ndarray:
        """(3 N,) the environment's action for one of this wrapper, (N,)."""
        return self.flat(np.asarray(action)[None])[0]

    def flat(self, actions: np.ndarray) -> np.ndarray:
        """(E, 3 N) actions of the environment for actions (E, N) of this wrapper."""
        return np.concatenate([entries[actions[:, n]] for n, entries in enumerate(self._entries)], axis=1)

    def action_masks(self) -> np.ndarray:
        """Flat booleans, stage after stage: what fits once the cheapest choice of all other stages is set aside."""
        return self._masks


def _stage_mask(pipeline: Pipeline, stage: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Which of a stage's (variant, replicas, batch size), flattened, are part of a feasible configuration."""
    cores = pipeline.tables.cores
    others = np.delete(cores.min(axis=1), stage).sum()
    variant, replicas, _ = np.unravel_index(np.arange(np.prod(shape)), shape)
    return (replicas + 1) * cores[stage, variant] <= pipeline.capacity - others


class BatchedEnvironments(DummyVecEnv):
    """E environments on a problem's training days, stepped together.

    Begun together and equally long, their episodes end together, too.

    Args:
        problem: pipeline, load, reward and simulation.
        copies: E functions that make the environment; what they make gives spaces and masks, and is never stepped.
    """

    def __init__(self, problem: Problem, copies: list[Callable[[], gymnasium.Env]]) -> None:
        super().__init__(copies)
        self._problem = problem
        self._random = np.random.default_rng()

    def reset(self) -> np.ndarray:
        """(E, S) states at random decisions, with empty queues and one replica of every smallest variant."""
        if self._seeds[0] is not None:  # used once, as by the library's own
            self._random = np.random.default_rng(self._seeds[0])
            self._reset_seeds()
        p, number = self._problem, self.num_envs
        first = self._random.integers(1, p.training.decisions - EPISODE_LENGTH + 1, number)
        smallest = np.tile(as_array(p.pipeline.smallest_configuration()), (number, 1, 1))
        seed = int(self._random.integers(2**31))
        self._episodes = PipelineVectorEnv(
            p.pipeline, p.training, p.weights, p.simulation, EPISODE_LENGTH, num_envs=number, seed=seed
        )
        self._episodes.begin(np.arange(number), first, smallest)
        self._left = EPISODE_LENGTH
        return self._episodes.state()

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """States (E, S), rewards (E,), ends (E,) and what belongs to each; where episodes end, the next have begun."""
        single = self.envs[0]
        actions = single.flat(self.actions) if isinstance(single, StageActions) else self.actions
        wanted = from_choices(actions.reshape(self.num_envs, -1, 3))
        configurations, _ = admit(self._problem.pipeline, self._episodes.configurations, wanted)
        score, _ = self._episodes.run_interval(configurations)
        self._left -= 1
        states, over = self._episodes.state(), self._left == 0
        more: list[dict[str, Any]] = [{} for _ in states]
        if over:
            more = [{"terminal_observation": state, "TimeLimit.truncated": True} for state in states]
            states = self.reset()
        return states, score.reward.astype(np.float32), np.full(self.num_envs, over), more
