"""Environments for the peers of Stable-Baselines3: actions that suit their masks, and environments as fast as ours.

Users of these libraries step Gymnasium environments one after the other. :class:`BatchedEnvironments` avoid that
cost, to show its share of the difference; observations, actions, refusals, rewards and ends are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv

from opd.agent.problem import Problem
from opd.pipeline import Pipeline
from opd.simulator.environment import PipelineEnv, PipelineVectorEnv

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
        """Flat booleans, stage after stage: what fits next to the cheapest choices of all other stages."""
        return self._masks


def _stage_mask(pipeline: Pipeline, stage: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Which of a stage's (variant, replicas, batch size), flattened, are part of a feasible configuration."""
    cores = pipeline.tables.cores
    others = np.delete(cores.min(axis=1), stage).sum()
    variant, replicas, _ = np.unravel_index(np.arange(np.prod(shape)), shape)
    return (replicas + 1) * cores[stage, variant] <= pipeline.capacity - others


class BatchedEnvironments(DummyVecEnv):
    """E environments on a problem's training days, stepped together.

    Args:
        problem: pipeline, load, reward and simulation.
        copies: E functions that make an environment, for its spaces and masks; it is never stepped.
    """

    def __init__(self, problem: Problem, copies: list[Callable[[], gymnasium.Env]]) -> None:
        super().__init__(copies)
        p = problem
        self.together = PipelineVectorEnv(
            p.pipeline, p.training, p.weights, p.simulation, EPISODE_LENGTH, num_envs=self.num_envs
        )

    def reset(self) -> np.ndarray:
        """(E, S) states at random decisions, with empty queues and one replica of every smallest variant."""
        states, _ = self.together.reset(seed=self._seeds[0])
        self._reset_seeds()  # each is used once, as in the library's own environments
        return states

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """States (E, S), rewards (E,), ends (E,) and infos; where episodes end, the next have begun."""
        single = self.envs[0]
        actions = single.flat(self.actions) if isinstance(single, StageActions) else self.actions
        states, rewards, _, over, infos = self.together.step(actions)
        more: list[dict[str, Any]] = [{} for _ in states]
        for ended in np.flatnonzero(over):
            more[ended] = {"terminal_observation": infos["final_obs"][ended], "TimeLimit.truncated": True}
        return states, rewards.astype(np.float32), over, more
