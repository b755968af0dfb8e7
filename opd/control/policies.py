"""Policies behind one interface: an observation goes in, a configuration comes out.

The baselines of Sec. VI-A, exact optimisers of the reward as references, and the agent.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

import numpy as np

from opd.agent.single.deployed import Agent
from opd.measurement import Observation, backlog, observed_state, planned_load
from opd.pipeline import Configuration, Pipeline
from opd.profiling.calibrated import calibrated_pipeline
from opd.solvers import random_configuration
from opd.solvers.exact import Solve


class Policy(Protocol):
    """Anything that configures a pipeline."""

    fallback: bool = False
    """True if the last decision was the fallback policy's."""

    fallback_reason: str = ""
    """Why an agent left its last decision to the fallback policy; else empty."""

    origin: str = ""
    """How the weights of an agent were trained; empty for other policies."""

    refused: str = ""
    """Why the policy's own last decision was refused and the fallback policy decided; else empty."""

    def warm_up(self, observation: Observation) -> None:
        """Compile what a decision needs, without deciding: later decisions are as if this had not been called."""
        return

    def decide(self, observation: Observation) -> Configuration:
        """Choose the configuration to run until the next decision.

        Raises:
            InfeasibleError: if not even the smallest configuration fits the available cores.
        """
        ...


def on_available_cores(pipeline: Pipeline, observation: Observation) -> Pipeline:
    """The pipeline on the cores of its device that nothing else uses."""
    if not observation.available_cores < pipeline.capacity:
        return pipeline
    return replace(pipeline, capacity=int(observation.available_cores))


def present_pipeline(pipeline: Pipeline, observation: Observation) -> Pipeline:
    """The pipeline as it is now: on the available cores, and with the latencies that were measured."""
    known = observation.calibration
    calibrated = pipeline if known is None else calibrated_pipeline(pipeline, known.factor, known.slope)
    return on_available_cores(calibrated, observation)


Made = TypeVar("Made")


class PerDevice(Generic[Made]):
    """What is made for a pipeline on its device, kept while devices change: making it solves for many loads.

    Args:
        pipeline: as profiled.
        make: makes it for the pipeline as its device is now.
    """

    kept = 8

    def __init__(self, pipeline: Pipeline, make: Callable[[Pipeline], Made]) -> None:
        self._pipeline, self._make = pipeline, make
        self._made: OrderedDict[tuple[object, ...], Made] = OrderedDict()

    def now(self, observation: Observation) -> Made:
        """What belongs to the device as it is at an observation."""
        known = observation.calibration
        key = (observation.available_cores, *(() if known is None else (known.factor.tobytes(), known.slope.tobytes())))
        if key not in self._made:
            self._made[key] = self._make(present_pipeline(self._pipeline, observation))
            if len(self._made) > self.kept:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return self._made[key]


class RandomPolicy(Policy):
    """A new random feasible configuration at every decision."""

    def __init__(self, pipeline: Pipeline, seed: int) -> None:
        self._pipeline = pipeline
        self._generator = np.random.default_rng(seed)

    def decide(self, observation: Observation) -> Configuration:
        """A random feasible configuration."""
        return random_configuration(on_available_cores(self._pipeline, observation), self._generator)


class SolverPolicy(Policy):
    """A solver for the forecast load; it knows no start-up times and no later intervals.

    Args:
        pipeline: the pipeline to control.
        solve: the solver, such as :func:`opd.solvers.greedy`, or the exact one of an objective,
            :func:`opd.solvers.exact.solver_for`.
    """

    def __init__(self, pipeline: Pipeline, solve: Solve) -> None:
        self._pipeline, self._solve = pipeline, solve

    def warm_up(self, observation: Observation) -> None:
        """Decide once; nothing is remembered."""
        self.decide(observation)

    def decide(self, observation: Observation) -> Configuration:
        """The solver's configuration if the forecast is right."""
        return self._solve(present_pipeline(self._pipeline, observation), observation.predicted_load)


class ClairvoyantPolicy(Policy):
    """A policy with a perfect forecast: the largest load of the next 20 s, which only the simulator knows."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def decide(self, observation: Observation) -> Configuration:
        """The decision of the policy for the true load.

        Raises:
            ValueError: if the backend does not know the future.
        """
        if observation.coming_load is None:
            raise ValueError("the clairvoyant policy needs the coming load, which only the simulated backend knows")
        return self._policy.decide(replace(observation, predicted_load=observation.coming_load))

    def warm_up(self, observation: Observation) -> None:
        """Warm up the policy."""
        self._policy.warm_up(observation)


class BacklogPolicy(Policy):
    """A policy that also plans for the backlog: it adds the load that clears the queues within one interval.

    Args:
        policy: decides for the load and the backlog.
        interval: seconds between two decisions.
    """

    def __init__(self, policy: Policy, interval: float) -> None:
        self._policy, self._interval = policy, interval

    def warm_up(self, observation: Observation) -> None:
        """Warm up the policy."""
        self._policy.warm_up(observation)

    def decide(self, observation: Observation) -> Configuration:
        """The decision of the policy if all waiting requests arrived in the next interval, in addition to the load."""
        load = planned_load(observation) + backlog(observation, self._interval)
        return self._policy.decide(replace(observation, predicted_load=load))


TRAINED_LOAD_SHARE = 0.8
"""Share of the largest load in training up to which the agent decides; it has seen few states with more."""

BACKLOG_LIMIT_SECONDS = 1.0
"""Seconds of load that may wait, in addition to the batches that are forming, before the fallback policy takes over."""

RECOVERY_DECISIONS = 18
"""Decisions that the fallback policy then makes: three minutes, in which queues empty and new replicas become ready."""


TRAINED_FACTOR = 0.1
"""Difference of service times from their profiles, in logarithms, up to which the agent decides."""


class SingleAgentPolicy(Policy):
    """A trained agent with a fallback policy outside its training distribution.

    A network extrapolates badly: under overload it mostly repeats its last decision, which is then far too small. The
    fallback policy therefore decides

    * above the loads that the agent saw often in training, and
    * for a while after requests have piled up, because an agent that has fallen behind once does so again as soon as
      the queues are empty, and
    * on a device that is slower or faster than profiled. The fallback policy plans for that.

    The policy counts the decisions until the agent takes over again, so every cycle needs its own.

    Args:
        agent: the trained agent.
        fallback: the policy for states outside the training distribution; without one the agent always decides.
    """

    def __init__(self, agent: Agent, fallback: Policy | None = None) -> None:
        self._agent, self._fallback_policy = agent, fallback
        self._trained_load = TRAINED_LOAD_SHARE * agent.parameters.get("largest_load", np.inf)
        self._recovery = 0

    def warm_up(self, observation: Observation) -> None:
        """Compile the forward pass, and what the fallback policy needs."""
        self._agent.decide(observed_state(self._agent.pipeline, observation)[0])
        if self._fallback_policy is not None:
            self._fallback_policy.warm_up(observation)

    def decide(self, observation: Observation) -> Configuration:
        """One forward pass on the state of Eq. 5, or the decision of the fallback policy."""
        self._recovery = RECOVERY_DECISIONS if _backlogged(observation) else max(self._recovery - 1, 0)
        self.fallback_reason = self._reason(observation) if self._fallback_policy is not None else ""
        self.fallback = bool(self.fallback_reason)
        if self._fallback_policy is not None and self.fallback:
            return self._fallback_policy.decide(observation)
        return self._agent.decide(observed_state(self._agent.pipeline, observation)[0])

    def _reason(self, observation: Observation) -> str:
        """Why the situation is unlike those of training; empty if it is not."""
        load = planned_load(observation)
        if load > self._trained_load:
            return f"a load of {load:.3g} requests/s is above {self._trained_load:.3g}, which was rare in training"
        if not _is_profiled(observation):
            return "the device is faster or slower than in training"
        return "requests have piled up" if self._recovery > 0 else ""


def _is_profiled(observation: Observation) -> bool:
    """True unless a variant is known to be slower or faster than its profile."""
    known = observation.calibration
    return known is None or bool(np.abs(np.log(known.factor)).max() <= TRAINED_FACTOR)


def _backlogged(observation: Observation) -> bool:
    """True if more requests wait than a second of load and one forming batch per stage."""
    forming = sum(stage.batch_size for stage in observation.configuration)
    return float(observation.queue.sum()) > BACKLOG_LIMIT_SECONDS * planned_load(observation) + forming
