"""What the results say: summary, criteria and the paper's own comparisons, as tables, a page and flat metrics.

Everything here is computed from the files that the stages before leave in ``reports/``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from opd.machine import hardware
from opd.pipeline import Pipeline
from opd.study.evaluation import COLUMNS, Setting
from opd.workload.cycles import TWITTER_CYCLES, Cycle

LOADS = tuple(cycle.name for cycle in TWITTER_CYCLES)
"""The paper's three workloads, found in any trace under these names."""

QUANTITIES = ("reward", "qos", "cost", "accuracy", "throughput", "latency_mean", "latency_p99", "decision_ms_mean")

AGENT, FRUGAL = "agent", "agent-frugal"

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


class ReportError(ValueError):
    """A result that the report needs is missing or is not what it should be."""


def describe_run(
    setting: Setting, pipelines: Iterable[Pipeline], cycles: Iterable[Cycle], policies: Sequence[str]
) -> dict[str, Any]:
    """What was evaluated and on which machine, to be kept beside the results."""
    return {
        "trace": setting.trace.label,
        "cycles": {cycle.name: cycle.start for cycle in cycles},
        "policies": list(policies),
        "pipelines": {
            pipeline.name: {
                "stages": len(pipeline.tasks),
                "variants": [len(task.variants) for task in pipeline.tasks],
                "capacity": pipeline.capacity,
            }
            for pipeline in pipelines
        },
        "weights": asdict(setting.weights),
        "simulation": asdict(setting.simulation),
        "ipa": asdict(setting.ipa),
        "hardware": hardware(),
    }


def shown_cycles(rows: pd.DataFrame) -> list[str]:
    """The paper's three workloads where they were run, otherwise the first three cycles."""
    cycles = list(dict.fromkeys(rows["cycle"]))
    return [load for load in LOADS if load in cycles] or cycles[:3]


def policy_summary(evaluation: pd.DataFrame) -> pd.DataFrame:
    """Mean and worst cycle of every policy on every pipeline.

    Args:
        evaluation: the results, columns of :data:`opd.study.evaluation.COLUMNS`.

    Returns:
        By pipeline and policy: the means of :data:`QUANTITIES` over cycles and seeds; ``dropped``, the mean number
        of requests dropped in a cycle; and of single cycles of single seeds the worst: ``reward_worst`` and
        ``qos_worst`` (lowest), ``dropped_worst`` (highest) and ``cycle_worst``, where reward is lowest.
    """
    groups = evaluation.groupby(["pipeline", "policy"], sort=False)
    summary = groups[[*QUANTITIES, "dropped"]].mean()
    summary["reward_worst"], summary["qos_worst"] = groups["reward"].min(), groups["qos"].min()
    summary["dropped_worst"] = groups["dropped"].max()
    summary["cycle_worst"] = evaluation.loc[groups["reward"].idxmin(), "cycle"].to_numpy()
    return summary.reset_index()


def drops_table(evaluation: pd.DataFrame) -> pd.DataFrame:
    """Requests dropped: by pipeline (rows) the mean of a cycle and the worst cycle of any seed of every policy."""
    table = evaluation.pivot_table("dropped", "pipeline", "policy", aggfunc=["mean", "max"], sort=False)
    return table.rename(columns={"mean": "mean of a cycle", "max": "worst cycle"})


class Criterion(NamedTuple):
    """One demand on one pipeline: ``value`` shall be at least (or at most) ``bound``."""

    pipeline: str
    policy: str
    quantity: str
    relation: str
    reference: str
    value: float
    bound: float

    @property
    def met(self) -> bool:
        """Whether it is; exactly, with no tolerance."""
        return self.value >= self.bound if self.relation == "≥" else self.value <= self.bound


def criteria(evaluation: pd.DataFrame) -> list[Criterion]:
    """What the agents shall reach in every pipeline, on the mean over cycles and seeds.

    The agent: the reward of the myopic solver, the QoS of IPA, and no cycle of any seed in which it drops more
    requests than IPA. The frugal agent: the QoS of IPA at no more than its cost. Demands on, or against, a policy
    that was not run are left out.
    """
    demands: list[Criterion] = []
    for pipeline, rows in evaluation.groupby("pipeline", sort=False):
        mean = {str(name): of_policy[["reward", "qos", "cost"]].mean() for name, of_policy in rows.groupby("policy")}
        for policy, quantity, relation, reference in (
            (AGENT, "reward", "≥", "myopic"),
            (AGENT, "qos", "≥", "ipa"),
            (FRUGAL, "qos", "≥", "ipa"),
            (FRUGAL, "cost", "≤", "ipa"),
        ):
            if {policy, reference} <= set(mean):
                value, bound = float(mean[policy][quantity]), float(mean[reference][quantity])
                demands.append(Criterion(str(pipeline), policy, quantity, relation, reference, value, bound))
            if (policy, quantity) == (AGENT, "qos") and {AGENT, "ipa"} <= set(mean):
                worse = float(len(cycles_with_more_drops(rows, AGENT, "ipa")))
                demands.append(Criterion(str(pipeline), AGENT, "cycles with more drops", "≤", "ipa", worse, 0.0))
    return demands


def cycles_with_more_drops(rows: pd.DataFrame, policy: str, reference: str) -> pd.DataFrame:
    """Cycles and seeds of one pipeline in which ``policy`` dropped more requests, with both numbers."""
    dropped = rows.pivot(index=["cycle", "seed"], columns="policy", values="dropped")[[policy, reference]]
    return dropped[dropped[policy] > dropped[reference]].reset_index()


def paper_comparison(evaluation: pd.DataFrame, policy: str) -> pd.DataFrame:
    """The paper's headline comparisons beside ours, in percent of the baseline's mean cost and QoS.

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
    """Decision times by pipeline size: median and 99th percentile of each policy, and ratios to the agent's median."""
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
    """SMAPE (%) and share of too low forecasts (%) of every model, by damping."""
    columns = {}
    for result in forecast.values():
        columns[f"SMAPE %, damping {result['damping']}"] = pd.Series(result["smape"])
        columns[f"too low %, damping {result['damping']}"] = 100.0 * pd.Series(result["under_prediction_rate"])
    return pd.DataFrame(columns).rename_axis("model").reset_index()


class Results(NamedTuple):
    """The files that the report is made of.

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


def read_results(folder: Path) -> Results:
    """The results in a folder such as ``reports/``.

    Raises:
        ReportError: if a file is missing, naming the stage that writes it, or lacks a column.
    """
    for name, notebook in (
        ("forecast.json", "02_load_forecast"),
        ("evaluation.csv", "04_evaluation"),
        ("evaluation.json", "04_evaluation"),
        ("decision_time.csv", "04_evaluation"),
    ):
        if not (folder / name).is_file():
            raise ReportError(f"no {name} in {folder}; notebook {notebook} writes it")
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


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def flat_metrics(results: Results) -> dict[str, float]:
    """The figures worth comparing between experiments, by dotted names."""
    flat: dict[str, float] = {}
    demands = criteria(results.evaluation)
    flat["criteria.met"], flat["criteria.all"] = sum(d.met for d in demands), len(demands)
    summary = policy_summary(results.evaluation).set_index(["pipeline", "policy"])
    for pipeline, policy in summary.index:
        if policy in (AGENT, FRUGAL):
            for column in ("reward", "qos", "cost", "dropped_worst"):
                flat[f"{pipeline}.{policy}.{column}"] = float(summary.loc[(pipeline, policy), column])
    for d in demands:
        if d.quantity in ("reward", "qos", "cost"):
            flat[f"{d.pipeline}.{d.policy}.{d.quantity}_minus_{d.reference}"] = d.value - d.bound
    for result in results.forecast.values():
        flat[f"forecast.damping_{result['damping']}.smape"] = result["smape"]["lstm"]
    for stages, variants, policy, median, *_ in results.decision_time.itertuples(index=False):
        flat[f"decision_ms.{stages}x{variants}.{policy}"] = float(median)
    return flat
