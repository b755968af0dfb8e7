"""Results of the ablations: tables with intervals, and a paragraph of Markdown for every part of the agent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from opd.control import AGENT
from opd.study.analysis.ablations import ABLATIONS, INSTANT, matching_agent, matching_solver
from opd.study.analysis.estimates import Row, estimate, signed, with_interval

# ------------------------------------------------------------------------------------------------------ tables


def summarise_ablations(rows: pd.DataFrame) -> pd.DataFrame:
    """Compute means of every pipeline and variant, and differences paired by seed and cycle.

    Args:
        rows: of :func:`opd.study.analysis.ablation_runs.measure_ablations`, with all variants.

    Returns:
        By pipeline and variant: the means over seeds and cycles of reward, qos, cost, dropped and refused (a cycle);
        ``difference``, the reward minus that of the full agent with the same delays, ``agent`` or ``no-startup``;
        ``over_myopic``, the reward minus that of the myopic solver in the same environment with the same forecast. Both
        with the ends ``_low`` and ``_high`` of their 95 % intervals, by resampling seeds and cycles.
    """
    table = []
    for pipeline, variant in dict.fromkeys(zip(rows["pipeline"], rows["variant"], strict=True)):
        means = _rows_of(rows, pipeline, variant)[["reward", "qos", "cost", "dropped", "refused"]].mean()
        own = _rewards(rows, pipeline, variant)
        table.append(
            {"pipeline": pipeline, "variant": variant, **means}
            | estimate("difference", own - _rewards(rows, pipeline, matching_agent(variant)))
            | estimate("over_myopic", own - _rewards(rows, pipeline, matching_solver(variant)))
        )
    return pd.DataFrame(table)


def startup_gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Compute by how much start-up delays increase the agent's lead over the myopic solver.

    Returns:
        By pipeline: columns ``pipeline``, ``gain``, ``gain_low`` and ``gain_high``, reward of Eq. 7 with its 95 %
        interval.
    """
    table = []
    for pipeline in dict.fromkeys(rows["pipeline"]):
        with_delays, without = (
            _rewards(rows, pipeline, name) - _rewards(rows, pipeline, matching_solver(name))
            for name in (AGENT, INSTANT)
        )
        table.append({"pipeline": pipeline} | estimate("gain", with_delays - without))
    return pd.DataFrame(table)


def _rows_of(rows: pd.DataFrame, pipeline: str, variant: str) -> pd.DataFrame:
    return rows[(rows["pipeline"] == pipeline) & (rows["variant"] == variant)]


def _rewards(rows: pd.DataFrame, pipeline: str, variant: str) -> np.ndarray:
    """(S, C) rewards by seed and cycle."""
    return _rows_of(rows, pipeline, variant).pivot(index="seed", columns="cycle", values="reward").to_numpy()


# -------------------------------------------------------------------------------------------------- paragraphs

_VERDICTS = {"worse": "worse", "better": "better", "open": "no measurable effect"}


def ablation_verdict(row: Row) -> str:
    """``worse`` or ``better`` where the whole interval of the difference is on one side of zero, else ``open``."""
    if row["difference_high"] < 0.0:
        return "worse"
    return "better" if row["difference_low"] > 0.0 else "open"


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
    found = {key: [row["pipeline"] for row in rows if ablation_verdict(row) == key] for key in _VERDICTS}
    verdicts = [f"{_VERDICTS[key]} on {listed(pipelines)}" for key, pipelines in found.items() if pipelines]
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
