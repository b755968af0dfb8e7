"""Proximal policy optimisation by Stable-Baselines3 and sb3-contrib: peers of the training in ``opd.agent.single.ppo``.

Both learn on :class:`opd.simulator.environment.PipelineEnv`, as their users would: 32 copies in a ``DummyVecEnv`` (one
process, because a step takes less time than its transfer to another process), observations and rewards normalised by
``VecNormalize``, and a learning rate that decreases to zero. The environments of :data:`BATCHED` are stepped together
instead, which shows how much of the difference is the cost of stepping them one by one. Parameters with the same
meaning have the values of :class:`opd.agent.single.problem.TrainingParameters`, including the decreasing entropy
coefficient, which is constant in these libraries. Monitor wrappers and progress bars are left out, which favours the
peers' speed.

The network has the trunk of ours without the standardisation, which ``VecNormalize`` does: one layer and the same
residual blocks, shared by policy and value, then one hidden layer of the same width each. The heads differ: theirs
choose all entries of an action independently, ours one after the other.

The environment refuses an action above the capacity: the previous configuration keeps running. ``ppo`` has to learn
this. ``maskable-ppo`` avoids what independent masks can exclude. The environment's own masks exclude single entries
only, often none, so :class:`StageActions` gives it one entry a stage, with a mask over all combinations of variant,
replicas and batch size. Such masks cannot express the limit that the stages share.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from io import BytesIO
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from opd.agent.single.network import FeaturesExtractor
from opd.agent.single.problem import Configure, Problem, TrainingParameters
from opd.measurement import running_configurations
from opd.pipeline import Pipeline, from_choices
from opd.simulator.environment import PipelineEnv, PipelineVectorEnv, admit
from opd.study.benchmarks.training_observer import Observe

PEERS = ("ppo", "maskable-ppo")
"""With environments as their users would have them."""

BATCHED = ("ppo-batched", "maskable-ppo-batched")
"""With environments that are stepped together, as ours are."""


# ---------------------------------------------------------------------------------------------------- environments


class StageActions(gymnasium.ActionWrapper):
    """The same environment with one entry a stage, the index of its (variant, replicas, batch size).

    Args:
        environment: the environment to wrap.
    """

    def __init__(self, environment: PipelineEnv) -> None:
        super().__init__(environment)
        pipeline = environment.pipeline
        cores = pipeline.tables.cores
        cheapest = cores.min(axis=1)
        self._entries, masks = [], []
        for n, task in enumerate(pipeline.tasks):
            shape = (len(task.variants), pipeline.max_replicas, len(pipeline.batch_sizes))
            entries = np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), axis=1)
            variant, replicas, _ = entries.T
            self._entries.append(entries)
            others = np.delete(cheapest, n).sum()
            masks.append((replicas + 1) * cores[n, variant] <= pipeline.capacity - others)
        self.action_space = gymnasium.spaces.MultiDiscrete([len(mask) for mask in masks])
        self._masks = np.concatenate(masks)

    def action(self, action: np.ndarray) -> np.ndarray:
        """(3 N,) the environment's action for one of this wrapper, (N,)."""
        return self.flat(np.asarray(action)[None])[0]

    def flat(self, actions: np.ndarray) -> np.ndarray:
        """(E, 3 N) actions of the environment for actions (E, N) of this wrapper."""
        return np.concatenate([entries[actions[:, n]] for n, entries in enumerate(self._entries)], axis=1)

    def action_masks(self) -> np.ndarray:
        """Flat booleans, stage after stage: what fits next to the cheapest choices of all other stages."""
        return self._masks


class BatchedEnvironments(DummyVecEnv):
    """E environments on a problem's training days, stepped together.

    Args:
        problem: pipeline, load, reward and simulation.
        copies: E functions that make an environment, for its spaces and masks; it is never stepped.
    """

    def __init__(self, problem: Problem, copies: list[Callable[[], gymnasium.Env]]) -> None:
        super().__init__(copies)
        p = problem
        self.together = PipelineVectorEnv(p.pipeline, p.training, p.objective, p.simulation, num_envs=self.num_envs)

    def reset(self) -> np.ndarray:
        """(E, S) states at random decisions, with empty queues and one replica of every smallest variant."""
        states, _ = self.together.reset(seed=self._seeds[0])
        self._reset_seeds()  # each is used once, as in the library's own environments
        return states

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """States (E, S), rewards (E,), ends (E,) and infos; where episodes end, the next have begun."""
        single = self.envs[0]
        actions = single.flat(self.actions) if isinstance(single, StageActions) else self.actions
        states, rewards, _, over, infos = self.together.step(actions)
        more: list[dict[str, Any]] = [{} for _ in states]
        for ended in np.flatnonzero(over):
            more[ended] = {"terminal_observation": infos["final_obs"][ended], "TimeLimit.truncated": True}
        return states, rewards.astype(np.float32), over, more


def environments(peer: str, problem: Problem, parameters: TrainingParameters) -> VecNormalize:
    """Make normalised copies of the environment for a peer, stepped together if it is a batched one."""

    def one() -> gymnasium.Env:
        made = PipelineEnv(problem.pipeline, problem.training, problem.objective, problem.simulation)
        return StageActions(made) if peer.startswith("maskable") else made

    copies = [one] * parameters.num_envs
    several = BatchedEnvironments(problem, copies) if peer in BATCHED else DummyVecEnv(copies)
    return VecNormalize(several, gamma=parameters.discount)


# -------------------------------------------------------------------------------------------- the greedy policy


def applied_configurations(pipeline: Pipeline, actions: np.ndarray, states: np.ndarray) -> np.ndarray:
    """The configurations that run after actions; a refused action changes nothing.

    Args:
        pipeline: the pipeline, N tasks.
        actions: (E, 3 N) actions of the environment.
        states: (E, S) states they were chosen in.

    Returns:
        (E, N, 3) configurations.
    """
    wanted = from_choices(actions.reshape(len(actions), -1, 3))
    return admit(pipeline, running_configurations(pipeline, states), wanted)[0]


@dataclass(frozen=True)
class GreedyPeer:
    """A peer's policy without exploration, with the interface of ours: configurations (E, N, 3) for states (E, S).

    Attributes:
        pipeline: the pipeline, N tasks.
        policy: of one of the libraries.
        statistics: mean and variance by which observations were normalised.
        limit: largest normalised observation.
        stages: converts a stage's entry into three, and has the masks; None for the environment's own actions.
    """

    pipeline: Pipeline
    policy: BasePolicy
    statistics: RunningMeanStd
    limit: float
    stages: StageActions | None

    def observations(self, states: np.ndarray) -> np.ndarray:
        """(E, S) normalised states, as ``VecNormalize`` does it."""
        scaled = (states - self.statistics.mean) / np.sqrt(self.statistics.var + 1e-8)
        return np.clip(scaled, -self.limit, self.limit).astype(np.float32)

    def actions(self, states: np.ndarray) -> np.ndarray:
        """(E, 3 N) actions of the environment."""
        observations = self.observations(states)
        if self.stages is None:
            return self.policy.predict(observations, deterministic=True)[0]
        masks = np.tile(self.stages.action_masks(), (len(states), 1))
        policy = cast(MaskableActorCriticPolicy, self.policy)
        return self.stages.flat(policy.predict(observations, deterministic=True, action_masks=masks)[0])

    def __call__(self, states: np.ndarray) -> np.ndarray:
        return applied_configurations(self.pipeline, self.actions(states), states)


# ----------------------------------------------------------------------------------------------------- training


class Trunk(BaseFeaturesExtractor):
    """The feature extractor of our network, as one of these libraries; its own standardisation does nothing."""

    def __init__(self, observation_space: gymnasium.spaces.Box, width: int, blocks: int) -> None:
        super().__init__(observation_space, width)
        self.trunk = FeaturesExtractor(observation_space.shape[0], width, blocks)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """(E, S) to (E, width)."""
        return self.trunk(observations)


class _Schedule(BaseCallback):
    """Decrease the entropy coefficient, and have the policy observed between updates."""

    def __init__(self, parameters: TrainingParameters, observe: Callable[[int], object]) -> None:
        super().__init__()
        self._parameters = parameters
        self._observe = observe

    def _on_rollout_start(self) -> None:
        p = self._parameters
        assert isinstance(self.model, PPO | MaskablePPO)
        update = self.num_timesteps // (p.num_envs * p.rollout_steps)
        self.model.ent_coef = p.entropy_coefficient * (1.0 - update / p.updates)
        if update % p.validate_every == 0:
            self._observe(self.num_timesteps)

    def _on_step(self) -> bool:
        return True


def build_model(peer: str, vectorised: VecNormalize, parameters: TrainingParameters, seed: int) -> PPO | MaskablePPO:
    """Make a peer that is ready to learn.

    Args:
        peer: one of :data:`PEERS` or :data:`BATCHED`.
        vectorised: its environments.
        parameters: ours; those with the same meaning are used.
        seed: of everything random.

    Raises:
        ValueError: if there is no such peer.
    """
    if peer not in (*PEERS, *BATCHED):
        raise ValueError(f"peer {peer!r} is not one of {(*PEERS, *BATCHED)}")
    p = parameters
    return (MaskablePPO if peer.startswith("maskable") else PPO)(
        "MlpPolicy",
        vectorised,
        learning_rate=lambda remaining: p.learning_rate * remaining,
        n_steps=p.rollout_steps,
        batch_size=p.minibatch_size,
        n_epochs=p.epochs,
        gamma=p.discount,
        gae_lambda=p.gae_lambda,
        clip_range=p.clip_range,
        ent_coef=p.entropy_coefficient,
        vf_coef=p.value_coefficient,
        max_grad_norm=p.max_grad_norm,
        target_kl=p.target_kl,
        policy_kwargs={
            "features_extractor_class": Trunk,
            "features_extractor_kwargs": {"width": p.width, "blocks": p.blocks},
            "net_arch": {"pi": [p.width], "vf": [p.width]},
            "activation_fn": nn.ReLU,
        },
        # Environment e gets the sum of seed and e; with distant seeds no two runs share episodes.
        seed=seed * 1_000_003,
        device="cpu",
    )


def _copy_of(policy: BasePolicy) -> BasePolicy:
    """Copy by the libraries' file format, because in memory a policy refers to its last computation."""
    file = BytesIO()
    policy.save(file)  # type: ignore[arg-type]
    file.seek(0)
    return type(policy).load(file, device="cpu")  # type: ignore[arg-type]


def train_peer(peer: str, problem: Problem, parameters: TrainingParameters, seed: int, observe: Observe) -> None:
    """Train a peer for as many steps as ours, observed as often as ours is validated.

    Args:
        peer: one of :data:`PEERS` or :data:`BATCHED`.
        problem: the training problem, without its experts and bursts.
        parameters: ours.
        seed: of everything random.
        observe: called before the first update and after every ``validate_every`` updates.
    """
    vectorised = environments(peer, problem, parameters)
    model = build_model(peer, vectorised, parameters, seed)
    model.set_logger(Logger(folder=None, output_formats=[]))  # by default a folder is left among temporary files
    dummy = vectorised.venv
    assert isinstance(dummy, DummyVecEnv)
    stages = dummy.envs[0] if isinstance(dummy.envs[0], StageActions) else None

    def greedy() -> Configure:
        copies = _copy_of(model.policy), deepcopy(cast(RunningMeanStd, vectorised.obs_rms))
        return GreedyPeer(problem.pipeline, *copies, vectorised.clip_obs, stages)

    model.learn(parameters.total_timesteps, callback=_Schedule(parameters, lambda steps: observe(steps, greedy)))
    observe(parameters.total_timesteps, greedy)
