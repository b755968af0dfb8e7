"""Where learning pays: the leads of policies as one condition after the other changes.

Generated pipelines that nobody trained on run through cycles of load under the conditions of
:mod:`opd.study.analysis.conditions`; all policies meet the same requests. So that there is something to decide, the
busiest interval of a cycle is a fixed share of the largest load that the device carries, except along the axis that
changes this share.

A lead is the difference of two rewards (Eq. 7) in percent of the cores that the myopic solver with backlog runs there:
a reward divided by what a core costs (:func:`opd.agent.description.core_price`) is a number of cores, whatever the
objective. A lead of 10 % is worth as much as a tenth of these cores. Under overload a lead can be many times that; it
counts as :data:`LARGEST` at most in means, so that one pipeline does not decide for all.

Policies are those that ship. The thresholds of the reactive ones were tuned on the six pipelines of the catalogue
together, so here they are what an operator has who tunes once and not for every pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opd.agent.description import core_price
from opd.control import AGENT, policy_label
from opd.objective import Weights
from opd.profiling.generated import FIRST_UNSEEN, generate_pipeline
from opd.study.analysis.conditions import AXES, CAPACITY, Case, forecast_error, run_case, with_peak
from opd.study.analysis.estimates import Row, estimate, signed
from opd.study.analysis.generated_pipelines import REFERENCE, own_setting
from opd.study.analysis.kept_rows import run_missing
from opd.study.evaluation.cycles import Setting, cycle_summary
from opd.study.plots.labels import name_lines
from opd.study.plots.style import ordered, policy_style, short_label, symmetric_logarithmic
from opd.study.report.files import markdown_table
from opd.workload.trace import Cycle

RIVALS = (REFERENCE, "ladder", "lookahead")
"""Policies that the others' leads are drawn over."""

FEWEST = 6
"""Pipelines that a lead must be known on to be sure."""

LARGEST = 100.0
"""Lead that counts in a mean at most, in either direction, %."""

COLUMNS = [
    *("axis", "value", "pipeline", "cycle", "peak", "policy", "seed"),
    *("worth", "cores", "dropped", "by_expert", "forecast_error"),
]


class AxisCell(NamedTuple):
    """A pipeline at one value of an axis, with its cycle and peak, and the policies and seeds of its runs."""

    number: int
    cycle: Cycle
    peak: float
    axis: str
    value: float
    runs: tuple[tuple[str, int], ...]

    @property
    def alike(self) -> AxisCell:
        """The cell that stands for all with the same conditions: a value that changes nothing leaves the peak."""
        same = self.value == AXES[self.axis].usual
        return self._replace(axis=CAPACITY, value=self.peak) if same else self

    @property
    def key(self) -> dict[str, Any]:
        """Axis, value, names of pipeline and cycle, peak."""
        names = {"pipeline": f"generated-inside-{self.number}", "cycle": self.cycle.name}
        return {"axis": self.axis, "value": self.value, **names, "peak": self.peak}


def axis_cells(
    values: Mapping[str, Sequence[float]],
    pipelines: int,
    cycles: Sequence[Cycle],
    policies: Sequence[str],
    seeds: Sequence[int],
    peak: float,
    slow: Mapping[str, int] = {},
) -> list[AxisCell]:
    """List what to run: the first generated pipelines whose objective is weights, at every value of every axis.

    Args:
        values: by axis, of :data:`~opd.study.analysis.conditions.AXES`.
        pipelines: number of them; none was trained on.
        cycles: of load, which take turns.
        policies: run on every pipeline, :data:`REFERENCE` among them.
        seeds: of the requests.
        peak: load of the busiest interval, as a share of what the device carries, unless the axis changes it.
        slow: number of pipelines, the first ones, by name of policies that take too long to run on all.

    Raises:
        ValueError: if there is no such axis, or the reference is missing.
    """
    if unknown := sorted(set(values) - set(AXES)):
        raise ValueError(f"axis {', '.join(unknown)} is not one of {', '.join(AXES)}; name one of these")
    if REFERENCE not in policies:
        raise ValueError(f"policies are {', '.join(policies)}, but leads count in the cores of {REFERENCE}; add it")
    cells = []
    for place, number in enumerate(_with_weights(pipelines)):
        here = [policy for policy in policies if place < slow.get(policy, pipelines)]
        runs, cycle = tuple(product(here, seeds)), cycles[place % len(cycles)]
        for axis, value in ((axis, float(value)) for axis, each in values.items() for value in each):
            cells.append(AxisCell(number, cycle, value if axis == CAPACITY else peak, axis, value, runs))
    return cells


def _with_weights(pipelines: int) -> list[int]:
    """The first seeds that training leaves out and whose pipelines have weights of Eqs. 3 and 7 as their objective."""
    numbers: list[int] = []
    number = FIRST_UNSEEN
    while len(numbers) < pipelines:
        if isinstance(generate_pipeline(number).objective, Weights):
            numbers.append(number)
        number += 1
    return numbers


def run_axis_cell(setting: Setting, cell: AxisCell) -> list[dict[str, Any]]:
    """Run all policies of a cell; return rows of :data:`COLUMNS`."""
    own, pipeline = own_setting(setting, cell.number, "inside")
    case = AXES[cell.axis].change(with_peak(Case(own, pipeline, cell.cycle), cell.peak), cell.value)
    price, rows = core_price(own.objective), []
    for policy, seed in cell.runs:
        steps = run_case(case, policy, seed)
        summary = cycle_summary(steps)
        figures = {"worth": summary["reward"] / price, "cores": summary["cost"]}
        figures |= {name: summary[name] for name in ("dropped", "by_expert")}
        figures["forecast_error"] = (1.0 - case.truth) * forecast_error(steps)
        rows.append(cell.key | {"policy": policy_label(policy), "seed": seed} | figures)
    return rows


def evaluate_axes(setting: Setting, cells: Sequence[AxisCell], kept: Path, workers: int = 1) -> pd.DataFrame:
    """Run every cell once, less what is finished; see :func:`opd.study.analysis.kept_rows.run_missing`.

    Returns:
        Rows of :data:`COLUMNS`: ``worth`` is the mean reward of a decision in cores, ``cores`` the mean number of cores
        (Eq. 2), ``dropped`` counts requests, ``by_expert`` the decisions that the agent left to the planner, and
        ``forecast_error`` is the mean error of the forecast, % of the load.
    """
    once = list(dict.fromkeys(cell.alike for cell in cells))
    found = run_missing(run_axis_cell, setting, once, COLUMNS, kept, workers)
    parts = dict(iter(found.groupby(list(cells[0].key), sort=False)))
    return pd.concat([parts[tuple(cell.alike.key.values())].assign(axis=cell.axis, value=cell.value) for cell in cells])


# ------------------------------------------------------------------------------------------------------------ findings


def summarise_axes(rows: pd.DataFrame) -> pd.DataFrame:
    """Compare every policy with every other one at each value of each axis.

    Returns:
        Columns axis, value, ``policy``, ``over`` (the other one), ``pipelines`` (that both run on), ``lead`` (mean over
        these and the seeds, % of the cores that :data:`REFERENCE` runs) with the ends of its 95 % interval, ``worst``
        (lowest lead of a pipeline, however low), and of the policy ``dropped`` and ``by_expert``, means of a cycle, and
        ``forecast_error``.
    """
    lines = []
    for (axis, value), part in rows.groupby(["axis", "value"], sort=False):
        worth = {name: _seeds_by_pipelines(one, "worth") for name, one in part.groupby("policy", sort=False)}
        cores = _seeds_by_pipelines(part[part["policy"] == REFERENCE], "cores")
        means = part.groupby("policy")[["dropped", "by_expert", "forecast_error"]].mean()
        for policy, over in permutations(worth, 2):
            leads = (100.0 * (worth[policy] - worth[over]) / cores).dropna(axis="columns")
            line = {"axis": axis, "value": value, "policy": policy, "over": over, "pipelines": leads.shape[1]}
            line |= estimate("lead", leads.clip(-LARGEST, LARGEST)) | {"worst": float(leads.mean().min())}
            lines.append(line | means.loc[policy].to_dict())
    return pd.DataFrame(lines)


def _seeds_by_pipelines(rows: pd.DataFrame, quantity: str) -> pd.DataFrame:
    return rows.pivot(index="seed", columns="pipeline", values=quantity)


def enough(summary: pd.DataFrame) -> str:
    """The simplest policy that no other is surely ahead of.

    Simplest first are policies that need measurements only, then those with a forecast, then the one that tries things
    in the simulator, then the agent. It is unknown where all run on few pipelines.

    Args:
        summary: rows of :func:`summarise_axes` at one value of one axis.
    """
    known, behind = summary.loc[summary["pipelines"] >= FEWEST, "policy"], set(_sure(summary)[0]["over"])
    return next((policy for policy in ordered(known) if policy not in behind), "unknown")


def axis_findings(summary: pd.DataFrame) -> dict[str, str]:
    """Leads at every value, a table an axis, under its heading; then what each policy drops, and the worst leads."""
    found = {
        AXES[str(axis)].title: markdown_table(_leads_table(part)) for axis, part in summary.groupby("axis", sort=False)
    }
    over = summary[summary["over"] == REFERENCE].assign(
        condition=lambda rows: [*map(_condition, rows["axis"], rows["value"])]
    )
    many = over.groupby("policy")["pipelines"].max()
    names = {policy: _counted(str(policy), number, many.max()) for policy, number in many.items()}
    for quantity, heading in _FURTHER.items():
        here = over[over["policy"] == AGENT] if quantity == "by_expert" else over
        table = here.pivot(index="condition", columns="policy", values=quantity).loc[over["condition"].unique()]
        table = table[ordered(table.columns)].rename_axis(columns=None).rename(columns=names)
        found[heading] = markdown_table(table.reset_index(), 1)
    return found


_FURTHER = {
    "worst": "Lowest lead of a pipeline, %",
    "dropped": "Dropped requests in a cycle",
    "by_expert": "Decisions in a cycle that the agent leaves to the planner",
}


def _condition(axis: str, value: float) -> str:
    return f"{AXES[axis].title} {AXES[axis].name(value)}"


def _leads_table(summary: pd.DataFrame) -> pd.DataFrame:
    axis, policies = AXES[summary["axis"].iloc[0]], ordered(summary["policy"])
    most, lines = summary["pipelines"].max(), []
    for value, part in summary.groupby("value", sort=False):
        row = {(row["policy"], row["over"]): row for row in part.to_dict("records")}
        line = {axis.label: axis.name(float(str(value))), "forecast error, %": f"{part['forecast_error'].mean():.0f}"}
        pairs = [(policy, REFERENCE) for policy in policies] + [(AGENT, rival) for rival in RIVALS[1:]]
        for policy, over in (pair for pair in pairs if pair in row):
            name = policy if over == REFERENCE else f"{policy} over {over}"
            line[_counted(name, row[policy, over]["pipelines"], most)] = _percent(row[policy, over])
        lines.append(line | {"enough": enough(part)})
    return pd.DataFrame(lines)


def _counted(name: str, pipelines: int, most: int) -> str:
    """A name with its number of pipelines, if others have more."""
    return f"{name} ({pipelines} pipelines)" if pipelines < most else name


def _percent(row: Row) -> str:
    return f"{signed(row['lead'], 1)} [{signed(row['lead_low'], 1)}, {signed(row['lead_high'], 1)}]"


# -------------------------------------------------------------------------------------------------------------- figure


_ASIDE = 0.012
"""Share of an axis from the marks of a policy to those of the next one, so that their intervals can be told apart."""


def plot_axes(summary: pd.DataFrame, source: str) -> Figure:
    """Draw leads over each of :data:`RIVALS`, a row of panels each, along every axis, with 95 % intervals.

    Args:
        summary: of :func:`summarise_axes`.
        source: of the load, for the title.
    """
    names = list(dict.fromkeys(summary["axis"]))
    rivals = [rival for rival in RIVALS if rival in set(summary["over"])]
    size = (1.0 + 4.4 * len(names), 1.4 + 3.6 * len(rivals))
    figure, grid = plt.subplots(
        len(rivals), len(names), figsize=size, layout="constrained", sharey="row", sharex="col", squeeze=False
    )
    figure.suptitle(f"{headline(summary)}\n{source}: means over generated pipelines with 95 % intervals")
    for panels, rival in zip(grid, rivals, strict=True):
        here = summary[summary["over"] == rival]
        here = here[here["pipelines"] == here["pipelines"].max()]  # lines of a panel can be compared
        for axes, name in zip(panels, names, strict=True):
            _draw_panel(axes, here[here["axis"] == name])
        scale = symmetric_logarithmic(panels[0], 10.0, vertical=True)
        label = f"lead over {short_label(rival)} ({here['pipelines'].max()} pipelines),"
        panels[0].set_ylabel(f"{label}\n% of the cores of {short_label(REFERENCE)}\n{scale}")
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(_panel_title(summary[(summary["axis"] == name) & (summary["over"] == REFERENCE)]), fontsize=10)
    for axes, name in zip(grid[-1], names, strict=True):
        axes.set_xlabel(AXES[name].label)
    figure.draw_without_rendering()  # labels are set apart by distances on paper, which the layout decides
    for axes in grid.flat:
        name_lines(axes)
    return figure


def headline(summary: pd.DataFrame) -> str:
    """In how many conditions the agent is surely ahead of the reference, and in how many behind."""
    ahead, behind = _sure(summary[(summary["policy"] == AGENT) & (summary["over"] == REFERENCE)])
    conditions = len(summary[["axis", "value"]].drop_duplicates())
    name = short_label(REFERENCE)
    return f"The agent is surely ahead of {name} in {len(ahead)} of {conditions} conditions, behind in {len(behind)}"


def _sure(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows whose whole interval of the lead is above zero, and those where it is below."""
    known = rows[rows["pipelines"] >= FEWEST]
    return known[known["lead_low"] > 0.0], known[known["lead_high"] < 0.0]


def _panel_title(rows: pd.DataFrame) -> str:
    """The axis, and the values at which the agent is surely ahead or behind."""
    axis = AXES[rows["axis"].iloc[0]]
    found = zip(("ahead", "behind"), _sure(rows[rows["policy"] == AGENT]), strict=True)
    parts = [f"{word} at {', '.join(map(axis.name, part['value']))}" for word, part in found if len(part)]
    return f"{axis.title}: agent {' and '.join(parts) or 'nowhere surely ahead or behind'}"


def _draw_panel(axes: Axes, rows: pd.DataFrame) -> None:
    axis, policies, values = AXES[rows["axis"].iloc[0]], ordered(rows["policy"]), np.sort(rows["value"].unique())
    place = np.log if axis.logarithmic else np.asarray
    aside = _ASIDE * np.ptp(place(values)) * (np.arange(len(policies)) - (len(policies) - 1) / 2.0)
    for policy, moved in zip(policies, aside, strict=True):
        style, line = policy_style(policy), rows[rows["policy"] == policy].sort_values("value")
        places = place(line["value"]) + moved
        axes.vlines(places, line["lead_low"], line["lead_high"], color=style.colour, linewidth=1, alpha=0.6)
        axes.plot(places, line["lead"], color=style.colour, marker=style.marker, ms=4, label=short_label(policy))
    axes.axhline(0.0, color="0.4", linewidth=1)
    axes.set_xticks(place(values), [*map(axis.name, values)])
