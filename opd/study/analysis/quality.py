"""Quality of the policies in the evaluation, with 95 % confidence intervals.

Everything is computed from ``evaluation.csv``, columns of :data:`opd.study.evaluation.cycles.COLUMNS`. With the same
seed all policies meet the same requests, so comparisons are paired: same pipeline, same cycle, same seed. The intervals
are those of :mod:`opd.study.analysis.estimates`.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

import pandas as pd

from opd.control import AGENT
from opd.study.analysis.estimates import estimate, resampled_means, spanned, with_interval
from opd.study.report.files import read_json
from opd.study.report.results import ReportError
from opd.study.report.tables import FRUGAL, paper_comparison

MYOPIC, CLAIRVOYANT = "myopic", "clairvoyant"

QUANTITIES = ("reward", "qos", "cost", "dropped")
"""Figures of each policy with an interval; cost in cores, ``dropped`` in requests per cycle."""

COMPARED = ("reward", "qos", "cost")
"""Figures of the agent that are compared with every policy."""

NOISE = "the gap is within its own noise of zero"
NO_GAP = "the clairvoyant solver does no better than the myopic one"

ALL = "all pipelines"


def read_evaluation(folder: Path, trace: str) -> pd.DataFrame:
    """Read the evaluation in a folder of results.

    Args:
        folder: such as ``reports/twitter``.
        trace: label of the trace that it must be of.

    Raises:
        ReportError: if it is missing, of another trace, or lacks one of the policies that others are compared with.
    """
    for name in ("evaluation.csv", "evaluation.json"):
        if not (folder / name).is_file():
            raise ReportError(f"no {name} in {folder}; notebook 04_evaluation writes it")
    found = read_json(folder / "evaluation.json")["trace"]
    if found != trace:
        raise ReportError(f"the evaluation in {folder} is of the {found}, not of the {trace}; name the other folder")
    evaluation = pd.read_csv(folder / "evaluation.csv")
    if missing := sorted({AGENT, MYOPIC, CLAIRVOYANT} - set(evaluation["policy"])):
        raise ReportError(f"the evaluation in {folder} lacks {', '.join(missing)}; add them to its policies")
    return evaluation


def seeds_by_cycles(rows: pd.DataFrame, policy: str, quantity: str) -> pd.DataFrame:
    """(S, C) a quantity of one policy on one pipeline, seeds x cycles; differences of such tables are paired."""
    return rows[rows["policy"] == policy].pivot(index="seed", columns="cycle", values=quantity)


def quality_table(evaluation: pd.DataFrame) -> pd.DataFrame:
    """Tabulate every policy on every pipeline, over all cycles and seeds.

    Returns:
        One row a pipeline and policy; each figure is a mean, with the ends of its interval in ``_low`` and ``_high``:

        * ``reward`` (Eq. 7), ``qos`` (Eq. 3), ``cost`` (cores) and ``dropped`` (requests a cycle);
        * ``agent_more_reward``, ``agent_more_qos``, ``agent_more_cost``: the agent's minus this policy's;
        * ``more_reward_than_myopic``: this policy's reward minus the myopic solver's.

    Raises:
        ValueError: if a policy was not run on every cycle with every seed of the agent and the myopic solver.
    """
    rows = []
    for pipeline, here in evaluation.groupby("pipeline", sort=False):
        for policy in dict.fromkeys(here["policy"]):
            own = {quantity: seeds_by_cycles(here, policy, quantity) for quantity in QUANTITIES}
            row: dict[str, object] = {"pipeline": pipeline, "policy": policy}
            for quantity in QUANTITIES:
                row |= estimate(quantity, own[quantity])
            for quantity in COMPARED:
                row |= estimate(f"agent_more_{quantity}", seeds_by_cycles(here, AGENT, quantity) - own[quantity])
            row |= estimate("more_reward_than_myopic", own["reward"] - seeds_by_cycles(here, MYOPIC, "reward"))
            rows.append(row)
    return pd.DataFrame(rows)


def gap_table(evaluation: pd.DataFrame) -> pd.DataFrame:
    """Compute the share of the gain of a perfect forecast that the agent reaches without one.

    That is (agent - myopic) / (clairvoyant - myopic) in mean reward. It can exceed 1, because the clairvoyant solver
    ignores start-up times and queues. Numerator and denominator are resampled together.

    Returns:
        One row a pipeline, and one for the mean of :data:`ALL`: ``gap``, the clairvoyant solver's reward minus
        the myopic one's, ``gain``, the agent's minus the myopic one's, and ``share``, each with ``_low`` and ``_high``.
        If the interval of the gap is not above zero, the share has no interval but a ``note``; if the gap itself is
        not, there is no share.

    Raises:
        ValueError: if one of the three was not run on every cycle with every seed of the others.
    """
    gaps: dict[Hashable, pd.DataFrame] = {}
    gains: dict[Hashable, pd.DataFrame] = {}
    for pipeline, here in evaluation.groupby("pipeline", sort=False):
        agent, myopic, clairvoyant = (seeds_by_cycles(here, name, "reward") for name in (AGENT, MYOPIC, CLAIRVOYANT))
        gaps[pipeline], gains[pipeline] = clairvoyant - myopic, agent - myopic
    if len(gaps) > 1:
        gaps[ALL], gains[ALL] = (pd.concat(each).groupby(level="seed").mean() for each in (gaps, gains))
    rows = [{"pipeline": pipeline} | _gap_row(gaps[pipeline], gains[pipeline]) for pipeline in gaps]
    figures = (f"{name}{end}" for name in ("gap", "gain", "share") for end in ("", "_low", "_high"))
    return pd.DataFrame(rows, columns=["pipeline", *figures, "note"])


def _gap_row(gap: pd.DataFrame, gain: pd.DataFrame) -> dict[str, float | str]:
    row: dict[str, float | str] = {**estimate("gap", gap), **estimate("gain", gain), "note": ""}
    mean = float(gap.to_numpy().mean())
    if mean <= 0.0:
        return row | {"note": NO_GAP}
    row["share"] = float(gain.to_numpy().mean()) / mean
    if float(row["gap_low"]) <= 0.0:
        return row | {"note": NOISE}
    low, high = spanned(resampled_means(gain.to_numpy()) / resampled_means(gap.to_numpy()))
    return row | {"share_low": low, "share_high": high}


def paper_table(evaluation: pd.DataFrame) -> pd.DataFrame:
    """Compare both agents with the paper's figures, see :func:`opd.study.report.tables.paper_comparison`."""
    tables = {policy: paper_comparison(evaluation, policy) for policy in (AGENT, FRUGAL)}
    return pd.concat(tables, names=["policy", None]).reset_index("policy").reset_index(drop=True)


def paper_sentence(paper: pd.DataFrame) -> str:
    """Count the comparisons in which each agent's sign is the paper's, on the mean over the pipelines.

    Args:
        paper: of :func:`paper_table`. Comparisons that are "nearly identical" in the paper, 0 there, are ignored.
    """
    signed_rows = paper[paper["paper"] != 0.0]
    same = (signed_rows["mean"] * signed_rows["paper"] > 0.0).groupby(signed_rows["policy"], sort=False)
    counts = ", ".join(f"{policy} in {hits.sum()} of {len(hits)}" for policy, hits in same)
    return f"On the mean over the pipelines, the sign is the same as in the paper, where the paper has one: {counts}."


def verdict(quality: pd.DataFrame, policy: str, quantity: str) -> str:
    """Count the pipelines in which the agent's ``quantity`` is above or below a policy's, interval included.

    Args:
        quality: of :func:`quality_table`.
        policy: one of its policies.
        quantity: one of :data:`COMPARED`.
    """
    rows = quality[quality["policy"] == policy]
    above = int((rows[f"agent_more_{quantity}_low"] > 0.0).sum())
    below = int((rows[f"agent_more_{quantity}_high"] < 0.0).sum())
    return f"higher in {above} of {len(rows)} pipelines, lower in {below}"


def comparisons(quality: pd.DataFrame) -> str:
    """Compare the agent with every other policy of :func:`quality_table`, as a list in Markdown."""
    lines = []
    for policy in dict.fromkeys(quality["policy"]):
        if policy != AGENT:
            reward, qos, cost = (verdict(quality, str(policy), quantity) for quantity in COMPARED)
            lines.append(f"* compared with **{policy}**: reward {reward}; QoS {qos}; cost {cost}")
    return "\n".join(lines)


def gap_sentence(gap: pd.DataFrame) -> str:
    """Count the significant gaps of :func:`gap_table`, and state the agent's gain over all pipelines."""
    clear = int((gap["note"] == "").sum())
    whole = gap.to_dict("records")[-1]
    return (
        f"The gap between the clairvoyant and the myopic solver is significant in {clear} of {len(gap)} rows. Over "
        f"{whole['pipeline']} it is {with_interval(whole, 'gap')}, and the agent gains {with_interval(whole, 'gain')}."
    )


def readable(table: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """Format the table for reading: each figure with its interval in one cell, such as ``1.20 (1.10 to 1.30)``."""
    shown = table.copy()
    for name in [str(column) for column in table if f"{column}_low" in table]:
        parts = table[[name, f"{name}_low", f"{name}_high"]].itertuples(index=False)
        shown[name] = ["" if pd.isna(mean) else _cell(mean, low, high, digits) for mean, low, high in parts]
        shown = shown.drop(columns=[f"{name}_low", f"{name}_high"])
    return shown


def _cell(mean: float, low: float, high: float, digits: int) -> str:
    text = f"{mean:.{digits}f}"
    return text if pd.isna(low) else f"{text} ({low:.{digits}f} to {high:.{digits}f})"
