"""Imitation of the planner: the network learns to prefer the configurations that the planner found to be worth more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from opd.agent.demonstrations import PlannerDemonstrations
from opd.agent.network import AgentNetwork, batch_of
from opd.agent.scoring import Expanded, expand

PIPELINES, SITUATIONS, DRAWN = 12, 16, 2
"""Pipelines of a minibatch, situations of each of them, and configurations that are drawn from the targets of each."""

TOLERANCE = 0.02
"""Difference in value, as a share of the cores that run, that makes a configuration e times less likely as a target."""


def targets(demonstrations: PlannerDemonstrations, rows: np.ndarray) -> np.ndarray:
    """(B, 6) probabilities with which the configurations of some situations should be chosen."""
    values = demonstrations.values[rows]
    choices = demonstrations.choices[rows, 0]
    cores = demonstrations.description.cores
    used = ((choices[..., 1] + 1) * cores[np.arange(choices.shape[1]), choices[..., 0]]).sum(axis=1, keepdims=True)
    weight = np.exp((values - values[:, :1]) / (TOLERANCE * used))
    return weight / weight.sum(axis=1, keepdims=True)


def imitation_loss(
    network: AgentNetwork, groups: Sequence[tuple[PlannerDemonstrations, np.ndarray]], rng: np.random.Generator
) -> Tensor:
    """Cross-entropy between targets and policy in some situations of some pipelines.

    It is estimated from configurations drawn from the targets: describing options takes most of the time of a step.
    """
    expanded = []
    for demonstrations, rows in groups:
        d, s = demonstrations.description, demonstrations.situations.part(rows)
        likely = targets(demonstrations, rows).cumsum(axis=1)
        drawn = (rng.random((len(rows), DRAWN, 1)) > likely[:, None, :-1]).sum(axis=2)
        choices = demonstrations.choices[rows[:, None], drawn]
        expanded.append(Expanded(*expand(d, s, choices.astype(np.int64))))
    return -network(batch_of(expanded)).log_prob.mean()


def imitate(
    network: AgentNetwork,
    demonstrations: Sequence[PlannerDemonstrations],
    steps: int,
    learning_rate: float,
    rng: np.random.Generator,
) -> list[float]:
    """Train a network to choose as the planner would; return the loss of every step."""
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, eps=1e-5)
    # A first part of exactly one step would divide by zero: no number of steps has one.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.15)
    losses = []
    for _ in range(steps):
        chosen = rng.choice(len(demonstrations), PIPELINES)
        groups = [(demonstrations[i], rng.integers(len(demonstrations[i].values), size=SITUATIONS)) for i in chosen]
        loss = imitation_loss(network, groups, rng)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses
