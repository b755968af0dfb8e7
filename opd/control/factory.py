"""Policies by name."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from opd.agent.single.deployed import Agent
from opd.agent.weights import FORMAT, SHIPPED, TrainedAgent
from opd.control import (
    AGENT,
    DECISION_SHARE,
    DEPLOYABLE_POLICIES,
    LOOKAHEAD,
    PLANNERS,
    POLICIES,
    REACTIVE_POLICIES,
    SINGLE_AGENT,
    is_user_policy,
    policy_label,
)
from opd.control.agent import AgentPolicy
from opd.control.lookahead import ForesightPolicy, LookaheadPolicy
from opd.control.policies import (
    BacklogPolicy,
    ClairvoyantPolicy,
    Policy,
    RandomPolicy,
    SingleAgentPolicy,
    SolverPolicy,
)
from opd.control.reactive import HpaPolicy, LadderPolicy, QueueThresholdPolicy
from opd.control.thresholds import HpaThresholds, QueueThresholds, Thresholds, tuned_thresholds
from opd.control.user_policy import UserPolicy, load_user_policy
from opd.host.archive import archive_format
from opd.measurement import SimulationParameters
from opd.objective import Objective, objective_from
from opd.pipeline import Pipeline, ServiceLevel
from opd.planner.lookahead import Planner, PlannerParameters
from opd.solvers import IpaParameters, greedy, ipa_highs
from opd.solvers.exact import Solve, expert_solver, ipa_solver_for, solver_for
from opd.solvers.service_level import greedy_for_level
from opd.workload.futures import Futures, RecentFutures

LIVE_MILLISECONDS = 500.0
"""Time after which ``lookahead`` begins no further round of rollouts outside the simulator."""


class KnownLoad(NamedTuple):
    """What is known of a load before it comes.

    Attributes:
        futures: loads that ``lookahead`` and ``agent`` plan for; by default those of the last two minutes.
        usual: requests/s in the mean, for which autoscalers are designed; None for what their first decision sees.
    """

    futures: Futures = RecentFutures()
    usual: float | None = None


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
    load: KnownLoad | None = None,
) -> Policy:
    """Build the policy called ``name``; every run needs its own, because some remember what they decided.

    Args:
        name: of :data:`opd.control.POLICIES`, live of :data:`opd.control.DEPLOYABLE_POLICIES`; or ``module:Class``.
        pipeline: the pipeline to control.
        objective: of the reward that the myopic policies maximise; greedy and IPA keep the latency of a service level.
        simulation: its batch timeout, interval and noise are those that policies plan with.
        ipa: weights of IPA's own objective.
        seed: of ``random``, and of what ``lookahead`` draws.
        agent: file of ``agent``, by default the one that ships; or of ``agent-single``, which has no default.
        simulated: whether the policy runs in the simulator, which knows the coming load.
        decision_seconds: limit of a decision of a user's policy; by default half the interval of ``simulation``.
        load: what is known of it beforehand.

    Raises:
        ValueError, opd.agent.single.deployed.CheckpointError: if there is no such policy, or its file is unusable.
    """
    solve = (solvers := _solvers(objective, simulation, ipa))["myopic"]
    backlog = BacklogPolicy(SolverPolicy(pipeline, solve), simulation.interval)
    if is_user_policy(name):
        limit = decision_seconds or DECISION_SHARE * simulation.interval
        return UserPolicy(policy_label(name), load_user_policy(name, pipeline, objective), pipeline, backlog, limit)
    _check_known(name, simulated)
    futures, usual = load or KnownLoad()
    if name in REACTIVE_POLICIES:
        return reactive_policy(pipeline, solve, simulation.interval, tuned_thresholds(name, pipeline.name), usual)
    if name in solvers:
        return SolverPolicy(pipeline, solvers[name])
    if name == SINGLE_AGENT:
        return agent_policy(_load(agent, pipeline))
    planner = partial(_planner, pipeline, objective, simulation, solve, futures, simulated, seed)
    if name in PLANNERS:
        return planner(name)
    if name == AGENT:
        weights, fallback = TrainedAgent.load(agent or SHIPPED), partial(planner, LOOKAHEAD)
        return AgentPolicy(pipeline, objective, simulation, solve, weights, futures, fallback)
    simple = {"random": RandomPolicy(pipeline, seed), "myopic-backlog": backlog}
    return simple.get(name) or ClairvoyantPolicy(SolverPolicy(pipeline, solve))


def _solvers(objective: Objective, simulation: SimulationParameters, ipa: IpaParameters) -> dict[str, Solve]:
    """The solvers that are policies, by name; for a service level they plan with the latency's percentile."""
    by_program = ipa_solver_for(objective, simulation, ipa)
    solvers = {"dynamic-program": by_program, "myopic": solver_for(objective, simulation)}
    if isinstance(objective, ServiceLevel):
        cheapest = partial(greedy_for_level, level=objective, simulation=simulation)
        return solvers | {"greedy": cheapest, "ipa": by_program}
    return solvers | {"greedy": greedy, "ipa": partial(ipa_highs, parameters=ipa)}


def _planner(
    pipeline: Pipeline,
    objective: Objective,
    simulation: SimulationParameters,
    solve: Solve,
    futures: Futures,
    simulated: bool,
    seed: int,
    name: str,
) -> Policy:
    """Build a policy that plans by simulation; outside the simulator its time is limited."""
    effort = PlannerParameters() if simulated else PlannerParameters(milliseconds=LIVE_MILLISECONDS)
    policy = ForesightPolicy if name == "foresight" else LookaheadPolicy
    plan = partial(Planner, objective=objective, simulation=simulation, solve=solve, parameters=effort)
    return policy(pipeline, plan, futures, seed)


def reactive_policy(
    pipeline: Pipeline, solve: Solve, interval: float, thresholds: Thresholds, usual_load: float | None = None
) -> Policy:
    """Build the reactive policy that has these thresholds.

    Args:
        pipeline: the pipeline to control.
        solve: chooses its configurations.
        interval: seconds between two decisions.
        thresholds: of the policy.
        usual_load: as in :func:`build_policy`.
    """
    if isinstance(thresholds, HpaThresholds):
        return HpaPolicy(pipeline, solve, interval, thresholds, usual_load)
    if isinstance(thresholds, QueueThresholds):
        return QueueThresholdPolicy(pipeline, solve, interval, thresholds, usual_load)
    return LadderPolicy(pipeline, solve, interval, thresholds)


def _check_known(name: str, simulated: bool) -> None:
    known = POLICIES if simulated else DEPLOYABLE_POLICIES
    if name not in known:
        reason = "; outside the simulator nothing knows the coming load" if name in POLICIES else ""
        raise ValueError(f"policy {name!r} is not one of {', '.join(known)}, or module:Class{reason}")


def agent_policy(agent: Agent) -> SingleAgentPolicy:
    """Build the policy of an agent, with the expert of its training as its fallback.

    The fallback also plans for the backlog. An agent with parameters that state no ``largest_load`` has no fallback.
    """
    parameters, pipeline = agent.parameters, agent.pipeline
    if not np.isfinite(parameters.get("largest_load", np.inf)):
        return SingleAgentPolicy(agent)
    objective, simulation = objective_from(parameters), SimulationParameters(**parameters["simulation"])
    expert = expert_solver(parameters["training"]["expert"], objective, simulation, len(pipeline.tasks))
    return SingleAgentPolicy(agent, BacklogPolicy(SolverPolicy(pipeline, expert), simulation.interval))


def agent_kind(name: str, path: Path) -> str:
    """The policy of an agent that has a name of its own, such as ``agent-frugal``: that of the format of its file."""
    if name in POLICIES:
        return name
    return AGENT if archive_format(path) == FORMAT else SINGLE_AGENT


def _load(path: Path | None, pipeline: Pipeline) -> Agent:
    if path is None:
        raise ValueError("policy 'agent-single' needs the file of an agent that was trained for the pipeline; name it")
    return Agent.load(path, pipeline)
