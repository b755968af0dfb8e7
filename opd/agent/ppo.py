"""Proximal policy optimisation across pipelines (Eqs. 9-12): one policy, many problems, and the planner as its guide.

Every reward counts as its difference from that of a solver that plans for the forecast and for what waits, and that
meets the same requests in episodes of its own. This takes out what no decision can change: busy and quiet hours, and
the scales of pipelines. The planner's demonstrations keep a share in the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from opd.agent.cloning import Lessons, drawn_lessons, imitation_loss
from opd.agent.description import PLANNED, WAITING, Description, Situations
from opd.agent.experience import compute_gae
from opd.agent.network import AgentNetwork, Batch, batch_of, part_of
from opd.agent.practice import Episodes, PracticeProblem, begin_practice, solved_choices
from opd.agent.scoring import Expanded, ScoringWeights, choose, expand

_Count = Annotated[int, Field(ge=1)]
_Positive = Annotated[float, Field(gt=0.0)]
_NotNegative = Annotated[float, Field(ge=0.0)]
_Share = Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True, config={"extra": "forbid", "allow_inf_nan": False})
class PpoParameters:
    """Of PPO across pipelines.

    Attributes:
        problems: in a rollout.
        episodes: on each of them.
        decisions: in an episode.
        epochs: passes over a rollout.
        minibatch: decisions of a gradient step.
        learning_rate: at the beginning; it falls linearly to a tenth.
        discount: gamma of Eq. 9.
        gae_lambda: lambda of the advantage estimates.
        clip_range: largest change of a probability ratio in Eq. 12.
        value_coefficient: weight of the value loss in Eq. 11.
        entropy_coefficient: weight of the entropy in Eq. 11.
        demonstration_weight: weight of the imitation loss.
        target_kl: approximate KL divergence above which a rollout's remaining epochs are left out.
        max_grad_norm: norm to which larger gradients are scaled down.
    """

    problems: _Count = 24
    episodes: _Count = 12
    decisions: _Count = 24
    epochs: _Count = 3
    minibatch: _Count = 1152
    learning_rate: _Positive = 3e-4
    discount: _Share = 0.9
    gae_lambda: _Share = 0.9
    clip_range: _Positive = 0.2
    value_coefficient: _NotNegative = 0.5
    entropy_coefficient: _NotNegative = 0.001
    demonstration_weight: _NotNegative = 0.05
    target_kl: _Positive = 0.02
    max_grad_norm: _Positive = 0.5


class Rollout(NamedTuple):
    """Experience on one problem: D decisions of E episodes, in the order of time.

    Attributes:
        description: of the problem's pipeline.
        situations: (D + 1) E of them; the last E are those after the last decision.
        choices: ((D + 1) E, N, 3); those of the last E were not run.
        log_prob: (D E,) under the policy that acted.
        leads: (D, E) what each reward was above the solver's, in shares of the cores that the solver runs.
    """

    description: Description
    situations: Situations
    choices: np.ndarray
    log_prob: np.ndarray
    leads: np.ndarray


def roll_out(problem: PracticeProblem, weights: ScoringWeights, seed: int, parameters: PpoParameters) -> Rollout:
    """Act on a problem, drawing actions from the policy."""
    p = parameters
    begin = begin_practice(problem, p.episodes, p.decisions, np.random.default_rng(seed))
    twin = begin_practice(problem, p.episodes, p.decisions, np.random.default_rng(seed))
    rng = np.random.default_rng([seed, 1])
    seen: list[Situations] = []
    chosen, log_probs, leads, costs = [], [], [], []
    for decision in range(p.decisions + 1):
        seen.append(begin.situations())
        uniform = rng.random((p.episodes, 3 * len(problem.description.cores)))
        choices, log_prob = choose(weights, problem.description, seen[-1], uniform)
        chosen.append(choices)
        if decision < p.decisions:
            log_probs.append(log_prob)
            value, _, _ = begin.run(choices)
            other, score, _ = twin.run(solver_choices(problem, twin))
            leads.append(value - other)
            costs.append(score.cost)
    situations = Situations(*map(np.concatenate, zip(*seen, strict=True)))
    shares = np.array(leads) / np.mean(costs)
    return Rollout(problem.description, situations, np.concatenate(chosen), np.concatenate(log_probs), shares)


def solver_choices(problem: PracticeProblem, episodes: Episodes) -> np.ndarray:
    """(E, N, 3) what the solver runs for the planned load and what waits."""
    loads = episodes.loads()
    return solved_choices(problem.description, loads[:, PLANNED] + loads[:, WAITING])


LARGE_LEAD = 10.0
"""Lead, in shares of the cores, from which on leads are compressed: an overload of many intervals must not dominate.
With a smaller one the policy would learn to take risks, as what a burst costs would count for less than it does."""


def squashed(leads: np.ndarray) -> np.ndarray:
    """Leads with very large ones compressed."""
    return LARGE_LEAD * np.sign(leads) * np.log1p(np.abs(leads) / LARGE_LEAD)


class Experience(NamedTuple):
    """What PPO learns from a rollout: D decisions of E episodes.

    Attributes:
        expanded: choices in (D + 1) E situations; the last E are not learned from.
        log_prob: (D E,) under the policy that acted.
        advantages: (D E,).
        returns: (D E,).
    """

    expanded: Expanded
    log_prob: np.ndarray
    advantages: np.ndarray
    returns: np.ndarray


@torch.no_grad()
def evaluated(network: AgentNetwork, rollout: Rollout, parameters: PpoParameters) -> Experience:
    """Estimate advantages (Eq. 9) by generalised advantage estimation; episodes are truncated, not terminated."""
    expanded = Expanded(*expand(rollout.description, rollout.situations, rollout.choices[:, None]))
    value = network(batch_of([expanded])).value.numpy()
    leads = squashed(rollout.leads)
    values = value.reshape(len(leads) + 1, -1)
    advantages = compute_gae(leads, values, parameters.discount, parameters.gae_lambda)
    returns = advantages + values[:-1]
    scale = max(float(advantages.std()), 1e-4)
    return Experience(expanded, rollout.log_prob, (advantages / scale).ravel(), returns.ravel())


class Minibatch(NamedTuple):
    """Decisions of several experiences: what the network sees, and (M,) log-probabilities, advantages and returns."""

    batch: Batch
    log_prob: Tensor
    advantage: Tensor
    returns: Tensor


def minibatches(experience: Sequence[Experience], size: int, rng: np.random.Generator) -> list[Minibatch]:
    """Divide all decisions at random; joining them takes time, so every epoch has the same minibatches."""
    sizes = [len(each.returns) for each in experience]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    row = np.concatenate([np.arange(many) for many in sizes])
    found = []
    for part in np.array_split(rng.permutation(len(owner)), max(len(owner) // size, 1)):
        parts = [(experience[i], row[part[owner[part] == i]]) for i in np.unique(owner[part])]
        expanded = [part_of(each.expanded, rows) for each, rows in parts]
        columns = zip(
            *((each.log_prob[rows], each.advantages[rows], each.returns[rows]) for each, rows in parts), strict=True
        )
        numbers = (torch.from_numpy(np.concatenate(column)).float() for column in columns)
        found.append(Minibatch(batch_of(expanded), *numbers))
    return found


def ppo_loss(network: AgentNetwork, minibatch: Minibatch, parameters: PpoParameters) -> tuple[Tensor, float]:
    """Negative of Eq. 11 on a minibatch, and the approximate KL divergence."""
    p = parameters
    log_prob, entropy, value = network(minibatch.batch)
    log_ratio = log_prob - minibatch.log_prob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - p.clip_range, 1.0 + p.clip_range)
    policy_loss = -torch.min(ratio * minibatch.advantage, clipped * minibatch.advantage).mean()  # Eq. 12
    value_loss = torch.nn.functional.smooth_l1_loss(value, minibatch.returns)
    loss = policy_loss + p.value_coefficient * value_loss - p.entropy_coefficient * entropy.mean()  # Eq. 11
    return loss, float(((ratio - 1.0) - log_ratio).mean().detach())


def decay_learning_rate(optimizer: torch.optim.Optimizer, initial: float, update: int, updates: int) -> None:
    """Set the learning rate of an update: it falls linearly from ``initial`` to a tenth."""
    for group in optimizer.param_groups:
        group["lr"] = initial * (1.0 - 0.9 * update / updates)


def improve(
    network: AgentNetwork,
    optimizer: torch.optim.Optimizer,
    rollouts: Sequence[Rollout],
    lessons: Sequence[Lessons],
    parameters: PpoParameters,
    rng: np.random.Generator,
) -> dict[str, float]:
    """One update: epochs of minibatches over the experience of several problems."""
    p = parameters
    parts = minibatches([evaluated(network, each, p) for each in rollouts], p.minibatch, rng)
    divergence = 0.0
    for _ in range(p.epochs):
        for number in rng.permutation(len(parts)):
            loss, divergence = ppo_loss(network, parts[number], p)
            if lessons and p.demonstration_weight > 0.0:
                loss = loss + p.demonstration_weight * imitation_loss(network, drawn_lessons(lessons, 6, 8, rng))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), p.max_grad_norm)
            optimizer.step()
        if divergence > p.target_kl:
            break
    leads = np.array([each.leads.mean() for each in rollouts])
    return {"lead": float(leads.mean()), "median_lead": float(np.median(leads)), "divergence": divergence}
