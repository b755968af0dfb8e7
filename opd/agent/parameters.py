"""Parameters of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass

EXPERT_MODES = ("paper", "pretrain", "none")
EXPERTS = ("myopic", "ipa", "clairvoyant")

_COUNTS = (
    *("updates", "num_envs", "rollout_steps", "epochs", "minibatch_size", "width", "expert_frequency"),
    *("validate_every", "validation_episodes", "validation_decisions"),
)
_SHARES = ("discount", "gae_lambda", "burst_share", "perturbation_share")


@dataclass(frozen=True)
class TrainingParameters:
    """Everything that shapes a training run.

    Attributes:
        updates: number of rollouts, each followed by ``epochs`` passes over it.
        num_envs: parallel episodes of a rollout.
        rollout_steps: decisions in each of them.
        epochs: passes over a rollout.
        minibatch_size: states in one gradient step.
        learning_rate: of Adam at the start; falls linearly to zero.
        discount: factor by which the next interval's reward counts less than this one's.
        gae_lambda: lambda of generalised advantage estimation.
        clip_range: epsilon of Eq. 12.
        value_coefficient: c_1 of Eq. 11.
        entropy_coefficient: c_2 of Eq. 11 at the start; falls linearly to zero.
        max_grad_norm: norm to which larger gradients are scaled down.
        target_kl: approximate KL divergence above which an update skips its remaining epochs.
        width: neurons of a hidden layer.
        blocks: residual blocks.
        expert: ``myopic``, ``ipa`` or ``clairvoyant``.
        expert_mode: ``pretrain``, ``paper`` or ``none``, see :mod:`opd.agent.imitation`.
        expert_frequency: f of Alg. 2, in mode ``paper``.
        cloning_steps: gradient steps of behaviour cloning, in mode ``pretrain``.
        perturbation_share: share of demonstrated decisions that are replaced by another one when they are executed.
        demonstration_weight: of the imitation loss at the start, in mode ``pretrain``; falls linearly to zero half-way.
        burst_share: share of training episodes that begin shortly before a burst of load.
        drop_penalty: training reward lost per dropped request; reported rewards are Eq. 7 alone.
        validate_every: updates between two validations, each of which compares the network with the best so far.
        validation_episodes: episodes of a validation, half of them begun before bursts.
        validation_decisions: decisions in each of them.

    Raises:
        ValueError: if a value is out of its range.
    """

    updates: int = 80
    num_envs: int = 32
    rollout_steps: int = 64
    epochs: int = 5
    minibatch_size: int = 256
    learning_rate: float = 5e-4
    discount: float = 0.9
    gae_lambda: float = 0.9
    clip_range: float = 0.2
    value_coefficient: float = 0.5
    entropy_coefficient: float = 0.005
    max_grad_norm: float = 0.5
    target_kl: float = 0.03
    width: int = 128
    blocks: int = 2
    expert: str = "myopic"
    expert_mode: str = "pretrain"
    expert_frequency: int = 5
    cloning_steps: int = 600
    perturbation_share: float = 0.1
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
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if self.updates % self.validate_every:
            raise ValueError(f"updates {self.updates} is not a multiple of validate_every {self.validate_every}")
        for name in _SHARES:
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} {getattr(self, name)} is not a share between 0 and 1")
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate {self.learning_rate} must be positive and finite")

    @property
    def total_timesteps(self) -> int:
        """Decisions of a whole run."""
        return self.updates * self.num_envs * self.rollout_steps
