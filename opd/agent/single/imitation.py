"""Guidance by an expert (Alg. 2), in one of three modes.

* ``paper``: the expert acts in every f-th episode, and its actions are stored like the agent's own. They are not
  samples of the old policy, which biases Eq. 12.
* ``pretrain``: the network first imitates the expert by behaviour cloning. A demonstration term in the loss, which
  fades away, then keeps it near the expert while the critic settles.
* ``none``: the expert gives no actions, only the scale of states and rewards and the configurations that episodes
  begin with, as in the other modes.

The expert is a solver, whose configurations for all loads are a table, or the planner (``lookahead``), which tries
configurations in the simulator at every decision.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from opd.agent.experience import compute_gae
from opd.agent.single.network import Action, ActorCritic
from opd.agent.single.problem import Problem, TrainingParameters, look_up
from opd.agent.single.rollout import Guide, RewardScale, training_reward
from opd.pipeline import as_array, from_choices, to_choices
from opd.planner.lookahead import Planner, PlannerParameters
from opd.simulator.environment import PipelineVectorEnv
from opd.solvers.exact import Expert, solver_for


class TableExpert(NamedTuple):
    """A solver as the expert.

    Attributes:
        table: (L + 1, N, 3) its configuration for every whole load 0..L.
        clairvoyant: it looks up the true load instead of the forecast.
    """

    table: np.ndarray
    clairvoyant: bool

    def choices(
        self, envs: PipelineVectorEnv, states: np.ndarray, episodes: np.ndarray, generator: np.random.Generator
    ) -> Tensor:
        """(M, N, 3) the expert's choices in ``episodes`` (M,) of these environments, which are in states (E, S)."""
        loads = envs.workload.perfect_forecasts(envs.decision) if self.clairvoyant else states[:, 1]
        return torch.as_tensor(to_choices(look_up(self.table, loads[episodes])))


class PlannerExpert:
    """The planner as the expert, with the effort of policy ``lookahead``, see :mod:`opd.planner.lookahead`.

    It plans for one episode after the other and takes some 20 to 40 ms a decision, a table microseconds. So it is asked
    only where its choice is used: in the E T decisions of the rollout that it demonstrates, 2048 by default, which an
    interrupted run demonstrates again; and in mode ``paper`` in every f-th episode, so a large f saves time. Less
    effort would save little and make demonstrations contradict each other: with 12 futures instead of 56 it decides
    the same twice in 12 to 31 % of all situations instead of 41 to 62 %.

    Args:
        problem: gives pipeline, objective and device, the futures that are planned for, and the table of the myopic
            solver, whose configurations replace some that are demonstrated.
    """

    def __init__(self, problem: Problem) -> None:
        self.table, self._futures = problem.expert, problem.futures
        pipeline, objective, simulation = problem.pipeline, problem.objective, problem.simulation
        self._planner = Planner(pipeline, objective, simulation, solver_for(objective, simulation), PlannerParameters())

    def choices(
        self, envs: PipelineVectorEnv, states: np.ndarray, episodes: np.ndarray, generator: np.random.Generator
    ) -> Tensor:
        """(M, N, 3) see :meth:`TableExpert.choices`; the generator draws futures, arrivals and service times."""
        return torch.as_tensor(to_choices(np.array([self._decide(envs, int(e), generator) for e in episodes])))

    def _decide(self, envs: PipelineVectorEnv, episode: int, generator: np.random.Generator) -> np.ndarray:
        observation = envs.observation(episode)
        counts = self._planner.draw(self._futures, observation, generator)
        return as_array(self._planner.decide(observation, counts, generator))


def expert_of(problem: Problem, expert: Expert) -> TableExpert | PlannerExpert:
    """The expert of a problem, ready to act."""
    return PlannerExpert(problem) if expert == "lookahead" else TableExpert(problem.expert, expert == "clairvoyant")


def paper_guide(
    expert: TableExpert | PlannerExpert, network: ActorCritic, parameters: TrainingParameters, seed: int, update: int
) -> Guide | None:
    """Let the expert act in every f-th episode of the run (Alg. 2); None if no episode of this update is among them."""
    numbers = np.arange(parameters.num_envs) + update * parameters.num_envs
    by_expert = np.flatnonzero(numbers % parameters.expert_frequency == 0)
    if not len(by_expert):
        return None
    generator = np.random.default_rng((seed, 1 + update, 1))

    def guide(envs: PipelineVectorEnv, states: Tensor, actions: Action) -> Action:
        choices = actions.choices.clone()
        choices[by_expert] = expert.choices(envs, states.numpy(), by_expert, generator)
        return network.action_of(states, choices)

    return guide


class Demonstrations(NamedTuple):
    """Choices of the expert in T decisions of E episodes, M = T E samples."""

    states: Tensor  # (M, S)
    choices: Tensor  # (M, N, 3)
    rewards: np.ndarray  # (T, E)


def demonstrate(
    expert: TableExpert | PlannerExpert,
    envs: PipelineVectorEnv,
    parameters: TrainingParameters,
    generator: np.random.Generator,
) -> Demonstrations:
    """Let the expert act for one rollout.

    Some of its decisions are not executed but replaced by one for another load. The demonstrations then also cover
    states that a learner reaches through its own errors.

    Args:
        expert: acts.
        envs: E of them, which have begun.
        parameters: number of decisions, share of replaced ones, and how rewards count.
        generator: of the replacements, and of what the expert draws.
    """
    states, choices, rewards = [], [], []
    everywhere = np.arange(envs.num_envs)
    for _ in range(parameters.rollout_steps):
        states.append(envs.state())
        choices.append(expert.choices(envs, states[-1], everywhere, generator))
        other = look_up(expert.table, generator.permutation(states[-1][:, 1]))
        replaced = generator.random(len(other)) < parameters.perturbation_share
        executed = np.where(replaced[:, None, None], other, from_choices(choices[-1].numpy()))
        score, interval = envs.run_interval(executed)
        rewards.append(training_reward(score, interval, parameters.drop_penalty))
    return Demonstrations(torch.as_tensor(np.concatenate(states)), torch.cat(choices), np.array(rewards))


class Imitation:
    """The loss of imitating demonstrations: cross-entropy of the actions, and error of their value.

    Args:
        network: imitates.
        demonstrations: to imitate.
        scale: of the rewards.
        parameters: discount, and weight of the value's error.
    """

    def __init__(
        self, network: ActorCritic, demonstrations: Demonstrations, scale: RewardScale, parameters: TrainingParameters
    ) -> None:
        self._network = network
        self._parameters = parameters
        states, choices, rewards = demonstrations
        # Scaled rewards are centred, so zero is the best guess of the value after the last decision.
        zeros = np.zeros((len(rewards) + 1, rewards.shape[1]))
        returns = torch.as_tensor(compute_gae(scale(rewards), zeros, parameters.discount, 1.0).ravel()).float()
        self._samples = states, choices, network.masks(states, choices), returns

    def loss(self, rows: Tensor) -> Tensor:
        """The loss on some rows of the demonstrations."""
        states, choices, masks, returns = (part[rows] for part in self._samples)
        log_prob, _, value = self._network.evaluate(states, choices, masks)
        return self._parameters.value_coefficient * (value - returns).square().mean() - log_prob.mean()

    def random_rows(self, number: int, generator: torch.Generator) -> Tensor:
        """(number,) random rows of the demonstrations."""
        return torch.randint(len(self._samples[0]), (number,), generator=generator)

    def clone(self, seed: int) -> None:
        """Train the network on this loss alone: behaviour cloning."""
        p = self._parameters
        optimizer = torch.optim.Adam(self._network.parameters(), lr=1e-3, eps=1e-5, fused=True)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(p.cloning_steps):
            loss = self.loss(self.random_rows(p.minibatch_size, generator))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._network.parameters(), p.max_grad_norm)
            optimizer.step()
