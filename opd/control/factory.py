"""Policies by name."""

from __future__ import annotations

from collections.abc import Callable
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
)
from opd.measurement import SimulationParameters, idle_observation
from opd.objective import Objective, Weights, objective_from
from opd.pipeline import Pipeline
from opd.solvers import IpaParameters, ipa_dynamic_program, ipa_highs


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
        objective: of the reward that the myopic policies maximise.
        simulation: its batch timeout and interval are those the myopic policies plan with.
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
    assert isinstance(objective, Weights)
    myopic = MyopicPolicy(pipeline, objective, simulation.batch_timeout)
    makers: dict[str, Callable[[], Policy]] = {
        "random": lambda: RandomPolicy(pipeline, seed),
        "greedy": lambda: GreedyPolicy(pipeline),
        "ipa": lambda: IpaPolicy(pipeline, ipa, ipa_highs),
        "dynamic-program": lambda: IpaPolicy(pipeline, ipa, ipa_dynamic_program),
        "myopic": lambda: myopic,
        "myopic-backlog": lambda: BacklogPolicy(myopic, simulation.interval),
        "clairvoyant": lambda: ClairvoyantPolicy(pipeline, objective, simulation.batch_timeout),
        AGENT: lambda: agent_policy(_load(agent, pipeline)),
    }
    return makers[name]()


def agent_policy(agent: Agent) -> AgentPolicy:
    """Build the policy of an agent, with the expert of its training as its fallback.

    The fallback also plans for the backlog. An agent with parameters that state no ``largest_load`` has no fallback.
    """
    parameters, pipeline = agent.parameters, agent.pipeline
    if not np.isfinite(parameters.get("largest_load", np.inf)):
        return AgentPolicy(agent)
    weights, simulation = objective_from(parameters), parameters["simulation"]
    assert isinstance(weights, Weights)
    expert: Policy = MyopicPolicy(pipeline, weights, simulation["batch_timeout"])
    if parameters["training"]["expert"] == "ipa":
        expert = IpaPolicy(pipeline, IpaParameters.from_weights(weights), ipa_dynamic_program)
    fallback = BacklogPolicy(expert, simulation["interval"])
    fallback.decide(idle_observation(pipeline))  # the first decision compiles the solver; it must not delay the loop
    return AgentPolicy(agent, fallback)


def _load(path: Path | None, pipeline: Pipeline) -> Agent:
    if path is None:
        raise ValueError("policy 'agent' needs the checkpoint of a trained agent; name its file")
    return Agent.load(path, pipeline)
