"""Claims of ``docs/service-levels.md``."""

from __future__ import annotations

from functools import cache, partial

import pandas as pd

from evidence.agent import LEVELS, above_every_solver
from evidence.claim import Claim, Row, TableClaim
from evidence.tables import Number, Tables
from opd.study.analysis.service_levels import beside_best_solver, summarise_levels

PAGE = "docs/service-levels.md"
says = partial(Claim, PAGE)
SHOWN = ("agent", "myopic-backlog", "hpa")


@cache
def means(tables: Tables) -> pd.DataFrame:
    """Means of every policy under every level."""
    return summarise_levels(tables.csv(LEVELS))


@cache
def beside(tables: Tables) -> pd.DataFrame:
    """The agent beside the solver of the highest reward, by pipeline."""
    return beside_best_solver(means(tables)).set_index("pipeline")


def levels(tables: Tables) -> list[Row]:
    """Share in time and cores of three policies, a line a pipeline."""
    rows = []
    for pipeline, part in means(tables).groupby("pipeline", sort=False):
        by = part.set_index("policy")
        shares = [tables.worked(LEVELS, 100.0 * by.at[name, "within"], "") for name in SHOWN]
        cores = [tables.worked(LEVELS, by.at[name, "cost"], "") for name in SHOWN]
        seconds = tables.worked(LEVELS, by["seconds"].iloc[0], "")
        text = f"| {pipeline} | {{:.2f}} s | {'{:.1f} % | ' * 3}{'{:.2f} | ' * 3}"
        rows.append((text.rstrip(), [seconds, *shares, *cores]))
    return rows


def met(tables: Tables) -> Number:
    """Pipelines with at least the best solver's share in time, and no more cores."""
    return tables.worked(LEVELS, int(beside(tables)["met"].sum()), "pipelines with `met` of `beside_best_solver`")


def missed(tables: Tables) -> list[Number]:
    """By how little it is not so on two pipelines: cores, then points."""
    table = beside(tables)
    cores = table.at["audio-qa", "cores, agent"] - table.at["audio-qa", "cores, solver"]
    points = 100.0 * (table.at["ocr", "within, solver"] - table.at["ocr", "within, agent"])
    return [
        met(tables),
        tables.worked(LEVELS, cores, "mean `cost` of agent − best solver: audio-qa"),
        tables.worked(LEVELS, points, "mean `within` of best solver − agent, points: ocr"),
    ]


def keeps_all(tables: Tables) -> bool:
    """Whether the agent keeps every level in the mean, and has the highest reward."""
    ours = means(tables).query("policy == 'agent'")
    return bool((ours["within"] >= 0.95).all()) and above_every_solver(tables)


def missed_on(tables: Tables) -> bool:
    """Whether the three pipelines are still those that the sentence names, for the reasons that it gives."""
    table = beside(tables)
    worse = table[~table["met"]]
    level = worse.loc["summarisation-qa"] if "summarisation-qa" in worse.index else None
    return (
        set(worse.index) == {"audio-qa", "ocr", "summarisation-qa"}
        and level is not None
        and level["within, solver"] < 0.95
    )


CLAIMS = [
    TableClaim(
        PAGE,
        "| pipeline | within | agent | `myopic-backlog` | `hpa` | cores: agent | `myopic-backlog` | `hpa` |",
        levels,
        "means of `within` and `cost` by pipeline and policy; `seconds`",
    ),
    says(
        "keeps all of them in the mean, and has the highest reward on each.",
        holds=keeps_all,
        source=f"reports/{LEVELS}",
    ),
    says(
        "It has at least the share in time of the best solver with no more cores on {:word}; on `audio-qa` it takes "
        "{:.4f} cores more, on `ocr` {:.2f} points fewer are in time, and on `summarisation-qa` solvers save cores by "
        "missing the level.",
        missed,
        holds=missed_on,
    ),
]
