"""Experience for one update: training rewards, the rollout buffer, and advantages (Eq. 9)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from opd.agent.network import Action, ActorCritic
from opd.agent.parameters import TrainingParameters
from opd.measurement import Interval, Score
from opd.pipeline import from_choices
from opd.simulator.environment import PipelineVectorEnv

Guide = Callable[[PipelineVectorEnv, Tensor, Action], Action]
"""Replaces some of the actions that the network chose: takes environments, states and actions, returns actions."""


def training_reward(score: Score, interval: Interval, drop_penalty: float) -> np.ndarray:
    """(E,) Eq. 7 less a penalty for every dropped request."""
    return score.reward - drop_penalty * interval.dropped


@dataclass(frozen=True)
class RewardScale:
    """Standardises rewards by those of the expert and compresses them: an overload must not drown everything else.

    Attributes:
        mean: of the expert's rewards.
        std: standard deviation of the expert's rewards.
    """

    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def fitted_to(cls, rewards: np.ndarray) -> RewardScale:
        """The scale of the expert's rewards, in the single precision of the network."""
        return cls(float(np.float32(rewards.mean())), float(np.float32(max(float(rewards.std()), 1e-3))))

    def __call__(self, rewards: np.ndarray) -> np.ndarray:
        """Scaled rewards, of any shape."""
        scaled = (rewards - self.mean) / self.std
        return np.sign(scaled) * np.log1p(np.abs(scaled))


def compute_gae(rewards: np.ndarray, values: np.ndarray, discount: float, gae_lambda: float) -> np.ndarray:
    """Generalised advantage estimation (Schulman et al., 2016) for episodes that are truncated, not terminated.

    The advantage at t is the sum over k >= t of (gamma lambda)^(k - t) (r_k + gamma V(s_k+1) - V(s_k)).

    Args:
        rewards: (T, E).
        values: (T + 1, E); the last row is the value of the state after the truncation.
        discount: gamma.
        gae_lambda: lambda.

    Returns:
        (T, E) estimates of the advantage of Eq. 9.
    """
    deltas = rewards + discount * values[1:] - values[:-1]
    advantages = np.zeros_like(deltas)
    advantage = np.zeros(rewards.shape[1])
    for t in range(len(rewards) - 1, -1, -1):
        advantage = deltas[t] + discount * gae_lambda * advantage
        advantages[t] = advantage
    return advantages


class Samples(NamedTuple):
    """Flattened experience: T decisions of E episodes, M = T E samples."""

    states: Tensor  # (M, S)
    choices: Tensor  # (M, N, 3)
    masks: Tensor  # (M, 3 N, K)
    log_probs: Tensor  # (M,) under the policy that acted
    advantages: Tensor  # (M,)
    returns: Tensor  # (M,)


class RolloutBuffer:
    """Experience of one rollout, in the order of the decisions."""

    def __init__(self) -> None:
        self._states: list[Tensor] = []
        self._actions: list[Action] = []
        self.rewards: list[np.ndarray] = []

    def add(self, states: Tensor, actions: Action, rewards: np.ndarray) -> None:
        """Store one decision of all episodes: states (E, S), actions, and their rewards (E,)."""
        self._states.append(states)
        self._actions.append(actions)
        self.rewards.append(rewards)

    def samples(self, scale: RewardScale, final_values: Tensor, discount: float, gae_lambda: float) -> Samples:
        """Everything stored, with advantages and returns of the scaled rewards.

        Args:
            scale: of the rewards.
            final_values: (E,) values of the states after the last decision.
            discount: gamma.
            gae_lambda: lambda.
        """
        values = torch.stack([*(action.value for action in self._actions), final_values]).numpy()
        advantages = compute_gae(scale(np.array(self.rewards)), values, discount, gae_lambda)
        return Samples(
            torch.cat(self._states),
            torch.cat([action.choices for action in self._actions]),
            torch.cat([action.masks for action in self._actions]),
            torch.cat([action.log_prob for action in self._actions]),
            torch.as_tensor(advantages, dtype=torch.float32).flatten(),
            torch.as_tensor(advantages + values[:-1], dtype=torch.float32).flatten(),
        )


def collect_rollout(
    network: ActorCritic,
    envs: PipelineVectorEnv,
    parameters: TrainingParameters,
    scale: RewardScale,
    generator: torch.Generator,
    guide: Guide | None = None,
) -> tuple[Samples, dict[str, float]]:
    """Act in episodes that have begun, for one rollout.

    Args:
        network: acts.
        envs: E of them.
        parameters: number of decisions, T, and how their rewards count.
        scale: of the rewards.
        generator: source of randomness of the actions.
        guide: replaces some actions.

    Returns:
        The samples, and metrics of the rollout.
    """
    buffer, dropped = RolloutBuffer(), 0
    for _ in range(parameters.rollout_steps):
        states = torch.as_tensor(envs.state())
        actions = network.act(states, generator)
        if guide is not None:
            actions = guide(envs, states, actions)
        score, interval = envs.run_interval(from_choices(actions.choices.numpy()))
        buffer.add(states, actions, training_reward(score, interval, parameters.drop_penalty))
        dropped += int(interval.dropped.sum())
    final_values = network.act(torch.as_tensor(envs.state()), None).value
    samples = buffer.samples(scale, final_values, parameters.discount, parameters.gae_lambda)
    return samples, {"rollout/reward": float(np.mean(buffer.rewards)), "rollout/dropped": float(dropped)}
