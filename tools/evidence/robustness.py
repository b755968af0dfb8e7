"""Claims about policies where something is other than in training, on several pages."""

from __future__ import annotations

from functools import cache, partial

import pandas as pd

from evidence.claim import Claim, Row, TableClaim
from evidence.tables import Number, Tables
from opd.study.analysis.estimates import estimate
from opd.study.analysis.robustness import AS_TRAINED, PROFILES_CALIBRATED, PROFILES_KNOWN, PROFILES_WRONG
from opd.study.analysis.robustness_findings import KEYS, calibration_losses, seeds_by_cycles_mean

SUMMARY, ROWS = "benchmarks/robustness_summary.csv", "benchmarks/robustness.csv.gz"
SOLVER = "myopic-backlog"
WITHOUT_QUEUES = ("myopic", "ipa", "greedy")
POLICIES = ("agent", "lookahead", "ladder", SOLVER, *WITHOUT_QUEUES)

# ------------------------------------------------------------------------------------------------ docs/results.md


@cache
def leads(tables: Tables, policy: str) -> pd.DataFrame:
    """Lead of a policy over the solver, by world and variant, with the ends of its interval."""
    rewards = tables.csv(ROWS).pivot(index=["world", "variant", *KEYS], columns="policy", values="reward")
    difference = rewards[policy] - rewards[SOLVER]
    conditions = difference.groupby(["world", "variant"], sort=False)
    return pd.DataFrame(
        {
            key: estimate("lead", seeds_by_cycles_mean(values.droplevel(["world", "variant"])))
            for key, values in conditions
        }
    ).T


def above(tables: Tables, policy: str) -> pd.DataFrame:
    """Conditions in which a policy is above the solver beyond doubt."""
    found = leads(tables, policy)
    return found[found["lead_low"] > 0.0]


def below(tables: Tables, policy: str) -> pd.DataFrame:
    """Conditions in which a policy is below the solver beyond doubt."""
    found = leads(tables, policy)
    return found[found["lead_high"] < 0.0]


def standing(tables: Tables) -> list[Number]:
    """Conditions in which agent and planner are above, of how many, and below."""
    counts = (
        (len(above(tables, "agent")), "above it beyond doubt"),
        (len(leads(tables, "agent")), "compared with it"),
        (len(below(tables, "agent")), "below it beyond doubt"),
    )
    return [tables.worked(ROWS, count, f"conditions in which agent and planner are {what}") for count, what in counts]


def standing_holds(tables: Tables) -> bool:
    """Whether both are above alike, and below on slower devices without calibration only."""
    both = [(set(above(tables, each).index), set(below(tables, each).index)) for each in ("agent", "lookahead")]
    slower = {
        *("20 % slower", "one variant 50 % slower"),
        *("40 % slower for a third of the cycle", "rising to 40 % slower"),
    }
    unclear = {("overload", "peak 125 % of training"), (PROFILES_WRONG, "each variant ±20 %")}
    every = set(leads(tables, "agent").index)
    return both[0] == both[1] == (every - unclear - both[0][1], {(PROFILES_WRONG, each) for each in slower})


@cache
def losses(tables: Tables) -> pd.DataFrame:
    """What not knowing the device costs, by variant and policy."""
    return calibration_losses(tables.csv(ROWS)).set_index(["variant", "policy"])


def largest_share(tables: Tables) -> list[Number]:
    """Largest share of a loss that calibration leaves, in percent."""
    share = (losses(tables)["lost calibrated"] / losses(tables)["lost"]).max()
    return [tables.worked(ROWS, 100.0 * share, "largest `lost calibrated` ÷ `lost` (`calibration_losses`), in %")]


def calibrated_ahead(tables: Tables) -> bool:
    """Whether agent and planner are above the solver on every device with calibration."""
    variants = {key for key in leads(tables, "agent").index if key[0] == PROFILES_CALIBRATED}
    return all(variants <= set(above(tables, policy).index) for policy in ("agent", "lookahead"))


def losing(tables: Tables) -> list[Number]:
    """Conditions in which the agent drops requests, of how many, and the most a cycle."""
    dropped = tables.rows(SUMMARY, policy="agent")["dropped"]
    return [
        tables.worked(SUMMARY, int((dropped > 0).sum()), "rows of the agent with `dropped` > 0"),
        tables.worked(SUMMARY, len(dropped), "rows of the agent"),
        tables.worked(SUMMARY, dropped.max(), "largest `dropped` of the agent"),
    ]


def losing_holds(tables: Tables) -> bool:
    """Whether it drops them without calibration only, and all solvers that do not see the queues drop thousands."""
    rows = tables.rows(SUMMARY, policy="agent")
    worlds = set(rows.loc[rows["dropped"] > 0, "world"])
    most = tables.csv(SUMMARY).groupby("policy")["dropped"].max()
    return worlds == {PROFILES_WRONG} and bool((most[list(WITHOUT_QUEUES)] > 5000).all())


RESULTS = [
    Claim(
        "docs/results.md",
        "Each is surely above in {:.0f} of {:.0f} conditions and surely below in {:word}, and both in the same: they "
        "are below on slower devices whose profiles nobody corrects. Under overload, and where every variant is off by "
        "its own factor and nobody corrects it, the intervals include zero.",
        standing,
        holds=standing_holds,
    ),
    Claim(
        "docs/results.md",
        "With it no policy loses more than {:.0f} % of the reward that it loses without, and agent and planner are "
        "surely above `myopic-backlog` on every device.",
        largest_share,
        holds=calibrated_ahead,
    ),
    Claim(
        "docs/results.md",
        "The agent drops requests in {:word} of {:.0f} conditions, both without calibration, and at most {:.1f} a "
        "cycle. Solvers that do not see the queues drop thousands where forecasts or profiles are wrong.",
        losing,
        holds=losing_holds,
    ),
]

# ------------------------------------------------------------------------------------- docs/choosing-a-policy.md

SETTINGS = {
    "as trained": (AS_TRAINED, "twitter"),
    "overload, peak 125 % of training": ("overload", "peak 125 % of training"),
    "the forecaster says 0": ("forecaster fails", "says 0"),
    "the forecaster says half": ("forecaster fails", "says half"),
    "the forecaster says twice": ("forecaster fails", "says twice"),
    "the device is 20 % slower than profiled": (PROFILES_WRONG, "20 % slower"),
    "the same, calibrated": (PROFILES_CALIBRATED, "20 % slower"),
    "one variant is 50 % slower than profiled": (PROFILES_WRONG, "one variant 50 % slower"),
    "the same variant, calibrated": (PROFILES_CALIBRATED, "one variant 50 % slower"),
}


def worlds(tables: Tables) -> list[Row]:
    """Leads over both solvers, and what they drop."""
    rows = []
    for label, (world, variant) in SETTINGS.items():
        find = partial(tables.cell, SUMMARY, world=world, variant=variant)
        numbers = [find(column, policy=policy) for column in ("lead", "dropped") for policy in (SOLVER, "myopic")]
        drops = " | ".join("{:.2f}" if 0.0 < float(number.value) < 1.0 else "{:,.0f}" for number in numbers[2:])
        rows.append((f"| {label} | {{:.2f}} | {{:.2f}} | {drops} |", numbers))
    return rows


CHOOSING = [
    TableClaim(
        "docs/choosing-a-policy.md",
        "| | lead over `myopic-backlog` | lead over `myopic` | `myopic-backlog` drops | `myopic` drops |",
        worlds,
        "`lead` and `dropped` of both policies by world and variant",
    ),
]

# -------------------------------------------------------------------------------------------- docs/calibration.md


def regained(tables: Tables) -> list[Row]:
    """What not knowing the device costs each policy, without and with calibration."""
    lines = []
    for variant in losses(tables).index.unique("variant"):
        numbers = [
            tables.worked(ROWS, losses(tables).loc[(variant, policy), column], f"`{column}`: {variant}, {policy}")
            for policy in POLICIES
            for column in ("lost", "lost calibrated")
        ]
        lines.append((f"| {variant} | {' | '.join(['{:.2f} → {:.2f}'] * len(POLICIES))} |", numbers))
    return lines


def most_dropped(tables: Tables) -> list[Number]:
    """Requests a cycle that a policy drops at most: with calibration, and those three without."""
    table = losses(tables).reset_index()
    others = table[~table["policy"].isin(WITHOUT_QUEUES)]
    return [
        tables.worked(ROWS, table["dropped calibrated"].max(), "largest `dropped calibrated`"),
        tables.worked(ROWS, table["dropped"].max(), "largest `dropped`"),
        tables.worked(ROWS, others["dropped"].max(), "largest `dropped` of the other policies"),
    ]


def known_slower(tables: Tables) -> list[Number]:
    """Mean loss of all policies on a device that is 20 % slower, if they know it."""
    loss = tables.rows(SUMMARY, world=PROFILES_KNOWN, variant="20 % slower")["reward_loss"].mean()
    return [tables.worked(SUMMARY, loss, f"mean `reward_loss` of {PROFILES_KNOWN}, 20 % slower")]


def harm(tables: Tables) -> list[Number]:
    """Largest change of a mean reward by calibration where the profile is right."""
    loss = tables.rows(SUMMARY, world=PROFILES_CALIBRATED, variant="as profiled").set_index("policy")["reward_loss"]
    return [
        tables.worked(SUMMARY, loss.abs().max(), "largest |`reward_loss`|, calibrated and as profiled"),
        tables.worked(SUMMARY, loss[["agent", "lookahead", "ladder", SOLVER]].abs().max(), "the same of the others"),
    ]


CALIBRATION = [
    TableClaim(
        "docs/calibration.md",
        f"| device | {' | '.join(f'`{policy}`' for policy in POLICIES)} |",
        regained,
        "`lost` → `lost calibrated` (`calibration_losses` of `opd.study.analysis.robustness_findings`)",
    ),
    Claim(
        "docs/calibration.md",
        "With calibration no policy dropped more than {:.0f} requests a cycle; without it `myopic`, `ipa` and `greedy` "
        "dropped up to {:,.0f}, the others at most {:.0f}.",
        most_dropped,
    ),
    Claim(
        "docs/calibration.md",
        "in the mean of the policies {:.1f} on a device that is 20 % slower, even if that is known.",
        known_slower,
    ),
    Claim(
        "docs/calibration.md",
        "On a device as profiled calibration changes the mean rewards of `ipa` and `greedy` by at most {:.3f}, those "
        "of the policies that see the queues by at most {:.4f}.",
        harm,
    ),
]

CLAIMS = [*RESULTS, *CHOOSING, *CALIBRATION]
