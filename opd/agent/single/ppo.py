"""Proximal policy optimisation with expert guidance (Alg. 2, Eqs. 9-12): one plain, restartable loop.

Every update seeds its generators with the seed of the run and the number of the update. An interrupted run therefore
resumes exactly at its last checkpoint, and the checkpoint holds no state of a generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from opd.agent.checkpoints import load_checkpoint, save_checkpoint
from opd.agent.single.imitation import Imitation, demonstrate, expert_of, paper_guide
from opd.agent.single.network import ActorCritic
from opd.agent.single.problem import Problem, TrainingParameters
from opd.agent.single.rollout import (
    RewardScale,
    Samples,
    Validation,
    begin_episodes,
    collect_rollout,
    ipa_drops,
    validate,
)
from opd.host.archive import written_whole
from opd.simulator.environment import PipelineVectorEnv

CHECKPOINT, METRICS = "checkpoint.pt", "metrics.csv"
"""Files of a run."""

FORMAT = "opd single-agent training 1"
"""Format of the checkpoint."""


def ppo_loss(
    network: ActorCritic, samples: Samples, parameters: TrainingParameters, entropy_coefficient: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative of Eq. 11 on a minibatch, and its terms.

    Args:
        network: the policy and value function to improve.
        samples: the minibatch.
        parameters: clip range and weight of the value loss.
        entropy_coefficient: weight of the entropy bonus now.
    """
    clip_range = parameters.clip_range
    log_prob, entropy, value = network.evaluate(samples.states, samples.choices, samples.masks)
    advantage = (samples.advantages - samples.advantages.mean()) / (samples.advantages.std(correction=0) + 1e-8)
    log_ratio = log_prob - samples.log_probs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    policy_loss = -torch.min(ratio * advantage, clipped * advantage).mean()  # Eq. 12
    value_loss = (value - samples.returns).square().mean()
    loss = policy_loss + parameters.value_coefficient * value_loss - entropy_coefficient * entropy.mean()  # Eq. 11
    with torch.no_grad():
        approx_kl = ((ratio - 1.0) - log_ratio).mean()
        clip_fraction = ((ratio - 1.0).abs() > clip_range).float().mean()
    return loss, {
        "loss": loss.detach(),
        "policy_loss": policy_loss.detach(),
        "value_loss": value_loss.detach(),
        "entropy": entropy.mean().detach(),
        "divergence": approx_kl,
        "clip_share": clip_fraction,
    }


class PPOTrainer:
    """State and steps of one training run, see :func:`train`.

    Subclasses may train another network, step other episodes, or validate in another way.

    Args:
        problem: what to train on.
        parameters: of the run.
        seed: of everything random; two runs with the same seed are equal.
        title: begins every line of progress.
    """

    network_class: type[ActorCritic] = ActorCritic

    def __init__(self, problem: Problem, parameters: TrainingParameters, seed: int, title: str = "agent") -> None:
        self.problem, self.parameters, self.seed, self.title = problem, parameters, seed, title
        torch.manual_seed(seed)
        self.network = self.network_class(problem.pipeline, parameters.width, parameters.blocks)
        # The epsilon that PPO implementations share.
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=parameters.learning_rate, eps=1e-5, fused=True)
        self.expert = expert_of(problem, parameters.expert)
        self.reward_scale = RewardScale()
        self.best: tuple[float, dict[str, Tensor]] = -math.inf, {}
        self.metrics: list[dict[str, float]] = []

    # -- subclasses may override ------------------------------------------------------------------

    def begin(self, seed: Any) -> PipelineVectorEnv:
        """Training episodes for one rollout."""
        p, problem = self.parameters, self.problem
        bursts = round(p.burst_share * p.num_envs)
        return begin_episodes(
            problem, problem.training, problem.training_bursts, bursts, p.num_envs, p.rollout_steps, seed
        )

    def configure(self, states: np.ndarray) -> np.ndarray:
        """(E, N, 3) configurations that the greedy policy runs in states (E, S)."""
        return self.network.configure(states)

    def validate(self, updates_done: int) -> Validation:
        """Run the greedy policy on the validation episodes and print a line of progress."""
        result = validate(self.problem, self.parameters, self.configure, self.tolerated_drops)
        print(
            f"{self.title}: update {updates_done} of {self.parameters.updates}, validation reward "
            f"{result.reward:.3f}, {result.dropped:.0f} dropped (IPA {self.tolerated_drops:.0f})",
            flush=True,
        )
        return result

    # -- the parts of the loop --------------------------------------------------------------------

    def prepare(self) -> None:
        """Let the expert demonstrate; a new run then fits its scales and, in mode ``pretrain``, clones the expert."""
        self.tolerated_drops = ipa_drops(self.problem, self.parameters)
        generator = np.random.default_rng((self.seed, 0))
        demonstrations = demonstrate(self.expert, self.begin((self.seed, 0)), self.parameters, generator)
        new = not self.metrics
        if new:
            self.network.features_extractor.standardise_by(demonstrations.states.numpy())
            self.reward_scale = RewardScale.fitted_to(demonstrations.rewards)
        self.imitation = Imitation(self.network, demonstrations, self.reward_scale, self.parameters)
        if new and self.parameters.expert_mode == "pretrain":
            self.imitation.clone(self.seed)

    def collect(self, update: int) -> tuple[Samples, dict[str, float]]:
        """Collect the samples of one rollout, and its metrics."""
        p = self.parameters
        guide = paper_guide(self.expert, self.network, p, self.seed, update) if p.expert_mode == "paper" else None
        envs = self.begin((self.seed, 1 + update))
        return collect_rollout(self.network, envs, p, self.reward_scale, self._generator(update), guide)

    def learn(self, samples: Samples, update: int) -> dict[str, float]:
        """Update the network by epochs of minibatches, and return the means of the loss terms."""
        p = self.parameters
        remaining = 1.0 - update / p.updates
        for group in self.optimizer.param_groups:
            group["lr"] = p.learning_rate * remaining
        fading = max(0.0, 1.0 - 2.0 * (update / p.updates))  # zero from half-way on
        demonstration_weight = p.demonstration_weight * fading if p.expert_mode == "pretrain" else 0.0
        generator = self._generator(update)
        terms: list[dict[str, Tensor]] = []
        for _ in range(p.epochs):
            for rows in torch.randperm(len(samples.states), generator=generator).split(p.minibatch_size):
                minibatch = Samples(*(part[rows] for part in samples))
                loss, term = ppo_loss(self.network, minibatch, p, p.entropy_coefficient * remaining)
                terms.append(term)
                if demonstration_weight > 0.0:
                    examples = self.imitation.random_rows(p.minibatch_size // 4 + 1, generator)
                    loss = loss + demonstration_weight * self.imitation.loss(examples)
                self.optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), p.max_grad_norm)
                self.optimizer.step()
            if terms[-1]["divergence"] > p.target_kl:
                break
        return {f"train/{name}": float(torch.stack([term[name] for term in terms]).mean()) for name in terms[0]}

    def _generator(self, update: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + update)

    # -- checkpoints ------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the metrics, then the checkpoint, each completely or not at all."""
        metrics = pd.DataFrame(self.metrics).set_index("update").sort_index(axis="columns")
        with written_whole(folder / METRICS) as unfinished:
            metrics.to_csv(unfinished)
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "reward_scale": tuple(self.reward_scale),
            "best": self.best,
            "metrics": self.metrics,
        }
        save_checkpoint(folder / CHECKPOINT, FORMAT, state)

    def resume(self, folder: Path) -> None:
        """Restore the checkpoint of a folder, if there is one.

        Raises:
            TrainingStateError: if it is damaged, or of another version.
        """
        path = folder / CHECKPOINT
        if not path.is_file():
            return
        state = load_checkpoint(path, FORMAT)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.reward_scale = RewardScale(*state["reward_scale"])
        self.best = state["best"]
        self.metrics = state["metrics"]


def train(
    problem: Problem,
    parameters: TrainingParameters,
    seed: int,
    folder: Path,
    title: str = "agent",
    new_trainer: Callable[[Problem, TrainingParameters, int, str], PPOTrainer] = PPOTrainer,
) -> ActorCritic:
    """Train an agent and return the network that was best in validation.

    Args:
        problem: what to train on.
        parameters: of the run.
        seed: of everything random; two runs with the same seed are equal.
        folder: for the metrics, see :func:`read_metrics`, and the checkpoint, from which an interrupted run goes on.
        title: begins every line of progress.
        new_trainer: makes the trainer.
    """
    trainer = new_trainer(problem, parameters, seed, title)
    trainer.resume(folder)
    if len(trainer.metrics) < parameters.updates:
        trainer.prepare()
    for update in range(len(trainer.metrics), parameters.updates):
        samples, metrics = trainer.collect(update)
        metrics |= trainer.learn(samples, update)
        validates = (update + 1) % parameters.validate_every == 0
        if validates:
            result = trainer.validate(update + 1)
            metrics |= {f"validation/{name}": value for name, value in result._asdict().items()}
        # In single precision, like the network: smaller differences must not decide which network is best.
        row = {name: float(np.float32(value)) for name, value in metrics.items()}
        trainer.metrics.append({"update": update + 1} | row)
        if validates:
            selection = row["validation/selection"]
            if selection > trainer.best[0]:
                trainer.best = selection, deepcopy(trainer.network.state_dict())
            trainer.save(folder)
    trainer.network.load_state_dict(trainer.best[1])
    return trainer.network


def read_metrics(folder: Path) -> pd.DataFrame:
    """The metrics of a run, one row an update; validation columns are empty where there was no validation."""
    return pd.read_csv(folder / METRICS)
