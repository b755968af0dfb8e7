"""Decision time of agents and of exact solvers as pipelines grow (Fig. 6).

The time includes the forecast and the features, on one thread. It depends on the size of network and pipeline, not on
what was learned, so the agent for one pipeline is untrained here and the pipelines are synthetic. Policies take turns,
cycle by cycle, and H is that of the median cycle: a stall of the machine affects one cycle of one policy and no median.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from opd.agent.single.deployed import Agent
from opd.agent.single.network import ActorCritic, export
from opd.control import AGENT, LOOKAHEAD, SINGLE_AGENT
from opd.control.factory import KnownLoad, agent_policy, build_policy
from opd.control.policies import Policy, SolverPolicy
from opd.host.progress import progress_bar
from opd.measurement import Observation, SimulationParameters, idle_observation
from opd.objective import Weights
from opd.pipeline import Configuration, Pipeline
from opd.profiling.synthetic import synthetic_pipeline
from opd.solvers import IpaParameters, ipa_dynamic_program, ipa_highs
from opd.workload.forecast import Forecaster
from opd.workload.quantile_futures import futures_of

SIZES = ((2, 5), (3, 5), (4, 6), (6, 8), (10, 10))

SLOW = (LOOKAHEAD,)
"""Policies that are timed in one cycle only: a decision takes some hundred times longer than those of the others."""


def observations(pipeline: Pipeline, counts: np.ndarray, decisions: int, interval: int = 10) -> list[Observation]:
    """Make observations along a workload; all but the loads is as in an idle pipeline."""
    idle = idle_observation(pipeline)
    return [
        replace(idle, history=counts[end - 120 : end], incoming_load=float(counts[end - interval : end].mean()))
        for end in 120 + interval * np.arange(decisions)
    ]


class Decided(NamedTuple):
    """Times and decisions of a policy in one cycle of D decisions.

    Attributes:
        forecast_ms: (D,) milliseconds of each forecast.
        decision_ms: (D,) milliseconds of each decision, the forecast not included.
        loads: (D,) predicted loads, requests/s.
        chosen: D configurations.
    """

    forecast_ms: np.ndarray
    decision_ms: np.ndarray
    loads: np.ndarray
    chosen: list[Configuration]


def time_cycle(policy: Policy, seen: Sequence[Observation], forecaster: Forecaster) -> Decided:
    """Decide once to compile and to warm up, then time every decision after its forecast."""
    policy.decide(replace(seen[0], predicted_load=forecaster.predict(seen[0].history)))
    times, loads, chosen = [], [], []
    for observation in seen:
        begin = perf_counter()
        load = forecaster.predict(observation.history)
        known = perf_counter()
        configuration = policy.decide(replace(observation, predicted_load=load))
        times.append((begin, known, perf_counter()))
        loads.append(load)
        chosen.append(configuration)
    forecast_ms, decision_ms = 1e3 * np.diff(times, axis=1).T
    return Decided(forecast_ms, decision_ms, np.array(loads), chosen)


def take_turns(
    deciders: Mapping[str, Policy], seen: Sequence[Observation], forecaster: Forecaster, repetitions: int
) -> dict[str, list[Decided]]:
    """Run cycles of every policy, by name; each policy runs one before any runs the next. :data:`SLOW` ones run one."""
    cycles: dict[str, list[Decided]] = {name: [] for name in deciders}
    for number in range(repetitions):
        for name, policy in deciders.items():
            if number == 0 or name not in SLOW:
                cycles[name].append(time_cycle(policy, seen, forecaster))
    return cycles


def time_summary(cycles: Sequence[Decided]) -> dict[str, float]:
    """Summarise the times of forecast and decision together, over some cycles of one policy.

    Returns:
        median_ms and p99_ms of all their decisions, and total_ms, the median of the cycles' sums.
    """
    together = np.array([cycle.forecast_ms + cycle.decision_ms for cycle in cycles])
    median, p99 = np.quantile(together, [0.5, 0.99])
    return {"median_ms": float(median), "p99_ms": float(p99), "total_ms": float(np.median(together.sum(axis=1)))}


def policies(pipeline: Pipeline, ipa: IpaParameters, forecaster: Forecaster, seed: int) -> dict[str, Policy]:
    """Make the policies to time, by their names in the table."""
    torch.manual_seed(seed)
    known = pipeline, Weights(), SimulationParameters(), ipa, seed
    build = partial(build_policy, simulated=True, load=KnownLoad(futures_of(forecaster)))
    single = Agent(pipeline, export(ActorCritic(pipeline)), {"untrained": True})
    return {
        AGENT: build(AGENT, *known),
        SINGLE_AGENT: agent_policy(single),
        LOOKAHEAD: build(LOOKAHEAD, *known),  # in simulation its time has no limit
        "ipa-highs": SolverPolicy(pipeline, partial(ipa_highs, parameters=ipa)),
        "dynamic-program": SolverPolicy(pipeline, partial(ipa_dynamic_program, parameters=ipa)),
    }


def measure_decision_times(
    counts: np.ndarray,
    forecaster: Forecaster,
    ipa: IpaParameters,
    sizes: Sequence[tuple[int, int]] = SIZES,
    decisions: int = 120,
    repetitions: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """Time every policy on synthetic pipelines of several sizes, on the decisions of one workload.

    Args:
        counts: (T,) requests per second, T at least 120 + 10 x ``decisions``.
        forecaster: asked before every decision.
        ipa: weights of the objective that the solvers maximise.
        sizes: stages and variants of each pipeline.
        decisions: in a cycle; 120 are the paper's.
        repetitions: cycles of every policy but the slow ones; all their decisions count.
        seed: of pipelines and networks.

    Returns:
        columns stages, variants, policy, median_ms, p99_ms and total_ms (H of Alg. 1, median of the repetitions).
    """
    rows = []
    for stages, variants in progress_bar(sizes, desc="decision times", unit="pipeline"):
        pipeline = synthetic_pipeline(stages, variants, seed)
        seen = observations(pipeline, counts, decisions)
        size = {"stages": stages, "variants": variants}
        cycles = take_turns(policies(pipeline, ipa, forecaster, seed), seen, forecaster, repetitions)
        rows += [size | {"policy": name} | time_summary(each) for name, each in cycles.items()]
    return pd.DataFrame(rows)
