"""Tables of the report, computed from the results of the evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from opd.control import AGENT

QUANTITIES = ("reward", "qos", "cost", "accuracy", "throughput", "latency_mean", "latency_p99", "decision_ms_mean")

FRUGAL = "agent-frugal"

PAPER_COMPARISONS = pd.DataFrame(
    [
        ("steady-low", "greedy", 120.0, 36.0),
        ("steady-low", "ipa", -16.0, -3.8),
        ("fluctuating", "greedy", 37.0, 21.0),
        ("fluctuating", "ipa", -6.0, -3.0),
        ("steady-high", "greedy", 0.0, 0.0),
        ("steady-high", "ipa", 0.0, 0.0),
    ],
    columns=["cycle", "against", "cost", "qos"],
)
"""Sec. VI-B, the agent against two baselines in percent; under steady high load "nearly identical", here 0."""

PAPER_SPEEDUPS = (32.5, 53.5, 111.6, 212.8)
"""Sec. VI-B, percent by which IPA decides more slowly than the agent, for four pipelines of growing size."""


def policy_summary(evaluation: pd.DataFrame) -> pd.DataFrame:
    """Compute the mean and the worst cycle of every policy on every pipeline.

    Args:
        evaluation: the results, columns of :data:`opd.study.evaluation.cycles.COLUMNS`.

    Returns:
        By pipeline and policy: the means of :data:`QUANTITIES` over cycles and seeds; ``dropped``, the mean number
        of requests dropped in a cycle; and the worst figures of a single cycle and seed: ``reward_worst`` and
        ``qos_worst`` (lowest), ``dropped_worst`` (highest) and ``cycle_worst``, the cycle of the lowest reward.
    """
    groups = evaluation.groupby(["pipeline", "policy"], sort=False)
    summary = groups[[*QUANTITIES, "dropped"]].mean()
    summary["reward_worst"], summary["qos_worst"] = groups["reward"].min(), groups["qos"].min()
    summary["dropped_worst"] = groups["dropped"].max()
    summary["cycle_worst"] = evaluation.loc[groups["reward"].idxmin(), "cycle"].to_numpy()
    return summary.reset_index()


def drops_table(evaluation: pd.DataFrame) -> pd.DataFrame:
    """Tabulate dropped requests by pipeline (rows) and policy: the mean of a cycle, and the worst cycle of any seed."""
    table = evaluation.pivot_table("dropped", "pipeline", "policy", aggfunc=["mean", "max"], sort=False)
    return table.rename(columns={"mean": "mean of a cycle", "max": "worst cycle"})


def paper_comparison(evaluation: pd.DataFrame, policy: str) -> pd.DataFrame:
    """Compare ours with the paper's main comparisons, in percent of the baseline's mean cost and QoS.

    Returns:
        One row a workload, baseline and quantity that was run: ``cycle, against, quantity, paper``, the ``mean``
        over the pipelines, and a column for each pipeline.
    """
    rows = []
    for cycle, against, *paper in PAPER_COMPARISONS.itertuples(index=False):
        here = evaluation[evaluation["cycle"] == cycle]
        ours, theirs = (
            here[here["policy"] == name].groupby("pipeline", sort=False)[["cost", "qos"]].mean()
            for name in (policy, against)
        )
        if ours.empty or theirs.empty:
            continue
        change = 100.0 * (ours / theirs - 1.0)
        for quantity, figure in zip(("cost", "qos"), paper, strict=True):
            row = {"cycle": cycle, "against": against, "quantity": quantity, "paper": figure}
            rows.append(row | {"mean": change[quantity].mean()} | change[quantity].to_dict())
    return pd.DataFrame(rows)


def decision_table(times: pd.DataFrame) -> pd.DataFrame:
    """Tabulate decision times by pipeline size: figures of each policy, and ratios to the agent's median."""
    size = times["stages"].astype(str) + "×" + times["variants"].astype(str)
    by_size = times.assign(size=size).set_index(["size", "policy"])[["median_ms", "p99_ms", "total_ms"]]
    table = pd.DataFrame(index=pd.Index(list(dict.fromkeys(size)), name="size"))
    for policy in dict.fromkeys(times["policy"]):
        figures = by_size.xs(policy, level="policy")
        for column in ("median_ms", "p99_ms", "total_ms"):
            table[f"{policy}.{column}"] = figures[column]
        if policy != AGENT:
            table[f"{policy}.ratio"] = figures["median_ms"] / by_size.xs(AGENT, level="policy")["median_ms"]
    return table.reset_index()


def forecast_table(forecast: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Tabulate SMAPE (%) and share of too low forecasts (%) of every model, by damping."""
    columns = {}
    for result in forecast.values():
        columns[f"SMAPE %, damping {result['damping']}"] = pd.Series(result["smape"])
        columns[f"too low %, damping {result['damping']}"] = 100.0 * pd.Series(result["under_prediction_rate"])
    return pd.DataFrame(columns).rename_axis("model").reset_index()
