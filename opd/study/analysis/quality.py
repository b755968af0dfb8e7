"""Quality of the policies in the evaluation, with 95 % confidence intervals: tables, sentences and figures.

Everything is computed from ``evaluation.csv``, columns of :data:`opd.study.evaluation.cycles.COLUMNS`. With the same
seed all policies meet the same requests, so comparisons are paired: same pipeline, same cycle, same seed. The intervals
are those of :mod:`opd.study.analysis.estimates`. Figures are returned open, for the caller to save or show.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opd.control import AGENT
from opd.study.analysis.estimates import estimate, resampled_means, seeds_by_cycles, signed, spanned, with_interval
from opd.study.plots.style import (
    annotate_row,
    draw_means,
    legend_below,
    ordered,
    panel_grid,
    policy_style,
    short_label,
    symmetric_logarithmic,
)
from opd.study.report.files import read_json
from opd.study.report.results import FRUGAL, ReportError, paper_comparison, require_results

QUANTITIES = ("reward", "qos", "cost", "dropped")
"""Figures of each policy with an interval; cost in cores, ``dropped`` in requests per cycle."""

COMPARED = ("reward", "qos", "cost")
"""Figures of the agent that are compared with every policy."""

NOISE = "the gap is within its own noise of zero"
NO_GAP = "the planner that is told the load does no better than the myopic solver"

ALL = "all pipelines"


def read_evaluation(folder: Path, trace: str) -> pd.DataFrame:
    """Read the evaluation in a folder of results.

    Args:
        folder: such as ``reports/twitter``.
        trace: label of the trace that it must be of.

    Raises:
        ReportError: if it is missing, of another trace, or lacks one of the policies that others are compared with.
    """
    require_results(folder, "evaluation.csv", "evaluation.json")
    found = read_json(folder / "evaluation.json")["trace"]
    if found != trace:
        raise ReportError(f"the evaluation in {folder} is of the {found}, not of the {trace}; name the other folder")
    evaluation = pd.read_csv(folder / "evaluation.csv")
    if missing := sorted({AGENT, "myopic", "foresight"} - set(evaluation["policy"])):
        raise ReportError(f"the evaluation in {folder} lacks {', '.join(missing)}; add them to its policies")
    return evaluation


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
        policies = dict(iter(here.groupby("policy", sort=False)))
        for policy, own in policies.items():
            row: dict[str, object] = {"pipeline": pipeline, "policy": policy}
            tables = {quantity: seeds_by_cycles(own, quantity) for quantity in QUANTITIES}
            for quantity in QUANTITIES:
                row |= estimate(quantity, tables[quantity])
            for quantity in COMPARED:
                agent = seeds_by_cycles(policies[AGENT], quantity)
                row |= estimate(f"agent_more_{quantity}", agent - tables[quantity])
            myopic = seeds_by_cycles(policies["myopic"], "reward")
            rows.append(row | estimate("more_reward_than_myopic", tables["reward"] - myopic))
    return pd.DataFrame(rows)


def gap_table(evaluation: pd.DataFrame) -> pd.DataFrame:
    """Compute the share of the way from the myopic solver to perfect foresight that each policy goes.

    That is (policy - myopic) / (foresight - myopic) in mean reward, where ``foresight`` is the planner that is told the
    load to come. Numerator and denominator are resampled together.

    Returns:
        One row a policy and pipeline, and one for the mean of :data:`ALL`: ``gap``, foresight's reward minus the myopic
        solver's, ``gain``, the policy's minus the myopic solver's, and ``share``, each with ``_low`` and ``_high``. If
        the interval of the gap is not above zero, the share has no interval but a ``note``; if the gap itself is not,
        there is no share.

    Raises:
        ValueError: if a policy was not run on every cycle with every seed of the others.
    """
    gaps: dict[Hashable, pd.DataFrame] = {}
    gains: dict[str, dict[Hashable, pd.DataFrame]] = {}
    for pipeline, here in evaluation.groupby("pipeline", sort=False):
        rewards = {str(policy): seeds_by_cycles(own, "reward") for policy, own in here.groupby("policy", sort=False)}
        myopic = rewards.pop("myopic")
        gaps[pipeline] = rewards.pop("foresight") - myopic
        for policy, reward in rewards.items():
            gains.setdefault(policy, {})[pipeline] = reward - myopic
    if len(gaps) > 1:
        for each in (gaps, *gains.values()):
            each[ALL] = pd.concat(each).groupby(level="seed").mean()
    rows = [
        {"policy": policy, "pipeline": pipeline} | _gap_row(gaps[pipeline], gain)
        for policy, own in gains.items()
        for pipeline, gain in own.items()
    ]
    figures = (f"{name}{end}" for name in ("gap", "gain", "share") for end in ("", "_low", "_high"))
    return pd.DataFrame(rows, columns=["policy", "pipeline", *figures, "note"])


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
    """Compare both agents with the paper's figures, see :func:`opd.study.report.results.paper_comparison`."""
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
    own = gap[gap["policy"] == AGENT]
    clear, whole = int((own["note"] == "").sum()), own.to_dict("records")[-1]
    return (
        f"The gap between foresight and the myopic solver is significant in {clear} of {len(own)} rows. Over "
        f"{whole['pipeline']} it is {with_interval(whole, 'gap')}, and the agent gains {with_interval(whole, 'gain')}."
    )


def gap_shares(gap: pd.DataFrame) -> pd.DataFrame:
    """Percent of the gap that each policy closes, pipeline by pipeline; those that close some of it over all of them.

    Args:
        gap: of :func:`gap_table`.
    """
    columns = list(dict.fromkeys(gap["pipeline"]))
    shares = 100.0 * gap.pivot(index="policy", columns="pipeline", values="share")[columns]
    whole = shares.iloc[:, -1]
    return shares[whole > 0.0].sort_values(columns[-1], ascending=False).reset_index()


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


# --------------------------------------------------------------------------------------------------- figures


def plot_intervals(quality: pd.DataFrame, label: str) -> Figure:
    """Draw the reward of each policy minus the myopic solver's, with its 95 % interval, one panel a pipeline.

    The random policy is far below all others and is omitted.

    Args:
        quality: of :func:`quality_table`.
        label: of the trace, for the title.

    Returns:
        The figure, not saved.
    """
    shown = quality[~quality["policy"].isin(["random", "myopic"])]
    title = "Reward per decision minus the myopic solver's for the same requests: mean and 95 % interval\n"
    height = 0.8 + 0.2 * shown["policy"].nunique()
    figure, panels = panel_grid(shown["pipeline"], 5.2, height, f"{title}{label}; random is far below and not shown")
    for pipeline, axes in panels.items():
        rows = shown[shown["pipeline"] == pipeline].set_index("policy")
        _draw_intervals(axes, rows.loc[ordered(rows.index)])
    # The same axis in all panels, linear for differences up to 0.1.
    ends = shown[["more_reward_than_myopic_low", "more_reward_than_myopic_high"]].to_numpy()
    for axes in panels.values():
        axes.set_xlim(2.0 * min(ends.min(), -0.1), 1.3 * max(ends.max(), 0.1))
        scale = symmetric_logarithmic(axes, 0.1)
    for axes in list(panels.values())[-3:]:
        axes.set_xlabel(f"difference of reward\n{scale}")
    return figure


def _draw_intervals(axes: Axes, rows: pd.DataFrame) -> None:
    """One pipeline; policies by name, from top to bottom."""
    for place, policy in enumerate(rows.index):
        style, row = policy_style(policy), rows.loc[[policy]]
        size = style.marker_size
        draw_means(axes, row, "more_reward_than_myopic", [place], style, ms=size, capsize=0, elinewidth=2.2)
        annotate_row(axes, place, signed(row["more_reward_than_myopic"].item()))
    axes.axvline(0.0, color=policy_style("myopic").colour, linewidth=1.3, linestyle="--")
    axes.set_yticks(range(len(rows)), [short_label(policy) for policy in rows.index])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.25)


def plot_gap(gap: pd.DataFrame, label: str) -> Figure:
    """Draw the gain of perfect foresight, the gain of the agent without it, and their ratio.

    One line a pipeline, the last all of them. A whisker is the 95 % interval. A share without an interval is hollow,
    where the gap is not significant; without a gap there is no share.

    Args:
        gap: of :func:`gap_table`.
        label: of the trace, for the title.

    Returns:
        The figure, not saved.
    """
    gap = gap[gap["policy"] == AGENT].reset_index(drop=True)
    figure, (gains, shares) = plt.subplots(
        1, 2, figsize=(11.0, 1.9 + 0.5 * len(gap)), layout="constrained", sharey=True, width_ratios=(1.2, 1.0)
    )
    figure.suptitle(f"The gap between the myopic solver and perfect foresight: {label}")
    places = np.arange(len(gap))
    for name, policy, aside in (("gap", "foresight", -0.14), ("gain", AGENT, 0.14)):
        draw_means(gains, gap, name, places + aside, policy_style(policy), label=policy_style(policy).label)
    _draw_shares(shares, gap, places)
    gains.set(xlabel="reward per decision (Eq. 7) minus the myopic solver's", title="gains")
    shares.set(xlabel="agent's gain / gap", title="share of the gap that the agent closes")
    gains.set_yticks(places, gap["pipeline"])
    gains.set_ylim(len(gap) - 0.5, -0.5)
    for axes in (gains, shares):
        axes.axhline(len(gap) - 1.5, color="0.8", linewidth=1.0)
        _mark_zero(axes)
    legend_below(figure, gains, shares)
    return figure


def _mark_zero(axes: Axes) -> None:
    axes.axvline(0.0, color="0.4", linewidth=1.0, zorder=1)
    axes.grid(axis="x", alpha=0.25)


def _draw_shares(axes: Axes, gap: pd.DataFrame, places: np.ndarray) -> None:
    """Draw the shares, also as numbers in a column on the right; those without an interval are hollow."""
    style, sure, known = policy_style(AGENT), gap["share_low"].notna(), gap["share"].notna()
    axes.axvline(1.0, color=policy_style("foresight").colour, linestyle="--", linewidth=1.3)
    if sure.any():
        draw_means(axes, gap[sure], "share", places[sure], style)
    if (known & ~sure).any():
        axes.plot(
            gap.loc[known & ~sure, "share"], places[known & ~sure], color=style.colour, marker=style.marker, ms=7,
            linestyle="", fillstyle="none", label="share of a gap that is not significant",
        )  # fmt: skip
    for share, place in zip(gap["share"], places, strict=True):
        annotate_row(axes, place, "no gap" if np.isnan(share) else f"{share:.2f}")
    axes.margins(x=0.08)


def plot_paper(paper: pd.DataFrame, label: str) -> Figure:
    """Draw cost and QoS relative to greedy and IPA, the paper's and ours.

    One line a load and baseline. A mark of ours is the mean over the pipelines, a light one a single pipeline.

    Args:
        paper: of :func:`paper_table`.
        label: of the trace, for the title.

    Returns:
        The figure, not saved.
    """
    of_rows = list(zip(paper["cycle"], paper["against"], strict=True))
    lines = list(dict.fromkeys(of_rows))
    pipelines = list(paper)[list(paper).index("mean") + 1 :]
    paper = paper.assign(place=[lines.index(line) for line in of_rows])
    figure, panels = plt.subplots(1, 2, figsize=(11.0, 1.9 + 0.62 * len(lines)), layout="constrained", sharey=True)
    figure.suptitle(f"The paper's comparisons (Sec. VI-B) and ours: {label}")
    for axes, (quantity, name) in zip(panels, {"cost": "cost", "qos": "QoS"}.items(), strict=True):
        _draw_comparisons(axes, paper[paper["quantity"] == quantity], pipelines)
        axes.set(xlabel=f"{name} relative to the baseline's (%)", title=name)
        axes.hlines(np.arange(1, len(lines)) - 0.5, 0.0, 1.0, color="0.9", transform=axes.get_yaxis_transform())
        _mark_zero(axes)
    panels[0].set_yticks(range(len(lines)), [f"{load}\nvs {short_label(baseline)}" for load, baseline in lines])
    panels[0].set_ylim(len(lines) - 0.5, -0.5)
    legend_below(figure, panels[0], columns=5)
    return figure


def _draw_comparisons(axes: Axes, rows: pd.DataFrame, pipelines: Sequence[Hashable]) -> None:
    """Draw one quantity at each row's ``place``: the paper's figure on top, those of the agents below."""
    for number, (policy, own) in enumerate(rows.groupby("policy", sort=False)):
        style, heights = policy_style(str(policy)), own["place"].to_numpy() + 0.27 * number
        if number == 0:  # the paper's figures stand in the rows of every agent
            axes.plot(own["paper"], heights - 0.27, color="black", marker="X", ms=7, linestyle="", label="paper")
        axes.plot(
            own[pipelines].to_numpy().ravel(), heights.repeat(len(pipelines)), color=style.colour, marker=style.marker,
            ms=0.75 * style.marker_size, alpha=0.35, mew=0, linestyle="", label=f"{style.label}, one pipeline",
        )  # fmt: skip
        axes.plot(
            own["mean"], heights, color=style.colour, marker=style.marker, ms=style.marker_size, linestyle="",
            label=style.label,
        )  # fmt: skip
