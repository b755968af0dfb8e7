"""Results of the ablations: tables with intervals, a paragraph of Markdown for every part of the agent, a figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opd.control import AGENT
from opd.study.analysis.ablations import ABLATIONS, INSTANT, matching_agent, matching_solver
from opd.study.analysis.estimates import Row, estimate, seeds_by_cycles, signed, with_interval
from opd.study.plots.style import PALETTE, Style, annotate_row, draw_means, policy_style, symmetric_logarithmic

# ------------------------------------------------------------------------------------------------------ tables


def summarise_ablations(rows: pd.DataFrame) -> pd.DataFrame:
    """Compute means of every pipeline and variant, and differences paired by seed and cycle.

    Args:
        rows: of :func:`opd.study.analysis.ablations.measure_ablations`, with all variants.

    Returns:
        By pipeline and variant: the means over seeds and cycles of reward, qos, cost, dropped and refused (a cycle);
        ``difference``, the reward minus that of the full agent with the same delays, ``agent`` or ``no-startup``;
        ``over_myopic``, the reward minus that of the myopic solver in the same environment with the same forecast. Both
        with the ends ``_low`` and ``_high`` of their 95 % intervals, by resampling seeds and cycles.
    """
    rewards, table = _rewards(rows), []
    for (pipeline, variant), own in rewards.items():
        part = rows[(rows["pipeline"] == pipeline) & (rows["variant"] == variant)]
        table.append(
            {"pipeline": pipeline, "variant": variant}
            | part[["reward", "qos", "cost", "dropped", "refused"]].mean().to_dict()
            | estimate("difference", own - rewards[pipeline, matching_agent(variant)])
            | estimate("over_myopic", own - rewards[pipeline, matching_solver(variant)])
        )
    return pd.DataFrame(table)


def startup_gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Compute by how much start-up delays increase the agent's lead over the myopic solver.

    Returns:
        By pipeline: columns ``pipeline``, ``gain``, ``gain_low`` and ``gain_high``, reward of Eq. 7 with its 95 %
        interval.
    """
    rewards, table = _rewards(rows), []
    for pipeline in dict.fromkeys(rows["pipeline"]):
        with_delays, without = (
            rewards[pipeline, name] - rewards[pipeline, matching_solver(name)] for name in (AGENT, INSTANT)
        )
        table.append({"pipeline": pipeline} | estimate("gain", with_delays - without))
    return pd.DataFrame(table)


def _rewards(rows: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """Rewards by seed and cycle, for every pipeline and variant."""
    groups = rows.groupby(["pipeline", "variant"], sort=False)
    return {(str(pipeline), str(variant)): seeds_by_cycles(part, "reward") for (pipeline, variant), part in groups}


# -------------------------------------------------------------------------------------------------- paragraphs

_VERDICTS = ("worse", "better", "no measurable effect")


def ablation_verdict(row: Row) -> str:
    """One of the verdicts: ``worse`` or ``better`` where the whole interval of the difference is beyond zero."""
    worse, better, neither = _VERDICTS
    if row["difference_high"] < 0.0:
        return worse
    return better if row["difference_low"] > 0.0 else neither


def listed(texts: Iterable[str]) -> str:
    """Join texts as ``a``, ``a and b``, ``a, b and c``."""
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last


def _of_variant(summary: pd.DataFrame, variant: str) -> Sequence[Row]:
    """The rows of a variant, one a pipeline."""
    return summary[summary["variant"] == variant].to_dict("records")


def part_paragraph(summary: pd.DataFrame, part: str) -> str:
    """Describe the effect of removing a part, by pipeline.

    Args:
        summary: of :func:`summarise_ablations`.
        part: an ``Ablation.part``; its ablations have the full agent's start-up delays.
    """
    names = [name for name, ablation in ABLATIONS.items() if ablation.part == part]
    full = _of_variant(summary, AGENT)
    return " ".join(_difference_sentences(name, _of_variant(summary, name), full) for name in names)


def _difference_sentences(name: str, rows: Sequence[Row], full: Sequence[Row]) -> str:
    found = {verdict: [row["pipeline"] for row in rows if ablation_verdict(row) == verdict] for verdict in _VERDICTS}
    verdicts = [f"{verdict} on {listed(pipelines)}" for verdict, pipelines in found.items() if pipelines]
    changes = [
        f"{signed(row['cost'] - of_full['cost'], 2)} and {signed(row['dropped'] - of_full['dropped'], 1)}"
        f" ({row['pipeline']})"
        for row, of_full in zip(rows, full, strict=True)
    ]
    label = ABLATIONS[name].label
    text = f"**{label[0].upper()}{label[1:]}**: {', '.join(verdicts)}. The reward changes by "
    text += f"{_by_pipeline(rows, 'difference')}; cores and dropped requests per cycle by {', '.join(changes)}."
    if any(row["refused"] for row in rows):
        refusals = [f"{row['refused']:.1f} ({row['pipeline']})" for row in rows]
        text += f" Refused decisions per cycle: {listed(refusals)}."
    return text


def _by_pipeline(rows: Iterable[Row], quantity: str) -> str:
    return listed(f"{with_interval(row, quantity)} ({row['pipeline']})" for row in rows)


def forecast_paragraph(summary: pd.DataFrame) -> str:
    """Describe the lead of agents over the myopic solver with the same forecast.

    Args:
        summary: of :func:`summarise_ablations`.
    """
    labels = {AGENT: "the study's forecaster"}
    labels |= {name: f"the {ablation.label}" for name, ablation in ABLATIONS.items() if ablation.part == "forecast"}
    leads = {label: _by_pipeline(_of_variant(summary, name), "over_myopic") for name, label in labels.items()}
    text = "; ".join(f"{lead} with {label}" for label, lead in leads.items())
    return f"The agent's reward minus that of the myopic solver with the same forecast: {text}."


def startup_paragraph(summary: pd.DataFrame, gains: pd.DataFrame) -> str:
    """Describe the agent's lead over the myopic solver with start-up delays and without.

    Args:
        summary: of :func:`summarise_ablations`.
        gains: of :func:`startup_gains`.
    """
    with_delays, without = (_by_pipeline(_of_variant(summary, name), "over_myopic") for name in (AGENT, INSTANT))
    changes = _by_pipeline(gains.to_dict("records"), "gain")
    return (
        f"The agent's reward minus the myopic solver's: {with_delays} with start-up delays, {without} without. "
        f"Delays increase the difference by {changes}."
    )


def ablation_findings(summary: pd.DataFrame, gains: pd.DataFrame) -> dict[str, str]:
    """All paragraphs, each under the question that it answers; arguments as those of :func:`startup_paragraph`."""
    forecasts = f"{part_paragraph(summary, 'forecast')} {forecast_paragraph(summary)}"
    return {
        "Does the agent need the expert?": part_paragraph(summary, "expert"),
        "Does the agent need residual features?": part_paragraph(summary, "features"),
        "Must the choices depend on each other?": part_paragraph(summary, "heads"),
        "What is the forecast worth?": forecasts,
        "Does the agent need to see the queues?": part_paragraph(summary, "queues"),
        "Is the lead due to start-up delays?": startup_paragraph(summary, gains),
    }


# -------------------------------------------------------------------------------------------------------------- figure

PARTS = {
    "expert": Style("expert", PALETTE[0], "o"),
    "features": Style("features", PALETTE[1], "s"),
    "heads": Style("heads", PALETTE[2], "^"),
    "forecast": Style("forecast", PALETTE[3], "v"),
    "queues": Style("queues", PALETTE[9], "X"),
}
"""The style of each ablated part, from top to bottom."""

ENVIRONMENTS = {
    AGENT: "as in the study",
    INSTANT: "no start-up delays",
    "recent-maximum": "maximum of the last 20 s",
    "perfect-forecast": "perfect forecast",
}
"""Agents that are compared with the myopic solver in their own environment, and the name of the environment."""

Groups = list[list[tuple[str, str, Style]]]
"""Variants with their labels and styles, in groups from top to bottom."""


def plot_ablations(summary: pd.DataFrame, title: str = "") -> Figure:
    """Draw every variant's reward minus the full agent's, and below the agent's minus the myopic solver's.

    A point is the mean over seeds and cycles, a whisker its 95 % interval; the mean is also given as a number.
    Pipelines share an axis, which is logarithmic on both sides of zero if a few differences are much larger.

    Args:
        summary: of :func:`summarise_ablations`.
        title: of the figure.

    Returns:
        The figure, not saved.
    """
    pipelines = list(dict.fromkeys(summary["pipeline"]))
    figure, grid = plt.subplots(
        2, len(pipelines), figsize=(3.0 + 4.0 * len(pipelines), 6.6), layout="constrained", squeeze=False,
        sharex="row", sharey="row", height_ratios=(2.4, 1.0),
    )  # fmt: skip
    figure.suptitle(title)
    against = {"difference": "the full agent's", "over_myopic": "the myopic solver's in the same environment"}
    for row, (quantity, whose), groups in zip(grid, against.items(), (_ablated(), _environments()), strict=True):
        shown = summary[summary["variant"].isin([name for group in groups for name, _, _ in group])]
        for axes, pipeline in zip(row, pipelines, strict=True):
            _draw(axes, shown[shown["pipeline"] == pipeline].set_index("variant"), groups, quantity)
        note = _scale(row[0], shown[[f"{quantity}_low", f"{quantity}_high"]].to_numpy())
        for axes in row:
            axes.set_xlabel(f"reward minus {whose}{note}")
    for axes, pipeline in zip(grid[0], pipelines, strict=True):
        axes.set_title(pipeline)
    return figure


def _ablated() -> Groups:
    """Variants that are compared with the full agent, in groups: the ablations by part, then the solvers."""
    groups = [
        [(name, ablation.label, style) for name, ablation in ABLATIONS.items() if ablation.part == part]
        for part, style in PARTS.items()
    ]
    return [*groups, [(name, policy_style(name).label, policy_style(name)) for name in ("myopic", "clairvoyant")]]


def _environments() -> Groups:
    """Agents that are compared with the myopic solver: two with different delays, two with different forecasts."""
    agent, forecast = policy_style(AGENT), PARTS["forecast"]
    rows = [
        (name, label, forecast if ABLATIONS[name].part == "forecast" else agent) for name, label in ENVIRONMENTS.items()
    ]
    return [rows[:2], rows[2:]]


def _draw(axes: Axes, rows: pd.DataFrame, groups: Groups, quantity: str) -> None:
    """Draw a point and a whisker for every variant, groups half a line apart, the first on top."""
    places: list[float] = []
    for number, group in enumerate(groups):
        for name, _, style in group:
            place = -len(places) - 0.5 * number
            draw_means(axes, rows.loc[[name]], quantity, [place], style, capsize=4)
            annotate_row(axes, place, signed(rows[quantity][name]))
            places.append(place)
    axes.axvline(0.0, color="black", linewidth=1.0)
    axes.set_yticks(places, [label for group in groups for _, label, _ in group])
    axes.set_ylim(min(places) - 0.7, 0.7)
    axes.grid(axis="x", alpha=0.25)


def _scale(axes: Axes, ends: np.ndarray) -> str:
    """Choose a scale on which typical and large ends can be read; returns a note if it is not linear."""
    typical, largest = float(np.median(np.abs(ends))), float(np.abs(ends).max())
    axes.margins(x=0.08)
    if not largest > 8.0 * typical > 0.0:
        axes.locator_params(axis="x", nbins=5)
        return ""
    linear = float(10.0 ** np.ceil(np.log10(typical)))
    return "\n" + symmetric_logarithmic(axes, linear, width=1.5)
