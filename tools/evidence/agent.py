"""Claims of ``docs/agent.md``, and of ``docs/benchmarks.md`` about the same tables."""

from __future__ import annotations

from functools import partial

import pandas as pd

from evidence.choosing import times_as_long
from evidence.claim import Claim
from evidence.readme import takes
from evidence.results import best_without_losses
from evidence.shared import older_than_the_one_agent, share_closed
from evidence.tables import Number, Tables
from opd.study.analysis.generated_pipelines import leads, summarise_generated
from opd.study.analysis.quality import ALL
from opd.study.analysis.service_levels import summarise_levels

PAGE = "docs/agent.md"
says = partial(Claim, PAGE)

# ---------------------------------------------------------------------------------------- validation and test days

VALIDATION = "agent/validation.csv"


def above_on_validation_days(tables: Tables) -> bool:
    """Whether the agent is above the myopic solver with backlog on every pipeline and trace."""
    groups = tables.csv(VALIDATION).groupby(["trace", "pipeline", "policy"])["reward"].mean().unstack()
    return bool((groups["agent"] > groups["myopic-backlog"]).all())


DAYS = [
    takes(PAGE, "in {:.0f} minutes on two cores", "make agent"),
    says(
        "the agent has a higher mean reward than the myopic solver with backlog on all six pipelines",
        holds=above_on_validation_days,
        source=f"reports/{VALIDATION}",
    ),
    says("the planner, which takes some {:.0f} times as long to decide.", times_as_long),
    says(
        "it is above every solver, every autoscaler and the agents trained for one pipeline on all six, and closes "
        "{:.0f} % of the distance",
        lambda tables: [share_closed(tables, "agent", ALL)],
        holds=best_without_losses,
    ),
]

# --------------------------------------------------------------------------------------------- generated pipelines

GENERATED = "benchmarks/generated.csv"


def summary(tables: Tables) -> pd.DataFrame:
    """What each policy does in each range, by both."""
    return summarise_generated(tables.csv(GENERATED)).set_index(["range", "policy"])


def in_range(tables: Tables, where: str) -> list[Number]:
    """Pipelines, percent at or above the reference, and drops of the agent and of the reference."""
    table = summary(tables)
    ours, theirs = table.loc[(where, "agent")], table.loc[(where, "myopic-backlog")]
    found = {
        "different values of `pipeline`": ours["pipelines"],
        "share with `reward` of agent ≥ myopic-backlog": 100.0 * ours["at or above"],
        "mean `dropped` of agent": ours["dropped"],
        "mean `dropped` of myopic-backlog": theirs["dropped"],
    }
    return [tables.worked(GENERATED, value, f"{cell}, {where}") for cell, value in found.items()]


def behind(tables: Tables) -> pd.Series:
    """Leads of the agent that are below zero, %, the lowest first."""
    table = leads(tables.csv(GENERATED)).query("policy == 'agent'")
    return 100.0 * table.loc[table["lead"] < -1e-9, "lead"].sort_values()


def below(tables: Tables) -> list[Number]:
    """How many are below, how many of them hardly, and the two worst, %."""
    low = behind(tables)
    cell = "(`reward` of agent − myopic-backlog) ÷ that of myopic-backlog"
    return [
        tables.worked(GENERATED, len(low), f"pipelines with {cell} < 0"),
        tables.worked(GENERATED, int((low > -0.1).sum()), f"pipelines with {cell} between −0.1 % and 0"),
        tables.worked(GENERATED, -low.iloc[0], f"lowest {cell}"),
        tables.worked(GENERATED, -low.iloc[1], f"second lowest {cell}"),
    ]


# ------------------------------------------------------------------------------------------------ service levels

LEVELS = "benchmarks/service_levels.csv"
SOLVERS = ["greedy", "ipa", "myopic", "myopic-backlog"]


def above_every_solver(tables: Tables) -> bool:
    """Whether the agent has the highest reward of all policies under every service level."""
    table = summarise_levels(tables.csv(LEVELS)).pivot(index="pipeline", columns="policy", values="reward")
    return bool(table[SOLVERS].lt(table["agent"], axis="index").all(axis=None))


UNSEEN = [
    says(
        "Of {:.0f} generated pipelines like those of training the agent is at or above the myopic solver with backlog "
        "on {:.0f} %, and drops {:.0f} requests a cycle in the mean, the solver {:.0f}.",
        lambda tables: in_range(tables, "inside"),
    ),
    says(
        "Of {:.0f} beyond what training draws from it is so on {:.0f} %, with {:.0f} against {:.0f}",
        lambda tables: in_range(tables, "outside"),
    ),
    says(
        "Of the {:.0f} on which it is below, it is so by less than 0.1 % on {:.0f}, and by {:.0f} % and {:.0f} % at "
        "worst.",
        below,
    ),
    says(
        "Where a service level is the objective, it has a higher reward than every solver on all six pipelines",
        holds=above_every_solver,
        source=f"reports/{LEVELS}",
    ),
]

# ----------------------------------------------------------------------------------------- docs/benchmarks.md

PROFILE = "benchmarks/simulator_profile.csv"


def parts_of_a_step(tables: Tables) -> bool:
    """Whether the queue takes more than two fifths, and noise and arrivals about a third."""
    share = tables.csv(PROFILE).set_index("part")["share"]
    queue = share.filter(like="queues, batches").sum()
    return bool(queue > 0.4) and bool(0.3 < share.filter(regex="noise|arrivals drawn").sum() < 0.36)


BENCHMARKS = [
    takes("docs/benchmarks.md", "# simulator, training, decision times: about {:.0f} minutes", "make bench"),
    Claim(
        "docs/benchmarks.md",
        "The compiled queue takes more than two fifths of a step; drawing noise and arrivals takes another third.",
        holds=parts_of_a_step,
        source=f"reports/{PROFILE}",
    ),
]

TIMES = "benchmarks/decision_time.csv"
OLDER = [
    Claim(
        "docs/benchmarks.md",
        "The committed table is older than `lookahead`.",
        holds=lambda tables: older_than_the_one_agent(tables, TIMES),
        source=f"reports/{TIMES}",
    ),
]

CLAIMS = [*DAYS, *UNSEEN, *BENCHMARKS, *OLDER]
