"""A replay as one HTML page that needs no other file: verdict, figures, timeline, decisions with their reasons."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import jinja2
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from opd.live.replay import Course, Figures, Outcome, Replayed, figures, verdicts
from opd.pipeline import Pipeline, as_configuration, configuration_text
from opd.view.model import IDLE, number, view_of

INK, GRID = "#010203", "#040506"
"""Stand for the text's and the grid's colour, which depend on the reader's colour scheme, until the SVG is written."""

SERIES = tuple(f"#0a0b{k:02x}" for k in range(8))
"""Stand for the colours of courses; the page has as many."""

_LOOK: dict[Any, Any] = {
    **{"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10.0, "text.color": INK},
    **{"axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": GRID, "grid.color": GRID},
}

_LINES = ("-", "--", "-.", ":")

SHOWN_DECISIONS = 500
"""Rows of a table of decisions; a long record has more, and its page stays readable."""


class Row(NamedTuple):
    """A decision as it is shown."""

    time: str
    changed: str
    basis: str
    remarks: str


class Decisions(NamedTuple):
    """The decisions of a course that changed something or were refused, and how many there are in all."""

    name: str
    number: int
    rows: list[Row]
    left_out: int


def figure_cells(outcome: Figures) -> list[str]:
    """Figures as they are shown, in the order of :data:`COLUMNS`."""
    return [
        f"{outcome.cores:.2f}",
        _or_dash(outcome.within, "{:.2%}"),
        f"{outcome.accuracy:.3f}",
        _or_dash(outcome.lost, "{:.2%}"),
        _or_dash(1e3 * outcome.latency_mean, "{:.0f}"),
        _or_dash(1e3 * outcome.latency_p99, "{:.0f}"),
        f"{outcome.reconfigurations:.4g}",
    ]


COLUMNS = ("cores", "within", "accuracy", "lost", "mean latency (ms)", "p99 latency (ms)", "reconfigurations")


def _or_dash(value: float, form: str) -> str:
    return "–" if np.isnan(value) else form.format(value)


def figure_rows(replayed: Replayed) -> list[list[str]]:
    """Rows of the table of figures: name, measured or simulated, and the cells of :func:`figure_cells`."""
    rows = []
    if replayed.measured is not None:
        rows.append([replayed.measured.name, "measured", *figure_cells(figures(replayed.measured))])
    simulated = ([replayed.baseline] if replayed.baseline else []) + list(replayed.outcomes)
    return rows + [[each.name, "simulated", *figure_cells(each.mean)] for each in simulated]


def render_replay(replayed: Replayed, source: str, begin: float = 0.0) -> str:
    """Render the page.

    Args:
        replayed: the replay.
        source: of the load, for people.
        begin: Unix seconds of its first decision; 0 if that is unknown, and times count from it.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("opd.live", "."), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )  # fmt: skip
    seeds = len(replayed.outcomes[0].courses)
    return environment.get_template("replay.html").render(
        replayed=replayed,
        source=source,
        since=_time(begin, 0.0),
        duration=_duration(replayed.seconds),
        level=replayed.pipeline.service_level,
        verdicts=verdicts(replayed),
        columns=COLUMNS,
        rows=figure_rows(replayed),
        seeds=seeds,
        timeline=_timeline(replayed),
        decisions=[*_ran(replayed, begin), *(_decisions(replayed.pipeline, each, begin) for each in replayed.outcomes)],
        parameters=replayed.simulation.described(),
    )


def _duration(seconds: int) -> str:
    if seconds < 600:
        return f"{seconds} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _time(begin: float, seconds: float) -> str:
    """UTC of a moment, or the seconds since the first decision where that has no date."""
    if begin <= 0.0:
        return f"{seconds:.0f} s"
    return datetime.fromtimestamp(begin + seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


# ----------------------------------------------------------------------------------------------------- decisions


def _decisions(pipeline: Pipeline, outcome: Outcome, begin: float) -> Decisions:
    """The decisions of the first simulation."""
    rows, steps = [], outcome.courses[0].steps
    for step in steps:
        decision = view_of(pipeline, step.configuration, step).decision
        if decision is None or decision.outcome == IDLE or not (decision.changes or decision.remarks):
            continue
        time = _time(begin, step.span.begin)
        rows.append(Row(time, "; ".join(decision.changes), decision.basis, "; ".join(decision.remarks)))
    return _shortened(f"{outcome.name}, simulated", len(steps), rows)


def _ran(replayed: Replayed, begin: float) -> list[Decisions]:
    """Changes in what ran; a record does not tell who made them and why."""
    if replayed.measured is None or replayed.record is None:
        return []
    record, rows = replayed.record, []
    for k in range(1, len(record.configurations)):
        if (record.configurations[k] != record.configurations[k - 1]).any():
            words = configuration_text(replayed.pipeline, as_configuration(record.configurations[k]))
            load = number(float(replayed.measured.table["load"][k - 1]))
            rows.append(Row(_time(begin, record.edges[k]), words, f"load before {load} requests/s", ""))
    return [_shortened(f"{replayed.measured.name}, measured", len(record.configurations), rows)]


def _shortened(name: str, total: int, rows: list[Row]) -> Decisions:
    return Decisions(name, total, rows[:SHOWN_DECISIONS], max(len(rows) - SHOWN_DECISIONS, 0))


# ----------------------------------------------------------------------------------------------------- timeline


def _timeline(replayed: Replayed) -> str:
    """Load, cores, share within the level and mean latency over time, as SVG in the colours of the page."""
    courses = [replayed.measured] if replayed.measured else []
    courses += [each.courses[0] for each in ([replayed.baseline] if replayed.baseline else []) + [*replayed.outcomes]]
    with plt.rc_context(_LOOK):
        figure, panels = plt.subplots(4, 1, figsize=(10.5, 9.0), sharex=True, layout="constrained")
        _draw_load(panels[0], courses[0])
        level = replayed.pipeline.service_level
        _draw(panels[1], courses, lambda course: course.table["cores"], "cores")
        _draw(panels[2], courses, _within, f"% within {level.seconds:.3g} s")
        _draw(panels[3], courses, lambda course: 1e3 * course.table["latency_mean"], "mean latency (ms)")
        panels[2].axhline(level.percentile, color=INK, linewidth=0.8, linestyle=":")
        panels[2].set_ylim(top=101.0)
        panels[3].set_ylim(bottom=0.0)
        panels[3].set_xlabel("seconds since the first decision")
        handles, labels = panels[1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    return _themed(text.getvalue())


def _themed(svg: str) -> str:
    """The SVG element, whose colours are now those of the page."""
    svg = svg[svg.index("<svg") :].replace(INK, "var(--ink)").replace(GRID, "var(--line)")
    for k, stand_in in enumerate(SERIES):
        svg = svg.replace(stand_in, f"var(--course{k})")
    return svg


def _draw_load(axes: Axes, course: Course) -> None:
    axes.stairs(course.table["load"], _edges(course), color=INK, linewidth=1.2, baseline=None)
    axes.set_ylabel("load (requests/s)")
    axes.set_ylim(bottom=0.0)
    _tidy(axes)


def _draw(axes: Axes, courses: Sequence[Course], values: Any, label: str) -> None:
    for k, course in enumerate(courses):
        kind = "measured" if course.measured else "simulated"
        axes.stairs(
            values(course), _edges(course), baseline=None, label=f"{course.name}, {kind}",
            color=SERIES[k % len(SERIES)], linestyle=_LINES[k % len(_LINES)], linewidth=1.6,
        )  # fmt: skip
    axes.set_ylabel(label)
    _tidy(axes)


def _within(course: Course) -> np.ndarray:
    """(K,) percent of the requests that ended in each interval; NaN where none did."""
    ended = (course.table["completed"] + course.table["dropped"]).to_numpy(dtype=float)
    within = course.table["within"].to_numpy(dtype=float)
    return 100.0 * np.minimum(np.divide(within, ended, out=np.full(len(ended), np.nan), where=ended > 0.0), 1.0)


def _edges(course: Course) -> np.ndarray:
    table = course.table
    return np.append(table["begin"], table["begin"].iloc[-1] + table["seconds"].iloc[-1])


def _tidy(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.grid(axis="y", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
