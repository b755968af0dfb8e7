"""Policies by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from opd.agent.deployed import Agent
from opd.control import AGENT, DEPLOYABLE_POLICIES, POLICIES
from opd.control.policies import (
    AgentPolicy,
    BacklogPolicy,
    ClairvoyantPolicy,
    GreedyPolicy,
    IpaPolicy,
    MyopicPolicy,
    Policy,
    RandomPolicy,
    ServiceLevelPolicy,
)
from opd.measurement import SimulationParameters, idle_observation
from opd.objective import Objective, objective_from
from opd.pipeline import Pipeline, ServiceLevel
from opd.solvers import IpaParameters, ipa_dynamic_program, ipa_highs
from opd.solvers.service_level import best_for_level, greedy_for_level, ipa_for_level


def build_policy(
    name: str,
    pipeline: Pipeline,
    objective: Objective,
    simulation: SimulationParameters,
    ipa: IpaParameters,
    seed: int = 0,
    agent: Path | None = None,
    simulated: bool = False,
) -> Policy:
    """Build the policy called ``name``; every run needs its own, because some remember what they decided.

    Args:
        name: one of :data:`opd.control.DEPLOYABLE_POLICIES`, in the simulator of :data:`opd.control.POLICIES`.
        pipeline: the pipeline to control.
        objective: of the reward that the myopic policies maximise; greedy and IPA keep the latency of a service level.
        simulation: its batch timeout, interval and noise are those that policies plan with.
        ipa: weights of IPA's own objective.
        seed: of ``random``.
        agent: checkpoint of ``agent``.
        simulated: whether the policy runs in the simulator, which knows the coming load.

    Raises:
        ValueError: if there is no such policy, or no checkpoint for ``agent``.
        CheckpointError: if the checkpoint cannot be read or was trained for another pipeline.
    """
    known = POLICIES if simulated else DEPLOYABLE_POLICIES
    if name not in known:
        reason = "" if name not in POLICIES else " outside the simulator, which alone knows the coming load"
        raise ValueError(f"policy {name!r} is not one of {', '.join(known)}{reason}")
    planners = _planners(pipeline, objective, simulation, ipa)
    makers: dict[str, Callable[[], Policy]] = {
        **planners,
        "random": lambda: RandomPolicy(pipeline, seed),
        "myopic-backlog": lambda: BacklogPolicy(planners["myopic"](), simulation.interval),
        "clairvoyant": lambda: ClairvoyantPolicy(planners["myopic"]()),
        AGENT: lambda: agent_policy(_load(agent, pipeline)),
    }
    return makers[name]()


def _planners(
    pipeline: Pipeline, objective: Objective, simulation: SimulationParameters, ipa: IpaParameters
) -> dict[str, Callable[[], Policy]]:
    """The policies that solve for the forecast load; for a service level they plan with the latency's percentile."""
    if isinstance(objective, ServiceLevel):
        for_level = partial(ServiceLevelPolicy, pipeline, objective, simulation)
        constrained = partial(for_level, partial(ipa_for_level, parameters=ipa))
        return {
            "greedy": partial(for_level, greedy_for_level),
            "ipa": constrained,
            "dynamic-program": constrained,
            "myopic": partial(for_level, best_for_level),
        }
    return {
        "greedy": partial(GreedyPolicy, pipeline),
        "ipa": partial(IpaPolicy, pipeline, ipa, ipa_highs),
        "dynamic-program": partial(IpaPolicy, pipeline, ipa, ipa_dynamic_program),
        "myopic": partial(MyopicPolicy, pipeline, objective, simulation.batch_timeout),
    }


def agent_policy(agent: Agent) -> AgentPolicy:
    """Build the policy of an agent, with the expert of its training as its fallback.

    The fallback also plans for the backlog. An agent with parameters that state no ``largest_load`` has no fallback.
    """
    parameters, pipeline = agent.parameters, agent.pipeline
    if not np.isfinite(parameters.get("largest_load", np.inf)):
        return AgentPolicy(agent)
    objective, simulation = objective_from(parameters), SimulationParameters(**parameters["simulation"])
    ipa = IpaParameters.from_objective(objective, len(pipeline.tasks))
    expert = "dynamic-program" if parameters["training"]["expert"] == "ipa" else "myopic"
    fallback = BacklogPolicy(_planners(pipeline, objective, simulation, ipa)[expert](), simulation.interval)
    fallback.decide(idle_observation(pipeline))  # the first decision compiles the solver; it must not delay the loop
    return AgentPolicy(agent, fallback)


def _load(path: Path | None, pipeline: Pipeline) -> Agent:
    if path is None:
        raise ValueError("policy 'agent' needs the checkpoint of a trained agent; name its file")
    return Agent.load(path, pipeline)
