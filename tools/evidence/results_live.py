"""Claims of ``docs/results.md`` about what was served: the paper's experiments, real models, their accuracy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

import pandas as pd

from evidence.claim import Claim
from evidence.shared import size
from evidence.tables import Number, Tables

PAGE = "docs/results.md"
says = partial(Claim, PAGE)

# ---------------------------------------------------------------------------------------- on the real plane

STUDY = "live/study.csv"
OTHERS = ["greedy", "ipa", "ladder", "myopic"]
LOOKING_AHEAD = ["agent", "lookahead"]


def study_rows(tables: Tables, policies: Sequence[str] = (), **where: object) -> pd.DataFrame:
    """Runs of the live study, of some policies or of all."""
    rows = tables.rows(STUDY, **where)
    return rows[rows["policy"].isin(policies)] if policies else rows


def requests_of_study(tables: Tables) -> list[Number]:
    """Requests and runs."""
    rows = tables.csv(STUDY)
    return [
        tables.worked(STUDY, int(rows["offered"].sum()), "sum of `offered`"),
        tables.worked(STUDY, len(rows), "rows"),
    ]


def nothing_lost(tables: Tables) -> bool:
    """Whether every request of the study was completed."""
    rows = tables.csv(STUDY)
    return not rows["failed"].any() and not rows["lost"].any() and rows["completed"].equals(rows["offered"])


def burst_latencies(tables: Tables) -> list[Number]:
    """The 95th percentile of the policies that look ahead, then those of the others, on video."""

    def end(policies: Sequence[str], which: str) -> Number:
        values = study_rows(tables, policies, pipeline="video", load="fluctuating")["latency_p95"]
        return tables.worked(
            STUDY, getattr(values, which)(), f"{which} `latency_p95` of {', '.join(policies)}: video, fluctuating"
        )

    return [end(LOOKING_AHEAD, "max"), end(OTHERS, "min"), end(OTHERS, "max")]


def ahead_in_bursts(tables: Tables) -> bool:
    """Whether both policies that look ahead have the highest rewards on both pipelines."""
    parts = [rows for _, rows in study_rows(tables, load="fluctuating").groupby("pipeline")]
    return all(set(rows.nlargest(2, "reward")["policy"]) == set(LOOKING_AHEAD) for rows in parts)


def steady_spread(tables: Tables) -> list[Number]:
    """How far apart the rewards are under steady high load of nlp."""
    values = study_rows(tables, pipeline="nlp", load="steady-high")["reward"]
    return [tables.worked(STUDY, values.max() - values.min(), "range of `reward`: nlp, steady-high")]


def agent_more(tables: Tables, over: str) -> list[Number]:
    """QoS and cores of the agent less those of another policy, mean of all runs."""
    means = tables.csv(STUDY).groupby("policy")[["qos", "cost"]].mean()
    return [
        tables.worked(STUDY, means.at["agent", name] - means.at[over, name], f"mean `{name}` of agent − {over}")
        for name in ("qos", "cost")
    ]


def prediction_errors(tables: Tables) -> list[Number]:
    """Median errors of three predictions, then the worst of cost and of the reward in the same run, %."""
    rows = tables.csv(STUDY)
    off = {
        name: 100.0 * (rows[name] / rows[f"predicted_{name}"] - 1.0).abs() for name in ("qos", "cost", "latency_p95")
    }
    medians = [
        tables.worked(STUDY, error.median(), f"median of |`{name}` ÷ `predicted_{name}` − 1|")
        for name, error in off.items()
    ]
    apart = rows[rows["policy"].isin(["ladder", "lookahead"])]
    worst = [
        tables.worked(
            STUDY,
            100.0 * (apart[name] / apart[f"predicted_{name}"] - 1.0).abs().max(),
            f"largest |`{name}` ÷ `predicted_{name}` − 1| of ladder and lookahead",
        )
        for name in ("cost", "reward")
    ]
    return [*medians, *worst]


def others_took_another(tables: Tables) -> bool:
    """Whether only ladder and lookahead departed from the prediction by more than a tenth of the cost."""
    rows = tables.csv(STUDY)
    off = (rows["cost"] / rows["predicted_cost"] - 1.0).abs() > 0.1
    return set(rows.loc[off, "policy"]) == {"ladder", "lookahead"}


MANY = "live/nlp-emulated/fidelity.csv"


def many_replicas(tables: Tables) -> list[Number]:
    """Fewest and most replicas, lowest and highest utilisation in %; then median and worst error of each figure, %."""
    rows = tables.csv(MANY)
    replicas = [sum(map(int, re.findall(r" x(\d+)", label))) for label in rows["configuration"]]
    ends = [tables.worked(MANY, end(replicas), "sum of replicas in `configuration`") for end in (min, max)]
    loads = [tables.worked(MANY, 100.0 * end(rows["utilisation"]), "`utilisation`") for end in (min, max)]
    errors = []
    for name in ("throughput", "latency_mean", "latency_p95"):
        off = 100.0 * (rows[f"{name}_measured"] / rows[f"{name}_predicted"] - 1.0).abs()
        cell = f"of |`{name}_measured` ÷ `{name}_predicted` − 1|"
        errors += [
            tables.worked(MANY, off.median(), f"median {cell}"),
            tables.worked(MANY, off.max(), f"largest {cell}"),
        ]
    return [*ends, *loads, *errors]


REAL_PLANE = [
    says(
        "| requests | {:,.0f} offered and completed in {:.0f} runs. None failed, none was lost. |",
        requests_of_study,
        holds=nothing_lost,
    ),
    says(
        "Agent and lookahead have the highest reward on both pipelines. On `video` their "
        "95th percentile of the latency "
        "is {:.1f} s, that of greedy, IPA, ladder and myopic solver {:.1f} to {:.1f} s.",
        burst_latencies,
        holds=ahead_in_bursts,
    ),
    says("On steady high load of `nlp` all policies are within {:.2f} of each other", steady_spread),
    says(
        "{:+.2f} QoS and {:+.1f} cores against greedy; {:+.2f} QoS and {:+.1f} cores against IPA.",
        lambda tables: [*agent_more(tables, "greedy"), *agent_more(tables, "ipa")],
    ),
    says(
        "The simulator's median error is {:.1f} % for QoS, {:.1f} % for cost and {:.1f} % for the 95th percentile of "
        "the latency. Where two configurations are about equally good, ladder and lookahead took another one than "
        "predicted (cost up to {:.0f} % off, reward {:.0f} %).",
        prediction_errors,
        holds=others_took_another,
    ),
    says(
        "With {:.0f} to {:.0f} replicas of `nlp` at {:.0f} to {:.0f} % utilisation, throughput is off by {:.1f} % in "
        "the median (worst {:.1f} %), the mean latency by {:.1f} % ({:.1f} %) and the 95th percentile by {:.1f} % "
        "({:.1f} %).",
        many_replicas,
    ),
]

# ------------------------------------------------------------------------------------------------- real models

LIVE, OVERHEAD, FIDELITY = "live/summary.json", "live/overhead.json", "live/fidelity.csv"
LIVE_POLICIES = ("greedy", "ipa", "ladder", "lookahead", "agent")


def offered_load(tables: Tables) -> list[Number]:
    """Smallest and largest load over ten seconds, requests/s, and the largest in percent of what is carried."""
    traffic = str(tables.key(LIVE, "traffic").value)
    found = re.search(r"([\d.]+) to ([\d.]+) requests/s .* of the ([\d.]+) requests/s", traffic)
    assert found, traffic
    least, most, carried = map(float, found.groups())
    return [tables.worked(LIVE, value, "`traffic`") for value in (least, most, 100.0 * most / carried)]


def live(tables: Tables, *keys: str) -> Number:
    """A figure of one of the policies."""
    return tables.key(LIVE, "policies", *keys)


def answered(tables: Tables) -> list[Number]:
    """Requests offered to each policy, and those that three of them dropped."""
    dropped = [live(tables, name, "requests", "dropped") for name in ("ipa", "greedy", "ladder")]
    return [live(tables, "agent", "requests", "offered"), *dropped]


def answered_all(tables: Tables) -> bool:
    """Whether agent and planner answered everything, and nothing was lost or failed in any run."""
    requests = {name: live(tables, name, "requests").value for name in LIVE_POLICIES}
    whole = all(requests[name]["completed"] == requests[name]["offered"] for name in LOOKING_AHEAD)
    return whole and not any(each["lost"] or each["failed"] for each in requests.values())


def ordered_by(tables: Tables, *keys: str) -> list[Number]:
    """Figures of the policies with their names, the largest first."""
    found = [(name, live(tables, name, *keys)) for name in LIVE_POLICIES]
    found.sort(key=lambda pair: -pair[1].value)
    named = [(number._replace(value="IPA" if name == "ipa" else name), number) for name, number in found]
    return [number for pair in named for number in pair]


def errors_at(tables: Tables) -> list[Number]:
    """Median error of the mean latency and the load, at three loads; its size up to 70 %; throughput; the worst."""
    rows = tables.csv(FIDELITY)
    error = 100.0 * (rows["latency_mean_measured"] / rows["latency_mean_predicted"] - 1.0)
    through = 100.0 * (rows["throughput_measured"] / rows["throughput_predicted"] - 1.0).abs().median()
    cell = "of `latency_mean_measured` ÷ `latency_mean_predicted` − 1"
    medians = [
        number
        for load, part in error.groupby(rows["utilisation"])
        for number in (
            tables.worked(FIDELITY, part.median(), f"median {cell}: utilisation {load}"),
            tables.worked(FIDELITY, 100.0 * float(str(load)), "`utilisation`"),
        )
    ]
    usual = error[rows["utilisation"] <= 0.7].abs().median()
    return [
        *medians,
        tables.worked(FIDELITY, usual, f"median size {cell}: utilisation up to 0.7"),
        tables.worked(FIDELITY, through, "median of |`throughput_measured` ÷ `throughput_predicted` − 1|"),
        tables.worked(FIDELITY, error.max(), f"largest {cell}"),
    ]


REAL_MODELS = [
    says(
        "{:.0f} to {:.0f} requests/s within five minutes, {:.0f} % of what it was measured to carry.",
        offered_load,
    ),
    says(
        "Agent and lookahead answered all {:,.0f}. IPA dropped {:,.0f}, greedy {:,.0f}, the ladder {:,.0f}. None was "
        "lost or failed.",
        answered,
        holds=answered_all,
    ),
    says(
        "Lookahead changed the configuration {:.0f} times, IPA {:.0f}, the agent {:.0f}, "
        "the ladder {:.0f}, greedy {:.0f}",
        lambda tables: [
            live(tables, name, "changes", "reconfigurations")
            for name in ("lookahead", "ipa", "agent", "ladder", "greedy")
        ],
    ),
    says(
        "| QoS | {} {:.1f}, {} {:.1f}, {} {:.1f}, {} {:.1f}, {} {:.1f}. Planner and agent are ahead of all others.",
        lambda tables: ordered_by(tables, "qos"),
        holds=lambda tables: {each.value for each in ordered_by(tables, "qos")[:4:2]} == set(LOOKING_AHEAD),
    ),
    says(
        "{:.1f} ms of CPU time a request and {:.1f} ms of latency in the median.",
        lambda tables: [tables.key(OVERHEAD, "cpu_ms"), tables.key(OVERHEAD, "added_ms", "p50")],
    ),
    says(
        "the mean latency of fixed configurations is off by {:.0f} % (median) at {:.0f} % utilisation of the slowest "
        "stage, {:.0f} % at {:.0f} % and {:.0f} % at {:.0f} %; the median absolute error is {:.0f} % up to 70 %. "
        "Throughput is off by {:.1f} %. The worst mean latency is off by {:.0f} %",
        errors_at,
    ),
]

# ------------------------------------------------------------------------------------------------ OCR variants

PAIRS = "ocr/pairs.csv"


def pairs_differ(tables: Tables) -> list[Number]:
    """Recognisers with which the other detector reads characters better."""
    table = tables.csv(PAIRS).pivot(index="recognition", columns="detection", values="accuracy")
    better = int((table["v6-tiny-256"] > table["v5-256"]).sum())
    cell = "rows with a higher `accuracy` of v6-tiny-256 than of v5-256"
    return [tables.worked(PAIRS, better, cell), size(tables, PAIRS, "recognition")]


def finds_more_lines(tables: Tables) -> bool:
    """Whether v5-256 is better by itself, and gets more pages right with every recogniser."""
    own = tables.rows("ocr/accuracy.csv", split="report").set_index("variant")["accuracy"]
    table = tables.csv(PAIRS).pivot(index="recognition", columns="detection", values="pages_right")
    return bool(own["v5-256"] > own["v6-tiny-256"]) and bool((table["v5-256"] > table["v6-tiny-256"]).all())


OCR = [
    says(
        "`v5-256` finds more lines than `v6-tiny-256` and gets more pages entirely right, but with {:word} of {:word} "
        "recognisers the characters of all pages are read slightly better with the latter.",
        pairs_differ,
        holds=finds_more_lines,
    ),
]

CLAIMS = [*REAL_PLANE, *REAL_MODELS, *OCR]
