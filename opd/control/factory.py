"""Policies by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from opd.agent.deployed import Agent
from opd.control import AGENT, DECISION_SHARE, DEPLOYABLE_POLICIES, POLICIES, is_user_policy, policy_label
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
from opd.control.user_policy import UserPolicy, load_user_policy
from opd.measurement import SimulationParameters
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
    decision_seconds: float | None = None,
) -> Policy:
    """Build the policy called ``name``; every run needs its own, because some remember what they decided.

    Args:
        name: one of :data:`opd.control.DEPLOYABLE_POLICIES`, in the simulator of :data:`opd.control.POLICIES`; or
            ``module:Class``, see :mod:`opd.control.user_policy`, where ``myopic-backlog`` is the fallback.
        pipeline: the pipeline to control.
        objective: of the reward that the myopic policies maximise.
        simulation: its batch timeout and interval are those the myopic policies plan with.
        ipa: weights of IPA's own objective.
        seed: of ``random``.
        agent: checkpoint of ``agent``.
        simulated: whether the policy runs in the simulator, which knows the coming load.
        decision_seconds: limit of a decision of a user's policy; by default half the interval of ``simulation``.

    Raises:
        ValueError: if there is no such policy, or no checkpoint for ``agent``.
        PolicyError: if a user's policy cannot be used.
        CheckpointError: if the checkpoint cannot be read or was trained for another pipeline.
    """
    assert isinstance(objective, Weights)
    myopic = MyopicPolicy(pipeline, objective, simulation.batch_timeout)
    if is_user_policy(name):
        seconds = DECISION_SHARE * simulation.interval if decision_seconds is None else decision_seconds
        fallback = BacklogPolicy(myopic, simulation.interval)
        return UserPolicy(policy_label(name), load_user_policy(name, pipeline, objective), pipeline, fallback, seconds)
    known = POLICIES if simulated else DEPLOYABLE_POLICIES
    if name not in known:
        reason = "; outside the simulator nothing knows the coming load" if name in POLICIES else ""
        raise ValueError(f"policy {name!r} is not one of {', '.join(known)}, or module:Class{reason}")
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
    return AgentPolicy(agent, BacklogPolicy(expert, simulation["interval"]))


def _load(path: Path | None, pipeline: Pipeline) -> Agent:
    if path is None:
        raise ValueError("policy 'agent' needs the checkpoint of a trained agent; name its file")
    return Agent.load(path, pipeline)
