"""The agent for every pipeline as a policy, with the planner where a situation is unlike those of its training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from opd.agent.description import Description, describe, situation_of
from opd.agent.scoring import choose
from opd.agent.weights import TrainedAgent
from opd.control.policies import PerDevice, Policy
from opd.measurement import Observation, SimulationParameters, backlog, planned_load
from opd.objective import Objective
from opd.pipeline import Configuration, InfeasibleError, Pipeline, as_configuration, from_choices
from opd.solvers.exact import Solve
from opd.workload.futures import Futures

LARGEST_SHARE = 1.5
"""Load, as a share of what the device carries, above which the planner decides: everything is used then."""

LONGEST_START = 90.0
"""Start-up time in seconds above which the planner decides."""

MOST_REPLICAS, LARGEST_BATCH = 24, 64
"""Limits of a stage above which the planner decides."""


class AgentPolicy(Policy):
    """One agent for every pipeline, device and objective.

    Args:
        pipeline: the pipeline to control.
        objective: of the reward.
        simulation: interval and batch timeout.
        solve: the exact solver of the objective, whose configurations the agent compares options with.
        agent: weights.
        futures: source of the quantiles of the coming load.
        fallback: makes the policy for what is out of the agent's distribution; made when it is first needed.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        objective: Objective,
        simulation: SimulationParameters,
        solve: Solve,
        agent: TrainedAgent,
        futures: Futures,
        fallback: Callable[[], Policy],
    ) -> None:
        self._pipeline, self._interval = pipeline, simulation.interval
        self._descriptions: PerDevice[Description] = PerDevice(
            pipeline, lambda present: describe(present, objective, simulation, solve)
        )
        self._weights, self._futures = agent.weights, futures
        self._make_fallback, self._fallback_policy = fallback, None  # type: Callable[[], Policy], Policy | None
        self._greedy = np.full((1, 3 * len(pipeline.tasks)), -1.0)
        self._strange = _out_of_distribution(pipeline)
        self.origin = agent.origin

    def warm_up(self, observation: Observation) -> None:
        """Decide once, and let the fallback policy do so if it will be needed."""
        self.decide(observation)

    def decide(self, observation: Observation) -> Configuration:
        """The agent's choices, or the planner's decision where the situation is out of the agent's distribution."""
        self.fallback_reason = self._strange or self._overload(observation)
        self.fallback = bool(self.fallback_reason)
        if self.fallback:
            return self._fallback().decide(observation)
        description = self._descriptions.now(observation)
        quantiles = self._futures.quantiles(observation.history, observation.predicted_load)
        situation = situation_of(description, observation, quantiles)
        choices, _ = choose(self._weights, description, situation, self._greedy)
        if choices.min() < 0:
            raise InfeasibleError(
                f"{observation.available_cores:g} available cores are too few for any configuration of pipeline "
                f"{self._pipeline.name!r}"
            )
        return as_configuration(from_choices(choices[0]))

    def _overload(self, observation: Observation) -> str:
        """What is too much of the load for the device, in words; empty if nothing is."""
        load = planned_load(observation) + backlog(observation, self._interval)
        most = LARGEST_SHARE * self._descriptions.now(observation).loads[-1]
        return f"a load of {load:.3g} requests/s is above {most:.3g}" if load > most else ""

    def _fallback(self) -> Policy:
        if self._fallback_policy is None:
            self._fallback_policy = self._make_fallback()
        return self._fallback_policy


def _out_of_distribution(pipeline: Pipeline) -> str:
    """What of a pipeline is unlike anything in training, in words; empty if nothing is."""
    slowest = max(variant.startup_time for task in pipeline.tasks for variant in task.variants)
    if slowest > LONGEST_START:
        return f"a start-up time of {slowest:g} s is above {LONGEST_START:g} s"
    if pipeline.max_replicas > MOST_REPLICAS:
        return f"{pipeline.max_replicas} replicas of a stage are above {MOST_REPLICAS}"
    if pipeline.max_batch_size > LARGEST_BATCH:
        return f"a batch of {pipeline.max_batch_size} is above {LARGEST_BATCH}"
    return ""
