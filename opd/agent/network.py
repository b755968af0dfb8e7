"""The agent's network in torch (Sec. IV-C): the policy of :mod:`opd.agent.scoring` with a critic, for training.

Residual blocks over an encoding of the stages give features. A score of every option follows from these, from the
stage and from the options chosen before; the log-probability of an action is the sum over its choices. B situations of
pipelines of any shape form a batch; each has M sequences of choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from opd.agent.scoring import NODE_INPUTS, OPTION_INPUTS, STAGE_INPUTS, Expanded, ScoringWeights


class Batch(NamedTuple):
    """Situations of several pipelines; all stages, steps and options stand one after another.

    Attributes:
        node: (B, NODE_INPUTS).
        stages: (sum of N, STAGE_INPUTS).
        owner: (sum of N,) situation of each stage.
        options: (R, OPTION_INPUTS).
        step: (R,) step of each option.
        kind: (R,) kind of choice of each option.
        chosen: (P,) option that each step chose.
        stage: (P,) stage of each step.
        sequence: (P,) sequence of each step, counted through all situations.
        place: (P,) place of the step in its sequence.
        sequences: number of all sequences, B M.
    """

    node: Tensor
    stages: Tensor
    owner: Tensor
    options: Tensor
    step: Tensor
    kind: Tensor
    chosen: Tensor
    stage: Tensor
    sequence: Tensor
    place: Tensor
    sequences: int


def batch_of(groups: Sequence[Expanded]) -> Batch:
    """Join the choices of several pipelines; all have as many sequences in a situation."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in Batch._fields[:-1]}
    situations = stages = options = steps = sequences = 0
    for group in groups:
        many, tasks = group.stages.shape[:2]
        length = 3 * tasks
        in_all = len(group.chosen) // length
        place = np.tile(np.arange(length), in_all)
        sequence = np.repeat(np.arange(in_all), length)
        parts["node"].append(group.node)
        parts["stages"].append(group.stages.reshape(many * tasks, -1))
        parts["owner"].append(situations + np.repeat(np.arange(many), tasks))
        parts["options"].append(group.options)
        parts["step"].append(steps + group.step)
        parts["kind"].append(group.step % 3)
        parts["chosen"].append(options + group.chosen)
        parts["stage"].append(stages + sequence // (in_all // many) * tasks + place // 3)
        parts["sequence"].append(sequences + sequence)
        parts["place"].append(place)
        situations, stages, options = situations + many, stages + many * tasks, options + len(group.options)
        steps, sequences = steps + len(group.chosen), sequences + in_all
    joined: dict[str, Any] = {name: torch.from_numpy(np.concatenate(part)) for name, part in parts.items()}
    return Batch(**joined, sequences=sequences)


def part_of(group: Expanded, rows: np.ndarray) -> Expanded:
    """Some of the situations of one pipeline, in the order of ``rows``."""
    steps = len(group.chosen) // len(group.node)  # of a situation
    begin, end = (np.searchsorted(group.step, steps * edge) for edge in (rows, rows + 1))
    count = end - begin
    moved = np.cumsum(count) - count - begin  # how far the options of a situation move
    places = np.arange(count.sum()) - np.repeat(moved, count)
    step = group.step[places] + np.repeat(steps * (np.arange(len(rows)) - rows), count)
    chosen = group.chosen.reshape(-1, steps)[rows] + moved[:, None]
    return Expanded(group.node[rows], group.stages[rows], group.options[places], step, chosen.ravel())


class Evaluation(NamedTuple):
    """What the network says of choices: log-probability and entropy by sequence, value by situation."""

    log_prob: Tensor
    entropy: Tensor
    value: Tensor


class AgentNetwork(nn.Module):
    """Policy and value function over one features extractor; parameters are named as :class:`ScoringWeights`.

    Args:
        width: neurons of every hidden layer.
        blocks: residual blocks.
    """

    def __init__(self, width: int = 64, blocks: int = 2) -> None:
        super().__init__()

        def matrix(*shape: int, gain: float = 1.0) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape) * gain * np.sqrt(2.0 / shape[-1]))

        self.node_weight = matrix(width, NODE_INPUTS, gain=0.7)
        self.stage_weight = matrix(width, STAGE_INPUTS)
        self.stage_bias = nn.Parameter(torch.zeros(width))
        self.pooled_weight = matrix(width, 2 * width, gain=0.7)
        self.reduce_bias = nn.Parameter(torch.zeros(width))
        self.block_weight = matrix(blocks, 2, width, width, gain=0.5)
        self.block_bias = nn.Parameter(torch.zeros(blocks, 2, width))
        self.context_weight = matrix(3, width, width, gain=0.5)
        self.context_bias = nn.Parameter(torch.zeros(3, width))
        self.own_weight = matrix(3, width, width, gain=0.5)
        self.chosen_weight = matrix(3, width, OPTION_INPUTS, gain=0.2)
        self.option_weight = matrix(3, width, OPTION_INPUTS)
        self.score_weight = nn.Parameter(torch.zeros(3, width))
        direct = torch.zeros(3, OPTION_INPUTS)
        direct[:, 0] = 4.0  # so that an option one unit below the plan is e times less likely
        self.direct_weight = nn.Parameter(direct)
        self.critic = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def copied_weights(self) -> ScoringWeights:
        """The policy as arrays of their own."""
        return ScoringWeights(*(np.array(part) for part in self.weights()))

    def weights(self) -> ScoringWeights:
        """The policy as arrays, sharing memory with the parameters."""
        return ScoringWeights(*(getattr(self, name).detach().numpy() for name in ScoringWeights._fields))

    def _features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features (B, W) and encoded stages (sum of N, W)."""
        hidden = torch.relu(batch.stages @ self.stage_weight.T + self.stage_bias)
        many, width = len(batch.node), hidden.shape[1]
        owner = batch.owner[:, None].expand(-1, width)
        mean = hidden.new_zeros(many, width).scatter_reduce(0, owner, hidden, "mean", include_self=False)
        top = hidden.new_zeros(many, width).scatter_reduce(0, owner, hidden, "amax")
        pooled = torch.cat([mean, top], dim=1) @ self.pooled_weight.T
        features = torch.relu(batch.node @ self.node_weight.T + pooled + self.reduce_bias)
        for weight, bias in zip(self.block_weight, self.block_bias, strict=True):
            inner = torch.relu(features @ weight[0].T + bias[0])
            features = torch.relu(features + inner @ weight[1].T + bias[1])
        return features, hidden

    def _contexts(self, batch: Batch, features: Tensor, hidden: Tensor) -> Tensor:
        """(P, W) context of every step: features, own stage, and the options chosen before in the sequence."""
        kind = batch.place % 3
        of_node = torch.einsum("kvw,bw->bkv", self.context_weight, features) + self.context_bias
        of_stage = torch.einsum("kvw,bw->bkv", self.own_weight, hidden)
        added = torch.einsum("kvd,pd->pkv", self.chosen_weight, batch.options[batch.chosen])
        added = added[torch.arange(len(kind)), kind]
        longest = int(batch.place.max()) + 1
        laid_out = added.new_zeros(batch.sequences, longest, added.shape[1])
        before = laid_out.index_put((batch.sequence, batch.place), added).cumsum(dim=1) - laid_out.index_put(
            (batch.sequence, batch.place), added
        )
        owner = batch.owner[batch.stage]
        return of_node[owner, kind] + of_stage[batch.stage, kind] + before[batch.sequence, batch.place]

    def forward(self, batch: Batch) -> Evaluation:
        """Log-probability (B M,), entropy (B M,) and value (B,)."""
        features, hidden = self._features(batch)
        contexts = self._contexts(batch, features, hidden)
        scores = batch.options.new_empty(len(batch.options))
        for kind in range(3):
            rows = torch.nonzero(batch.kind == kind).squeeze(1)
            inner = torch.relu(batch.options[rows] @ self.option_weight[kind].T + contexts[batch.step[rows]])
            direct = batch.options[rows] @ self.direct_weight[kind]
            scores = scores.index_put((rows,), inner @ self.score_weight[kind] + direct)
        steps = len(batch.chosen)
        with torch.no_grad():
            top = scores.new_full((steps,), -torch.inf).scatter_reduce(0, batch.step, scores, "amax")
        shifted = scores - top[batch.step]
        total = scores.new_zeros(steps).index_add(0, batch.step, shifted.exp())
        log_probs = shifted - total.log()[batch.step]
        by_step = torch.zeros(steps).index_add(0, batch.step, -log_probs.exp() * log_probs)
        zeros = torch.zeros(batch.sequences)
        return Evaluation(
            zeros.index_add(0, batch.sequence, log_probs[batch.chosen]),
            zeros.index_add(0, batch.sequence, by_step),
            self.critic(features).squeeze(1),
        )
