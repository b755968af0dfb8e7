"""What the paper claims in Sec. VI, beside what the tables say, with a sentence on every disagreement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd

from evidence import book
from evidence.shared import EVALUATION, rewards
from evidence.tables import Number, Tables

SAME = 2.0
"""Percent within which two figures are "nearly identical"."""


class Finding(NamedTuple):
    """A claim of the paper.

    Attributes:
        place: in the paper.
        says: what it says.
        ours: the same from our tables, with format fields.
        numbers: of the fields.
        agrees: whether the two agree, by the tables.
        why_not: a sentence on the disagreement, empty if there is none; to be rewritten when ``agrees`` changes.
    """

    place: str
    says: str
    ours: str
    numbers: Callable[[Tables], Sequence[Number]]
    agrees: Callable[[Tables], bool]
    why_not: str = ""


def findings_to_review(tables: Tables) -> list[book.Finding]:
    """Findings whose sentence no longer fits the tables."""
    wrong = [each for each in PAPER if each.agrees(tables) == bool(each.why_not)]
    state = {True: "agrees by now, so it needs no excuse", False: "no longer agrees, so it needs a sentence why"}
    return [
        book.Finding("tools/evidence/paper.py", 0, f"{each.place}, {each.says}: {state[each.agrees(tables)]}", False)
        for each in wrong
    ]


# ------------------------------------------------------------------------------------- Fig. 5: twelve percentages

COMPARISON = "benchmarks/paper.csv"


def percent(tables: Tables, policy: str, load: str, over: str, quantity: str) -> Number:
    """Our percentage, mean over the pipelines."""
    return tables.cell(COMPARISON, "mean", policy=policy, cycle=load, against=over, quantity=quantity)


def fig5(load: str, over: str, quantity: str, says: str, why_not: str = "") -> Finding:
    """One of the percentages; its sign has to be ours, or both are nearly zero."""
    keys = {"cycle": load, "against": over, "quantity": quantity}

    def agrees(tables: Tables) -> bool:
        ours = float(percent(tables, "agent", load, over, quantity).value)
        paper = float(tables.cell(COMPARISON, "paper", policy="agent", **keys).value)
        return ours * paper > 0.0 or (paper == 0.0 and abs(ours) <= SAME)

    def numbers(tables: Tables) -> list[Number]:
        return [percent(tables, policy, load, over, quantity) for policy in ("agent", "agent-frugal")]

    letter = {"steady-low": "a", "fluctuating": "b", "steady-high": "c"}[load]
    return Finding(f"Fig. 5({letter})", says, "`agent` {:+.1f} %, `agent-frugal` {:+.1f} %", numbers, agrees, why_not)


DEARER = (
    "With a core at 0.15, Eq. 7 pays for cores that raise QoS above IPA's; "
    "`agent-frugal`, trained with a higher price of a core, costs less than IPA."
)
BETTER = (
    "IPA maximises accuracy less cost and batch size, and knows latency as a limit only, "
    "so in Eq. 3 it is below the agent rather than above it."
)
CHOICE = (
    "Most of our devices still leave a choice under this load; on `nlp`, which is at its limit, it is as in the paper."
)

FIG5 = [
    fig5("steady-low", "greedy", "cost", "low load: cost 120 % above greedy"),
    fig5("steady-low", "greedy", "qos", "low load: QoS 36 % above greedy"),
    fig5("steady-low", "ipa", "cost", "low load: cost 16 % below IPA", DEARER),
    fig5("steady-low", "ipa", "qos", "low load: QoS 3.8 % below IPA", BETTER),
    fig5("fluctuating", "greedy", "cost", "fluctuating load: cost 37 % above greedy"),
    fig5("fluctuating", "greedy", "qos", "fluctuating load: QoS 21 % above greedy"),
    fig5("fluctuating", "ipa", "cost", "fluctuating load: cost 6 % below IPA", DEARER),
    fig5("fluctuating", "ipa", "qos", "fluctuating load: QoS 3 % below IPA", BETTER),
    fig5("steady-high", "greedy", "cost", "high load: cost nearly identical to greedy", CHOICE),
    fig5("steady-high", "greedy", "qos", "high load: QoS nearly identical to greedy", CHOICE),
    fig5(
        "steady-high",
        "ipa",
        "cost",
        "high load: cost nearly identical to IPA",
        "The agent finds configurations with fewer cores on most of our devices, which still "
        "leave a choice under this load.",
    ),
    fig5("steady-high", "ipa", "qos", "high load: QoS nearly identical to IPA"),
]

# ----------------------------------------------------------------------------------------- Fig. 4: courses in time

COURSES = ("greedy", "agent", "ipa")
THREE = "cores: greedy {:.1f}, agent {:.1f}, IPA {:.1f}; QoS: {:.1f}, {:.1f}, {:.1f}"


def means(tables: Tables, load: str) -> pd.DataFrame:
    """Cost and QoS of the policies in a cycle, means of pipelines and seeds."""
    return tables.rows(EVALUATION, cycle=load).groupby("policy")[["cost", "qos"]].mean()


def course(tables: Tables, load: str) -> list[Number]:
    """Cost, then QoS, of greedy, agent and IPA."""
    table = means(tables, load)
    return [
        tables.worked(EVALUATION, table.at[policy, quantity], f"mean `{quantity}`: {load}, {policy}")
        for quantity in ("cost", "qos")
        for policy in COURSES
    ]


def between(tables: Tables, load: str) -> bool:
    """Whether the agent is between greedy and IPA, in cost and in QoS."""
    table = means(tables, load).loc[list(COURSES)]
    return bool(table["cost"].is_monotonic_increasing and table["qos"].is_monotonic_increasing)


def balanced(tables: Tables) -> bool:
    """Whether greedy is cheapest with the lowest QoS and IPA the dearest under fluctuating load."""
    table = means(tables, "fluctuating").loc[list(COURSES)]
    return table["cost"].idxmin() == "greedy" == table["qos"].idxmin() and table["cost"].idxmax() == "ipa"


def within(tables: Tables) -> bool:
    """Whether cost and QoS of the three are nearly identical under steady high load."""
    table = means(tables, "steady-high").loc[list(COURSES)]
    return bool((100.0 * (table.max() / table.min() - 1.0) <= SAME).all())


def random_range(tables: Tables) -> list[Number]:
    """Smallest and largest QoS of a cycle of the random policy on a pipeline, and the same of the agent."""
    found = []
    for policy in ("random", "agent"):
        values = tables.rows(EVALUATION, policy=policy, pipeline="nlp")["qos"]
        found += [
            tables.worked(EVALUATION, values.agg(end), f"{end} of `qos`: {policy}, nlp") for end in ("min", "max")
        ]
    return found


FIG4 = [
    Finding(
        "Fig. 4(a)",
        "low load: greedy is cheapest with the lowest QoS, IPA dearest with the highest, OPD "
        "between and near IPA's QoS",
        THREE,
        lambda tables: course(tables, "steady-low"),
        lambda tables: between(tables, "steady-low"),
        "IPA is not the best in Eq. 3 here, because it knows latency as a limit only; the "
        "agent is between the two in cost and above both in QoS.",
    ),
    Finding(
        "Fig. 4(b)",
        "fluctuating load: greedy is cheapest and fails in QoS, IPA is stable and costly, OPD balances both",
        THREE,
        lambda tables: course(tables, "fluctuating"),
        balanced,
        "Greedy is the cheapest with the lowest QoS, but the agent spends a little more than "
        "IPA, because Eq. 7 pays for the QoS that it gains.",
    ),
    Finding(
        "Fig. 4(c)",
        "high load: costs rise for all; greedy, IPA and OPD have similar cost and nearly identical QoS",
        THREE,
        lambda tables: course(tables, "steady-high"),
        within,
        CHOICE,
    ),
    Finding(
        "Fig. 4",
        "the random policy fluctuates in cost and QoS under every load",
        "QoS of a cycle on nlp: random {:.1f} to {:.1f}, agent {:.1f} to {:.1f}",
        random_range,
        lambda tables: (lambda low, high, least, most: high.value - low.value > 3.0 * (most.value - least.value))(
            *random_range(tables)
        ),
    ),
]

# ----------------------------------------------------------------- Figs. 3, 6, 7: forecast, decision time, convergence

FORECAST, TIMES, CURVES = "twitter/forecast.json", "twitter/decision_time.csv", "twitter/training/video/curves.csv"


def smape(tables: Tables) -> Number:
    """Error of the forecast of the trace as it was recorded, %."""
    return tables.key(FORECAST, "damping_1", "smape", "lstm")


def growth(tables: Tables, policy: str) -> Number:
    """How many times as long a decision takes at the largest size as at the smallest."""
    values = tables.rows(TIMES, policy=policy).sort_values("stages")["median_ms"]
    return tables.worked(TIMES, values.iloc[-1] / values.iloc[0], f"`median_ms` at 10 × 10 ÷ at 2 × 5, {policy}")


def times_of_ipa(tables: Tables, than: str) -> pd.Series:
    """IPA's H as a multiple of an agent's, by the number of stages."""
    table = tables.csv(TIMES).pivot(index="stages", columns="policy", values="total_ms")
    return table["ipa-highs"] / table[than]


def slower(tables: Tables, than: str) -> list[Number]:
    """By how many percent IPA's H is above an agent's: the smallest and the largest of all sizes."""
    more = 100.0 * (times_of_ipa(tables, than) - 1.0)
    cell = f"100 × (`total_ms` of ipa-highs ÷ {than} − 1) at all sizes"
    return [tables.worked(TIMES, more.agg(end), f"{end} of {cell}") for end in ("min", "max")]


def rises(tables: Tables, than: str) -> bool:
    """Whether IPA is slower at every size, and more so at the largest than at the smallest."""
    more = times_of_ipa(tables, than)
    return bool((more > 1.0).all() and more.iloc[-1] > 1.1 * more.iloc[0])


def converged(tables: Tables) -> list[Number]:
    """Loss of the value function and training reward on video: means of the first and of the last ten updates."""
    rows = tables.rows(CURVES, policy="agent-single").groupby("update").mean(numeric_only=True)
    return [
        tables.worked(CURVES, part.mean(), f"mean `{name}` of the {when} ten updates, agent-single")
        for name in ("train/value_loss", "rollout/reward")
        for when, part in (("first", rows[name].head(10)), ("last", rows[name].tail(10)))
    ]


def has_converged(tables: Tables) -> bool:
    """Whether the loss fell and the reward rose."""
    first_loss, last_loss, first_reward, last_reward = (float(number.value) for number in converged(tables))
    return last_loss < first_loss and last_reward > first_reward


def growing(policy: str, says: str, agrees: Callable[[float], bool], why_not: str = "", solver: str = "") -> Finding:
    """A statement on how the time of a decision grows with the pipeline."""
    return Finding(
        "Fig. 6",
        says,
        f"{{:.1f}} times from 2 × 5 to 10 × 10{solver}",
        lambda tables: [growth(tables, policy)],
        lambda tables: agrees(float(growth(tables, policy).value)),
        why_not,
    )


SINGLE_TIMES = "`agent-single` {:+.0f} to {:+.0f} %, smallest and largest of five sizes"

OTHER_FIGURES = [
    Finding(
        "Fig. 3",
        "the LSTM's SMAPE is 6 %",
        "{:.1f} % on the Twitter trace, test days",
        lambda tables: [smape(tables)],
        lambda tables: abs(float(smape(tables).value) - 6.0) < 1.0,
    ),
    Finding(
        "Sec. VI-A",
        "a forecast takes under 50 ms",
        "{:.3f} ms",
        lambda tables: [tables.key(FORECAST, "damping_1", "latency_ms_median")],
        lambda tables: float(tables.key(FORECAST, "damping_1", "latency_ms_median").value) < 50.0,
    ),
    growing("ipa-highs", "IPA's decision time rises with the pipeline", lambda times: times > 2.0, solver=" (HiGHS)"),
    growing("agent-single", "OPD's remains steady: an agent for one pipeline", lambda times: times < 1.5),
    growing(
        "agent",
        "OPD's remains steady: the one agent",
        lambda times: times < 1.5,
        "The one agent scores every option of every stage, so its time grows with their "
        "number, where a network for one pipeline has an output for each.",
    ),
    Finding(
        "Fig. 6",
        "IPA takes 32.5, 53.5, 111.6 and 212.8 % longer than OPD in a cycle, the more the "
        "larger the pipeline; an agent for one pipeline",
        SINGLE_TIMES,
        lambda tables: slower(tables, "agent-single"),
        lambda tables: rises(tables, "agent-single"),
    ),
    Finding(
        "Fig. 6",
        "the same; the one agent",
        "{:+.0f} to {:+.0f} %, smallest and largest of five sizes",
        lambda tables: slower(tables, "agent"),
        lambda tables: rises(tables, "agent"),
        "IPA is slower at every size, but the distance does not rise steadily, because the "
        "one agent's time grows with the options, too.",
    ),
    Finding(
        "Fig. 7",
        "losses fall and the reward rises to a steady value, fast",
        "video: loss of the value function {:.2f} → {:.2f}, training reward {:.2f} → {:.2f}, "
        "first and last ten updates",
        converged,
        has_converged,
    ),
]

# --------------------------------------------------------------------------------------------------- as a whole

BASELINES = ("random", "greedy", "ipa")


def outperforms(tables: Tables) -> list[Number]:
    """Pipelines in which the agent's mean reward is above all baselines of the paper, and all pipelines."""
    table = rewards(tables)
    ahead = int(table[list(BASELINES)].lt(table["agent"], axis="index").all(axis="columns").sum())
    cell = "pipelines with a higher `reward` of the agent than of random, greedy and IPA"
    return [
        tables.worked("twitter/summary.csv", ahead, cell),
        tables.worked("twitter/summary.csv", len(table), "pipelines"),
    ]


def always_ahead(tables: Tables) -> bool:
    """Whether that is so on all pipelines."""
    ahead, whole = outperforms(tables)
    return ahead.value == whole.value


WHOLE = [
    Finding(
        "Sec. VII",
        "OPD outperforms the baselines",
        "reward above random, greedy and IPA on {:.0f} of {:.0f} pipelines, simulated",
        outperforms,
        always_ahead,
    ),
]

PAPER = [*OTHER_FIGURES[:2], *FIG4, *FIG5, *OTHER_FIGURES[2:], *WHOLE]
