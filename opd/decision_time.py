"""How long a decision takes as pipelines grow (Fig. 6): the agent beside exact solvers.

The time includes the forecast and the features, on one thread. It depends on the size of the network
and of the pipeline, not on what was learned, so that the agents here are untrained and the pipelines
synthetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from opd.agent import Agent, export
from opd.forecast import Forecaster
from opd.network import ActorCritic
from opd.pipeline import Pipeline
from opd.policy import AgentPolicy, IpaPolicy, Observation, Policy, idle_observation
from opd.solvers import IpaParameters
from opd.synthetic_pipelines import synthetic_pipeline

SIZES = ((2, 5), (3, 5), (4, 6), (6, 8), (10, 10))


def observations(pipeline: Pipeline, counts: np.ndarray, decisions: int, interval: int = 10) -> list[Observation]:
    """Observations along a workload whose other entries are those of an idle pipeline."""
    idle = idle_observation(pipeline)
    return [
        replace(idle, history=counts[end - 120 : end], incoming_load=float(counts[end - interval : end].mean()))
        for end in 120 + interval * np.arange(decisions)
    ]


def time_decisions(policy: Policy, seen: Sequence[Observation], forecaster: Forecaster) -> np.ndarray:
    """(D,) milliseconds of every decision, forecast included; compilation is over before the first."""
    milliseconds = []
    for observation in (seen[0], *seen):
        begin = perf_counter()
        policy.decide(replace(observation, predicted_load=forecaster.predict(observation.history)))
        milliseconds.append(1e3 * (perf_counter() - begin))
    return np.array(milliseconds[1:])


def policies(pipeline: Pipeline, ipa: IpaParameters, seed: int) -> dict[str, Policy]:
    """The policies that are timed, by what they are called in the table."""
    torch.manual_seed(seed)
    agent = Agent(pipeline, export(ActorCritic(pipeline)), {"untrained": True})
    return {
        "agent": AgentPolicy(agent),
        "ipa-highs": IpaPolicy(pipeline, ipa, "highs"),
        "dynamic-program": IpaPolicy(pipeline, ipa, "dynamic-program"),
    }


def measure_decision_times(
    counts: np.ndarray,
    forecaster: Forecaster,
    ipa: IpaParameters,
    sizes: Sequence[tuple[int, int]] = SIZES,
    decisions: int = 120,
    seed: int = 0,
) -> pd.DataFrame:
    """Time every policy on synthetic pipelines of several sizes, on the decisions of one workload.

    Args:
        counts: (T,) requests per second, T at least 120 + 10 x ``decisions``.
        forecaster: asked before every decision.
        ipa: weights of the objective that the solvers maximise.
        sizes: stages and variants of each pipeline.
        decisions: per policy and size; 120 are a cycle of the paper.
        seed: of pipelines and networks.

    Returns:
        columns stages, variants, policy, median_ms, p99_ms and total_ms (H of Alg. 1).
    """
    rows = []
    for stages, variants in tqdm(sizes, unit="pipeline"):
        pipeline = synthetic_pipeline(stages, variants, seed)
        seen = observations(pipeline, counts, decisions)
        for name, policy in policies(pipeline, ipa, seed).items():
            times = time_decisions(policy, seen, forecaster)
            median, p99 = np.quantile(times, [0.5, 0.99])
            rows.append((stages, variants, name, median, p99, times.sum()))
    return pd.DataFrame(rows, columns=["stages", "variants", "policy", "median_ms", "p99_ms", "total_ms"])
