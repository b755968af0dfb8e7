"""What the ablations say, in sentences: a paragraph of Markdown for every part of the agent, all figures computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from opd.control import AGENT
from opd.study.analysis.ablations import ABLATIONS, INSTANT
from opd.study.analysis.estimates import Row, signed, with_interval

_VERDICTS = {"worse": "worse", "better": "better", "open": "no difference to be told"}


def verdict(row: Row) -> str:
    """``worse`` or ``better`` where the whole interval of the difference is on one side of zero, else ``open``."""
    if row["difference_high"] < 0.0:
        return "worse"
    return "better" if row["difference_low"] > 0.0 else "open"


def listed(texts: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last


def rows_of(summary: pd.DataFrame, variant: str) -> Sequence[Row]:
    """The rows of a variant, one a pipeline."""
    return summary[summary["variant"] == variant].to_dict("records")


def part_paragraph(summary: pd.DataFrame, part: str) -> str:
    """What taking a part away did, pipeline by pipeline.

    Args:
        summary: of :func:`opd.study.analysis.ablations.summarise_ablations`.
        part: an ``Ablation.part`` whose ablations share the full agent's start-up delays.
    """
    names = [name for name, ablation in ABLATIONS.items() if ablation.part == part]
    return " ".join(_difference_sentences(name, rows_of(summary, name), rows_of(summary, AGENT)) for name in names)


def _difference_sentences(name: str, rows: Sequence[Row], full: Sequence[Row]) -> str:
    found = {key: [row["pipeline"] for row in rows if verdict(row) == key] for key in _VERDICTS}
    verdicts = [f"{_VERDICTS[key]} on {listed(pipelines)}" for key, pipelines in found.items() if pipelines]
    changes = [
        f"{signed(row['cost'] - of_full['cost'], 2)} and {signed(row['dropped'] - of_full['dropped'], 1)}"
        f" ({row['pipeline']})"
        for row, of_full in zip(rows, full, strict=True)
    ]
    label = ABLATIONS[name].label
    text = f"**{label[0].upper()}{label[1:]}**: reward changes by {_by_pipeline(rows, 'difference')}, so "
    text += f"{', '.join(verdicts)}; cores and lost requests of a cycle by {', '.join(changes)}."
    if any(row["refused"] for row in rows):
        refusals = [f"{row['refused']:.1f} ({row['pipeline']})" for row in rows]
        text += f" Decisions refused in a cycle: {listed(refusals)}."
    return text


def _by_pipeline(rows: Iterable[Row], quantity: str) -> str:
    return listed(f"{with_interval(row, quantity)} ({row['pipeline']})" for row in rows)


def forecast_paragraph(summary: pd.DataFrame) -> str:
    """How far agents are above the myopic solver that is given the same forecast.

    Args:
        summary: of :func:`opd.study.analysis.ablations.summarise_ablations`.
    """
    labels = {AGENT: "the study's forecaster"}
    labels |= {name: f"the {ablation.label}" for name, ablation in ABLATIONS.items() if ablation.part == "forecast"}
    leads = [f"with {label} {_by_pipeline(rows_of(summary, name), 'over_myopic')}" for name, label in labels.items()]
    return f"The agent's reward less that of the myopic solver with the same forecast: {'; '.join(leads)}."


def startup_paragraph(summary: pd.DataFrame, gains: pd.DataFrame) -> str:
    """How far the agent is above the myopic solver with start-up delays and without.

    Args:
        summary: of :func:`opd.study.analysis.ablations.summarise_ablations`.
        gains: of :func:`opd.study.analysis.ablations.startup_worth`.
    """
    with_delays, without = (_by_pipeline(rows_of(summary, name), "over_myopic") for name in (AGENT, INSTANT))
    changes = _by_pipeline(gains.to_dict("records"), "gain")
    return (
        f"The agent's reward less the myopic solver's: {with_delays} with start-up delays, {without} without. "
        f"With delays the difference is larger by {changes}."
    )


def findings(summary: pd.DataFrame, gains: pd.DataFrame) -> dict[str, str]:
    """All paragraphs, each under the question that it answers; arguments as those of :func:`startup_paragraph`."""
    forecasts = f"{part_paragraph(summary, 'forecast')} {forecast_paragraph(summary)}"
    return {
        "Does it need an expert?": part_paragraph(summary, "expert"),
        "Does it need residual features?": part_paragraph(summary, "features"),
        "Must its choices see each other?": part_paragraph(summary, "heads"),
        "What is the forecast worth?": forecasts,
        "Does it need to see the queues?": part_paragraph(summary, "queues"),
        "Is it about start-up delays?": startup_paragraph(summary, gains),
    }
