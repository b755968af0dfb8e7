"""The results behind the report, and their figures as flat metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from opd.control import AGENT
from opd.study.evaluation.cycles import COLUMNS
from opd.study.report.criteria import criteria
from opd.study.report.files import read_json
from opd.study.report.tables import FRUGAL, policy_summary


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


def read_results(folder: Path) -> Results:
    """Read the results in a folder such as ``reports/``.

    Raises:
        ReportError: if a file is missing or lacks a column; the message names the notebook that writes it.
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
