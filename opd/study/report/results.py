"""The results behind the report: files, tables, acceptance criteria, and figures as flat metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from opd.control import AGENT
from opd.study.evaluation.cycles import COLUMNS, SCORES
from opd.study.report.files import read_json

FRUGAL = "agent-frugal"

_WRITERS = {
    "forecast.json": "02_load_forecast",
    "evaluation.csv": "04_evaluation",
    "evaluation.json": "04_evaluation",
    "decision_time.csv": "04_evaluation",
}
"""Notebook that writes each result."""

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


# ---------------------------------------------------------------------------------------------------------------- files


class ReportError(ValueError):
    """A result that the report needs is missing or unsuitable."""


class Results(NamedTuple):
    """The files behind the report.

    Attributes:
        evaluation: ``evaluation.csv``.
        about: ``evaluation.json``, see :func:`describe_run`.
        decision_time: ``decision_time.csv``.
        forecast: ``forecast.json``.
        training: ``training/*/summary.json`` by pipeline; may be empty.
    """

    evaluation: pd.DataFrame
    about: dict[str, Any]
    decision_time: pd.DataFrame
    forecast: dict[str, Any]
    training: dict[str, dict[str, Any]]


def require_results(folder: Path, *names: str) -> None:
    """Check that results exist.

    Raises:
        ReportError: if a file is missing; the message names the notebook that writes it.
    """
    for name in names:
        if not (folder / name).is_file():
            raise ReportError(f"no {name} in {folder}; notebook {_WRITERS[name]} writes it")


def read_results(folder: Path) -> Results:
    """Read the results in a folder such as ``reports/``.

    Raises:
        ReportError: if a file is missing or lacks a column; the message names the notebook that writes it.
    """
    require_results(folder, *_WRITERS)
    evaluation = pd.read_csv(folder / "evaluation.csv")
    if missing := [column for column in COLUMNS if column not in evaluation]:
        raise ReportError(
            f"{folder / 'evaluation.csv'} lacks the columns {', '.join(missing)}; run notebook 04_evaluation again"
        )
    trained = {name: folder / "training" / name / "summary.json" for name in dict.fromkeys(evaluation["pipeline"])}
    return Results(
        evaluation,
        read_json(folder / "evaluation.json"),
        pd.read_csv(folder / "decision_time.csv"),
        read_json(folder / "forecast.json"),
        {name: read_json(path) for name, path in trained.items() if path.is_file()},
    )


# --------------------------------------------------------------------------------------------------------------- tables


def policy_summary(evaluation: pd.DataFrame) -> pd.DataFrame:
    """Compute the mean and the worst cycle of every policy on every pipeline.

    Args:
        evaluation: the results, columns of :data:`opd.study.evaluation.cycles.COLUMNS`.

    Returns:
        By pipeline and policy: the means over cycles and seeds; ``dropped``, the mean number of requests dropped in a
        cycle; and the worst figures of a single cycle and seed: ``reward_worst`` and
        ``qos_worst`` (lowest), ``dropped_worst`` (highest) and ``cycle_worst``, the cycle of the lowest reward.
    """
    groups = evaluation.groupby(["pipeline", "policy"], sort=False)
    summary = groups[[*SCORES, "latency_mean", "latency_p99", "decision_ms_mean", "dropped"]].mean()
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
    figures = (
        times.assign(size=size).groupby(["policy", "size"], sort=False)[["median_ms", "p99_ms", "total_ms"]].first()
    )
    table = {}
    for policy in dict.fromkeys(times["policy"]):
        own = figures.loc[policy]
        table |= {f"{policy}.{column}": own[column] for column in own}
        if policy != AGENT:
            table[f"{policy}.ratio"] = own["median_ms"] / figures.loc[AGENT]["median_ms"]
    return pd.DataFrame(table, index=pd.Index(size.unique(), name="size")).reset_index()


def forecast_table(forecast: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Tabulate SMAPE (%) and share of too low forecasts (%) of every model, by damping."""
    columns = {}
    for result in forecast.values():
        columns[f"SMAPE %, damping {result['damping']}"] = pd.Series(result["smape"])
        columns[f"too low %, damping {result['damping']}"] = 100.0 * pd.Series(result["under_prediction_rate"])
    return pd.DataFrame(columns).rename_axis("model").reset_index()


# ------------------------------------------------------------------------------------------------------------- criteria


class Criterion(NamedTuple):
    """One criterion on one pipeline: ``value`` must be at least (or at most) ``bound``."""

    pipeline: str
    policy: str
    quantity: str
    relation: str
    reference: str
    value: float
    bound: float

    @property
    def met(self) -> bool:
        """Whether the criterion is met, exactly, without a tolerance."""
        return self.value >= self.bound if self.relation == "≥" else self.value <= self.bound


def criteria(evaluation: pd.DataFrame) -> list[Criterion]:
    """Evaluate the acceptance criteria on every pipeline, on means over cycles and seeds.

    The agent: at least the reward of the myopic solver, at least the QoS of IPA, and no cycle of any seed in which it
    drops more requests than IPA. The frugal agent: at least the QoS of IPA at no more than its cost. Criteria with a
    policy that was not run are omitted.
    """
    found: list[Criterion] = []
    for pipeline, rows in evaluation.groupby("pipeline", sort=False):
        mean = rows.groupby("policy")[["reward", "qos", "cost"]].mean()
        for policy, quantity, relation, reference in (
            (AGENT, "reward", "≥", "myopic"),
            (AGENT, "qos", "≥", "ipa"),
            (AGENT, "cycles with more drops", "≤", "ipa"),
            (FRUGAL, "qos", "≥", "ipa"),
            (FRUGAL, "cost", "≤", "ipa"),
        ):
            if not {policy, reference} <= set(mean.index):
                continue
            if quantity in mean:
                value, bound = (float(mean.loc[name, quantity]) for name in (policy, reference))
            else:
                value, bound = float(len(cycles_with_more_drops(rows, policy, reference))), 0.0
            found.append(Criterion(str(pipeline), policy, quantity, relation, reference, value, bound))
    return found


def cycles_with_more_drops(rows: pd.DataFrame, policy: str, reference: str) -> pd.DataFrame:
    """Cycles and seeds of one pipeline in which ``policy`` dropped more requests, with both numbers."""
    dropped = rows.pivot(index=["cycle", "seed"], columns="policy", values="dropped")[[policy, reference]]
    return dropped[dropped[policy] > dropped[reference]].reset_index()


def flat_metrics(results: Results) -> dict[str, float]:
    """Collect the figures that experiments are compared by, with dotted names."""
    flat: dict[str, float] = {}
    found = criteria(results.evaluation)
    flat["criteria.met"], flat["criteria.all"] = sum(d.met for d in found), len(found)
    summary = policy_summary(results.evaluation).set_index(["pipeline", "policy"])
    for pipeline, policy in summary.index:
        if policy in (AGENT, FRUGAL):
            for column in ("reward", "qos", "cost", "dropped_worst"):
                flat[f"{pipeline}.{policy}.{column}"] = float(summary.loc[(pipeline, policy), column])
    for d in found:
        if d.quantity in ("reward", "qos", "cost"):
            flat[f"{d.pipeline}.{d.policy}.{d.quantity}_minus_{d.reference}"] = d.value - d.bound
    for result in results.forecast.values():
        flat[f"forecast.damping_{result['damping']}.smape"] = result["smape"]["lstm"]
    for stages, variants, policy, median, *_ in results.decision_time.itertuples(index=False):
        flat[f"decision_ms.{stages}x{variants}.{policy}"] = float(median)
    return flat
