"""Training of the agent (Alg. 2): proximal policy optimisation with expert guidance.

One Lightning training step is one update: collect a rollout, estimate advantages, and make a few
epochs of minibatches on it. Every rollout begins new episodes from a seed of its own, so that a run
that was interrupted resumes exactly where its last checkpoint was written.

The expert guides in one of three modes. ``paper``: every f-th episode is acted by the expert and
stored like the agent's own (Alg. 2); its actions are not samples of the old policy, which biases
Eq. 12. ``pretrain``: the network first imitates the expert, and a demonstration term that fades away
keeps it near while the value function settles. ``none``: no expert.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from opd.agent.agent import Agent, CheckpointError, export
from opd.agent.network import ActorCritic, Decision
from opd.measurement import Interval, Score
from opd.objective import Weights
from opd.parallel import run_tasks
from opd.pipeline import Pipeline, from_choices, to_choices
from opd.simulator.parameters import SimulationParameters
from opd.simulator.vector_environment import PipelineVectorEnv
from opd.solvers import IpaParameters, ipa_dynamic_program, myopic_table
from opd.workload.forecast import Forecaster
from opd.workload.trace import Trace, burst_starts
from opd.workload.workload import Workload

EXPERT_MODES = ("paper", "pretrain", "none")
EXPERTS = ("myopic", "ipa", "clairvoyant")
COUNTS = (
    *("updates", "environments", "rollout", "epochs", "minibatch", "width", "expert_frequency"),
    *("validate_every", "validation_episodes", "validation_decisions"),
)


@dataclass(frozen=True)
class TrainingParameters:
    """Everything that shapes a training run.

    Attributes:
        updates: number of rollouts, each followed by ``epochs`` passes over it.
        environments: parallel episodes of a rollout.
        rollout: decisions in an episode of training.
        epochs: passes over a rollout.
        minibatch: states in one gradient step.
        learning_rate: of Adam at the start; falls linearly to zero.
        discount: of future rewards.
        gae_decay: lambda of generalised advantage estimation.
        clip: epsilon of Eq. 12.
        value_coefficient: c_1 of Eq. 11.
        entropy_coefficient: c_2 of Eq. 11 at the start; falls linearly to zero.
        max_gradient_norm: larger gradients are scaled down to it.
        target_divergence: an update ends early when the approximate KL divergence passes it.
        width: neurons of a hidden layer.
        blocks: residual blocks.
        expert: ``myopic``, ``ipa`` or ``clairvoyant``.
        expert_mode: ``pretrain``, ``paper`` or ``none``.
        expert_frequency: f of Alg. 2, in mode ``paper``.
        cloning_steps: gradient steps of imitation, in mode ``pretrain``.
        stray_share: share of the demonstrated decisions after which something else is done than was shown.
        demonstration_weight: of the imitation term at the start; falls linearly to zero half-way.
        burst_share: share of training episodes that begin shortly before a burst of load.
        drop_penalty: training reward lost per dropped request; reported rewards are Eq. 7 alone.
        validate_every: updates between two validations, after each of which a checkpoint competes.
        validation_episodes: episodes of a validation, half of them begun before bursts.
        validation_decisions: decisions in each of them.

    Raises:
        ValueError: if a figure is out of its range.
    """

    updates: int = 80
    environments: int = 32
    rollout: int = 64
    epochs: int = 5
    minibatch: int = 256
    learning_rate: float = 5e-4
    discount: float = 0.9
    gae_decay: float = 0.9
    clip: float = 0.2
    value_coefficient: float = 0.5
    entropy_coefficient: float = 0.005
    max_gradient_norm: float = 0.5
    target_divergence: float = 0.03
    width: int = 128
    blocks: int = 2
    expert: str = "myopic"
    expert_mode: str = "pretrain"
    expert_frequency: int = 5
    cloning_steps: int = 600
    stray_share: float = 0.1
    demonstration_weight: float = 0.1
    burst_share: float = 0.25
    drop_penalty: float = 0.05
    validate_every: int = 4
    validation_episodes: int = 64
    validation_decisions: int = 60

    def __post_init__(self) -> None:
        if self.expert_mode not in EXPERT_MODES:
            raise ValueError(f"expert_mode {self.expert_mode!r} is not one of {EXPERT_MODES}")
        if self.expert not in EXPERTS:
            raise ValueError(f"expert {self.expert!r} is not one of {EXPERTS}")
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if self.updates % self.validate_every:
            raise ValueError(f"updates {self.updates} is not a multiple of validate_every {self.validate_every}")
        for name in ("discount", "gae_decay", "burst_share", "stray_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} {getattr(self, name)} is not a share between 0 and 1")
        if not 0.0 < self.learning_rate < np.inf:
            raise ValueError(f"learning_rate {self.learning_rate} must be positive and finite")


class Problem(NamedTuple):
    """What is trained on: a pipeline, its objective, its workloads, its expert.

    Attributes:
        pipeline, weights, simulation: see there.
        training, validation: workloads of the two splits.
        training_bursts, validation_bursts: decisions shortly before which load jumps.
        expert: (L + 1, N, 3) the expert's configuration for every whole load 0..L.
        reference: (L + 1, N, 3) the same of IPA, whose drops a checkpoint may not exceed.
    """

    pipeline: Pipeline
    weights: Weights
    simulation: SimulationParameters
    training: Workload
    validation: Workload
    training_bursts: np.ndarray
    validation_bursts: np.ndarray
    expert: np.ndarray
    reference: np.ndarray


def agent_weights(weights: Weights, changes: Mapping[str, float | Mapping[str, float]], pipeline: str) -> Weights:
    """The weights an agent is trained with: some replaced, by one number or by one for each pipeline.

    Raises:
        ValueError: if a weight is unknown, or has no number for this pipeline.
    """
    known = asdict(weights)
    for name, change in changes.items():
        if name not in known:
            raise ValueError(f"unknown weight {name!r}; there are {', '.join(known)}")
        if isinstance(change, Mapping):
            if pipeline not in change:
                raise ValueError(f"weight {name!r} has no value for pipeline {pipeline!r}, only for {list(change)}")
            change = change[pipeline]
        known[name] = change
    return Weights(**known)


def expert_table(
    pipeline: Pipeline, weights: Weights, simulation: SimulationParameters, expert: str, max_load: int
) -> np.ndarray:
    """(max_load + 1, N, 3) what an expert runs at every whole load; the clairvoyant one looks up another load."""
    if expert in ("myopic", "clairvoyant"):
        return myopic_table(pipeline, weights, max_load, simulation.batch_timeout)
    return ipa_table(pipeline, IpaParameters(weights.alpha, weights.cost_weight, weights.batch_weight), max_load)


def ipa_table(pipeline: Pipeline, rates: IpaParameters, max_load: int) -> np.ndarray:
    """(max_load + 1, N, 3) what IPA runs at every whole load."""
    return np.array([ipa_dynamic_program(pipeline, float(load), rates) for load in range(max_load + 1)])


def build_problem(
    pipeline: Pipeline,
    trace: Trace,
    forecaster: Forecaster,
    weights: Weights,
    simulation: SimulationParameters,
    parameters: TrainingParameters,
) -> Problem:
    """Workloads of the training and validation splits with their bursts, and the expert's table."""
    training, validation = (
        Workload.of(trace, split, simulation.interval, forecaster.predict_many) for split in ("train", "validation")
    )
    training_bursts, validation_bursts = (
        (burst_starts(trace, split) - trace.split(split).start) // simulation.interval
        for split in ("train", "validation")
    )
    max_load = int(max(training.forecasts.max(), validation.forecasts.max(), trace.counts.max()))
    return Problem(
        pipeline,
        weights,
        simulation,
        training,
        validation,
        training_bursts,
        validation_bursts,
        expert_table(pipeline, weights, simulation, parameters.expert, max_load),
        ipa_table(pipeline, IpaParameters(), max_load),
    )


class Rollout(NamedTuple):
    """Flattened experience: T decisions of E episodes, M = T E samples."""

    states: Tensor
    choices: Tensor
    masks: Tensor
    log_probabilities: Tensor
    advantages: Tensor
    returns: Tensor


def generalised_advantages(rewards: np.ndarray, values: np.ndarray, discount: float, decay: float) -> np.ndarray:
    """Generalised advantage estimation (Schulman et al., 2016) for episodes that were truncated, not ended.

    Args:
        rewards: (T, E).
        values: (T + 1, E); the last row is the value of the state after the truncation.
        discount: gamma.
        decay: lambda.

    Returns:
        (T, E) estimates of the advantage of Eq. 9.
    """
    surprises = rewards + discount * values[1:] - values[:-1]
    advantages = np.zeros_like(surprises)
    running = np.zeros(rewards.shape[1])
    for t in range(len(rewards) - 1, -1, -1):
        running = surprises[t] + discount * decay * running
        advantages[t] = running
    return advantages


def look_up(table: np.ndarray, loads: np.ndarray) -> np.ndarray:
    """(E, N, 3) configurations of a table by whole load, rounding loads (E,) up and limiting them to the table."""
    return table[np.clip(np.ceil(loads - 1e-6).astype(np.int64), 0, len(table) - 1)]


def begin_episodes(
    problem: Problem, workload: Workload, bursts: np.ndarray, burst_episodes: int, episodes: int, length: int, seed: Any
) -> PipelineVectorEnv:
    """New episodes at random decisions of a workload, the first ``burst_episodes`` shortly before a burst.

    They start with what the expert runs at the load of that moment.
    """
    generator = np.random.default_rng(seed)
    simulation_seed = int(generator.integers(2**31))
    latest = workload.decisions - length
    if latest < 2:
        raise ValueError(f"a workload of {workload.decisions} decisions is too short for episodes of {length}")
    decisions = generator.integers(1, latest, size=episodes)
    usable = bursts[bursts < latest]
    if len(usable):
        lead = generator.integers(1, max(length // 2, 1), size=burst_episodes, endpoint=True)
        decisions[:burst_episodes] = np.maximum(generator.choice(usable, size=burst_episodes) - lead, 1)
    batch = PipelineVectorEnv(
        problem.pipeline,
        workload,
        problem.weights,
        problem.simulation,
        episode_length=length,
        num_envs=episodes,
        seed=simulation_seed,
    )
    batch.begin(np.arange(episodes), decisions, look_up(problem.expert, workload.windows(decisions - 1).mean(axis=1)))
    return batch


class ProximalPolicyOptimisation(pl.LightningModule):
    """Eqs. 9-12 with expert guidance; one ``training_step`` is one update on a fresh rollout."""

    network_class: type[ActorCritic] = ActorCritic
    update: Tensor
    reward_mean: Tensor
    reward_deviation: Tensor
    demonstrations: tuple[Tensor, Tensor, Tensor, Tensor]

    def __init__(self, problem: Problem, parameters: TrainingParameters, seed: int, title: str = "agent") -> None:
        super().__init__()
        self.title = title
        self.tolerated_drops = 0.0
        self.automatic_optimization = False
        self.problem = problem
        self.settings = parameters
        self.seed = seed
        torch.manual_seed(seed)
        self.network = self.network_class(problem.pipeline, parameters.width, parameters.blocks)
        self.register_buffer("update", torch.zeros((), dtype=torch.int64))
        self.register_buffer("reward_mean", torch.zeros(()))
        self.register_buffer("reward_deviation", torch.ones(()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with the epsilon that PPO implementations share."""
        return torch.optim.Adam(self.network.parameters(), lr=self.settings.learning_rate, eps=1e-5, fused=True)

    # -- experience -----------------------------------------------------------------------------

    def begin(self, seed: Any) -> PipelineVectorEnv:
        """Training episodes for one rollout."""
        p, problem = self.settings, self.problem
        bursts = round(p.burst_share * p.environments)
        return begin_episodes(
            problem, problem.training, problem.training_bursts, bursts, p.environments, p.rollout, seed
        )

    def expert_choices(self, episodes: PipelineVectorEnv, states: np.ndarray) -> Tensor:
        """(E, N, 3) what the expert does; the clairvoyant one has a perfect forecast."""
        clairvoyant = self.settings.expert == "clairvoyant"
        loads = episodes.workload.perfect_forecasts(episodes.decision) if clairvoyant else states[:, 1]
        return torch.as_tensor(to_choices(look_up(self.problem.expert, loads)))

    def demonstrate(self) -> tuple[np.ndarray, Tensor, np.ndarray]:
        """Let the expert show for one rollout what it does: states (M, S), choices (M, N, 3), rewards (T, E).

        Now and then something else is done than shown, namely what suits another load, so that the
        examples also cover the states a learner gets into.
        """
        generator = np.random.default_rng((self.seed, 0))
        episodes = self.begin((self.seed, 0))
        states, choices, rewards = [], [], []
        for _ in range(self.settings.rollout):
            states.append(episodes.state())
            choices.append(self.expert_choices(episodes, states[-1]))
            other = look_up(self.problem.expert, generator.permutation(states[-1][:, 1]))
            stray = generator.random(len(other)) < self.settings.stray_share
            done = np.where(stray[:, None, None], other, from_choices(choices[-1].numpy()))
            score, interval = episodes.run_interval(done)
            rewards.append(self.training_reward(score, interval))
        return np.concatenate(states), torch.cat(choices), np.array(rewards)

    @torch.no_grad()
    def take(self, states: Tensor, choices: Tensor) -> Decision:
        """The decision that choices (E, N, 3) are in states (E, S), with the probability that the agent gives them."""
        masks = self.network.masks(states, choices)
        log_probability, _, value = self.network.evaluate(states, choices, masks)
        return Decision(choices, masks, log_probability, value)

    def training_reward(self, score: Score, interval: Interval) -> np.ndarray:
        """(E,) Eq. 7 less the penalty for dropped requests."""
        return score.reward - self.settings.drop_penalty * interval.dropped

    def scale(self, rewards: np.ndarray) -> np.ndarray:
        """Rewards in deviations of the expert's, compressed: the disaster of an overload must not drown the rest."""
        scaled = (rewards - float(self.reward_mean)) / float(self.reward_deviation)
        return np.sign(scaled) * np.log1p(np.abs(scaled))

    def collect(self, update: int) -> tuple[Rollout, dict[str, float]]:
        """Act for one rollout and estimate its advantages; also returns what to log about it."""
        p = self.settings
        episodes = self.begin((self.seed, 1 + update))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + update)
        by_expert = torch.zeros(p.environments, dtype=torch.bool)
        if p.expert_mode == "paper":
            by_expert = (torch.arange(p.environments) + update * p.environments) % p.expert_frequency == 0
        steps, states, rewards, dropped = [], [], [], 0
        for _ in range(p.rollout):
            state = episodes.state()
            tensor = torch.as_tensor(state)
            decision = self.network.act(tensor, generator)
            if by_expert.any():
                expert = self.expert_choices(episodes, state)
                choices = torch.where(by_expert[:, None, None], expert, decision.choices)
                decision = self.take(tensor, choices)
            score, interval = episodes.run_interval(from_choices(decision.choices.numpy()))
            states.append(tensor)
            steps.append(decision)
            rewards.append(self.training_reward(score, interval))
            dropped += int(interval.dropped.sum())
        final_value = self.network.act(torch.as_tensor(episodes.state()), None).value
        scaled = self.scale(np.array(rewards))
        values = torch.stack([*(step.value for step in steps), final_value]).numpy()
        advantages = generalised_advantages(scaled, values, p.discount, p.gae_decay)
        rollout = Rollout(
            torch.cat(states),
            torch.cat([step.choices for step in steps]),
            torch.cat([step.masks for step in steps]),
            torch.cat([step.log_probability for step in steps]),
            torch.as_tensor(advantages, dtype=torch.float32).flatten(),
            torch.as_tensor(advantages + values[:-1], dtype=torch.float32).flatten(),
        )
        return rollout, {"rollout/reward": float(np.mean(rewards)), "rollout/dropped": float(dropped)}

    # -- learning -------------------------------------------------------------------------------

    def imitation_loss(self, rows: Tensor) -> Tensor:
        """Cross-entropy of the expert's actions, and error of their value, on some rows of the demonstrations."""
        states, choices, masks, returns = (part[rows] for part in self.demonstrations)
        log_probability, _, value = self.network.evaluate(states, choices, masks)
        return self.settings.value_coefficient * (value - returns).square().mean() - log_probability.mean()

    def on_fit_start(self) -> None:
        """Demonstrations always; statistics and imitation from them only where a run begins."""
        reference = validate(self.problem, self.settings, lambda states: look_up(self.problem.reference, states[:, 1]))
        self.tolerated_drops = reference.dropped
        states, choices, rewards = self.demonstrate()
        begins = int(self.update) == 0
        if begins:
            self.network.extractor.observe(states)
            self.reward_mean.fill_(float(rewards.mean()))
            self.reward_deviation.fill_(max(float(rewards.std()), 1e-3))
        masks = self.network.masks(torch.as_tensor(states), choices)
        # The rewards are centred, so that nothing is the best guess of what comes after the rollout.
        nothing = np.zeros((len(rewards) + 1, rewards.shape[1]))
        returns = generalised_advantages(self.scale(rewards), nothing, self.settings.discount, 1.0)
        self.demonstrations = (torch.as_tensor(states), choices, masks, torch.as_tensor(returns.ravel()).float())
        if begins and self.settings.expert_mode == "pretrain":
            self.imitate()

    def imitate(self) -> None:
        """Behaviour cloning of the demonstrations."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3, eps=1e-5, fused=True)
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.settings.cloning_steps):
            rows = torch.randint(len(self.demonstrations[0]), (self.settings.minibatch,), generator=generator)
            loss = self.imitation_loss(rows)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.max_gradient_norm)
            optimizer.step()

    def loss(self, rollout: Rollout, rows: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative of Eq. 11 on some rows of a rollout, with its terms."""
        p = self.settings
        states, choices, masks, old_log_probability, advantage, target = (part[rows] for part in rollout)
        log_probability, entropy, value = self.network.evaluate(states, choices, masks)
        advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
        log_ratio = log_probability - old_log_probability
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1.0 - p.clip, 1.0 + p.clip)
        policy_loss = -torch.min(ratio * advantage, clipped * advantage).mean()  # Eq. 12
        value_loss = (value - target).square().mean()
        entropy_coefficient = p.entropy_coefficient * (1.0 - progress)
        total = policy_loss + p.value_coefficient * value_loss - entropy_coefficient * entropy.mean()  # Eq. 11
        with torch.no_grad():
            divergence = ((ratio - 1.0) - log_ratio).mean()
            clip_share = ((ratio - 1.0).abs() > p.clip).float().mean()
        return total, {
            "loss": total.detach(),
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy": entropy.mean().detach(),
            "divergence": divergence,
            "clip_share": clip_share,
        }

    def training_step(self, batch: Any, batch_index: int) -> None:
        """One update: rollout, advantages, epochs of minibatches."""
        p = self.settings
        update = int(self.update)
        progress = update / p.updates
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        for group in optimizer.optimizer.param_groups:
            group["lr"] = p.learning_rate * (1.0 - progress)
        rollout, metrics = self.collect(update)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + update)
        demonstration = p.demonstration_weight * max(0.0, 1.0 - 2.0 * progress) * (p.expert_mode == "pretrain")
        terms: list[dict[str, Tensor]] = []
        for _ in range(p.epochs):
            for rows in torch.randperm(len(rollout.states), generator=generator).split(p.minibatch):
                loss, term = self.loss(rollout, rows, progress)
                terms.append(term)
                if demonstration > 0.0:
                    examples = torch.randint(len(self.demonstrations[0]), (p.minibatch // 4 + 1,), generator=generator)
                    loss = loss + demonstration * self.imitation_loss(examples)
                optimizer.zero_grad()
                self.manual_backward(loss)
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), p.max_gradient_norm)
                optimizer.step()
            if terms[-1]["divergence"] > p.target_divergence:
                break
        self.update += 1
        for name in terms[0]:
            metrics[f"train/{name}"] = float(torch.stack([term[name] for term in terms]).mean())
        self.log_dict(metrics)

    # -- selection ------------------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_index: int) -> None:
        """The greedy policy on fixed episodes of the validation split."""
        result = validate(self.problem, self.settings, self.decide, self.tolerated_drops)
        self.log_dict({f"validation/{name}": value for name, value in result._asdict().items()})
        print(
            f"{self.title}: update {int(self.update)} of {self.settings.updates}, validation reward "
            f"{result.reward:.3f}, {result.dropped:.0f} dropped (IPA {self.tolerated_drops:.0f})",
            flush=True,
        )

    def decide(self, states: np.ndarray) -> np.ndarray:
        """(E, N, 3) greedy configurations for states (E, S)."""
        return from_choices(self.network.act(torch.as_tensor(states), None).choices.numpy())


class Validation(NamedTuple):
    """Means over ordinary episodes, requests dropped in all episodes, and the figure checkpoints compete on."""

    reward: float
    qos: float
    cost: float
    dropped: float
    selection: float


def validate(
    problem: Problem,
    parameters: TrainingParameters,
    decide: Callable[[np.ndarray], np.ndarray],
    tolerated_drops: float = 0.0,
) -> Validation:
    """Run a policy on the same validation episodes whenever it is called.

    Args:
        problem: gives the validation workload and its bursts.
        parameters: number and length of the episodes; half of them begin before bursts.
        decide: configurations (E, N, 3) for states (E, S).
        tolerated_drops: requests that may be dropped before the selection figure suffers.
    """
    p = parameters
    bursts = p.validation_episodes // 2
    episodes = begin_episodes(
        problem, problem.validation, problem.validation_bursts, bursts, p.validation_episodes, p.validation_decisions, 0
    )
    dropped = 0.0
    scores = []
    for _ in range(p.validation_decisions):
        score, interval = episodes.run_interval(decide(episodes.state()))
        scores.append((score.reward[bursts:], score.qos[bursts:], score.cost[bursts:]))
        dropped += float(interval.dropped.sum())
    reward, qos, cost = (float(np.mean(figures)) for figures in zip(*scores, strict=True))
    penalty = p.drop_penalty * max(0.0, dropped - tolerated_drops)
    return Validation(reward, qos, cost, dropped, reward - penalty)


def train(
    problem: Problem,
    parameters: TrainingParameters,
    seed: int,
    folder: Path,
    title: str = "agent",
    learner: Callable[[Problem, TrainingParameters, int, str], ProximalPolicyOptimisation] = ProximalPolicyOptimisation,
) -> ActorCritic:
    """Train an agent and return the network of its best checkpoint.

    Writes every metric of every update (see :func:`read_metrics`) and the checkpoints to ``folder``;
    where ``checkpoints/last.ckpt`` is there, the run goes on from it.

    Args:
        problem: what to train on.
        parameters: of the run.
        seed: of everything random; two runs with the same seed are equal.
        folder: where the run is kept.
        title: begins every line of progress.
        learner: what learns, where it is not :class:`ProximalPolicyOptimisation` itself.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # its advice on hardware is not for us
    module = learner(problem, parameters, seed, title)
    kept = folder / "checkpoints"
    best = ModelCheckpoint(kept, filename="best", monitor="validation/selection", mode="max")
    last = ModelCheckpoint(kept, filename="last", enable_version_counter=False)
    trainer = pl.Trainer(
        max_epochs=-(-parameters.updates // parameters.validate_every),
        accelerator="cpu",
        devices=1,
        logger=CSVLogger(folder, name="log", flush_logs_every_n_steps=1),
        callbacks=[best, last],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    resume = kept / "last.ckpt"
    updates: DataLoader[int] = DataLoader(range(parameters.validate_every))  # type: ignore[arg-type]
    once: DataLoader[int] = DataLoader(range(1))  # type: ignore[arg-type]
    trainer.fit(module, updates, once, ckpt_path=resume if resume.is_file() else None, weights_only=False)
    module.load_state_dict(torch.load(best.best_model_path, weights_only=False)["state_dict"])
    return module.network


def read_metrics(folder: Path) -> pd.DataFrame:
    """Every metric of a run by update: training and validation rows apart, each update of an interrupted run once."""
    parts = sorted(folder.glob("log/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    metrics = pd.concat([pd.read_csv(part) for part in parts], ignore_index=True)
    # What came after the last checkpoint of an interrupted run was done again.
    again = metrics.assign(training=metrics["rollout/reward"].notna()).duplicated(["step", "training"], keep="last")
    return metrics[~again].reset_index(drop=True)


@dataclass(frozen=True)
class Job:
    """One agent to train.

    Attributes:
        policy: name of the agent; agents of one name share their reward weights.
        seed: of the training.
        problem, parameters: see :func:`train`.
        path: the finished agent.
    """

    policy: str
    seed: int
    problem: Problem
    parameters: TrainingParameters
    path: Path

    @cached_property
    def about(self) -> dict[str, Any]:
        """All that the trained agent depends on beside its pipeline; data by their checksums and their largest load."""
        workloads = self.problem.training, self.problem.validation
        data = [zlib.crc32(part.tobytes()) for w in workloads for part in (w.counts, w.forecasts)]
        return {
            "policy": self.policy,
            "seed": self.seed,
            "weights": asdict(self.problem.weights),
            "training": asdict(self.parameters),
            "simulation": asdict(self.problem.simulation),
            "data": data,
            "largest_load": float(self.problem.training.forecasts.max()),
        }

    @cached_property
    def folder(self) -> Path:
        """Where the run is kept; one that differs in anything has another, so that no run resumes a strange one."""
        identity = json.dumps([self.about, asdict(self.problem.pipeline)], sort_keys=True)
        return self.path.parent / "runs" / f"{self.policy}-{self.seed}-{zlib.crc32(identity.encode()):08x}"

    @property
    def done(self) -> bool:
        """Whether the agent at :attr:`path` is the one this job would train."""
        try:
            return Agent.load(self.path, self.problem.pipeline).parameters == self.about
        except CheckpointError:
            return False


def run_job(job: Job) -> Path:
    """Train one agent and save it, unless that very agent is there already."""
    if not job.done:
        torch.set_num_threads(1)
        pipeline = job.problem.pipeline
        network = train(job.problem, job.parameters, job.seed, job.folder, f"{pipeline.name} {job.policy} {job.seed}")
        Agent(pipeline, export(network), job.about).save(job.path)
    return job.path


def run_jobs(jobs: Sequence[Job], workers: int) -> list[Path]:
    """Train several agents, ``workers`` at a time; what is finished stays finished if the run is interrupted."""
    return list(run_tasks(_run_job, None, jobs, workers))


def _run_job(_: None, job: Job) -> Path:
    return run_job(job)
