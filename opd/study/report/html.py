"""An evaluation as one HTML page that needs no other file: findings first, then tables, figures and the setting."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd

from opd.objective import objective_from
from opd.study.plots.service import ServiceMeasure, service_measure
from opd.study.report.files import read_json
from opd.study.report.findings import best_policy, evaluation_findings, ranked
from opd.study.report.results import mean_accuracy, require_results

_TITLES = {
    "reward": ("reward", 3),
    "within": ("within the level\N{NO-BREAK SPACE}(%)", 2),
    "qos": ("QoS", 3),
    "mean_accuracy": ("mean accuracy", 3),
    "cost": ("cost (cores)", 2),
    "latency_mean": ("mean latency\N{NO-BREAK SPACE}(s)", 3),
    "latency_p99": ("p99 latency\N{NO-BREAK SPACE}(s)", 3),
    "dropped": ("dropped", 1),
    "failed": ("failed", 1),
    "refused": ("decisions refused", 1),
    "by_expert": ("by the fallback", 1),
    "decision_ms_mean": ("decision\N{NO-BREAK SPACE}(ms)", 1),
    "reward_worst": ("lowest reward", 3),
    "cycle_worst": ("in cycle", 0),
}
"""Columns of the table of policies with their decimals; those that an evaluation lacks are left out. The reward takes
its unit from the objective, and QoS is that of weights only."""

_COUNTS = ("failed", "refused", "by_expert")
"""Columns that are left out where nothing was counted."""

_FIGURES = {
    "plane": "Mean {service} and cost of every policy",
    "loads": "Mean cost and {service} of each workload",
    "timeline": "Load, cost and {service} over time",
    "differences": "Gain of the agent in each cycle",
    "decision_time": "Time of a decision by size of the pipeline",
}
"""Captions of the figures of notebook 04, by the beginning of the file's name, in their order on the page."""


class Column(NamedTuple):
    """Heading of a column; ``number`` if its cells are numbers."""

    title: str
    number: bool


class Table(NamedTuple):
    """A table as it is shown; ``best`` is the row to stress."""

    columns: list[Column]
    rows: list[list[str]]
    best: int | None = None


def write_html_report(folder: Path, output: Path | None = None, title: str = "") -> Path:
    """Write the results of an evaluation as one HTML page.

    Args:
        folder: of the results of notebook 04: ``evaluation.csv``, ``evaluation.json``, and figures in ``evaluation/``.
        output: of the page; by default ``report.html`` in the folder.
        title: of the page; by default the names of the pipelines.

    Returns:
        The path of the page.

    Raises:
        ReportError: if a result is missing; the message names the notebook that writes it.
    """
    require_results(folder, "evaluation.csv", "evaluation.json")
    evaluation, about = pd.read_csv(folder / "evaluation.csv"), read_json(folder / "evaluation.json")
    output = output or folder / "report.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    figures = _figures(folder / "evaluation", service_measure(objective_from(about)).name)
    output.write_text(render_html(evaluation, about, figures, title), encoding="utf-8")
    return output


def render_html(
    evaluation: pd.DataFrame, about: Mapping[str, Any], figures: Iterable[Mapping[str, str]] = (), title: str = ""
) -> str:
    """Render the page.

    Args:
        evaluation: the results, columns of :data:`opd.study.evaluation.cycles.COLUMNS`.
        about: of :func:`opd.study.evaluation.cycles.describe_run`.
        figures: each with its ``caption`` and ``data``, a PNG in base64.
        title: of the page.
    """
    if "accuracy" in evaluation:
        evaluation = evaluation.assign(mean_accuracy=mean_accuracy(evaluation, about))
    groups = [(str(name), rows) for name, rows in evaluation.groupby("pipeline", sort=False)]
    measure = service_measure(objective_from(about))
    counts = ", ".join(f"{what}: {evaluation[what[:-1]].nunique()}" for what in ("cycles", "seeds"))
    run = f"{about['trace']}; policies: {evaluation['policy'].nunique()}, {counts}"
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("opd.study.report", "."), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        title=title or f"Evaluation of {', '.join(name for name, _ in groups)}",
        run=f"{run[0].upper()}{run[1:]}. With the same seed all policies meet the same requests.",
        findings=evaluation_findings(evaluation, about),
        policies=[(name, _policy_table(rows, measure)) for name, rows in groups],
        reward=measure.reward,
        cycles=[(name, _cycle_table(rows)) for name, rows in groups],
        figures=list(figures),
        setting=_setting(about),
    )


def _policy_table(rows: pd.DataFrame, measure: ServiceMeasure) -> Table:
    summary = ranked(rows)
    if "within" in summary:
        summary["within"] *= 100.0
    hidden = {name for name in _COUNTS if name in summary and not summary[name].any()}
    if measure.column != "qos":
        hidden.add("qos")
    titles = {name: (title.replace("reward", measure.reward), digits) for name, (title, digits) in _TITLES.items()}
    shown = {name: title for name, (title, _) in titles.items() if name in summary and name not in hidden}
    table = summary[["policy", *shown]].rename(columns=shown)
    return _as_table(table, best_policy(summary), dict(titles.values()))


def _cycle_table(rows: pd.DataFrame) -> Table:
    means = rows.pivot_table("reward", "cycle", "policy", sort=False)
    return _as_table(means[ranked(rows)["policy"]].reset_index())


def _setting(about: Mapping[str, Any]) -> list[tuple[str, Table]]:
    """The objective, the pipelines, the simulated device, the cycles, and the machine with its versions."""
    pipelines = [
        {"pipeline": name, "tasks": p["stages"], "variants": ", ".join(map(str, p["variants"])), "cores": p["capacity"]}
        | ({"assumed profiles": ", ".join(p["assumed"])} if p.get("assumed") else {})
        for name, p in about["pipelines"].items()
    ]
    found = [("Pipelines", _as_table(pd.DataFrame(pipelines).fillna("none")))]
    headings = {
        "service_level": "Service level",
        "weights": "Weights of the reward",
        "simulation": "Simulated device",
        "cycles": "Start of the cycles (s)",
        "hardware": "Machine and versions",
    }
    return found + [(heading, _facts(about[key])) for key, heading in headings.items() if about.get(key)]


def _facts(values: Mapping[str, Any]) -> Table:
    rows = [[name, "not installed" if value is None else str(value)] for name, value in values.items()]
    return Table([Column("name", False), Column("value", True)], rows)


def _as_table(frame: pd.DataFrame, best: int | None = None, decimals: Mapping[str, int] | None = None) -> Table:
    """Format the columns of a frame; what does not exist is a dash.

    Args:
        frame: the columns under their titles.
        best: row to stress.
        decimals: of columns of floats; three if not given.
    """
    columns = [Column(str(name), frame[name].dtype.kind in "fiu") for name in frame]
    cells = frame.astype(object)
    for name in frame.select_dtypes("float"):
        digits = (decimals or {}).get(str(name), 3)
        cells[name] = [f"{value:,.{digits}f}" if value == value else "–" for value in frame[name]]
    return Table(columns, cells.astype(str).to_numpy().tolist(), best)


def _figures(folder: Path, service: str) -> list[dict[str, str]]:
    """Read the figures of an evaluation, in the order of :data:`_FIGURES`; ``service`` is shown beside the cost."""
    found = []
    for kind, template in _FIGURES.items():
        caption = template.format(service=service)
        for path in sorted(folder.glob(f"{kind}*.png")):
            name = path.stem.removeprefix(kind).strip("-")
            data = base64.b64encode(path.read_bytes()).decode()
            found.append({"caption": f"{caption}: {name}" if name else caption, "data": data})
    return found
