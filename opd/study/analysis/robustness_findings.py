"""Results under all conditions: a table with intervals, and paragraphs of Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from opd.control import AGENT
from opd.study.analysis.estimates import Row, estimate, with_interval
from opd.study.analysis.robustness import AS_TRAINED
from opd.study.analysis.robustness_runs import POLICIES
from opd.study.plots.style import policy_style

KEYS = ["pipeline", "cycle", "seed"]
"""Equal in two rows that are compared as a pair: the same requests."""

# ----------------------------------------------------------------------------------------------------- summary


def summarise_robustness(rows: pd.DataFrame) -> pd.DataFrame:
    """Summarise each policy under every condition.

    Args:
        rows: of :func:`opd.study.analysis.robustness_runs.evaluate_robustness`.

    Returns:
        A row a ``world``, variant and policy. The first figures are means over pipelines, cycles and seeds, with the
        ends of their 95 % intervals in ``_low`` and ``_high``; differences are paired by pipeline, cycle and seed:

        * ``reward`` and ``qos`` (Eqs. 7 and 3);
        * ``reward_loss`` and ``qos_loss``: the same policy's as trained, on the same cycles, minus these;
        * ``lead``: the agent's reward under this condition minus this policy's.

        Then ``dropped``, ``refused``, ``fallbacks`` and ``by_expert``, numbers a cycle.
    """
    trained = {
        (part["trace"].iloc[0], names["policy"]): part for names, part in _parts(rows) if names["world"] == AS_TRAINED
    }
    agents = {(n["world"], n["variant"]): part["reward"] for n, part in _parts(rows) if n["policy"] == AGENT}
    lines = []
    for names, part in _parts(rows):
        before = trained[part["trace"].iloc[0], names["policy"]]
        line: dict[str, Any] = dict(names)
        for figure in ("reward", "qos"):
            line |= estimate(figure, seeds_by_cycles_mean(part[figure]))
            line |= estimate(f"{figure}_loss", seeds_by_cycles_mean(before[figure] - part[figure]))
        if names["policy"] != AGENT:
            line |= estimate("lead", seeds_by_cycles_mean(agents[names["world"], names["variant"]] - part["reward"]))
        lines.append(line | part[["dropped", "refused", "fallbacks", "by_expert"]].mean().to_dict())
    return pd.DataFrame(lines)


def seeds_by_cycles_mean(values: pd.Series) -> np.ndarray:
    """(S, C) means over the pipelines, seeds x cycles, of figures indexed by :data:`KEYS`.

    Pipelines are not a sample: only seeds and cycles are resampled.
    """
    return values.groupby(["seed", "cycle"]).mean().unstack("cycle").to_numpy()


def _parts(rows: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """The rows of every condition and policy, indexed by :data:`KEYS`."""
    names = ["world", "variant", "policy"]
    for key, part in rows.groupby(names, sort=False):
        yield dict(zip(names, map(str, key), strict=True)), part.set_index(KEYS)


# -------------------------------------------------------------------------------------------------- paragraphs


def robustness_findings(summary: pd.DataFrame) -> dict[str, str]:
    """The overview and the paragraph of every condition, each under its heading."""
    names = dict.fromkeys(summary["world"])
    return {"Overview": robustness_overview(summary)} | {
        name[0].upper() + name[1:]: condition_paragraph(summary, name) for name in names
    }


def robustness_overview(summary: pd.DataFrame) -> str:
    """Count the conditions in which the agent is above or below each policy, as a list in Markdown.

    Above and below mean that the whole interval of its lead is on one side of zero.
    """
    return "\n".join(_standing(summary[summary["policy"] == policy]) for policy in POLICIES if policy != AGENT)


def _standing(rows: pd.DataFrame) -> str:
    above, below = rows[rows["lead_low"] > 0.0], rows[rows["lead_high"] < 0.0]
    where = ": " + "; ".join(below["world"] + ", " + below["variant"]) if len(below) else ""
    name = policy_style(rows["policy"].iloc[0]).label
    return f"* **{name}**: the agent is above in {len(above)} of {len(rows)}, below in {len(below)}{where}."


def condition_paragraph(summary: pd.DataFrame, name: str) -> str:
    """Describe the effect of one condition on each policy, as a list in Markdown, an item a variant."""
    rows = summary[summary["world"] == name]
    return "\n".join(_item(variant, rows[rows["variant"] == variant]) for variant in dict.fromkeys(rows["variant"]))


def _item(variant: str, rows: pd.DataFrame) -> str:
    lines = {policy_style(row["policy"]).label: row for row in rows.to_dict("records")}
    changes = ", ".join(f"{label} {with_interval(_change(row), 'change')}" for label, row in lines.items())
    leads = [f"over {label} {with_interval(row, 'lead')}" for label, row in lines.items() if row["policy"] != AGENT]
    dropped = ", ".join(f"{label} {_requests(row['dropped'])}" for label, row in lines.items())
    as_trained = rows["world"].iloc[0] == AS_TRAINED
    text = f"* **{variant}**. " + ("" if as_trained else f"Change of reward: {changes}. ")
    text += f"The agent's lead: {', '.join(leads)}. Dropped requests per cycle: {dropped}. Decisions of the agent's"
    text += f" fallback per cycle: {lines[policy_style(AGENT).label]['by_expert']:.1f}."
    fallbacks = rows["fallbacks"].max()
    return text + (f" Decisions without a forecast: {fallbacks:.0f}." if fallbacks else "")


def _change(row: Row) -> Row:
    """The change of reward, which is the negative loss, with its interval."""
    return {f"change{end}": -row[f"reward_loss{of}"] for end, of in (("", ""), ("_low", "_high"), ("_high", "_low"))}


def _requests(number: float) -> str:
    """A mean number of requests; small ones with a decimal, so that only none is 0."""
    if 0.0 < number < 0.05:
        return "less than 0.1"
    return f"{number:,.1f}" if 0.0 < number < 9.95 else f"{number:,.0f}"
