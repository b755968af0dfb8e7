"""What an evaluation found, as sentences computed from its table: trouble first, then the best policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

REFERENCES = ("clairvoyant", "foresight")
"""Policies that cannot run outside a simulator, because they know the load to come; none is called the best."""

_TROUBLE = {
    "dropped": "requests dropped",
    "failed": "requests failed",
    "refused": "decisions refused",
    "by_expert": "decisions made by the fallback",
}
"""Columns of the evaluation that count what went wrong."""


class Finding(NamedTuple):
    """One sentence; ``trouble`` if it is about something that went wrong."""

    text: str
    trouble: bool = False


def evaluation_findings(evaluation: pd.DataFrame, about: Mapping[str, Any]) -> list[Finding]:
    """State what went wrong, what is assumed, which policy is best, and for a service level which policies reach it.

    Args:
        evaluation: the results, columns of :data:`opd.study.evaluation.cycles.COLUMNS`; ``within`` and the counts of
            what went wrong may be missing.
        about: of :func:`opd.study.evaluation.cycles.describe_run`.

    Returns:
        The findings of every pipeline, with its name if there are several.
    """
    found: list[Finding] = []
    for pipeline, rows in evaluation.groupby("pipeline", sort=False):
        own = [*_trouble(rows), *_described(str(pipeline), about), *_level(rows, about), _best(rows, about)]
        prefix = f"{pipeline}: " if evaluation["pipeline"].nunique() > 1 else ""
        found += [finding._replace(text=prefix + finding.text) for finding in own]
    return sorted(found, key=lambda finding: not finding.trouble)


def _trouble(rows: pd.DataFrame) -> list[Finding]:
    """Count what went wrong, by policy, over all cycles and seeds; the policy with most comes first."""
    found = []
    for column, what in _TROUBLE.items():
        if column not in rows:
            continue
        # The random policy drops requests whenever it happens to choose too few replicas; that is no finding.
        serious = rows[rows["policy"] != "random"]
        sums = serious.groupby("policy", sort=False)[column].sum().sort_values(ascending=False, kind="stable")
        some = ", ".join(f"{policy} {count:,.0f}" for policy, count in sums[sums > 0].items())
        if some:
            found.append(Finding(f"{what[0].upper()}{what[1:]}: {some}.", trouble=column != "by_expert"))
    return found


def _described(pipeline: str, about: Mapping[str, Any]) -> list[Finding]:
    """Name the variants whose profiles somebody typed, and say how agents were trained."""
    known = about["pipelines"].get(pipeline, {})
    found = [Finding(f"Policy {policy} was {origin}.") for policy, origin in known.get("agents", {}).items()]
    if assumed := known.get("assumed"):
        found.insert(0, Finding(f"Profiles that are assumed, not measured: {', '.join(assumed)}."))
    return found


def ranked(rows: pd.DataFrame) -> pd.DataFrame:
    """Compute the means of every policy of one pipeline, highest reward first, and the cycle of its lowest reward."""
    groups = rows.groupby("policy", sort=False)
    means = groups.mean(numeric_only=True).drop(columns="seed")
    means["reward_worst"] = groups["reward"].min()
    means["cycle_worst"] = rows.loc[groups["reward"].idxmin(), "cycle"].to_numpy()
    return means.sort_values("reward", ascending=False, kind="stable").reset_index()


def best_policy(summary: pd.DataFrame) -> int | None:
    """Row of the best policy that can run outside a simulator; None if there is none."""
    possible = summary.index[~summary["policy"].isin(REFERENCES)]
    return int(possible[0]) if len(possible) else None


def _level(rows: pd.DataFrame, about: Mapping[str, Any]) -> list[Finding]:
    """Name the policies that reach the service level on average, the cheapest first."""
    level = about.get("service_level")
    if not level or "within" not in rows:
        return []
    goal = f"{level['percentile']:g} % of the requests within {1e3 * level['seconds']:g} ms"
    means = rows.groupby("policy", sort=False)[["within", "cost"]].mean()
    reached = means[means["within"] >= level["percentile"] / 100.0].sort_values("cost", kind="stable")
    if reached.empty:
        nearest = means["within"].idxmax()
        return [Finding(f"No policy reaches {goal}; nearest is {nearest} with {means['within'].max():.2%}.", True)]
    listed = ", ".join(f"{policy} ({row.within:.2%}, {row.cost:.2f} cores)" for policy, row in reached.iterrows())
    return [Finding(f"{goal[0].upper()}{goal[1:]} are reached by {listed}.")]


def _best(rows: pd.DataFrame, about: Mapping[str, Any]) -> Finding:
    """Name the policy with the highest mean reward, and its lead over the second."""
    summary = ranked(rows)
    first = best_policy(summary)
    if first is None:
        return Finding("No policy was run that is possible in practice.", True)
    best = summary.loc[first]
    unit = " cores" if "service_level" in about else ""
    text = f"Best by mean reward: {best['policy']} with {best['reward']:.3f}{unit} at {best['cost']:.2f} cores"
    others = summary[~summary["policy"].isin((*REFERENCES, best["policy"]))]
    if len(others):
        second = others.iloc[0]
        equal = others.loc[others["reward"] == best["reward"], "policy"]
        if len(equal):
            return Finding(f"{text}; equal to {', '.join(equal)}.")
        text += f", {best['reward'] - second['reward']:.3f} above {second['policy']}"
        wins = rows.pivot_table("reward", ["cycle", "seed"], "policy")
        lead = (wins[best["policy"]] > wins[second["policy"]]).sum()
        text += f" and better in {lead} of {len(wins)} runs"
    return Finding(text + ".")


def forecast_finding(errors: pd.DataFrame, damping: int) -> str:
    """Compare the network with the best of the simpler forecasts at one damping, in a sentence.

    Args:
        errors: rows of :attr:`opd.workload.forecast_comparison.Comparison.errors`.
        damping: of the load.
    """
    rows = errors[errors["damping"] == damping].set_index("model")
    others = rows.drop(index="lstm")
    simpler, timid = str(others["smape"].idxmin()), str(others["under_prediction_rate"].idxmin())
    low = 100.0 * rows["under_prediction_rate"]
    return (
        f"At damping {damping} the SMAPE of the LSTM is {rows['smape']['lstm']:.1f} %, that of the best simpler "
        f"forecast (`{simpler}`) {rows['smape'][simpler]:.1f} %. {low['lstm']:.1f} % of the LSTM's forecasts are too "
        f"low; of the simpler ones `{timid}` is too low least often, in {low[timid]:.1f} %, with an SMAPE of "
        f"{rows['smape'][timid]:.1f} %."
    )


def training_findings(
    runs: Sequence[Mapping[str, Any]], references: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> list[str]:
    """Compare the checkpoints of every agent with the myopic solver and IPA on the validation episodes.

    Args:
        runs: of :func:`opd.study.evaluation.training.training_summary`.
        references: by agent and by solver, its ``reward`` and ``dropped`` on the same episodes.

    Returns:
        A sentence for each agent.
    """
    found: list[str] = []
    if not runs:
        return found
    for agent, own in pd.DataFrame(runs).groupby("policy", sort=False):
        myopic, ipa = references[str(agent)]["myopic"], references[str(agent)]["ipa"]
        above, more = (own["reward"] > myopic["reward"]).sum(), (own["dropped"] > ipa["dropped"]).sum()
        found.append(
            f"{agent}: mean reward {own['reward'].mean():.3f} in validation, the myopic solver {myopic['reward']:.3f}; "
            f"above it in {above} of {len(own)} trainings. More requests dropped than by IPA in {more} of {len(own)}."
        )
    return found


def tuning_findings(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Compare fine-tuned agents with what they were, a sentence for each.

    Args:
        runs: of :func:`opd.study.evaluation.training.tuning_summary`.
    """
    return [
        f"{run['policy']}, seed {run['seed']}: fine-tuning raised the validation from {run['untuned']:.3f} to "
        f"{run['selection']:.3f}."
        if run["update"]
        else f"{run['policy']}, seed {run['seed']}: fine-tuning found nothing better; the agent stays as it was."
        for run in runs
    ]
