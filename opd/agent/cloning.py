"""Imitation of the planner: the network learns to prefer the configurations that the planner found to be worth more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from opd.agent.demonstrations import PlannerDemonstrations
from opd.agent.network import AgentNetwork, batch_of, part_of
from opd.agent.scoring import UNIT, Expanded, expand

PIPELINES, SITUATIONS = 12, 8
"""Pipelines of a minibatch, and situations of each of them."""

FARTHEST = 8.0
"""Units of difference in value at which it is cut off: how much worse a bad configuration is does not matter."""


class Lessons(NamedTuple):
    """Demonstrations on one pipeline as the network sees them, described once: that takes most of the time.

    Attributes:
        expanded: S situations, C configurations each, the plan first.
        leads: (S, C) values above that of the plan, in :data:`~opd.agent.scoring.UNIT` of the cores that it takes.
    """

    expanded: Expanded
    leads: np.ndarray

    @classmethod
    def of(cls, demonstrations: PlannerDemonstrations) -> Lessons:
        """Describe demonstrations."""
        choices = demonstrations.choices.astype(np.int64)
        expanded = Expanded(*expand(demonstrations.description, demonstrations.situations, choices))
        return cls(expanded, leads(demonstrations))


def leads(demonstrations: PlannerDemonstrations) -> np.ndarray:
    """(S, C) values of configurations above that of the plan, in units."""
    planned, cores = demonstrations.choices[:, 0], demonstrations.description.cores
    used = ((planned[..., 1] + 1) * cores[np.arange(planned.shape[1]), planned[..., 0]]).sum(axis=1, keepdims=True)
    difference = (demonstrations.values - demonstrations.values[:, :1]) / (UNIT * used)
    return np.clip(difference, -FARTHEST, FARTHEST)


def imitation_loss(network: AgentNetwork, groups: Sequence[tuple[Lessons, np.ndarray]]) -> Tensor:
    """How far the policy is from preferring configurations as much as they are worth, in some situations (rows).

    A configuration that is a unit better than the plan should be e times as likely. The values come from a few futures.
    As they enter linearly, their noise averages out; a policy that imitates whichever was best would learn the noise.
    What was not compared should be unlikely: it is worse in closed form, and nothing else tells of it.
    """
    log_prob = network(batch_of([part_of(lessons.expanded, rows) for lessons, rows in groups])).log_prob
    wanted = torch.from_numpy(np.concatenate([lessons.leads[rows] for lessons, rows in groups])).float()
    found = log_prob.reshape(wanted.shape)
    difference = smooth_l1_loss((found - found[:, :1])[:, 1:], wanted[:, 1:], beta=FARTHEST / 2.0)
    # Configurations that fill up count more than once, so the sum can be above 1.
    return difference - torch.logsumexp(found, dim=1).clamp(max=0.0).mean()


def drawn_lessons(
    lessons: Sequence[Lessons], pipelines: int, situations: int, rng: np.random.Generator
) -> list[tuple[Lessons, np.ndarray]]:
    """Some situations (rows) of some pipelines."""
    chosen = rng.choice(len(lessons), pipelines)
    return [(lessons[i], rng.integers(len(lessons[i].leads), size=situations)) for i in chosen]


def imitate(
    network: AgentNetwork, lessons: Sequence[Lessons], steps: int, learning_rate: float, rng: np.random.Generator
) -> list[float]:
    """Train a network to choose as the planner would; return the loss of every step."""
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, eps=1e-5)
    # A first part of exactly one step would divide by zero: no number of steps has one.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.15)
    losses = []
    for _ in range(steps):
        loss = imitation_loss(network, drawn_lessons(lessons, PIPELINES, SITUATIONS, rng))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses
