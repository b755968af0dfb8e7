"""The report: acceptance criteria, a page of Markdown, and figures as flat metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from opd.control import AGENT
from opd.study.report.files import markdown_table, write_json
from opd.study.report.results import FRUGAL, Results, paper_comparison, policy_summary, read_results

PAPER_SPEEDUPS = (32.5, 53.5, 111.6, 212.8)
"""Sec. VI-B, percent by which IPA decides more slowly than the agent, for four pipelines of growing size."""


class Criterion(NamedTuple):
    """One criterion on one pipeline: ``value`` must be at least (or at most) ``bound``."""

    pipeline: str
    policy: str
    quantity: str
    relation: str
    reference: str
    value: float
    bound: float

    @property
    def met(self) -> bool:
        """True if the criterion is met exactly, without a tolerance."""
        return self.value >= self.bound if self.relation == "≥" else self.value <= self.bound


def criteria(evaluation: pd.DataFrame) -> list[Criterion]:
    """Evaluate the acceptance criteria on every pipeline, on means over cycles and seeds.

    The agent: at least the reward of the myopic solver, at least the QoS of IPA, and no cycle of any seed in which it
    drops more requests than IPA. The frugal agent: at least the QoS of IPA at no more than its cost. Criteria with a
    policy that was not run are omitted.
    """
    found: list[Criterion] = []
    for pipeline, rows in evaluation.groupby("pipeline", sort=False):
        mean = {str(name): own[["reward", "qos", "cost"]].mean() for name, own in rows.groupby("policy")}
        for policy, quantity, relation, reference in (
            (AGENT, "reward", "≥", "myopic"),
            (AGENT, "qos", "≥", "ipa"),
            (AGENT, "cycles with more drops", "≤", "ipa"),
            (FRUGAL, "qos", "≥", "ipa"),
            (FRUGAL, "cost", "≤", "ipa"),
        ):
            if not {policy, reference} <= set(mean):
                continue
            if quantity == "cycles with more drops":
                value, bound = float(len(cycles_with_more_drops(rows, policy, reference))), 0.0
            else:
                value, bound = float(mean[policy][quantity]), float(mean[reference][quantity])
            found.append(Criterion(str(pipeline), policy, quantity, relation, reference, value, bound))
    return found


def cycles_with_more_drops(rows: pd.DataFrame, policy: str, reference: str) -> pd.DataFrame:
    """Cycles and seeds of one pipeline in which ``policy`` dropped more requests, with both numbers."""
    dropped = rows.pivot(index=["cycle", "seed"], columns="policy", values="dropped")[[policy, reference]]
    return dropped[dropped[policy] > dropped[reference]].reset_index()


# ---------------------------------------------------------------------------------------------------------------- page


_COLUMN_NAMES = {
    "qos": "QoS",
    "cost": "cost (cores)",
    "dropped": "dropped per cycle",
    "refused": "refused per cycle",
    "reward_worst": "worst reward",
    "qos_worst": "worst QoS",
    "dropped_worst": "most dropped",
    "cycle_worst": "cycle of worst reward",
}


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
    return "\n\n".join(chain.from_iterable(sections)) + "\n"


def _what_was_run(results: Results) -> list[str]:
    about, rows = results.about, results.evaluation
    seeds, cycles = rows["seed"].nunique(), rows["cycle"].nunique()
    pipelines = pd.DataFrame(
        [
            {"pipeline": name, "variants of its stages": ", ".join(map(str, p["variants"])), "cores": p["capacity"]}
            for name, p in about["pipelines"].items()
        ]
    )
    machine = about["hardware"]
    starts = ", ".join(f"{name} at {start}" for name, start in about["cycles"].items())
    return [
        "# Results",
        f"Workload: **{about['trace']}**. {len(rows)} simulated cycles of 1200 s: {len(pipelines)} pipelines × "
        f"{rows['policy'].nunique()} policies × {cycles} cycles × {seeds} {'seed' if seeds == 1 else 'seeds'}. "
        "With the same seed all policies meet the same requests. They decide every "
        f"{about['simulation']['interval']} s.",
        markdown_table(pipelines),
        f"{_objective(about)} Decision times were measured on: {machine['processor']}, "
        f"{machine['cores']} cores, Python {machine['python']}, torch {machine['torch']}, on one thread.",
        f"Start of the cycles, in seconds of the recording: {starts}.",
    ]


def _objective(about: Mapping[str, Any]) -> str:
    """The sentence about the objective that the runs were scored by."""
    if level := about.get("service_level"):
        return (
            f"Objective: {level['percentile']:g} % of the requests within {level['seconds']:g} s and a mean accuracy "
            f"of at least {level['accuracy_floor']:g}; +1.00 of it is worth {level['accuracy_weight']:g} cores. "
            "QoS and reward are in cores."
        )
    weights = ", ".join(f"{name} {value:g}" for name, value in about["weights"].items())
    return f"Weights of QoS and reward: {weights}."


def _label(criterion: Criterion) -> str:
    if criterion.quantity == "cycles with more drops":
        return "cycles with more drops than IPA: none"
    names = {"qos": "QoS", "ipa": "IPA's", "myopic": "the myopic solver's"}
    return f"{names.get(criterion.quantity, criterion.quantity)} {criterion.relation} {names[criterion.reference]}"


def _criteria_section(evaluation: pd.DataFrame) -> list[str]:
    found = criteria(evaluation)
    text = [
        "## Acceptance criteria",
        "Means over all cycles and seeds. `agent`, the one agent for every pipeline, must have at least the reward of "
        "the myopic solver, which maximises the same reward exactly for the forecast load, and at least the QoS of "
        "IPA, and must not drop more requests than IPA in any cycle. `agent-frugal`, trained with a higher price per "
        "core, must have at least the QoS of IPA at no more than its cost.",
    ]
    if not found:
        return [*text, "None of these policies was run."]
    table = pd.DataFrame(
        [
            (*d[:2], _label(d), _number(d, d.value), _number(d, d.bound), "met" if d.met else "**not met**")
            for d in found
        ],
        columns=["pipeline", "policy", "criterion", "value", "bound", ""],
    )
    verdict = f"{sum(d.met for d in found)} of {len(found)} criteria are met."
    not_run = sorted({AGENT, FRUGAL} - {d.policy for d in found})
    if not_run:
        verdict += f" Not run, or without a baseline for comparison: {', '.join(not_run)}."
    return [*text, verdict, *_shortfalls(evaluation, found), markdown_table(table)]


def _number(criterion: Criterion, value: float) -> str:
    return f"{value:.0f}" if criterion.quantity == "cycles with more drops" else f"{value:.3f}"


def _shortfalls(evaluation: pd.DataFrame, found: Sequence[Criterion]) -> list[str]:
    lines = []
    for d in (criterion for criterion in found if not criterion.met):
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


def _summary_section(evaluation: pd.DataFrame) -> list[str]:
    summary = policy_summary(evaluation)
    parts = [
        "## All policies",
        "Means over cycles and seeds, and the worst single cycle of a single seed. Random and greedy are the paper's "
        "simple baselines. IPA is solved exactly by HiGHS, with the capacity limit added. Myopic maximises the reward "
        "exactly for the forecast load, clairvoyant for the true largest load of the next 20 s; both ignore start-up "
        "times.",
        "![QoS and cost](evaluation/plane.png)",
    ]
    shown = [column for column in _COLUMN_NAMES if column in summary]  # refused only if there are any
    for pipeline, rows in summary.groupby("pipeline", sort=False):
        parts += [
            f"### {pipeline}",
            markdown_table(rows[["policy", "reward", *shown]].rename(columns=_COLUMN_NAMES)),
        ]
    return parts


def _paper_section(evaluation: pd.DataFrame) -> list[str]:
    parts = [
        "## The paper's comparisons",
        "Cost and QoS relative to a baseline in percent: the paper's figure (Sec. VI-B, for a pipeline and variants "
        'that it does not name; 0 stands for its "nearly identical"), the mean over our pipelines, and each pipeline.',
    ]
    for policy in (AGENT, FRUGAL):
        table = paper_comparison(evaluation, policy)
        if len(table):
            table = table.replace({"ipa": "IPA", "qos": "QoS"}).rename(columns={"cycle": "load", "mean": "ours, mean"})
            parts += [f"### {policy}", markdown_table(table, digits=1)]
    if len(parts) == 2:
        parts.append("None of the paper's three loads was run with an agent and its baselines.")
    return parts


def decision_table(times: pd.DataFrame) -> pd.DataFrame:
    """Tabulate decision times by pipeline size: figures of each policy, and ratios to the agent's median."""
    size = times["stages"].astype(str) + "×" + times["variants"].astype(str)
    figures = times.assign(size=size).set_index(["policy", "size"])[["median_ms", "p99_ms", "total_ms"]]
    table: dict[str, pd.Series] = {}
    for policy in dict.fromkeys(times["policy"]):
        own = figures.loc[policy]
        table |= {f"{policy}.{column}": own[column] for column in own}
        if policy != AGENT:
            table[f"{policy}.ratio"] = own["median_ms"] / figures.loc[AGENT]["median_ms"]
    return pd.DataFrame(table, index=pd.Index(size.unique(), name="size")).reset_index()


def _decision_section(times: pd.DataFrame) -> list[str]:
    table = decision_table(times)
    names = {"median_ms": "median (ms)", "p99_ms": "p99 (ms)", "total_ms": "H (ms)", "ratio": "÷ agent"}
    policies = {"ipa-highs": "IPA (HiGHS)", "dynamic-program": "exact DP"}
    titles = {"size": "stages × variants"}
    for column in table.columns[1:]:
        policy, _, figure = column.rpartition(".")
        titles[column] = f"{policies.get(policy, policy)} {names[figure]}"
    paper = ", ".join(f"{percent} %" for percent in PAPER_SPEEDUPS)
    return [
        "## Decision time",
        "Forecast and features included, on one thread, on synthetic pipelines; `agent-single` is untrained, because "
        "the time does not depend on what an agent has learned. H is the time for all decisions of a cycle "
        "(Alg. 1), the median of several cycles in which the policies take turns. HiGHS and the dynamic program "
        "find the same optimum of IPA's problem; HiGHS replaces the paper's solver. `lookahead` has no time limit "
        "here. The paper reports that IPA is "
        f"slower than the agent by {paper} on its four pipelines, with sizes that it does not state.",
        "![Decision time](evaluation/decision_time.png)",
        markdown_table(table.rename(columns=titles), digits=3),
    ]


def forecast_table(forecast: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Tabulate SMAPE (%) and share of too low forecasts (%) of every model, by damping."""
    columns = {}
    for result in forecast.values():
        columns[f"SMAPE %, damping {result['damping']}"] = pd.Series(result["smape"])
        columns[f"too low %, damping {result['damping']}"] = 100.0 * pd.Series(result["under_prediction_rate"])
    return pd.DataFrame(columns).rename_axis("model").reset_index()


def _forecast_section(forecast: Mapping[str, Mapping[str, Any]]) -> list[str]:
    medians = ", ".join(f"{r['latency_ms_median']:.3f} ms at damping {r['damping']}" for r in forecast.values())
    synthetic = any(result["synthetic"] for result in forecast.values())
    trace = next(iter(forecast.values()))["trace"]
    return [
        "## Load forecast",
        f"Test split of the {'synthetic (generated)' if synthetic else trace} trace: the largest load of the next "
        f"20 s from the last 120 s. One forecast takes {medians} (median).",
        markdown_table(forecast_table(forecast)),
    ]


def _training_section(training: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not training:
        return []
    rows = []
    for pipeline, result in training.items():
        for run in result["runs"]:
            myopic, ipa = (result["references"][run["policy"]][name] for name in ("myopic", "ipa"))
            rows.append(
                {"pipeline": pipeline}
                | {name: run[name] for name in ("policy", "seed", "update", "reward")}
                | {"myopic": myopic["reward"], "IPA": ipa["reward"]}
                | {"dropped": int(run["dropped"]), "dropped by IPA": int(ipa["dropped"])}
            )
    seconds = ", ".join(f"{pipeline} {result['seconds']:.0f} s" for pipeline, result in training.items())
    return [
        "## Training",
        "The checkpoint that was kept, selected by validation on days between training and test: reward of "
        "ordinary episodes, compared with the myopic solver and IPA on the same episodes, and requests dropped in "
        "all episodes, half of which begin before a burst. Wall-clock time for all agents of a pipeline: "
        f"{seconds}.",
        markdown_table(pd.DataFrame(rows)),
    ]


# --------------------------------------------------------------------------------------------------------------- files


def flat_metrics(results: Results) -> dict[str, float]:
    """Collect the figures that experiments are compared by, with dotted names."""
    flat: dict[str, float] = {}
    found = criteria(results.evaluation)
    flat["criteria.met"], flat["criteria.all"] = sum(d.met for d in found), len(found)
    summary = policy_summary(results.evaluation).set_index(["pipeline", "policy"])
    for pipeline, policy in summary.index:
        if policy in (AGENT, FRUGAL):
            for column in ("reward", "qos", "cost", "dropped_worst"):
                flat[f"{pipeline}.{policy}.{column}"] = float(summary.loc[(pipeline, policy), column])
    for d in found:
        if d.quantity in ("reward", "qos", "cost"):
            flat[f"{d.pipeline}.{d.policy}.{d.quantity}_minus_{d.reference}"] = d.value - d.bound
    for result in results.forecast.values():
        flat[f"forecast.damping_{result['damping']}.smape"] = result["smape"]["lstm"]
    for stages, variants, policy, median, *_ in results.decision_time.itertuples(index=False):
        flat[f"decision_ms.{stages}x{variants}.{policy}"] = float(median)
    return flat


def write_report(folder: Path) -> str:
    """Write ``report.md``, ``metrics.json`` and ``summary.csv`` into a folder of results; return the page."""
    results = read_results(folder)
    page = render(results)
    (folder / "report.md").write_text(page, encoding="utf-8")
    write_json(folder / "metrics.json", flat_metrics(results))
    policy_summary(results.evaluation).to_csv(folder / "summary.csv", index=False, float_format="%.6g")
    return page
