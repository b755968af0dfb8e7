"""Decision time of the agent and of solvers as pipelines grow (Fig. 6), up to ten stages with ten variants.

IPA's problem is solved by HiGHS, by Gurobi as far as its size-limited licence permits, and by exact dynamic
programming; all must find the same optimum. The exact myopic solver and the planner are also timed.
Every decision follows the same forecast, which is timed separately. Times are wall-clock times on one thread.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from opd.control import AGENT, LOOKAHEAD, SINGLE_AGENT
from opd.control.policies import SolverPolicy
from opd.host.progress import progress_bar
from opd.measurement import SimulationParameters
from opd.objective import Weights
from opd.pipeline import Pipeline
from opd.profiling.synthetic import synthetic_pipeline
from opd.solvers import IpaParameters, ipa_objective
from opd.solvers.exact import solver_for
from opd.study.benchmarks import DisagreementError
from opd.study.benchmarks.budgets import FULL, DecisionBudget
from opd.study.benchmarks.peer_gurobi import GurobiUnavailable, ipa_gurobi
from opd.study.evaluation.decision_time import (
    Decided,
    observations,
    policies,
    take_turns,
    time_cycle,
    time_summary,
)
from opd.workload.forecast import HISTORY_SECONDS, Forecaster
from opd.workload.trace import load_trace

REFERENCE = "ipa-highs"
GUROBI = "ipa-gurobi"
EXPERT = "myopic"
"""The fallback of an agent for one pipeline; it solves Eq. 7 instead of IPA's problem."""

OTHERS = (AGENT, SINGLE_AGENT, LOOKAHEAD, EXPERT)
"""Policies that do not solve IPA's problem."""

TOLERANCE = 1e-6
"""Tolerated difference between the optima of two solvers, in units of IPA's objective, which is about 10 to 100."""


def compare_decision_times(
    forecaster: Forecaster,
    budget: DecisionBudget = FULL.decision_time,
    counts: np.ndarray | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Time agent and solvers on synthetic pipelines of several sizes, on the decisions of one workload.

    Args:
        forecaster: asked before every decision.
        budget: how much is measured.
        counts: (T,) requests per second, T at least 120, and 10 more for every decision after the first; by default
            the most varied stretch of the bundled trace's test split.
        seed: of pipelines and networks.

    Returns:
        One row for each size and policy: columns stages, variants, policy; forecast_ms and decision_ms (medians, the
        decision without the forecast); median_ms and p99_ms (of forecast and decision together), total_ms (H of
        Alg. 1, their sum over a cycle, median of the repetitions); median_ratio, p99_ratio, total_ratio and
        decision_ratio (of these figures to the agent's; above 1 the agent is faster); largest_gap (of a solver's
        objective to that of HiGHS, NaN for those who solve another problem); and skipped (why there are no figures, or
        empty).

    Raises:
        DisagreementError: if the solvers do not find the same optima.
        ValueError: if the counts are too few.
    """
    decisions = budget.decisions
    if counts is None:
        counts = varied_stretch(decisions)
    if len(counts) < HISTORY_SECONDS + 10 * (decisions - 1):
        raise ValueError(f"{len(counts)} s of counts are too few for {decisions} decisions, one every 10 s")
    tables = []
    for stages, variants in progress_bar(budget.sizes, desc="decision times", unit="size"):
        table = _measure_pipeline(synthetic_pipeline(stages, variants, seed), counts, forecaster, budget, seed)
        table.insert(0, "stages", stages)
        table.insert(1, "variants", variants)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def varied_stretch(decisions: int) -> np.ndarray:
    """(120 + 10 x ``decisions``,) counts of the bundled trace's test split where they vary most, requests/s."""
    trace = load_trace("synthetic", damping=8)
    counts = trace.counts[trace.split("test")]
    stretches = np.lib.stride_tricks.sliding_window_view(counts, HISTORY_SECONDS + 10 * decisions)[::600]
    return stretches[stretches.std(axis=1).argmax()]


def _measure_pipeline(
    pipeline: Pipeline, counts: np.ndarray, forecaster: Forecaster, budget: DecisionBudget, seed: int
) -> pd.DataFrame:
    """The rows of one size, without its stages and variants."""
    ipa, seen = IpaParameters(), observations(pipeline, counts, budget.decisions)
    deciders = policies(pipeline, ipa, forecaster, seed)
    deciders[EXPERT] = SolverPolicy(pipeline, solver_for(Weights(), SimulationParameters()))
    skipped = ""
    try:
        gurobi = SolverPolicy(pipeline, partial(ipa_gurobi, parameters=ipa))
        time_cycle(gurobi, seen, forecaster)  # programmes differ with the load; the licence must permit all of them
        deciders[GUROBI] = gurobi
    except GurobiUnavailable as error:
        skipped = str(error)
    cycles = take_turns(deciders, seen, forecaster, budget.repetitions)
    table = pd.DataFrame(
        {
            "policy": name,
            "forecast_ms": np.median([cycle.forecast_ms for cycle in each]),
            "decision_ms": np.median([cycle.decision_ms for cycle in each]),
            **time_summary(each),
        }
        for name, each in cycles.items()
    )
    agent = table.set_index("policy").loc[AGENT]
    for column in ("median", "p99", "total", "decision"):
        table[f"{column}_ratio"] = table[f"{column}_ms"] / agent[f"{column}_ms"]
    table["largest_gap"] = [
        np.nan if name in OTHERS else _largest_gap(pipeline, ipa, cycles[name][0], cycles[REFERENCE][0], name)
        for name in table["policy"]
    ]
    table["skipped"] = ""
    if skipped:
        table = pd.concat([table, pd.DataFrame({"policy": [GUROBI], "skipped": [skipped]})], ignore_index=True)
    return table


def _largest_gap(pipeline: Pipeline, ipa: IpaParameters, one: Decided, reference: Decided, name: str) -> float:
    """Compute the largest difference in IPA's objective between the decisions of two solvers.

    Raises:
        DisagreementError: if it is more than rounding.
    """
    objectives = np.array([[ipa_objective(pipeline, each, ipa) for each in by.chosen] for by in (one, reference)])
    gaps = np.abs(objectives[0] - objectives[1])
    worst = int(gaps.argmax())
    if gaps[worst] > TOLERANCE:
        raise DisagreementError(
            f"{name} and {REFERENCE} disagree on pipeline {pipeline.name!r} at {one.loads[worst]:g} requests/s: "
            f"objectives {objectives[0][worst]:.9g} and {objectives[1][worst]:.9g}"
        )
    return float(gaps[worst])


def growth(times: pd.DataFrame, decisions: int) -> pd.DataFrame:
    """Compute how the mean decision of a cycle, without its forecast, grows with stages x variants.

    The mean instead of the median, because HiGHS takes several times longer for some loads than for others of the same
    pipeline, and the median depends on which of them are in the majority.

    Args:
        times: table of :func:`compare_decision_times`, of at least two sizes.
        decisions: in a cycle, as they were measured.

    Returns:
        Columns policy, smallest_mean_ms and largest_mean_ms (mean of a cycle's decisions, total_ms / ``decisions`` less
        forecast_ms, at the smallest and the largest size that was measured), and exponent (of stages x variants, by
        least squares on logarithms: 1 is linear).
    """
    rows = []
    for policy, each in times[times["skipped"] == ""].groupby("policy", sort=False):
        size = (each["stages"] * each["variants"]).to_numpy(dtype=float)
        mean = (each["total_ms"] / decisions - each["forecast_ms"]).to_numpy()[np.argsort(size)]
        exponent = np.polyfit(np.log(np.sort(size)), np.log(mean), 1)[0]
        rows.append((policy, mean[0], mean[-1], exponent))
    return pd.DataFrame(rows, columns=["policy", "smallest_mean_ms", "largest_mean_ms", "exponent"])
