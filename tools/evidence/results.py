"""Claims of ``docs/results.md`` about simulations and benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pandas as pd

from evidence.claim import Claim, Numbers, Row, TableClaim
from evidence.shared import (
    PIPELINES,
    by_pipeline,
    milliseconds,
    rewards,
    share_closed,
    single_agent,
)
from evidence.tables import Number, Tables, largest, smallest
from opd.study.analysis.ablation_findings import ablation_verdict
from opd.study.analysis.frontier import dominated_points, mean_points
from opd.study.analysis.quality import ALL, gap_shares

PAGE = "docs/results.md"
says = partial(Claim, PAGE)

# ---------------------------------------------------------------------------------------- quality of decisions

GAP, SUMMARY = "benchmarks/gap.csv", "twitter/summary.csv"
NAMES = {
    "lookahead": "planner, `lookahead`",
    "agent": "the one agent, `agent`, which has seen none of these pipelines",
    "agent-tuned": "fine-tuned for each, `agent-tuned`",
    "agent-single": "trained for each from nothing, `agent-single`",
    "ladder": "ladder of configurations, the best autoscaler",
    "clairvoyant": "`clairvoyant`, a myopic solver that is told the load to come",
    "myopic-backlog": "`myopic-backlog`, the same solver that also plans for the backlog",
}


def shares(tables: Tables) -> list[Row]:
    """Policies that close some of the gap, the best first; the agent before those that equal it."""
    closed = gap_shares(tables.csv(GAP)).set_index("policy")[ALL].round()
    order = sorted(closed.index, key=lambda policy: (-closed[policy], list(NAMES).index(policy)))
    fields = ", ".join(["{:.0f}"] * len(PIPELINES))
    return [
        (
            f"| {NAMES[policy]} | {{:.0f}} % | {fields} % |",
            [share_closed(tables, policy, pipeline) for pipeline in (ALL, *PIPELINES)],
        )
        for policy in order
    ]


BEATEN = [
    "greedy",
    "ipa",
    "dynamic-program",
    "myopic",
    "myopic-backlog",
    "hpa",
    "queue-threshold",
    "ladder",
    "agent-single",
]


def best_without_losses(tables: Tables) -> bool:
    """Whether the agent is above the baselines everywhere, and drops nothing."""
    table = rewards(tables)
    baselines = [policy for policy in BEATEN if policy in table]
    ahead = table[baselines].lt(table["agent"], axis="index").all(axis=None)
    return bool(ahead) and not tables.rows(SUMMARY, policy="agent")["dropped"].any()


def of_bound(tables: Tables, policy: str) -> list[Number]:
    """Smallest and largest reward as a share of the bound, %."""
    rows = tables.rows(SUMMARY, policy=policy)
    found = by_pipeline(
        tables, SUMMARY, 100.0 * rows["reward"] / rows["bound"], rows, f"`reward` ÷ `bound` of {policy}"
    )
    return [smallest(found), largest(found)]


AUTOSCALERS = ("hpa", "queue-threshold")


def autoscalers(tables: Tables) -> list[Number]:
    """In how many pipelines each is below greedy, and the most requests that one drops."""
    table, lost = rewards(tables), tables.csv(SUMMARY)
    lost = lost[lost["policy"].isin(AUTOSCALERS)]
    below = [
        tables.worked(
            SUMMARY, int((table[name] < table["greedy"]).sum()), f"pipelines with `reward` of {name} < greedy"
        )
        for name in AUTOSCALERS
    ]
    most = lost.loc[lost["dropped"].idxmax()]
    return [*below, *largest_drops(tables, most)]


def largest_drops(tables: Tables, row: pd.Series) -> list[Number]:
    """The dropped requests of a row, and the name of its pipeline."""
    cell = f"largest `dropped` of {' and '.join(AUTOSCALERS)}: {row['policy']} on {row['pipeline']}"
    return [tables.worked(SUMMARY, row[column], cell) for column in ("dropped", "pipeline")]


def decision_times(tables: Tables) -> list[Number]:
    """Milliseconds of agent, planner, IPA at two sizes, and of the agent for one pipeline."""
    pairs = [
        milliseconds(tables, policy, stages) for policy in ("agent", "lookahead", "ipa-highs") for stages in (2, 10)
    ]
    return [*pairs, milliseconds(tables, "agent-single", 2)]


FRONTIER, AREAS = "benchmarks/frontier.csv", "benchmarks/hypervolume.csv"


def frontier(tables: Tables) -> list[Number]:
    """Lowest and highest price of a core, and the points of the agent."""
    prices = tables.csv(FRONTIER)["cost_weight"]
    points = int((mean_points(tables.csv(FRONTIER))["policy"] == "agent").sum())
    return [
        tables.worked(FRONTIER, prices.min(), "smallest `cost_weight`"),
        tables.worked(FRONTIER, prices.max(), "largest `cost_weight`"),
        tables.worked(FRONTIER, points, "rows of the agent, seeds averaged"),
    ]


def frontier_ahead(tables: Tables) -> bool:
    """Whether the agent has the largest areas, and no dominated point."""
    areas = tables.csv(AREAS)
    return bool(areas["agent_times"].dropna().ge(1.0).all()) and dominated_points(tables.csv(FRONTIER)).empty


def leaving_load(tables: Tables) -> list[Number]:
    """Pipelines on which the agent drops requests at some price."""
    rows = tables.rows(FRONTIER, policy="agent")
    count = rows.loc[rows["dropped"] > 0.0, "pipeline"].nunique()
    return [tables.worked(FRONTIER, count, "pipelines with `dropped` > 0 of the agent")]


QUALITY = [
    TableClaim(PAGE, f"| policy | all | {', '.join(PIPELINES)} |", shares, "100 × `share` by policy and pipeline"),
    says(
        "In all six pipelines its reward is above greedy, IPA, the exact solvers, all autoscalers and the agents that "
        "were trained for one pipeline. It drops no request.",
        holds=best_without_losses,
        source=f"reports/{SUMMARY}",
    ),
    says(
        "Its reward is {:.1f} to {:.1f} % of a [bound](bound.md) that no policy can exceed; that of `foresight` {:.1f} "
        "to {:.1f} %.",
        lambda tables: [*of_bound(tables, "agent"), *of_bound(tables, "foresight")],
    ),
    says(
        "`hpa` has a lower reward in {:word} of the six pipelines, `queue-threshold` in {:word}. They drop up to "
        "{:,.0f} requests a cycle (`{}`)",
        autoscalers,
    ),
    says(
        "The agent {:.2f} ms at two stages of five variants and {:.1f} ms at ten of ten, "
        "forecast included; the planner "
        "{:.0f} and {:.0f} ms, IPA by HiGHS {:.1f} and {:.1f} ms, `agent-single` {:.1f} ms",
        decision_times,
    ),
    says(
        "Where the price of a core goes from {:.2f} to {:.1f}, the agent's hypervolume is above IPA's and the myopic "
        "solver's on all six pipelines, and none of its {:.0f} points is dominated.",
        frontier,
        holds=frontier_ahead,
        source=f"reports/{AREAS}",
    ),
    says("Where cores are expensive it leaves load unserved on {:word} pipelines", leaving_load),
]

# -------------------------------------------------------------------------------------- what each part is worth

ABLATIONS = "benchmarks/ablations_summary.csv"


def with_effect(tables: Tables, variant: str) -> Number:
    """Pipelines in which leaving a part out is worse beyond doubt."""
    worse = [
        row for row in tables.rows(ABLATIONS, variant=variant).to_dict("records") if ablation_verdict(row) == "worse"
    ]
    return tables.worked(ABLATIONS, len(worse), f"pipelines with `difference_high` < 0 of {variant}")


def parts_hold(tables: Tables) -> bool:
    """Whether the expert contributes most, and two parts nothing."""
    table = tables.csv(ABLATIONS)
    means = table[table["difference"] != 0.0].groupby("variant")["difference"].mean()
    most = means.filter(regex="^(?!.*(?:myopic|clairvoyant))").idxmin() == "no-expert"
    return most and not any(with_effect(tables, part).value for part in ("plain-features", "no-queues"))


PARTS = [
    says(
        "The expert that it imitates contributes most. Residual features and observed queues have no measurable "
        "effect.",
        holds=parts_hold,
        source=f"reports/{ABLATIONS}",
    ),
    says(
        "Autoregressive heads have an effect in {:word} of three pipelines, the LSTM instead "
        "of the maximum of the last "
        "20 s in {:word}.",
        lambda tables: [with_effect(tables, part) for part in ("independent-heads", "recent-maximum")],
    ),
]

# ------------------------------------------------------------------------------------------------------- speed

REQUESTS, TRAINING, DECISIONS = "simulator_requests.csv", "training.csv", "decision_time.csv"


def times_simpy(tables: Tables, simulator: str) -> Number:
    """The smallest factor of a simulator over simpy."""
    path = f"benchmarks/{REQUESTS}"
    rows = tables.rows(path, simulator=simulator)
    return tables.worked(path, rows["ratio"].min(), f"smallest `ratio` of {simulator}")


def times_trained(tables: Tables, method: str) -> Number:
    """How many times as fast the agent trains as a peer, by its worst seed."""
    return tables.cell(f"benchmarks/{TRAINING}", "agent_times_speed_min", method=method)


def times_decided(tables: Tables, policy: str) -> Number:
    """How many times as long as the agent for one pipeline a solver decides, where it is fastest."""
    path = f"benchmarks/{DECISIONS}"
    table, single = (
        tables.csv(path).pivot(index="stages", columns="policy", values="median_ms"),
        single_agent(tables, path),
    )
    return tables.worked(path, (table[policy] / table[single]).min(), f"smallest `median_ms` of {policy} ÷ {single}")


def all_of(number: Callable[[Tables, str], Number], *names: str) -> Numbers:
    """One number for each of several names."""
    return lambda tables: [number(tables, name) for name in names]


SPEED = [
    says(
        "| {:.0f} × simpy with 256 episodes in one call, {:.0f} × with one |",
        all_of(times_simpy, "opd, batched", "opd, one episode"),
    ),
    says(
        "{:.1f} × Stable-Baselines3 PPO and {:.1f} × sb3-contrib MaskablePPO on the "
        "Gymnasium environment; {:.1f} × and "
        "{:.1f} × when they, too, step their environments in one compiled call. The agent also reaches a higher reward",
        all_of(times_trained, "ppo", "maskable-ppo", "ppo-batched", "maskable-ppo-batched"),
        holds=lambda tables: (
            tables.csv(f"benchmarks/{TRAINING}").query("'ppo' in method")["agent_more_reward_min"].gt(0.0).all()
        ),
    ),
    says(
        "IPA by HiGHS takes {:.0f} × the time of `agent-single`, by Gurobi {:.0f} ×, by exact dynamic programming "
        "{:.1f} ×; the exact myopic solver {:.1f} ×",
        all_of(times_decided, "ipa-highs", "ipa-gurobi", "dynamic-program", "myopic"),
    ),
]

CLAIMS = [*QUALITY, *PARTS, *SPEED]
