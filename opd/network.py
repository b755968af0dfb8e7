"""The agent's network (Sec. IV-C): residual feature extractor, masked autoregressive heads, value.

The features of Eq. 5 pass a fully connected layer and residual blocks. The policy then chooses task
by task, and within a task variant, replicas and batch size in turn: 3 N choices, each seeing those
before it and masked by what is left of the capacity once the cheapest completion of the later tasks
is set aside. Every action is therefore feasible by construction (Eq. 4).

A choice is an index: variant z, replicas f - 1, batch size log2(b); E is the batch of states and K
the largest number of options any choice has.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from opd.environment import state_names
from opd.pipeline import Pipeline

MASKED = -1e9


def options(pipeline: Pipeline) -> tuple[int, int, int]:
    """Most variants of any task, most replicas, and number of batch sizes."""
    return max(len(task.variants) for task in pipeline.tasks), pipeline.max_replicas, len(pipeline.batch_sizes)


def cheapest_later(pipeline: Pipeline) -> np.ndarray:
    """(N,) cores that one replica of the smallest variant of every later task needs."""
    smallest = pipeline.tables.cores.min(axis=1)
    return smallest.sum() - np.cumsum(smallest)


def to_configurations(choices: np.ndarray) -> np.ndarray:
    """(E, N, 3) configurations from choice indices of the same shape."""
    return np.stack([choices[..., 0], choices[..., 1] + 1, 1 << choices[..., 2]], axis=-1)


def to_choices(configurations: np.ndarray) -> np.ndarray:
    """(E, N, 3) choice indices from configurations of the same shape."""
    batch_index = np.log2(configurations[..., 2]).astype(np.int64)
    return np.stack([configurations[..., 0], configurations[..., 1] - 1, batch_index], axis=-1)


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

    cores: Tensor
    reserve: Tensor

    def __init__(self, pipeline: Pipeline, width: int = 128, blocks: int = 2) -> None:
        super().__init__()
        self.tasks = len(pipeline.tasks)
        self.kinds = options(pipeline)
        steps, most = 3 * self.tasks, max(self.kinds)
        self.extractor = FeatureExtractor(len(state_names(pipeline)), width, blocks)
        self.context = nn.Linear(width, width)
        self.choice_embedding = nn.Parameter(torch.randn(steps, most, width) * 0.1)
        self.head_shift = nn.Parameter(torch.zeros(steps, width))
        self.head_weight = nn.Parameter(torch.empty(steps, width, most))
        self.head_bias = nn.Parameter(torch.zeros(steps, most))
        self.value = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
        self.register_buffer("cores", torch.as_tensor(pipeline.tables.cores, dtype=torch.float32))
        self.register_buffer("reserve", torch.as_tensor(cheapest_later(pipeline), dtype=torch.float32))
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight, np.sqrt(2.0))
                nn.init.zeros_(module.bias)
        for step in range(len(self.head_weight)):
            nn.init.orthogonal_(self.head_weight.data[step], 0.01)

    def mask(self, choice: int, left: Tensor, cores: Tensor) -> Tensor:
        """(E, K) which options keep the capacity.

        Args:
            choice: position 0..3 N - 1 in the sequence of choices.
            left: (E,) cores not yet taken by earlier tasks.
            cores: (E,) cores of one replica of the variant chosen for this task; only replicas look at it.
        """
        task, kind = divmod(choice, 3)
        allowed = torch.zeros(len(left), max(self.kinds), dtype=torch.bool)
        budget = left - self.reserve[task]
        if kind == 0:
            allowed[:, : self.kinds[0]] = self.cores[task] <= budget[:, None]
        elif kind == 1:
            allowed[:, : self.kinds[1]] = torch.arange(1, self.kinds[1] + 1) * cores[:, None] <= budget[:, None]
        else:
            allowed[:, : self.kinds[2]] = True
        return allowed

    @torch.no_grad()
    def act(self, states: Tensor, generator: torch.Generator | None, given: Tensor | None = None) -> Decision:
        """Choose an action for every state, by sampling, or greedily if there is no ``generator``.

        Args:
            states: (E, S); its first entry is the cores available now.
            generator: source of randomness.
            given: (E, N, 3) choices to take instead, whose masks and probability are wanted.
        """
        features = self.extractor(states)
        context = self.context(features)
        left = states[:, 0].clone()
        log_probability = torch.zeros(len(states))
        cores = torch.zeros(len(states))
        choices, masks = [], []
        for choice in range(3 * self.tasks):
            task, kind = divmod(choice, 3)
            mask = self.mask(choice, left, cores)
            hidden = torch.relu(context + self.head_shift[choice])
            logits = hidden @ self.head_weight[choice] + self.head_bias[choice]
            log_probabilities = torch.log_softmax(logits.masked_fill(~mask, MASKED), dim=-1)
            if given is not None:
                taken = given[:, task, kind]
            elif generator is None:
                taken = log_probabilities.argmax(dim=-1)
            else:
                taken = torch.multinomial(log_probabilities.exp(), 1, generator=generator).squeeze(1)
            log_probability += log_probabilities.gather(1, taken[:, None]).squeeze(1)
            context = context + self.choice_embedding[choice, taken]
            if kind == 0:
                cores = self.cores[task, taken]
            elif kind == 1:
                left = left - cores * (taken + 1)
            choices.append(taken)
            masks.append(mask)
        chosen = torch.stack(choices, dim=1).reshape(-1, self.tasks, 3)
        return Decision(chosen, torch.stack(masks, dim=1), log_probability, self.value(features).squeeze(1))

    def evaluate(self, states: Tensor, choices: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability (E,), entropy (E,) and value (E,) of stored actions under their stored masks.

        The choices are known, so that all heads are computed in one product.
        """
        features = self.extractor(states)
        taken = choices.reshape(len(choices), -1)
        embedded = self.choice_embedding[torch.arange(taken.shape[1]), taken]
        before = torch.cumsum(embedded, dim=1) - embedded
        hidden = torch.relu(self.context(features)[:, None] + before + self.head_shift)
        logits = torch.einsum("esh,shk->esk", hidden, self.head_weight) + self.head_bias
        log_probabilities = torch.log_softmax(logits.masked_fill(~masks, MASKED), dim=-1)
        log_probability = log_probabilities.gather(2, taken[..., None]).squeeze(2).sum(dim=1)
        entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=(1, 2))
        return log_probability, entropy, self.value(features).squeeze(1)
