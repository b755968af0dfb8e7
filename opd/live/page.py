"""Report page of a live evaluation: the setup, every policy's results, and the fidelity of the simulator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from opd.live.failures import describe_failures
from opd.live.fidelity import Performance, relative_errors
from opd.study.report.files import markdown_table

NOTEBOOK = "notebooks/05_cluster_evaluation.ipynb"
"""Writes the page, with any parameters; it does not know which command ran it."""

FIGURE_NAMES = dict(zip(Performance._fields, ("throughput", "mean latency", "p95 latency"), strict=True))

OUTCOMES = ("offered", "completed", "rejected", "dropped", "failed", "lost")
QUANTILES = ("mean", "p50", "p95", "p99")
SCORES = {
    "by_expert": "fallback",
    "within": "within the level (%)",
    "qos": "QoS",
    "cost": "cost (cores)",
    "decision_ms_mean": "decision (ms)",
}

MEDIAN_THROUGHPUT, MEDIAN_LATENCY = 0.05, 0.15
"""Acceptance criteria: largest median error of the simulator over configurations and loads."""


def write_page(
    path: Path, summary: Mapping[str, Any], overhead: Mapping[str, Any], fidelity: pd.DataFrame, replays: pd.DataFrame
) -> str:
    """Write the page as Markdown and return it.

    Args:
        path: of the file.
        summary: content of ``summary.json``.
        overhead: of :func:`opd.live.calibration.measure_overhead`; empty if it was not measured.
        fidelity: of :func:`opd.live.fidelity.measure_fidelity`; likewise.
        replays: of :func:`opd.live.fidelity.replay`, with column ``policy``; likewise.
    """
    results = summary["policies"]
    parts = ["# The live pipeline", *_failures(results), _setup(summary), *_runs(results), *_warnings(results)]
    if overhead:
        parts += _overhead(overhead)
    if len(fidelity):
        parts += _fidelity(fidelity)
    if len(replays):
        parts += _closed_loop(replays)
    page = "\n\n".join(parts) + "\n"
    path.write_text(page, encoding="utf-8")
    return page


def _failures(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """State first what went wrong."""
    useless = [
        f"- **{name}: this run is useless: {each['useless']}.**" for name, each in results.items() if each["useless"]
    ]
    lines = [*useless, *(f"- {sentence}" for sentence in describe_failures(results))]
    return ["**Requests failed.**", "\n".join(lines)] if lines else ["Every request was answered."]


def _warnings(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [f"- {name}: {warning}" for name, each in results.items() for warning in each["warnings"]]
    return ["## Warnings during the runs", "\n".join(lines)] if lines else []


def _setup(summary: Mapping[str, Any]) -> str:
    hardware = summary["hardware"]
    return (
        f"Pipeline {summary['pipeline']}, backend {summary['backend']}, monitoring by {summary['monitoring']}. "
        f"Traffic: {summary['traffic']}. Hardware: {hardware['processor']}, {hardware['cores']} cores, shared by "
        f"replicas, gateway, load generator and monitoring. Written by `{NOTEBOOK}`, which `make live` runs."
        + (f" Profile: {summary['assumed']}." if summary["assumed"] else "")
    )


def _runs(policies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names = pd.DataFrame({"policy": list(policies)})
    sent, changes = (pd.DataFrame([result[key] for result in policies.values()]) for key in ("requests", "changes"))
    # A run in which no request was completed has no latency.
    latency = 1e3 * sent[[f"latency_{quantile}" for quantile in QUANTILES]].astype(float)
    requests = names.join(sent[[*OUTCOMES]]).join(latency.set_axis([f"{name} (ms)" for name in QUANTILES], axis=1))
    scores = pd.DataFrame([{label: result[key] for key, label in SCORES.items()} for result in policies.values()])
    scores = scores.apply(pd.to_numeric)
    scores[SCORES["within"]] *= 100.0
    decisions = names.join(changes).join(scores)
    refused = [len(result["refused"]) for result in policies.values()]
    if any(refused):
        decisions.insert(1, "refused", refused)
    return [
        "## Requests",
        "The load generator is open-loop, and latency counts from the scheduled send time. Lost requests never got an "
        "answer.",
        markdown_table(requests, digits=1),
        "## Decisions",
        "The table counts reconfigurations, and those that changed the variant, the replicas or the batch size of a "
        "stage. `fallback` counts decisions that the agent left to its expert, because backlog or load exceeded what "
        "the agent was trained for, or that a fallback made for a policy that failed. `refused` decisions did not run. "
        "The policy `schedule` does not decide: it steps through fixed configurations to "
        "show that every kind of change works. Scores are means over the measured time under load; an interval is "
        "measured from the end of a change. `within the level` is the share of the requests that ended within the "
        "latency of the service level; those that came to nothing did not. With weights as the objective, QoS is that "
        "of Eq. 3: it is computed from profiled throughput, which may come from another machine, so it can contain "
        "unmet demand that was in fact met here. With a service level, it is the reward in cores before the cost is "
        "subtracted.",
        markdown_table(decisions),
        "![Timelines of the runs](course.png)",
    ]


def _overhead(overhead: Mapping[str, Any]) -> list[str]:
    added = overhead["added_ms"]
    return [
        "## Overhead of the gateway",
        f"The gateway takes {overhead['cpu_ms']:.1f} ms of CPU time per request. It adds {added['p50']:.1f} ms "
        f"of latency in the median and {added['p95']:.1f} ms at the 95th percentile to calling the replicas directly, "
        f"one after the other ({overhead['direct_ms']['p50']:.1f} ms in the median). Measured with "
        f"{overhead['requests']} requests, one at a time.",
    ]


def _fidelity(table: pd.DataFrame) -> list[str]:
    errors = relative_errors(table)
    figures = list(Performance._fields)
    medians = errors[figures].abs().median()
    profiled = relative_errors(table, "profiled")[figures].abs().median()
    within = medians["throughput"] <= MEDIAN_THROUGHPUT and medians["latency_mean"] <= MEDIAN_LATENCY
    worst = ", ".join(_worst(errors, name, f"{words} {{:+.0%}}") for name, words in FIGURE_NAMES.items())
    names = {"load": "load (requests/s)"} | FIGURE_NAMES
    by_utilisation = errors.groupby("utilisation")[figures].median().reset_index().rename(columns=names)
    return [
        "## Fidelity of the simulator",
        "Fixed configurations ran under steady load, and the simulator got exactly the same arrivals. Throughput "
        "counts the requests answered during the load. Errors are measured / predicted - 1:",
        markdown_table(errors.rename(columns=names)),
        f"The median absolute error is {medians['throughput']:.1%} for throughput, {medians['latency_mean']:.1%} for "
        f"mean latency and {medians['latency_p95']:.1%} for p95 latency: "
        f"{'within' if within else 'NOT within'} the acceptance criteria of {MEDIAN_THROUGHPUT:.0%} for throughput and "
        f"{MEDIAN_LATENCY:.0%} for mean latency. The worst errors are {worst}. Median errors, with sign, at each "
        "utilisation of the slowest stage:",
        markdown_table(by_utilisation),
        "These predictions use replica latencies that were calibrated just before each load. With the profiled "
        "latencies of the profile, which the policies plan with, the median absolute errors are "
        f"{profiled['throughput']:.1%}, {profiled['latency_mean']:.1%} and {profiled['latency_p95']:.1%}. Two effects "
        "are not simulated. Every simulated replica has a core of its own; on a machine with fewer cores than busy "
        "processes, they wait for one another. And a busy replica can be faster than during calibration, when it "
        "slept between calls.",
        "![Fidelity](fidelity.png)",
    ]


def _worst(errors: pd.DataFrame, figure: str, template: str) -> str:
    """Format the largest error of a figure, with its configuration and load."""
    row = errors.to_dict("records")[int(errors[figure].abs().to_numpy().argmax())]
    return f"{template.format(row[figure])} ({row['configuration']} at {row['load']:g} requests/s)"


def _closed_loop(replays: pd.DataFrame) -> list[str]:
    predictions = [name for name in ("calibrated", "profiled") if name in replays]
    errors = pd.DataFrame({name: replays["measured"] / replays[name] - 1.0 for name in predictions})
    runs = errors.abs().groupby(replays["policy"], sort=False)
    figures = {"median": runs.median(), "worst": runs.max()}
    shown = pd.DataFrame({f"{name}, {of}": values[name] for name in predictions for of, values in figures.items()})
    about = (
        "The simulator got the arrivals and configurations of the live runs. The table shows the absolute error of the "
        "mean latency of an interval, measured / predicted - 1. `profiled` predictions use the latencies of the "
        "profile, measured at another time and possibly on another machine."
    )
    if "calibrated" in predictions:
        about += (
            " `calibrated` predictions use the profile as the run's own calibration had corrected it when it ended, "
            "plus the overhead of the gateway."
        )
    return [
        "## Fidelity in the closed loop",
        about,
        markdown_table(shown.reset_index()),
        "![Closed loop](replay.png)",
    ]
