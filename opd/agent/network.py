"""The agent's network (Sec. IV-C): residual feature extractor, masked autoregressive heads, value.

The features of Eq. 5 pass a fully connected layer and residual blocks; from what comes out, the heads of
:mod:`opd.agent.heads` choose an action, and a small network of its own estimates the value of the state. E is the batch
of states, K the largest number of options any choice has.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from opd.agent.heads import Heads, choose, limits_of, masks_of
from opd.measurement import state_names
from opd.pipeline import Pipeline

MASKED = -1e9


class ResidualBlock(nn.Module):
    """Two fully connected layers and a shortcut, as in He et al. (2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """(E, width) to (E, width)."""
        return torch.relu(features + self.outer(torch.relu(self.inner(features))))


class FeatureExtractor(nn.Module):
    """Standardised state through one fully connected layer and residual blocks."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, inputs: int, width: int, blocks: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("deviation", torch.ones(inputs))
        self.reduce = nn.Linear(inputs, width)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))

    def observe(self, states: np.ndarray) -> None:
        """Take the observation statistics from a sample of states (M, S); what never varies is only centred."""
        deviation = states.std(axis=0)
        self.mean.copy_(torch.as_tensor(states.mean(axis=0)))
        self.deviation.copy_(torch.as_tensor(np.where(deviation < 1e-3, 1.0, deviation)))

    def forward(self, states: Tensor) -> Tensor:
        """(E, S) to (E, width)."""
        return self.blocks(torch.relu(self.reduce(((states - self.mean) / self.deviation).clamp(-10.0, 10.0))))


class Decision(NamedTuple):
    """A sampled action: choices (E, N, 3), masks (E, 3 N, K), log-probability (E,) and state value (E,)."""

    choices: Tensor
    masks: Tensor
    log_probability: Tensor
    value: Tensor


class ActorCritic(nn.Module):
    """Policy and value function over one feature extractor.

    Args:
        pipeline: fixes the inputs, the choices and the masks.
        width: of every hidden layer.
        blocks: number of residual blocks.
    """

    def __init__(self, pipeline: Pipeline, width: int = 128, blocks: int = 2) -> None:
        super().__init__()
        self.tasks = len(pipeline.tasks)
        self.limits = limits_of(pipeline)
        steps, most = 3 * self.tasks, int(self.limits.kinds.max())
        self.extractor = FeatureExtractor(len(state_names(pipeline)), width, blocks)
        self.context = nn.Linear(width, width)
        self.choice_embedding = nn.Parameter(torch.randn(steps, most, width) * 0.1)
        self.head_shift = nn.Parameter(torch.zeros(steps, width))
        self.head_weight = nn.Parameter(torch.empty(steps, most, width))
        self.head_bias = nn.Parameter(torch.zeros(steps, most))
        self.value = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight, np.sqrt(2.0))
                nn.init.zeros_(module.bias)
        for step in range(len(self.head_weight)):
            nn.init.orthogonal_(self.head_weight.data[step], 0.01)

    @property
    def heads(self) -> Heads:
        """The weights of the choices, sharing memory with the parameters."""
        parts = (self.choice_embedding, self.head_shift, self.head_weight, self.head_bias)
        return Heads(*(part.detach().numpy() for part in parts))

    @torch.no_grad()
    def act(self, states: Tensor, generator: torch.Generator | None) -> Decision:
        """Choose an action for every state, by sampling, or greedily if there is no ``generator``.

        Args:
            states: (E, S); its first entry is the cores available now.
            generator: source of randomness.
        """
        features = self.extractor(states)
        shape = len(states), 3 * self.tasks
        chance = torch.full(shape, -1.0) if generator is None else torch.rand(shape, generator=generator)
        context, left = self.context(features).numpy(), states[:, 0].double().numpy()
        choices, masks, log_probability = choose(self.heads, self.limits, context, left, chance.numpy())
        return Decision(
            torch.from_numpy(choices).reshape(-1, self.tasks, 3),
            torch.from_numpy(masks),
            torch.from_numpy(log_probability),
            self.value(features).squeeze(1),
        )

    def masks(self, states: Tensor, choices: Tensor) -> Tensor:
        """(E, 3 N, K) masks under which choices (E, N, 3) are made in states (E, S)."""
        left, taken = states[:, 0].double().numpy(), choices.reshape(len(choices), -1).numpy()
        return torch.from_numpy(masks_of(self.limits, left, taken, self.head_bias.shape[1]))

    def evaluate(self, states: Tensor, choices: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability (E,), entropy (E,) and value (E,) of stored actions under their stored masks.

        The choices are known, so that all heads are computed in one product.
        """
        features = self.extractor(states)
        context = self.context(features)
        taken = choices.reshape(len(choices), -1).T
        hidden = []
        for step, shift in enumerate(self.head_shift):
            hidden.append(torch.relu(context + shift))
            context = context + embedding(taken[step], self.choice_embedding[step])
        logits = torch.baddbmm(self.head_bias[:, None], torch.stack(hidden), self.head_weight.transpose(1, 2))
        log_probabilities = torch.log_softmax(logits.masked_fill(~masks.transpose(0, 1), MASKED), dim=-1)
        log_probability = log_probabilities.gather(2, taken[..., None]).squeeze(2).sum(dim=0)
        entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=(0, 2))
        return log_probability, entropy, self.value(features).squeeze(1)
