"""The page about a live evaluation: what was run, how every policy did, and how well the simulator foretold it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from opd.live.fidelity import FIGURES, errors
from opd.study.report.files import markdown_table

NOTEBOOK = "notebooks/05_cluster_evaluation.ipynb"
"""What writes the page, with whatever parameters; it does not know by which command it was run."""

FIGURE_NAMES = dict(zip(FIGURES, ("throughput", "mean latency", "p95 latency"), strict=True))

OUTCOMES = ("offered", "completed", "rejected", "dropped", "failed", "lost")
CHANGES = ("reconfigurations", "variant", "replicas", "batch_size")

MEDIAN_THROUGHPUT, MEDIAN_LATENCY = 0.05, 0.15
"""How far from the measurement the simulator may be, in the median over configurations and loads."""


def write_page(
    path: Path, summary: Mapping[str, Any], overhead: Mapping[str, Any], fidelity: pd.DataFrame, replays: pd.DataFrame
) -> str:
    """Write the page as Markdown and return it.

    Args:
        path: of the file.
        summary: what ``summary.json`` holds.
        overhead: of :func:`opd.live.overhead.measure_overhead`; empty where none was measured.
        fidelity: of :func:`opd.live.fidelity.measure_fidelity`; empty likewise.
        replays: of :func:`opd.live.runs.replay`, with the policy in column ``policy``.
    """
    parts = ["# The live pipeline", _about(summary), *_runs(summary["policies"])]
    if overhead:
        parts += _overhead(overhead)
    if len(fidelity):
        parts += _fidelity(fidelity)
    parts += _closed_loop(replays)
    page = "\n\n".join(parts) + "\n"
    path.write_text(page, encoding="utf-8")
    return page


def _about(summary: Mapping[str, Any]) -> str:
    hardware = summary["hardware"]
    return (
        f"Pipeline {summary['pipeline']}, backend {summary['backend']}, monitoring by {summary['monitoring']}. "
        f"Traffic: {summary['traffic']}. Hardware: {hardware['processor']}, {hardware['cores']} cores, shared by "
        f"replicas, queues, router, load generator and monitoring. Written by `{NOTEBOOK}`, which `make live` runs."
    )


def _runs(policies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    requests, changed = [], []
    for name, result in policies.items():
        # Of a run in which nothing was completed there is no latency.
        sent = {figure: math.nan if value is None else value for figure, value in result["requests"].items()}
        latency = {f"{quantile} (ms)": 1e3 * sent[f"latency_{quantile}"] for quantile in ("mean", "p50", "p95", "p99")}
        requests.append({"policy": name} | {outcome: sent[outcome] for outcome in OUTCOMES} | latency)
        scores = {
            "by expert": result["by_expert"],
            "QoS": result["qos"],
            "cost (cores)": result["cost"],
            "decision (ms)": result["decision_ms_mean"],
        }
        changed.append({"policy": name} | {kind: result["changes"][kind] for kind in CHANGES} | scores)
    return [
        "## Requests",
        "Sent by an open-loop generator; latency is counted from the moment a request was due. Lost are those that "
        "never had an answer.",
        markdown_table(pd.DataFrame(requests), digits=1),
        "## Decisions",
        "Reconfigurations, and in how many of them the variant, the replicas or the batch size of a stage changed. "
        "By expert are decisions that the agent's expert made, because more waited or came than the agent can be "
        "trusted with. `schedule` decides nothing: it goes through fixed configurations to show that every kind of "
        "change works. QoS (Eq. 3) takes the throughput of replicas from the catalogue, where latencies may be those "
        "of another machine: unmet demand in it can be demand that was met here.",
        markdown_table(pd.DataFrame(changed)),
        "![Course of the runs](course.png)",
    ]


def _overhead(overhead: Mapping[str, Any]) -> list[str]:
    added = overhead["added_ms"]
    return [
        "## What router and queues cost",
        f"{overhead['cpu_ms']:.1f} ms of CPU time a request, and {added['p50']:.1f} ms of latency in the median, "
        f"{added['p95']:.1f} ms at the 95th percentile, beyond calling the replicas directly one after the other "
        f"({overhead['direct_ms']['p50']:.1f} ms in the median); {overhead['requests']} requests, one at a time.",
    ]


def _fidelity(table: pd.DataFrame) -> list[str]:
    off = errors(table)
    figures = list(FIGURES)
    medians, profiled = off[figures].abs().median(), errors(table, "profiled")[figures].abs().median()
    within = medians["throughput"] <= MEDIAN_THROUGHPUT and medians["latency_mean"] <= MEDIAN_LATENCY
    worst = ", ".join(_worst(off, name, f"{words} {{:+.0%}}") for name, words in FIGURE_NAMES.items())
    names = {"load": "load (requests/s)"} | FIGURE_NAMES
    return [
        "## Fidelity of the simulator",
        "Fixed configurations under steady load, and the very same arrivals in the simulator. Throughput counts what "
        "is answered while load comes. Measured over predicted, less one:",
        markdown_table(off.rename(columns=names)),
        f"In the median the error of the throughput is {medians['throughput']:.1%}, of the mean latency "
        f"{medians['latency_mean']:.1%} and of the p95 latency {medians['latency_p95']:.1%}: "
        f"{'within' if within else 'NOT within'} the {MEDIAN_THROUGHPUT:.0%} and {MEDIAN_LATENCY:.0%} that throughput "
        f"and mean latency shall keep. Worst are {worst}. With their signs, the medians at each load:",
        markdown_table(off.groupby("load")[figures].median().reset_index().rename(columns=names)),
        "The predictions are made with what a call to each replica takes right before the load. With the catalogue's "
        "latencies, which the policies plan with, the medians without sign are "
        f"{profiled['throughput']:.1%}, {profiled['latency_mean']:.1%} and {profiled['latency_p95']:.1%}. The "
        "simulator gives every replica a core of its own; on a machine with fewer cores than busy processes they wait "
        "for one another, which it does not know. Nor does it know that a busy replica can be faster than one that "
        "slept between the calls by which it was calibrated.",
        "![Fidelity](fidelity.png)",
    ]


def _worst(off: pd.DataFrame, figure: str, words: str) -> str:
    """The row that is furthest off in a figure, in words with a place for the figure."""
    row = off.to_dict("records")[int(off[figure].abs().to_numpy().argmax())]
    return f"{words.format(row[figure])} ({row['configuration']} at {row['load']:g} requests/s)"


def _closed_loop(replays: pd.DataFrame) -> list[str]:
    predictions = [name for name in ("calibrated", "profiled") if name in replays]
    errors = pd.DataFrame({name: replays["measured"] / replays[name] - 1.0 for name in predictions})
    runs = errors.abs().groupby(replays["policy"], sort=False)
    figures = {"median": runs.median(), "worst": runs.max()}
    shown = pd.DataFrame({f"{name}, {of}": values[name] for name in predictions for of, values in figures.items()})
    about = (
        "The configurations that ran and the arrivals that came, in the simulator: error of the mean latency of an "
        "interval, measured over simulated, less one, without its sign. `profiled` is with what the policies plan "
        "with, the catalogue's latencies, measured on another day and maybe another machine"
    )
    if "calibrated" in predictions:
        about += "; `calibrated` with what a call to a replica takes on this one, and what router and queues add"
    return [
        "## Fidelity in the closed loop",
        f"{about}.",
        markdown_table(shown.reset_index()),
        "![Closed loop](replay.png)",
    ]
