"""Episodes: where they begin, the experience that one rollout collects, advantages (Eq. 9), and validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from opd.agent.experience import compute_gae, episode_starts
from opd.agent.single.network import Action, ActorCritic
from opd.agent.single.problem import Configure, Problem, TrainingParameters, look_up, table_policy
from opd.measurement import Interval, Score
from opd.pipeline import from_choices
from opd.simulator.environment import PipelineVectorEnv
from opd.workload.trace import Workload

Guide = Callable[[PipelineVectorEnv, Tensor, Action], Action]
"""Replaces some of the actions that the network chose: takes environments, states and actions, returns actions."""


def begin_episodes(
    problem: Problem, workload: Workload, bursts: np.ndarray, burst_episodes: int, num_envs: int, length: int, seed: Any
) -> PipelineVectorEnv:
    """New episodes at random decisions of a workload, running what the expert chooses for the load of that moment.

    Args:
        problem: gives pipeline, reward, simulation and expert.
        workload: counts and forecasts.
        bursts: decisions at which the load jumps.
        burst_episodes: number of episodes, the first ones, that begin shortly before a burst.
        num_envs: number of all episodes, E.
        length: decisions that an episode will last.
        seed: of the beginnings, the arrivals and the service noise.

    Raises:
        ValueError: if the workload is too short.
    """
    generator = np.random.default_rng(seed)
    simulation_seed = int(generator.integers(2**31))
    latest = workload.decisions - length
    if latest < 2:
        raise ValueError(f"a workload of {workload.decisions} decisions is too short for episodes of {length}")
    decisions = episode_starts(latest, bursts, burst_episodes, num_envs, length, generator)
    envs = PipelineVectorEnv(
        problem.pipeline,
        workload,
        problem.objective,
        problem.simulation,
        length,
        num_envs=num_envs,
        seed=simulation_seed,
    )
    load = workload.windows(decisions - 1).mean(axis=1)
    envs.begin(np.arange(num_envs), decisions, look_up(problem.expert, load))
    return envs


def training_reward(score: Score, interval: Interval, drop_penalty: float) -> np.ndarray:
    """(E,) The reward less a penalty for every dropped request."""
    return score.reward - drop_penalty * interval.dropped


class RewardScale(NamedTuple):
    """Standardises rewards by those of the expert and compresses them, which keeps overloads from dominating.

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


class Samples(NamedTuple):
    """Flattened experience: T decisions of E episodes, M = T E samples."""

    states: Tensor  # (M, S)
    choices: Tensor  # (M, N, 3)
    masks: Tensor  # (M, 3 N, K)
    log_probs: Tensor  # (M,) under the policy that acted
    advantages: Tensor  # (M,)
    returns: Tensor  # (M,)


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
        parameters: number of decisions T, drop penalty, and gamma and lambda of the advantages.
        scale: of the rewards.
        generator: source of randomness of the actions.
        guide: replaces some actions.

    Returns:
        The samples, and metrics of the rollout.
    """
    p = parameters
    states: list[Tensor] = []
    actions: list[Action] = []
    rewards: list[np.ndarray] = []
    dropped = 0
    for _ in range(p.rollout_steps):
        states.append(torch.as_tensor(envs.state()))
        action = network.act(states[-1], generator)
        if guide is not None:
            action = guide(envs, states[-1], action)
        score, interval = envs.run_interval(from_choices(action.choices.numpy()))
        actions.append(action)
        rewards.append(training_reward(score, interval, p.drop_penalty))
        dropped += int(interval.dropped.sum())
    final_values = network.act(torch.as_tensor(envs.state()), None).value
    values = torch.stack([*(action.value for action in actions), final_values]).numpy()
    advantages = compute_gae(scale(np.array(rewards)), values, p.discount, p.gae_lambda)
    choices, masks, log_probs, _ = map(torch.cat, zip(*actions, strict=True))
    estimates = np.stack([advantages, advantages + values[:-1]]).astype(np.float32)
    samples = Samples(torch.cat(states), choices, masks, log_probs, *torch.from_numpy(estimates).flatten(1))
    return samples, {"rollout/reward": float(np.mean(rewards)), "rollout/dropped": float(dropped)}


class Validation(NamedTuple):
    """Means over ordinary episodes, requests dropped in all episodes, and the score that selects the best network."""

    reward: float
    qos: float
    cost: float
    dropped: float
    selection: float


def validate(
    problem: Problem, parameters: TrainingParameters, configure: Configure, tolerated_drops: float = 0.0
) -> Validation:
    """Run a policy on the validation episodes, which are the same in every call.

    Args:
        problem: gives the validation workload and its bursts.
        parameters: number and length of the episodes; half of them begin before bursts.
        configure: the policy.
        tolerated_drops: dropped requests that do not lower the selection score.
    """
    p = parameters
    bursts = p.validation_episodes // 2
    envs = begin_episodes(
        problem, problem.validation, problem.validation_bursts, bursts, p.validation_episodes, p.validation_decisions, 0
    )
    dropped = 0.0
    scores = []
    for _ in range(p.validation_decisions):
        score, interval = envs.run_interval(configure(envs.state()))
        scores.append((score.reward[bursts:], score.qos[bursts:], score.cost[bursts:]))
        dropped += float(interval.dropped.sum())
    reward, qos, cost = (float(np.mean(figures)) for figures in zip(*scores, strict=True))
    penalty = p.drop_penalty * max(0.0, dropped - tolerated_drops)
    return Validation(reward, qos, cost, dropped, reward - penalty)


def ipa_drops(problem: Problem, parameters: TrainingParameters) -> float:
    """Requests that IPA drops in the validation episodes; a policy that drops no more is not penalised for it."""
    return validate(problem, parameters, table_policy(problem.reference)).dropped
