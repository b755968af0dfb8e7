"""Ablated networks: the agent's network without one of its parts, and their training.

* :class:`PlainNetwork` has features of the same depth and width, without shortcuts.
* :class:`IndependentNetwork` makes every choice from the features alone, without the other choices.
* :class:`QueuelessNetwork` does not see the queues.

A network starts with the same weights as the agent with the same seed, where it has the same parts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opd.agent.single.network import MASKED, Action, ActorCritic, FeaturesExtractor, ResidualBlock
from opd.agent.single.ppo import PPOTrainer
from opd.measurement import Interval, Score, running_configurations, state_names
from opd.pipeline import Pipeline
from opd.simulator.environment import PipelineVectorEnv, action_masks, action_space, admit


class PlainBlock(ResidualBlock):
    """The two layers of a residual block without its shortcut."""

    def forward(self, features: Tensor) -> Tensor:
        """(E, width) to (E, width)."""
        return torch.relu(self.outer(torch.relu(self.inner(features))))


class PlainNetwork(ActorCritic):
    """The agent's network with plain layers in place of residual blocks."""

    def __init__(self, pipeline: Pipeline, width: int = 128, blocks: int = 2) -> None:
        super().__init__(pipeline, width, blocks)
        plain = nn.Sequential(*(PlainBlock(width) for _ in range(blocks)))
        plain.load_state_dict(self.features_extractor.blocks.state_dict())
        self.features_extractor.blocks = plain


class QueuelessExtractor(FeaturesExtractor):
    """Features of a state in which every queue is empty, whatever the state says."""

    queues: Tensor

    def __init__(self, pipeline: Pipeline, width: int, blocks: int) -> None:
        names = state_names(pipeline)
        super().__init__(len(names), width, blocks)
        entries = [entry for entry, name in enumerate(names) if name.endswith(".queue")]
        self.register_buffer("queues", torch.tensor(entries), persistent=False)

    def standardise_by(self, states: np.ndarray) -> None:
        """Take mean and standard deviation from states (M, S) as they are seen."""
        super().standardise_by(self._seen(torch.as_tensor(states)).numpy())

    def forward(self, states: Tensor) -> Tensor:
        """(E, S) to (E, width)."""
        return super().forward(self._seen(states))

    def _seen(self, states: Tensor) -> Tensor:
        return states.index_fill(1, self.queues, 0.0)


class QueuelessNetwork(ActorCritic):
    """The agent's network with the queues of Eq. 5 held at zero."""

    def __init__(self, pipeline: Pipeline, width: int = 128, blocks: int = 2) -> None:
        super().__init__(pipeline, width, blocks)
        extractor = QueuelessExtractor(pipeline, width, blocks)
        extractor.load_state_dict(self.features_extractor.state_dict())
        self.features_extractor = extractor


def entry_masks(pipeline: Pipeline) -> Tensor:
    """(3 N, K) which options of each choice some feasible action contains: the masks of the Gymnasium environment."""
    sizes = action_space(pipeline).nvec
    masks = torch.zeros(len(sizes), int(sizes.max()), dtype=torch.bool)
    for mask, allowed in zip(masks, np.split(action_masks(pipeline), np.cumsum(sizes)[:-1]), strict=True):
        mask[: len(allowed)] = torch.as_tensor(allowed)
    return masks


class IndependentNetwork(ActorCritic):
    """The agent's network with independent heads: its actions may exceed the capacity.

    A chosen option adds nothing to the context, and the masks are the same in every state: they exclude, entry by
    entry, options that no feasible action contains.
    """

    allowed: Tensor

    def __init__(self, pipeline: Pipeline, width: int = 128, blocks: int = 2) -> None:
        super().__init__(pipeline, width, blocks)
        nn.init.zeros_(self.choice_embedding).requires_grad_(False)
        self.register_buffer("allowed", entry_masks(pipeline), persistent=False)

    @torch.no_grad()
    def act(self, states: Tensor, generator: torch.Generator | None) -> Action:
        """Choose an action for every state (E, S), by sampling, or greedily if there is no ``generator``."""
        features = self.features_extractor(states)
        hidden = torch.relu(self.context(features)[:, None] + self.head_shift)
        logits = torch.einsum("esw,skw->esk", hidden, self.head_weight) + self.head_bias
        masks = self.allowed.expand_as(logits)
        log_probs = torch.log_softmax(logits.masked_fill(~masks, MASKED), dim=-1)
        if generator is None:
            taken = log_probs.argmax(dim=-1)
        else:
            chances = log_probs.exp().flatten(0, 1)
            taken = torch.multinomial(chances, 1, generator=generator).view(logits.shape[:2])
        log_prob = log_probs.gather(2, taken[..., None]).sum(dim=(1, 2))
        choices = taken.reshape(-1, self.tasks, 3)
        return Action(choices, masks, log_prob, self.critic(features).squeeze(1))

    def masks(self, states: Tensor, choices: Tensor) -> Tensor:
        """(E, 3 N, K) masks, the same in every state."""
        return self.allowed.expand(len(states), -1, -1)


# ---------------------------------------------------------------------------------------------------- training


class RefusingEpisodes(PipelineVectorEnv):
    """Running episodes that refuse an action above the capacity, at the cost of a penalty.

    Args:
        episodes: the episodes to continue.
        penalty: reward lost by a refused action, in the units of Eq. 7.
    """

    def __init__(self, episodes: PipelineVectorEnv, penalty: float) -> None:
        vars(self).update(vars(episodes))
        self.penalty = penalty

    def run_interval(self, configurations: np.ndarray) -> tuple[Score, Interval]:
        """Run ``configurations`` (E, N, 3) for one interval; where they do not fit, the previous ones keep running."""
        admitted, refused = admit(self.pipeline, self.configurations, configurations)
        score, interval = super().run_interval(admitted)
        return score._replace(reward=score.reward - self.penalty * refused), interval


class AblatedTrainer(PPOTrainer):
    """The agent's training for any network; without refusals it equals the agent's own training.

    Args:
        network_class: class of the network.
        penalty: reward that a refused action costs in training. In validation and evaluation a refusal has no cost
            beyond the configuration that keeps running.
        arguments: of :class:`~opd.agent.single.ppo.PPOTrainer`.
    """

    def __init__(self, network_class: type[ActorCritic], penalty: float, *arguments: Any) -> None:
        self.network_class = network_class
        self.penalty = penalty
        super().__init__(*arguments)

    def begin(self, seed: Any) -> PipelineVectorEnv:
        """Training episodes for one rollout."""
        return RefusingEpisodes(super().begin(seed), self.penalty)

    def configure(self, states: np.ndarray) -> np.ndarray:
        """(E, N, 3) configurations that run in states (E, S) under the greedy policy."""
        pipeline = self.problem.pipeline
        return admit(pipeline, running_configurations(pipeline, states), super().configure(states))[0]
