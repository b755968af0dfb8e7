"""Claims of ``docs/choosing-a-policy.md``."""

from __future__ import annotations

from functools import cache, partial

import pandas as pd

from evidence.claim import Claim, Row, TableClaim
from evidence.shared import PIPELINES, lead, milliseconds
from evidence.tables import Number, Tables
from opd.study.analysis.where_learning_pays import enough, summarise_axes

PAGE = "docs/choosing-a-policy.md"
says = partial(Claim, PAGE)

# ------------------------------------------------------------------------------------------- what each needs

STUDY, BENCH = "twitter/decision_time.csv", "benchmarks/decision_time.csv"


def times(text: str, policy: str, path: str = STUDY) -> Claim:
    """The times of a policy at the smallest and the largest size, after the other cells of its row."""
    return says(text, lambda tables: [milliseconds(tables, policy, stages, path) for stages in (2, 10)])


def times_as_long(tables: Tables) -> list[Number]:
    """How many times as long as the agent the planner decides, to the nearest ten, in the middle of the sizes."""
    table = tables.csv(STUDY).pivot(index="stages", columns="policy", values="median_ms")
    middle = (table["lookahead"] / table["agent"]).median()
    return [tables.worked(STUDY, 10.0 * round(middle / 10.0), "median of `median_ms` of lookahead ÷ agent, in tens")]


NEEDS = [
    times("| `myopic` | yes | no | no | no | {:.2f} → {:.2f} |", "myopic", BENCH),
    times("| `lookahead` | yes, with futures | no | yes | yes | {:.1f} → {:.1f} |", "lookahead"),
    times("| `agent` | yes, with quantiles | yes; they ship | yes | yes | {:.2f} → {:.2f} |", "agent"),
    times("| `agent-single` | yes | yes, for each pipeline | yes | learned | {:.2f} → {:.2f} |", "agent-single"),
    says(
        "The planner, `lookahead`, is a little above the agent, and takes some {:.0f} times as long to decide.",
        times_as_long,
    ),
]

# ------------------------------------------------------------------------------------------------ leads

PRICE = 0.15
"""Default weight of a core."""

RIVALS = ("myopic-backlog", "ladder", "agent-single")


def leads(tables: Tables) -> list[Row]:
    """The agent's lead over each rival, a column a pipeline."""
    cells = " | ".join(["{:.1f} [{:.1f}, {:.1f}]"] * len(PIPELINES))
    return [
        (f"| `{over}` | {cells} |", [number for name in PIPELINES for number in lead(tables, name, over, PRICE)])
        for over in RIVALS
    ]


LEADS = TableClaim(
    PAGE,
    f"| lead over | {' | '.join(PIPELINES)} |",
    leads,
    f"`reward` of the agent less the rival's, in % of {PRICE} × `cost` of myopic-backlog "
    "(`estimate` of `opd.study.analysis.estimates`)",
)

# -------------------------------------------------------------------------------------- where learning pays

AXES = "benchmarks/where_learning_pays.csv"
REFERENCE = "myopic-backlog"
SHOWN = ("ladder", "agent", "lookahead")
CONDITIONS = {
    "start-up 2 s": ("start-up", 2.0),
    "start-up 10 s": ("start-up", 10.0),
    "start-up 25 s": ("start-up", 25.0),
    "start-up 60 s": ("start-up", 60.0),
    "no forecast": ("forecast", -0.5),
    "forecast of the LSTM": ("forecast", 0.0),
    "true forecast": ("forecast", 1.0),
    "peak 20 % of what is carried": ("capacity", 0.2),
    "peak 110 % of what is carried": ("capacity", 1.1),
    "no bursts": ("bursts", 0.0),
    "bursts three times as large": ("bursts", 3.0),
}


@cache
def summary(tables: Tables) -> pd.DataFrame:
    """All leads, by axis, value, policy and the policy that they are over."""
    return summarise_axes(tables.csv(AXES))


def ahead(tables: Tables, condition: str, policy: str) -> pd.Series:
    """A policy's lead over the reference in a condition."""
    axis, value = CONDITIONS[condition]
    rows = summary(tables).query("axis == @axis and value == @value and policy == @policy and over == @REFERENCE")
    if len(rows) != 1:
        raise ValueError(f"reports/{AXES} has no lead of {policy} over {REFERENCE} at {axis} {value}")
    return rows.iloc[0]


def figure(tables: Tables, condition: str, policy: str, name: str = "lead") -> Number:
    """A figure of a lead."""
    return tables.worked(
        AXES, ahead(tables, condition, policy)[name], f"`{name}` of {policy} over {REFERENCE}: {condition}"
    )


def pipelines_of(tables: Tables, policy: str) -> Number:
    """On how many pipelines a policy ran."""
    count = tables.rows(AXES, policy=policy)["pipeline"].nunique()
    return tables.worked(AXES, count, f"different values of `pipeline`, {policy}")


def conditions(tables: Tables) -> list[Row]:
    """Leads over the reference with their intervals, a line a condition."""
    cells = " | ".join(["{:.0f} [{:.0f}, {:.0f}]"] * len(SHOWN))
    return [
        (
            f"| {condition} | {cells} |",
            [figure(tables, condition, policy, name) for policy in SHOWN for name in ("lead", "lead_low", "lead_high")],
        )
        for condition in CONDITIONS
    ]


def pays_but_in_bursts(tables: Tables) -> bool:
    """Whether looking ahead is surely ahead in all conditions but the largest bursts, where nothing is."""
    *usual, bursts = CONDITIONS
    axis, value = CONDITIONS[bursts]
    there = summary(tables).query("axis == @axis and value == @value")
    sure = all(ahead(tables, each, policy)["lead_low"] > 0.0 for each in usual for policy in ("agent", "lookahead"))
    return sure and enough(there) == REFERENCE


def worst_leads(tables: Tables) -> list[Number]:
    """Lowest lead of the agent on one pipeline at a start-up of 10 s and in bursts."""
    return [figure(tables, each, "agent", "worst") for each in ("start-up 10 s", "bursts three times as large")]


def planner_below_zero(tables: Tables) -> bool:
    """Whether the planner's worst lead is below zero in bursts and under overload only."""
    rows = summary(tables).query("policy == 'lookahead' and over == @REFERENCE and worst < 0")
    return set(zip(rows["axis"], rows["value"], strict=True)) == {("bursts", 3.0), ("capacity", 1.1)}


LEARNING = [
    says("on {:.0f} generated pipelines that no agent was trained on", lambda tables: [pipelines_of(tables, "agent")]),
    says("`lookahead` ran on {:word} of the pipelines", lambda tables: [pipelines_of(tables, "lookahead")]),
    TableClaim(
        PAGE,
        "| condition | `ladder` | `agent` | `lookahead` (6) |",
        conditions,
        f"leads in `worth` over {REFERENCE}, in % of its `cores` (`summarise_axes` of "
        "`opd.study.analysis.where_learning_pays`)",
    ),
    says(
        "So looking ahead pays in all conditions but one: where bursts are three times as large as any in the trace, "
        "nothing is surely ahead of `myopic-backlog`.",
        holds=pays_but_in_bursts,
        source=f"reports/{AXES}",
    ),
    says(
        "the lowest lead of the agent on one pipeline is {:.0f} % at 10 s, and {:.0f} % with large bursts; `lookahead` "
        "is below zero there and at a peak of 110 % only.",
        worst_leads,
        holds=planner_below_zero,
    ),
]

CLAIMS = [*NEEDS, LEADS, *LEARNING]
