"""What the live study found, as sentences and tables computed from its rows."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from opd.control import AGENT
from opd.host.machine import hardware
from opd.live.study import ALONE, BESIDE
from opd.study.analysis.estimates import signed
from opd.study.plots.style import short_label
from opd.study.report.files import markdown_table

_NAMES = {
    "qos": "QoS",
    "cost": "cost (cores)",
    "latency_p95": "p95 latency (s)",
    "decision_time": "decision time H (s)",
    "service_factor": "service time / profile",
    "lateness_p99": "p99 lateness of sending (s)",
    "cpu_percent": "busy cores of the machine (%)",
}

_COMPARED = ("qos", "cost", "latency_p95")
"""Figures that are compared with their prediction."""

_DISTURBED = (
    *_COMPARED,
    "reward",
    "decision_time",
    "reconfigurations",
    "service_factor",
    "lateness_p99",
    "cpu_percent",
)
"""Figures that runs side by side might change."""

_RIVALS = ("greedy", "ipa")
"""Baselines of the paper that the agent is compared with."""


def live_findings(table: pd.DataFrame, repeated: pd.DataFrame) -> dict[str, str]:
    """State what happened to the requests, how the policies compare, and how far the simulator can be trusted.

    Args:
        table: of :func:`opd.live.study.study_table`, a row a run.
        repeated: rows of :func:`opd.live.study.evaluate_alone_and_beside`; empty if nothing was repeated.

    Returns:
        Text by heading.
    """
    found = {
        "Requests": requests_found(table),
        "Policies": policies_found(table),
        "Predicted and measured": predictions_found(table),
        "Decision time": decision_times_found(table),
    }
    return found | ({"Runs side by side": disturbance_found(repeated)} if len(repeated) else {})


def describe_study(about: str, table: pd.DataFrame, side_by_side: int) -> str:
    """Describe what ran and on which machine, with its figures, for the head of the page.

    Args:
        about: the trace, the length of a run, and that replicas are emulated.
        table: of :func:`opd.live.study.study_table`.
        side_by_side: runs at the same time.
    """
    machine, pipelines = hardware(), list(dict.fromkeys(table["pipeline"]))
    figures = [f"study-{kind}-{name}-emulated.png" for name in pipelines for kind in ("timeline", "loads")]
    shown = [*figures, "study-predicted.png", "study-decision-time.png"]
    return (
        "Gateway, queues, requests and reconfigurations are real; **replicas are emulated**: they take the times of "
        f"the profile, and no cores. Traffic: {about}. {side_by_side} runs at a time on {machine['processor']}, "
        f"{machine['cores']} cores, {table['cpu_percent'].mean():.0f} % of them busy in the mean. Notebook "
        "`14_live_study`, which `make live-study` runs.\n\n"
        + "\n\n".join(f"![{name.removesuffix('.png')}]({name})" for name in shown)
    )


def requests_found(table: pd.DataFrame) -> str:
    """Count the requests of all runs by what became of them, and list the runs in which anything went wrong."""
    counts = {name: int(table[name].sum()) for name in ("offered", "completed", "failed", "lost")}
    text = (
        f"{len(table)} runs with emulated replicas: {counts['offered']} requests were offered, {counts['completed']} "
        f"completed, {counts['failed']} failed and {counts['lost']} lost."
    )
    trouble = ["failed", "lost", "refused", "by_expert", "warnings"]
    wrong = table.loc[(table[trouble] > 0).any(axis=1), ["pipeline", "load", "policy", *trouble]]
    if wrong.empty:
        return f"{text} No decision was refused or left to a fallback, and nothing else was warned of."
    return (
        f"{text} Runs in which requests failed, decisions were refused or left to a fallback (`by_expert`), or "
        f"something was warned of:\n\n{markdown_table(wrong)}"
    )


def policies_found(table: pd.DataFrame) -> str:
    """Name the policy of the highest reward under every load, compare the agent with the baselines, and tabulate."""
    best = table.loc[table.groupby(["pipeline", "load"], sort=False)["reward"].idxmax()]
    lines = [f"* {row.pipeline}, {row.load}: {row.policy} has the highest reward." for row in best.itertuples()]
    for rival in _RIVALS:
        lines += _lead_over(table, rival)
    shown = table[["pipeline", "load", "policy", *_COMPARED[:2], "reward", "latency_p95", "reconfigurations"]]
    return "\n".join(lines) + "\n\n" + markdown_table(shown.rename(columns=_NAMES))


def _lead_over(table: pd.DataFrame, rival: str) -> list[str]:
    """A sentence that compares the agent's means over all runs with those of another policy, if both ran."""
    if not {AGENT, rival} <= set(table["policy"]):
        return []
    means = table.groupby("policy")[["qos", "cost", "reward"]].mean()
    leads = [signed(value) for value in means.loc[AGENT].to_numpy(float) - means.loc[rival].to_numpy(float)]
    return [
        f"* In the mean of all runs the agent has {leads[0]} QoS, {leads[1]} cores and {leads[2]} reward "
        f"compared with {short_label(rival)}."
    ]


def prediction_errors(table: pd.DataFrame) -> pd.DataFrame:
    """Measured / predicted − 1 of QoS, cost and p95 latency, a row a run."""
    return pd.DataFrame({name: table[name] / table[f"predicted_{name}"] - 1.0 for name in _COMPARED})


def same_order(table: pd.DataFrame) -> tuple[int, int]:
    """Pairs of policies under the same load whose rewards are predicted in the order in which they were measured.

    Returns:
        Their number, and that of all pairs.
    """
    agree = pairs = 0
    for _, rows in table.groupby(["pipeline", "load"], sort=False):
        for (measured, predicted), (other, expected) in combinations(
            rows[["reward", "predicted_reward"]].to_numpy(), 2
        ):
            agree += int(np.sign(measured - other) == np.sign(predicted - expected))
            pairs += 1
    return agree, pairs


def predictions_found(table: pd.DataFrame) -> str:
    """Say how far the simulator is off, for the same policies and requests, and tabulate it by run."""
    errors = prediction_errors(table)
    typical, worst = errors.abs().median(), errors.abs().max()
    said = ", ".join(f"{_NAMES[name]} {typical[name]:.1%} (at worst {worst[name]:.1%})" for name in _COMPARED)
    agree, pairs = same_order(table)
    shown = table[["pipeline", "load", "policy"]].copy()
    for name in _COMPARED:
        shown[f"{_NAMES[name]}, predicted"] = table[f"predicted_{name}"]
        shown[f"{_NAMES[name]}, measured"] = table[name]
    return (
        f"The median error of the prediction is: {said}. Of {pairs} pairs of policies under the same load, {agree} "
        "have the order of their rewards that was predicted. On the plane a change takes time, and an interval "
        "is measured from its end on; the simulator measures from the decision on. And policies see the load as it was "
        "scraped last, up to a second ago; in the simulator, as it is.\n\n" + markdown_table(shown)
    )


def decision_times_found(table: pd.DataFrame) -> str:
    """Tabulate H of Alg. 1, mean over the loads, and its share of the time that passed."""
    seconds = table.pivot_table("decision_time", "policy", "pipeline", sort=False)
    shares = table["decision_time"] / table["seconds"]
    share = shares.groupby(table["policy"]).max().loc[seconds.index]
    shown = seconds.assign(**{"largest share of a run (%)": 100.0 * share}).rename_axis(columns=None).reset_index()
    lengths = " or ".join(f"{length} s" for length in sorted(table["seconds"].unique()))
    return (
        f"Seconds spent deciding in a run of {lengths}, forecast included, mean over the loads. Outside the simulator "
        f"lookahead begins no further round after half a second.\n\n{markdown_table(shown, 3)}"
    )


def disturbance_found(repeated: pd.DataFrame) -> str:
    """Compare the same runs alone and side by side, with the range of the paired differences.

    Args:
        repeated: of :func:`opd.live.study.evaluate_alone_and_beside`.
    """
    alone, beside = (repeated[repeated["purpose"] == purpose].set_index("seed") for purpose in (ALONE, BESIDE))
    lines = []
    for name in _DISTURBED:
        values = alone[name].astype(float)
        differences = beside[name].astype(float) - values
        figures = {"alone": values.mean(), BESIDE: beside[name].mean(), "difference": differences.mean()}
        figures |= {"smallest": differences.min(), "largest": differences.max(), "spread alone": values.std(ddof=0)}
        lines.append({"figure": _NAMES.get(name, name)} | figures)
    run = repeated.iloc[0]
    lost = ", ".join(
        f"{int(part['failed'].sum())} failed and {int(part['lost'].sum())} lost" for part in (alone, beside)
    )
    return (
        f"{run['policy']} on {run['pipeline']} under {run['load']}, {len(alone)} times with other requests: one after "
        f"the other, and all at the same time. Differences are those of the same requests; `spread alone` is the "
        f"standard deviation between different ones. Requests, alone and side by side: {lost}.\n\n"
        + markdown_table(pd.DataFrame(lines), 3)
    )
