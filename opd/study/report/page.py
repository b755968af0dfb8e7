"""The report as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from opd.control import AGENT
from opd.study.report.files import markdown_table, write_json
from opd.study.report.results import (
    FRUGAL,
    PAPER_SPEEDUPS,
    Criterion,
    Results,
    criteria,
    cycles_with_more_drops,
    decision_table,
    flat_metrics,
    forecast_table,
    paper_comparison,
    policy_summary,
    read_results,
)

_COLUMN_NAMES = {
    "qos": "QoS",
    "cost": "cost (cores)",
    "dropped": "dropped per cycle",
    "reward_worst": "worst reward",
    "qos_worst": "worst QoS",
    "dropped_worst": "most dropped",
    "cycle_worst": "cycle of worst reward",
    "decision_ms_mean": "decision (ms)",
}
_SHOWN = ["policy", "reward", "qos", "cost", "dropped", "reward_worst", "qos_worst", "dropped_worst", "cycle_worst"]


def render(results: Results) -> str:
    """Write the report as Markdown."""
    sections = (
        _what_was_run(results),
        _criteria_section(results.evaluation),
        _summary_section(results.evaluation),
        _paper_section(results.evaluation),
        _decision_section(results.decision_time),
        _forecast_section(results.forecast),
        _training_section(results.training),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def _what_was_run(results: Results) -> str:
    about, rows = results.about, results.evaluation
    seeds, cycles = rows["seed"].nunique(), rows["cycle"].nunique()
    pipelines = pd.DataFrame(
        [
            {"pipeline": name, "variants of its stages": ", ".join(map(str, p["variants"])), "cores": p["capacity"]}
            for name, p in about["pipelines"].items()
        ]
    )
    weights = ", ".join(f"{name} {value:g}" for name, value in about["weights"].items())
    machine = about["hardware"]
    starts = ", ".join(f"{name} at {start}" for name, start in about["cycles"].items())
    return "\n\n".join(
        [
            "# Results",
            f"Workload: **{about['trace']}**. {len(rows)} simulated cycles of 1200 s: {len(pipelines)} pipelines × "
            f"{rows['policy'].nunique()} policies × {cycles} cycles × {seeds} {'seed' if seeds == 1 else 'seeds'}. "
            "With the same seed all policies meet the same requests. They decide every "
            f"{about['simulation']['interval']} s.",
            markdown_table(pipelines),
            f"Weights of QoS and reward: {weights}. Decision times were measured on: {machine['processor']}, "
            f"{machine['cores']} cores, Python {machine['python']}, torch {machine['torch']}, on one thread.",
            f"Start of the cycles, in seconds of the recording: {starts}.",
        ]
    )


def _label(criterion: Criterion) -> str:
    if criterion.quantity == "cycles with more drops":
        return "cycles with more drops than IPA: none"
    names = {"qos": "QoS", "ipa": "IPA's", "myopic": "the myopic solver's"}
    return f"{names.get(criterion.quantity, criterion.quantity)} {criterion.relation} {names[criterion.reference]}"


def _criteria_section(evaluation: pd.DataFrame) -> str:
    found = criteria(evaluation)
    text = [
        "## Acceptance criteria",
        "Means over all cycles and seeds. `agent`, trained with the weights above, must have at least the reward of "
        "the myopic solver, which maximises the same reward exactly for the forecast load, and at least the QoS of "
        "IPA, and must not drop more requests than IPA in any cycle. `agent-frugal`, trained with a higher price per "
        "core, must have at least the QoS of IPA at no more than its cost.",
    ]
    if not found:
        return "\n\n".join([*text, "None of these policies was run."])
    table = pd.DataFrame(
        {
            "pipeline": [d.pipeline for d in found],
            "policy": [d.policy for d in found],
            "criterion": [_label(d) for d in found],
            "value": [_number(d, d.value) for d in found],
            "bound": [_number(d, d.bound) for d in found],
            "": ["met" if d.met else "**not met**" for d in found],
        }
    )
    met = sum(d.met for d in found)
    verdict = f"{met} of {len(found)} criteria are met."
    not_run = sorted({AGENT, FRUGAL} - {d.policy for d in found})
    if not_run:
        verdict += f" Not run, or without a baseline for comparison: {', '.join(not_run)}."
    return "\n\n".join([*text, verdict, *_shortfalls(evaluation, found), markdown_table(table)])


def _number(criterion: Criterion, value: float) -> str:
    return f"{value:.0f}" if criterion.quantity == "cycles with more drops" else f"{value:.3f}"


def _shortfalls(evaluation: pd.DataFrame, found: Iterable[Criterion]) -> list[str]:
    lines = []
    for d in found:
        if d.met:
            continue
        if d.quantity == "cycles with more drops":
            worse = cycles_with_more_drops(evaluation[evaluation["pipeline"] == d.pipeline], d.policy, d.reference)
            cells = ", ".join(
                f"{r.cycle} seed {r.seed} ({r[d.policy]} compared with {r[d.reference]})" for _, r in worse.iterrows()
            )
            lines.append(f"- **{d.pipeline}**: {d.policy} drops more requests than IPA in {cells}.")
        else:
            lines.append(
                f"- **{d.pipeline}**: {d.policy} misses {_label(d)} by {abs(d.value - d.bound):.3f} "
                f"({d.value:.3f} instead of {d.bound:.3f}, {100 * abs(d.value / d.bound - 1):.1f} %)."
            )
    return ["\n".join(lines)] if lines else []


def _summary_section(evaluation: pd.DataFrame) -> str:
    summary = policy_summary(evaluation)
    parts = [
        "## All policies",
        "Means over cycles and seeds, and the worst single cycle of a single seed. Random and greedy are the paper's "
        "simple baselines. IPA is solved exactly by HiGHS, with the capacity limit added. Myopic maximises the reward "
        "exactly for the forecast load, clairvoyant for the true largest load of the next 20 s; both ignore start-up "
        "times.",
        "![QoS and cost](evaluation/plane.png)",
    ]
    for pipeline, rows in summary.groupby("pipeline", sort=False):
        parts += [f"### {pipeline}", markdown_table(rows[_SHOWN].rename(columns=_COLUMN_NAMES))]
    return "\n\n".join(parts)


def _paper_section(evaluation: pd.DataFrame) -> str:
    parts = [
        "## The paper's comparisons",
        "Cost and QoS relative to a baseline in percent: the paper's figure (Sec. VI-B, for a pipeline and variants "
        'that it does not name; 0 stands for its "nearly identical"), the mean over our pipelines, and each pipeline.',
    ]
    for policy in (AGENT, FRUGAL):
        table = paper_comparison(evaluation, policy)
        if len(table):
            names = {"cycle": "load", "mean": "ours, mean"}
            table["against"], table["quantity"] = (table[c].replace(_SPELLED) for c in ("against", "quantity"))
            parts += [f"### {policy}", markdown_table(table.rename(columns=names), digits=1)]
    if len(parts) == 2:
        parts.append("None of the paper's three loads was run with an agent and its baselines.")
    return "\n\n".join(parts)


_SPELLED = {"ipa": "IPA", "qos": "QoS"}


def _decision_section(times: pd.DataFrame) -> str:
    table = decision_table(times)
    names = {"median_ms": "median (ms)", "p99_ms": "p99 (ms)", "total_ms": "H (ms)", "ratio": "÷ agent"}
    policies = {"ipa-highs": "IPA (HiGHS)", "dynamic-program": "exact DP"}
    titles = {"size": "stages × variants"}
    for column in table.columns[1:]:
        policy, _, figure = column.rpartition(".")
        titles[column] = f"{policies.get(policy, policy)} {names[figure]}"
    paper = ", ".join(f"{percent} %" for percent in PAPER_SPEEDUPS)
    return "\n\n".join(
        [
            "## Decision time",
            "Forecast and features included, on one thread, on synthetic pipelines and with untrained agents, because "
            "the time does not depend on what an agent has learned. H is the time for all decisions of a cycle "
            "(Alg. 1), the median of several cycles in which the policies take turns. HiGHS and the dynamic program "
            "find the same optimum of IPA's problem; HiGHS replaces the paper's solver. The paper reports that IPA is "
            f"slower than the agent by {paper} on its four pipelines, with sizes that it does not state.",
            "![Decision time](evaluation/decision_time.png)",
            markdown_table(table.rename(columns=titles), digits=3),
        ]
    )


def _forecast_section(forecast: Mapping[str, Mapping[str, Any]]) -> str:
    medians = ", ".join(f"{r['latency_ms_median']:.3f} ms at damping {r['damping']}" for r in forecast.values())
    synthetic = any(result["synthetic"] for result in forecast.values())
    trace = next(iter(forecast.values()))["trace"]
    return "\n\n".join(
        [
            "## Load forecast",
            f"Test split of the {'synthetic (generated)' if synthetic else trace} trace: the largest load of the next "
            f"20 s from the last 120 s. One forecast takes {medians} (median).",
            markdown_table(forecast_table(forecast)),
        ]
    )


def _training_section(training: Mapping[str, Mapping[str, Any]]) -> str:
    if not training:
        return ""
    rows = []
    for pipeline, result in training.items():
        for run in result["runs"]:
            references = result["references"][run["policy"]]
            rows.append(
                {
                    "pipeline": pipeline,
                    "policy": run["policy"],
                    "seed": run["seed"],
                    "update": run["update"],
                    "reward": run["reward"],
                    "myopic": references["myopic"]["reward"],
                    "IPA": references["ipa"]["reward"],
                    "dropped": int(run["dropped"]),
                    "dropped by IPA": int(references["ipa"]["dropped"]),
                }
            )
    seconds = ", ".join(f"{pipeline} {result['seconds']:.0f} s" for pipeline, result in training.items())
    return "\n\n".join(
        [
            "## Training",
            "The checkpoint that was kept, selected by validation on days between training and test: reward of "
            "ordinary episodes, compared with the myopic solver and IPA on the same episodes, and requests dropped in "
            "all episodes, half of which begin before a burst. Wall-clock time for all agents of a pipeline: "
            f"{seconds}.",
            markdown_table(pd.DataFrame(rows)),
        ]
    )


def write_report(folder: Path) -> str:
    """Write ``report.md``, ``metrics.json`` and ``summary.csv`` into a folder of results; return the page."""
    results = read_results(folder)
    page = render(results)
    (folder / "report.md").write_text(page, encoding="utf-8")
    write_json(folder / "metrics.json", flat_metrics(results))
    policy_summary(results.evaluation).to_csv(folder / "summary.csv", index=False, float_format="%.6g")
    return page
