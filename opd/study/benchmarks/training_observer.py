"""Training under observation: CPU-seconds without the evaluation of policies, and the checkpoint that is best."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import numpy as np
from torch.optim.optimizer import register_optimizer_step_post_hook

from opd.agent.single.ppo import PPOTrainer, train
from opd.agent.single.problem import Configure, ExpertMode, Problem, TrainingParameters, expert_table
from opd.agent.single.rollout import Validation, ipa_drops, validate

Observe = Callable[[int, Callable[[], Configure]], Validation]
"""Called with the number of steps so far and a function that copies the greedy policy; returns the validation."""

MODES: dict[str, ExpertMode] = {"agent": "pretrain", "agent-unaided": "none"}
"""Our two methods and their expert modes."""


class TrainingObserver:
    """A stopwatch that stops while policies are evaluated, and keeps the best policy.

    Args:
        problem: defines the validation episodes.
        parameters: number and length of the episodes, and the penalty for dropped requests.
    """

    def __init__(self, problem: Problem, parameters: TrainingParameters) -> None:
        self._problem = problem
        self._parameters = parameters
        # As in our training: dropping no more requests than IPA costs nothing when checkpoints are compared.
        self._tolerated_drops = ipa_drops(problem, parameters)
        self.rows: list[dict[str, float]] = []
        self.best: Configure | None = None
        self._best = -np.inf

    @contextmanager
    def training(self) -> Iterator[None]:
        """Time the training in the ``with`` block, and count the steps of all optimisers in it."""
        self._begin, self._paused, self._gradient_steps = process_time(), 0.0, 0
        counting = register_optimizer_step_post_hook(self._count)
        try:
            yield
        finally:
            counting.remove()

    def _count(self, *arguments: object) -> None:
        self._gradient_steps += 1

    def observe(self, steps: int, copy: Callable[[], Configure]) -> Validation:
        """Record the CPU-seconds of ``steps`` steps, then evaluate a copy of the policy while the time stops.

        An untrained policy, with 0 steps, is never the best.
        """
        now = process_time()
        decide = copy()
        result = validate(self._problem, self._parameters, decide, self._tolerated_drops)
        spent = {"cpu_seconds": now - self._begin - self._paused, "gradient_steps": self._gradient_steps}
        self.rows.append({"steps": steps, **spent, **result._asdict()})
        if steps and result.selection > self._best:
            self._best, self.best = result.selection, decide
        self._paused += process_time() - now
        return result


class ObservedTrainer(PPOTrainer):
    """Our training, with an observer that evaluates the policy."""

    def __init__(self, observe: Observe, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._observe = observe

    def prepare(self) -> None:
        """Demonstrate and imitate, which are part of training, then validate for the first time."""
        super().prepare()
        self.validate(0)

    def validate(self, updates_done: int) -> Validation:
        """Validate as usual, outside of the CPU-seconds."""
        steps = updates_done * self.parameters.num_envs * self.parameters.rollout_steps
        return self._observe(steps, lambda: deepcopy(self.network).configure)


def train_agent(method: str, problem: Problem, parameters: TrainingParameters, seed: int, observe: Observe) -> None:
    """Train our agent from end to end: the expert's table, then :func:`opd.agent.single.ppo.train`.

    Args:
        method: a key of :data:`MODES`.
        problem: the training problem.
        parameters: of the run.
        seed: of everything random.
        observe: called before the first update and after every ``validate_every`` updates.
    """
    expert = expert_table(
        problem.pipeline, problem.objective, problem.simulation, parameters.expert, len(problem.expert) - 1
    )
    own = replace(parameters, expert_mode=MODES[method])
    with TemporaryDirectory() as folder:
        train(problem._replace(expert=expert), own, seed, Path(folder), method, partial(ObservedTrainer, observe))
