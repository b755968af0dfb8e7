"""Numbers that several pages take from the same tables."""

from __future__ import annotations

import pandas as pd

from evidence.tables import Number, Tables
from opd.study.analysis.estimates import estimate, seeds_by_cycles

PIPELINES = ("video", "audio-qa", "audio-sentiment", "summarisation-qa", "nlp", "ocr")
"""The six that ship with the package, in the order of the tables."""

EVALUATION = "twitter/evaluation.csv"


def share_closed(tables: Tables, policy: str, pipeline: str) -> Number:
    """Percent of the gap from the myopic solver to perfect foresight that a policy closes."""
    found = tables.cell("benchmarks/gap.csv", "share", policy=policy, pipeline=pipeline)
    return found._replace(value=100.0 * float(found.value), cell=f"100 × {found.cell}")


def milliseconds(tables: Tables, policy: str, stages: int, path: str = "twitter/decision_time.csv") -> Number:
    """Median of a decision at a size."""
    return tables.cell(path, "median_ms", stages=stages, policy=policy)


def older_than_the_one_agent(tables: Tables, path: str) -> bool:
    """Whether a table is from before the one agent, when ``agent`` named the one that is trained for one pipeline.

    The planner came before it, so a table with ``lookahead`` is newer.
    """
    return "lookahead" not in set(tables.csv(path)["policy"])


def single_agent(tables: Tables, path: str) -> str:
    """How a table names the agent that is trained for one pipeline."""
    return "agent" if older_than_the_one_agent(tables, path) else "agent-single"


def rewards(tables: Tables) -> pd.DataFrame:
    """Mean rewards of the evaluation: pipelines by policies."""
    return tables.csv("twitter/summary.csv").pivot(index="pipeline", columns="policy", values="reward")


def by_pipeline(tables: Tables, path: str, values: pd.Series, rows: pd.DataFrame, cell: str) -> list[Number]:
    """Values that belong to rows, each with its pipeline."""
    return [
        tables.worked(path, value, f"{cell}, {pipeline}")
        for value, pipeline in zip(values, rows["pipeline"], strict=True)
    ]


def size(tables: Tables, path: str, column: str) -> Number:
    """How many different values a column has."""
    return tables.worked(path, tables.csv(path)[column].nunique(), f"different values of `{column}`")


def lead(tables: Tables, pipeline: str, over: str, price: float) -> list[Number]:
    """The agent's lead in percent of the cores of ``myopic-backlog``, with the ends of its 95 % interval."""
    rows = tables.rows(EVALUATION, pipeline=pipeline)
    of = {policy: seeds_by_cycles(part, "reward") for policy, part in rows.groupby("policy")}
    cores = price * rows.loc[rows["policy"] == "myopic-backlog", "cost"].mean()
    found = estimate("lead", 100.0 * (of["agent"] - of[over]) / cores)
    cell = f"`reward` of agent − {over}, in % of {price} × `cost` of myopic-backlog: {pipeline}"
    return [tables.worked(EVALUATION, value, f"{cell} ({name})") for name, value in found.items()]
