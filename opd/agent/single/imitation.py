"""Guidance by an expert (Alg. 2), in one of three modes.

* ``paper``: the expert acts in every f-th episode, and its actions are stored like the agent's own. They are not
  samples of the old policy, which biases Eq. 12.
* ``pretrain``: the network first imitates the expert by behaviour cloning. A demonstration term in the loss, which
  fades away, then keeps it near the expert while the critic settles.
* ``none``: the expert gives no actions, only the scale of states and rewards and the configurations that episodes
  begin with, as in the other modes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from opd.agent.experience import compute_gae
from opd.agent.single.network import Action, ActorCritic
from opd.agent.single.problem import TrainingParameters, look_up
from opd.agent.single.rollout import Guide, RewardScale, training_reward
from opd.pipeline import from_choices, to_choices
from opd.simulator.environment import PipelineVectorEnv


class TableExpert(NamedTuple):
    """The expert of a problem.

    Attributes:
        table: (L + 1, N, 3) its configuration for every whole load 0..L.
        clairvoyant: it looks up the true load instead of the forecast.
    """

    table: np.ndarray
    clairvoyant: bool

    def choices(self, envs: PipelineVectorEnv, states: np.ndarray) -> Tensor:
        """(E, N, 3) the expert's choices in states (E, S) of these environments."""
        loads = envs.workload.perfect_forecasts(envs.decision) if self.clairvoyant else states[:, 1]
        return torch.as_tensor(to_choices(look_up(self.table, loads)))


def paper_guide(expert: TableExpert, network: ActorCritic, parameters: TrainingParameters, update: int) -> Guide | None:
    """Let the expert act in every f-th episode of the run (Alg. 2); None if no episode of this update is among them."""
    numbers = torch.arange(parameters.num_envs) + update * parameters.num_envs
    by_expert = numbers % parameters.expert_frequency == 0
    if not by_expert.any():
        return None

    def guide(envs: PipelineVectorEnv, states: Tensor, actions: Action) -> Action:
        expert_choices = expert.choices(envs, states.numpy())
        return network.action_of(states, torch.where(by_expert[:, None, None], expert_choices, actions.choices))

    return guide


class Demonstrations(NamedTuple):
    """Choices of the expert in T decisions of E episodes, M = T E samples."""

    states: Tensor  # (M, S)
    choices: Tensor  # (M, N, 3)
    rewards: np.ndarray  # (T, E)


def demonstrate(
    expert: TableExpert, envs: PipelineVectorEnv, parameters: TrainingParameters, generator: np.random.Generator
) -> Demonstrations:
    """Let the expert act for one rollout.

    Some of its decisions are not executed but replaced by one for another load. The demonstrations then also cover
    states that a learner reaches through its own errors.

    Args:
        expert: acts.
        envs: E of them, which have begun.
        parameters: number of decisions, share of replaced ones, and how rewards count.
        generator: of the replacements.
    """
    states, choices, rewards = [], [], []
    for _ in range(parameters.rollout_steps):
        states.append(envs.state())
        choices.append(expert.choices(envs, states[-1]))
        other = look_up(expert.table, generator.permutation(states[-1][:, 1]))
        replaced = generator.random(len(other)) < parameters.perturbation_share
        executed = np.where(replaced[:, None, None], other, from_choices(choices[-1].numpy()))
        score, interval = envs.run_interval(executed)
        rewards.append(training_reward(score, interval, parameters.drop_penalty))
    return Demonstrations(torch.as_tensor(np.concatenate(states)), torch.cat(choices), np.array(rewards))


class Imitation:
    """The loss of imitating demonstrations: cross-entropy of the actions, and error of their value.

    Args:
        network: imitates.
        demonstrations: to imitate.
        scale: of the rewards.
        parameters: discount, and weight of the value's error.
    """

    def __init__(
        self, network: ActorCritic, demonstrations: Demonstrations, scale: RewardScale, parameters: TrainingParameters
    ) -> None:
        self._network = network
        self._parameters = parameters
        states, choices, rewards = demonstrations
        # Scaled rewards are centred, so zero is the best guess of the value after the last decision.
        zeros = np.zeros((len(rewards) + 1, rewards.shape[1]))
        returns = torch.as_tensor(compute_gae(scale(rewards), zeros, parameters.discount, 1.0).ravel()).float()
        self._samples = states, choices, network.masks(states, choices), returns

    def loss(self, rows: Tensor) -> Tensor:
        """The loss on some rows of the demonstrations."""
        states, choices, masks, returns = (part[rows] for part in self._samples)
        log_prob, _, value = self._network.evaluate(states, choices, masks)
        return self._parameters.value_coefficient * (value - returns).square().mean() - log_prob.mean()

    def random_rows(self, number: int, generator: torch.Generator) -> Tensor:
        """(number,) random rows of the demonstrations."""
        return torch.randint(len(self._samples[0]), (number,), generator=generator)

    def clone(self, seed: int) -> None:
        """Train the network on this loss alone: behaviour cloning."""
        p = self._parameters
        optimizer = torch.optim.Adam(self._network.parameters(), lr=1e-3, eps=1e-5, fused=True)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(p.cloning_steps):
            loss = self.loss(self.random_rows(p.minibatch_size, generator))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._network.parameters(), p.max_grad_norm)
            optimizer.step()
