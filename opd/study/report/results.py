"""The results of the study: files, and summaries of the evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

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


def policy_summary(evaluation: pd.DataFrame) -> pd.DataFrame:
    """Compute the mean and the worst cycle of every policy on every pipeline.

    Args:
        evaluation: the results, columns of :data:`opd.study.evaluation.cycles.COLUMNS`.

    Returns:
        By pipeline and policy: the means over cycles and seeds; ``dropped``, the mean number of requests dropped in a
        cycle; ``refused``, likewise of refused decisions, if there are any; and the worst figures of a single cycle and
        seed: ``reward_worst`` and ``qos_worst`` (lowest), ``dropped_worst`` (highest) and ``cycle_worst``, the cycle of
        the lowest reward. ``bound`` is the mean of what no policy exceeds; a service level has none.
    """
    groups = evaluation.groupby(["pipeline", "policy"], sort=False)
    refused = ["refused"] if evaluation["refused"].any() else []
    summary = groups[[*SCORES, "latency_mean", "latency_p99", "within", "decision_ms_mean", "dropped", *refused]].mean()
    summary["reward_worst"], summary["qos_worst"] = groups["reward"].min(), groups["qos"].min()
    summary["dropped_worst"] = groups["dropped"].max()
    if evaluation["bound"].notna().any():
        summary["bound"] = groups["bound"].mean()
    summary["cycle_worst"] = evaluation.loc[groups["reward"].idxmin(), "cycle"].to_numpy()
    return summary.reset_index()


def mean_accuracy(table: pd.DataFrame, about: Mapping[str, Any]) -> pd.Series:
    """Divide the column ``accuracy``, the sum of Eq. 1, by the number of stages of the pipeline."""
    stages = {name: each["stages"] for name, each in about["pipelines"].items()}
    return table["accuracy"] / table["pipeline"].map(stages)


def readable_summary(evaluation: pd.DataFrame, about: Mapping[str, Any]) -> pd.DataFrame:
    """Compute :func:`policy_summary` in the terms of a pipeline's user.

    ``mean_accuracy``, over the stages, replaces their sum. Under a service level there is no QoS of Eq. 3; what stands
    in its place is the reward without the cost.

    Args:
        evaluation: the results.
        about: of :func:`opd.study.evaluation.cycles.describe_run`.
    """
    summary = policy_summary(evaluation)
    found = summary.assign(accuracy=mean_accuracy(summary, about)).rename(columns={"accuracy": "mean_accuracy"})
    return found.drop(columns=["qos", "qos_worst"]) if "service_level" in about else found


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
