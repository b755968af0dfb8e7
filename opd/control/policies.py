"""Policies behind one interface: what is seen at a decision goes in, a configuration comes out.

The baselines of Sec. VI-A, two exact optimisers of the reward as yardsticks, and the agent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from opd.agent.agent import Agent
from opd.measurement import Observation, idle_observation, observed_state
from opd.objective import Weights
from opd.pipeline import Configuration, Pipeline
from opd.solvers import IpaParameters, greedy, ipa_dynamic_program, ipa_highs, myopic, random_configuration


class Policy(Protocol):
    """Anything that configures a pipeline."""

    by_expert: bool = False
    """Whether the last decision was not an agent's own but its expert's."""

    def decide(self, observation: Observation) -> Configuration:
        """The configuration to run until the next decision.

        Raises:
            InfeasibleError: if not even the smallest configuration fits the available cores.
        """
        ...


def _on(pipeline: Pipeline, observation: Observation) -> Pipeline:
    """The pipeline on what is left of its device, where something else took cores of it."""
    if not observation.available_cores < pipeline.capacity:
        return pipeline
    return replace(pipeline, capacity=int(observation.available_cores))


class RandomPolicy(Policy):
    """Any feasible configuration, anew at every decision."""

    def __init__(self, pipeline: Pipeline, seed: int) -> None:
        self._pipeline = pipeline
        self._generator = np.random.default_rng(seed)

    def decide(self, observation: Observation) -> Configuration:
        """A random feasible configuration."""
        return random_configuration(_on(self._pipeline, observation), self._generator)


class GreedyPolicy(Policy):
    """The cheapest configuration that carries the forecast."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def decide(self, observation: Observation) -> Configuration:
        """Fewest cores for the forecast load."""
        return greedy(_on(self._pipeline, observation), observation.predicted_load)


class IpaPolicy(Policy):
    """IPA with the capacity limit added, solved exactly: by HiGHS, or by dynamic programming."""

    def __init__(self, pipeline: Pipeline, parameters: IpaParameters, solver: str = "highs") -> None:
        solvers = {"highs": ipa_highs, "dynamic-program": ipa_dynamic_program}
        if solver not in solvers:
            raise ValueError(f"IPA solver {solver!r} is not one of {', '.join(solvers)}")
        self._pipeline, self._parameters, self._solve = pipeline, parameters, solvers[solver]

    def decide(self, observation: Observation) -> Configuration:
        """The optimum of IPA's objective for the forecast load."""
        return self._solve(_on(self._pipeline, observation), observation.predicted_load, self._parameters)


class MyopicPolicy(Policy):
    """The exact maximiser of Eq. 7 for the forecast load, blind to start-up times and to what comes later."""

    def __init__(self, pipeline: Pipeline, weights: Weights, batch_timeout: float) -> None:
        self._pipeline, self._weights, self._batch_timeout = pipeline, weights, batch_timeout

    def decide(self, observation: Observation) -> Configuration:
        """The best single interval if the forecast held."""
        pipeline = _on(self._pipeline, observation)
        return myopic(pipeline, observation.predicted_load, self._weights, self._batch_timeout)


class ClairvoyantPolicy(MyopicPolicy):
    """As myopic, but with a perfect forecast: told the largest load of the next 20 s; exists only in simulation."""

    def decide(self, observation: Observation) -> Configuration:
        """The best single interval for the true load.

        Raises:
            ValueError: if the backend does not know the future.
        """
        if observation.coming_load is None:
            raise ValueError("the clairvoyant policy needs the coming load, which only the simulated backend knows")
        pipeline = _on(self._pipeline, observation)
        return myopic(pipeline, observation.coming_load, self._weights, self._batch_timeout)


def planned_load(observation: Observation) -> float:
    """Requests/s to reckon with: the forecast, and no less than what came in the last interval."""
    return max(observation.predicted_load, observation.incoming_load)


class BacklogPolicy(Policy):
    """Another policy that plans for what waits, too: for the load and for working it off within an interval.

    Args:
        policy: decides.
        interval: seconds between two decisions.
    """

    def __init__(self, policy: Policy, interval: float) -> None:
        self._policy, self._interval = policy, interval

    def decide(self, observation: Observation) -> Configuration:
        """What the policy would decide if all that waits came in the next interval, beside the load."""
        backlog = float(observation.queue.sum()) / self._interval
        return self._policy.decide(replace(observation, predicted_load=planned_load(observation) + backlog))


def expert_policy(pipeline: Pipeline, parameters: Mapping[str, Any]) -> Policy:
    """The expert that an agent was trained with, from what is kept beside it."""
    weights, timeout = Weights(**parameters["weights"]), parameters["simulation"]["batch_timeout"]
    if parameters["training"]["expert"] == "ipa":
        rates = IpaParameters(weights.alpha, weights.cost_weight, weights.batch_weight)
        return IpaPolicy(pipeline, rates, "dynamic-program")
    return MyopicPolicy(pipeline, weights, timeout)


FAMILIAR = 0.8
"""Share of the largest load of its training up to which an agent is trusted: beyond, it has seen little."""

BEHIND = 1.0
"""Seconds of load that may wait, beside the batches that form, before an agent is relieved."""

RELIEF = 18
"""Decisions that its expert then makes: three minutes, in which queues empty and new replicas are up."""


class AgentPolicy(Policy):
    """The trained agent, and its expert where the agent cannot be trusted.

    Beyond what it has seen a network says anything, and most often what it said last, which then is far too little. So
    the expert decides where there is more load than the agent saw often in training, and for a while after requests
    have piled up: an agent that has fallen behind would do so again as soon as the queues are empty. The expert plans
    for what waits, too.

    A policy remembers how long its agent is still relieved, so every cycle needs one of its own.

    Args:
        agent: decides; where its parameters name no ``largest_load``, always.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._familiar_load = FAMILIAR * agent.parameters.get("largest_load", np.inf)
        self._expert = _backlog_expert(agent) if np.isfinite(self._familiar_load) else None
        self._relieved = 0

    def decide(self, observation: Observation) -> Configuration:
        """One forward pass on the state of Eq. 5, or the expert's answer."""
        self._relieved = RELIEF if _behind(observation) else max(self._relieved - 1, 0)
        beyond = planned_load(observation) > self._familiar_load
        if self._expert is not None and (self._relieved or beyond):
            self.by_expert = True
            return self._expert.decide(observation)
        self.by_expert = False
        return self._agent.decide(observed_state(self._agent.pipeline, observation)[0])


def _behind(observation: Observation) -> bool:
    """Whether more waits than a second of load and, at every stage, a batch that forms."""
    forming = sum(stage.batch_size for stage in observation.configuration)
    return float(observation.queue.sum()) > BEHIND * planned_load(observation) + forming


def _backlog_expert(agent: Agent) -> BacklogPolicy:
    """The agent's expert, planning for what waits, too; it has decided once, because the first time takes longest."""
    expert = BacklogPolicy(expert_policy(agent.pipeline, agent.parameters), agent.parameters["simulation"]["interval"])
    expert.decide(idle_observation(agent.pipeline))
    return expert
