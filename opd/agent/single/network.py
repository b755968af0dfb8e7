"""The agent's network (Sec. IV-C): residual features extractor, masked autoregressive actor, critic.

A fully connected layer and residual blocks turn the state of Eq. 5 into features. From these the heads of
:mod:`opd.agent.single.heads` choose an action, and the critic estimates the value of the state. E is the number of
states in a batch, S the size of a state, N the number of tasks, K the largest number of options of any choice.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from opd.agent.single.deployed import PolicyWeights
from opd.agent.single.heads import Heads, choose, limits_of, masks_of
from opd.measurement import state_names
from opd.pipeline import Pipeline, from_choices

MASKED = -1e9
"""Logit of an option that is not allowed."""


class ResidualBlock(nn.Module):
    """Two fully connected layers and a shortcut, as in He et al. (2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """(E, width) to (E, width)."""
        return torch.relu(features + self.outer(torch.relu(self.inner(features))))


class FeaturesExtractor(nn.Module):
    """Standardised states through one fully connected layer and residual blocks."""

    mean: Tensor
    std: Tensor

    def __init__(self, inputs: int, width: int, blocks: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("std", torch.ones(inputs))
        self.reduce = nn.Linear(inputs, width)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))

    def standardise_by(self, states: np.ndarray) -> None:
        """Take mean and standard deviation from a sample of states (M, S); constant inputs are only centred."""
        std = states.std(axis=0)
        self.mean.copy_(torch.as_tensor(states.mean(axis=0)))
        self.std.copy_(torch.as_tensor(np.where(std < 1e-3, 1.0, std)))

    def forward(self, states: Tensor) -> Tensor:
        """(E, S) to (E, width)."""
        return self.blocks(torch.relu(self.reduce(((states - self.mean) / self.std).clamp(-10.0, 10.0))))


class Action(NamedTuple):
    """Actions for E states, with what PPO stores of them."""

    choices: Tensor  # (E, N, 3)
    masks: Tensor  # (E, 3 N, K)
    log_prob: Tensor  # (E,)
    value: Tensor  # (E,)


class ActorCritic(nn.Module):
    """Policy and value function over one features extractor.

    Args:
        pipeline: fixes the inputs, the choices and the masks.
        width: neurons of every hidden layer.
        blocks: number of residual blocks.
    """

    def __init__(self, pipeline: Pipeline, width: int = 128, blocks: int = 2) -> None:
        super().__init__()
        self.tasks = len(pipeline.tasks)
        self.limits = limits_of(pipeline)
        steps, options = 3 * self.tasks, int(self.limits.options.max())
        self.features_extractor = FeaturesExtractor(len(state_names(pipeline)), width, blocks)
        self.context = nn.Linear(width, width)
        self.choice_embedding = nn.Parameter(torch.randn(steps, options, width) * 0.1)
        self.head_shift = nn.Parameter(torch.zeros(steps, width))
        self.head_weight = nn.Parameter(torch.empty(steps, options, width))
        self.head_bias = nn.Parameter(torch.zeros(steps, options))
        self.critic = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight, np.sqrt(2.0))
                nn.init.zeros_(module.bias)
        for step in range(len(self.head_weight)):
            nn.init.orthogonal_(self.head_weight.data[step], 0.01)

    @property
    def heads(self) -> Heads:
        """The weights of the heads, sharing memory with the parameters."""
        parts = (self.choice_embedding, self.head_shift, self.head_weight, self.head_bias)
        return Heads(*(part.detach().numpy() for part in parts))

    @torch.no_grad()
    def act(self, states: Tensor, generator: torch.Generator | None) -> Action:
        """Choose an action for every state.

        Args:
            states: (E, S); the first entry of each is the number of cores available now.
            generator: source of randomness to sample with; without one the choice is greedy.
        """
        features = self.features_extractor(states)
        shape = len(states), 3 * self.tasks
        uniform = torch.full(shape, -1.0) if generator is None else torch.rand(shape, generator=generator)
        context, cores = self.context(features).numpy(), states[:, 0].double().numpy()
        chosen = choose(self.heads, self.limits, context, cores, uniform.numpy())
        choices, masks, log_prob = map(torch.from_numpy, chosen)
        return Action(choices.reshape(-1, self.tasks, 3), masks, log_prob, self.critic(features).squeeze(1))

    def configure(self, states: np.ndarray) -> np.ndarray:
        """(E, N, 3) greedy configurations for states (E, S)."""
        return from_choices(self.act(torch.as_tensor(states), None).choices.numpy())

    def masks(self, states: Tensor, choices: Tensor) -> Tensor:
        """(E, 3 N, K) masks under which choices (E, N, 3) are made in states (E, S)."""
        cores, taken = states[:, 0].double().numpy(), choices.reshape(len(choices), -1).numpy()
        return torch.from_numpy(masks_of(self.limits, cores, taken, self.head_bias.shape[1]))

    def evaluate(self, states: Tensor, choices: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability (E,), entropy (E,) and value (E,) of stored actions under their stored masks.

        The choices are known, so all heads are computed in one product.
        """
        features = self.features_extractor(states)
        context = self.context(features)
        taken = choices.reshape(len(choices), -1).T
        hidden = []
        for step, shift in enumerate(self.head_shift):
            hidden.append(torch.relu(context + shift))
            context = context + embedding(taken[step], self.choice_embedding[step])
        logits = torch.baddbmm(self.head_bias[:, None], torch.stack(hidden), self.head_weight.transpose(1, 2))
        log_probs = torch.log_softmax(logits.masked_fill(~masks.transpose(0, 1), MASKED), dim=-1)
        log_prob = log_probs.gather(2, taken[..., None]).squeeze(2).sum(dim=0)
        entropy = -(log_probs.exp() * log_probs).sum(dim=(0, 2))
        return log_prob, entropy, self.critic(features).squeeze(1)

    @torch.no_grad()
    def action_of(self, states: Tensor, choices: Tensor) -> Action:
        """Choices (E, N, 3) made by something else in states (E, S), as if the network had chosen them."""
        masks = self.masks(states, choices)
        log_prob, _, value = self.evaluate(states, choices, masks)
        return Action(choices, masks, log_prob, value)


def export(network: ActorCritic) -> PolicyWeights:
    """The part of a network that decides, as arrays."""
    arrays = {
        name.removeprefix("features_extractor.").replace(".", "_"): tensor.numpy().astype(np.float32)
        for name, tensor in network.state_dict().items()
    }
    for kind in ("weight", "bias"):
        blocks = [
            [arrays[f"blocks_{block}_{layer}_{kind}"] for layer in ("inner", "outer")]
            for block in range(len(network.features_extractor.blocks))
        ]
        shape = arrays[f"context_{kind}"].shape
        arrays[f"block_{kind}"] = np.array(blocks, dtype=np.float32).reshape(-1, 2, *shape)
    return PolicyWeights(**{name: arrays[name] for name in PolicyWeights._fields})
