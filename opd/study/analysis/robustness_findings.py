"""Results under all conditions: a table with intervals, paragraphs of Markdown, and a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opd.control import AGENT
from opd.study.analysis.estimates import Row, estimate, with_interval
from opd.study.analysis.robustness import AS_TRAINED, POLICIES, PROFILES_CALIBRATED, PROFILES_KNOWN, PROFILES_WRONG
from opd.study.plots.style import Style, draw_means, legend_below, ordered, policy_style, symmetric_logarithmic

KEYS = ["pipeline", "cycle", "seed"]
"""Equal in two rows that are compared as a pair: the same requests."""

# ----------------------------------------------------------------------------------------------------- summary


def summarise_robustness(rows: pd.DataFrame) -> pd.DataFrame:
    """Summarise each policy under every condition.

    Args:
        rows: of :func:`opd.study.analysis.robustness.evaluate_robustness`.

    Returns:
        A row a ``world``, variant and policy. The first figures are means over pipelines, cycles and seeds, with the
        ends of their 95 % intervals in ``_low`` and ``_high``; differences are paired by pipeline, cycle and seed:

        * ``reward`` and ``qos`` (Eqs. 7 and 3);
        * ``reward_loss`` and ``qos_loss``: the same policy's as trained, on the same cycles, minus these;
        * ``lead``: the agent's reward under this condition minus this policy's.

        Then ``dropped``, ``refused``, ``fallbacks`` and ``by_expert``, numbers a cycle.
    """
    names = ["world", "variant", "policy"]
    parts = {key: part.set_index(KEYS) for key, part in rows.groupby(names, sort=False)}
    trained = {(part["trace"].iloc[0], key[2]): part for key, part in parts.items() if key[0] == AS_TRAINED}
    lines = []
    for (world, variant, policy), part in parts.items():
        before = trained[part["trace"].iloc[0], policy]
        line: dict[str, Any] = {"world": world, "variant": variant, "policy": policy}
        for figure in ("reward", "qos"):
            line |= estimate(figure, seeds_by_cycles_mean(part[figure]))
            line |= estimate(f"{figure}_loss", seeds_by_cycles_mean(before[figure] - part[figure]))
        if policy != AGENT:
            agent = parts[world, variant, AGENT]
            line |= estimate("lead", seeds_by_cycles_mean(agent["reward"] - part["reward"]))
        lines.append(line | part[["dropped", "refused", "fallbacks", "by_expert"]].mean().to_dict())
    return pd.DataFrame(lines)


def seeds_by_cycles_mean(values: pd.Series) -> pd.DataFrame:
    """(S, C) means over the pipelines, seeds x cycles, of figures indexed by :data:`KEYS`.

    Pipelines are not a sample: only seeds and cycles are resampled.
    """
    return values.groupby(["seed", "cycle"]).mean().unstack("cycle")


# -------------------------------------------------------------------------------------------------- paragraphs


def robustness_findings(summary: pd.DataFrame) -> dict[str, str]:
    """The overview and the paragraph of every condition, each under its heading."""
    return {"Overview": robustness_overview(summary)} | {
        name[0].upper() + name[1:]: condition_paragraph(summary, name) for name in summary["world"].unique()
    }


def robustness_overview(summary: pd.DataFrame) -> str:
    """Count the conditions in which the agent is above or below each policy, as a list in Markdown.

    Above and below mean that the whole interval of its lead is on one side of zero.
    """
    others = [policy for policy in POLICIES if policy != AGENT and (summary["policy"] == policy).any()]
    return "\n".join(_standing(summary[summary["policy"] == policy]) for policy in others)


def _standing(rows: pd.DataFrame) -> str:
    above, below = rows[rows["lead_low"] > 0.0], rows[rows["lead_high"] < 0.0]
    where = ": " + "; ".join(below["world"] + ", " + below["variant"]) if len(below) else ""
    name = policy_style(rows["policy"].iloc[0]).label
    return f"* **{name}**: the agent is above in {len(above)} of {len(rows)}, below in {len(below)}{where}."


def calibration_losses(rows: pd.DataFrame) -> pd.DataFrame:
    """Compute what wrong profiles cost each policy, with and without calibration.

    Args:
        rows: of :func:`opd.study.analysis.robustness.evaluate_robustness`.

    Returns:
        A row a ``variant`` of the device and policy, means over pipelines, cycles and seeds: ``lost`` and
        ``lost calibrated``, the reward of the same policy that knows the device, minus its reward; ``dropped`` and
        ``dropped calibrated``, requests a cycle.
    """
    reward, dropped = (
        rows.pivot_table(figure, ["variant", "policy"], "world", "mean", sort=False) for figure in ("reward", "dropped")
    )
    reward = reward.dropna(subset=[PROFILES_KNOWN])
    table = pd.DataFrame(
        {
            "lost": reward[PROFILES_KNOWN] - reward[PROFILES_WRONG],
            "lost calibrated": reward[PROFILES_KNOWN] - reward[PROFILES_CALIBRATED],
            "dropped": dropped.loc[reward.index, PROFILES_WRONG],
            "dropped calibrated": dropped.loc[reward.index, PROFILES_CALIBRATED],
        }
    )
    return table.reset_index()


def condition_paragraph(summary: pd.DataFrame, name: str) -> str:
    """Describe the effect of one condition on each policy, as a list in Markdown, an item a variant."""
    variants = summary[summary["world"] == name].groupby("variant", sort=False)
    return "\n".join(_item(str(variant), rows) for variant, rows in variants)


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


# -------------------------------------------------------------------------------------------------------------- figure

_LINE, _SPAN = 0.5, 0.6
"""Height of a line in inches, and the share of it for its marks; the rest separates the lines."""

_DRAWN = (AGENT, "lookahead", "ladder", "myopic-backlog", "myopic")
"""Those that see the queues, and the best of those that do not; tables have the others, too."""

Places = Mapping[tuple[str, str], int]
"""The line of each condition and variant."""


def plot_robustness(summary: pd.DataFrame, label: str) -> Figure:
    """Draw the agent's lead over other policies and the requests that each policy drops; one row a condition.

    A whisker is the 95 % interval of the mean. Both scales are linear around zero and logarithmic beyond, because the
    effects differ by factors of a hundred. Devices that the policies know are a reference and not drawn.

    Args:
        summary: of :func:`summarise_robustness`.
        label: of the trace, for the title.

    Returns:
        The figure, not saved.
    """
    summary = summary[summary["policy"].isin(_DRAWN) & (summary["world"] != PROFILES_KNOWN)]
    variants = list(dict.fromkeys(zip(summary["world"], summary["variant"], strict=True)))
    lines = []  # a condition's heading, which is a line without a variant, and its variants
    for world in dict.fromkeys(summary["world"]):
        lines += [(world, ""), *(pair for pair in variants if pair[0] == world)]
    figure, (leads, drops) = plt.subplots(
        1, 2, figsize=(12.5, 1.9 + _LINE * len(lines)), layout="constrained", sharey=True, width_ratios=(1.5, 1.0)
    )
    figure.suptitle(f"Where something is wrong: the agent and policies without training ({label})")
    places = {variant: place for place, variant in enumerate(lines) if variant[1]}
    _plot_leads(leads, summary, places)
    _plot_drops(drops, summary, places)
    leads.set_yticks(range(len(lines)), [variant or world for world, variant in lines])
    for text, (_, variant) in zip(leads.get_yticklabels(), lines, strict=True):
        text.set_fontweight("normal" if variant else "bold")
    for axes in (leads, drops):
        axes.hlines(list(places.values()), 0.0, 1.0, color="0.92", zorder=0, transform=axes.get_yaxis_transform())
        axes.grid(axis="x", alpha=0.3)
    leads.set_ylim(len(lines) - 0.4, -0.6)
    legend_below(figure, drops)
    return figure


def _contrasting_style(policy: str) -> Style:
    """The style of a policy, with more contrast between the two myopic ones, which are next to each other here."""
    style = policy_style(policy)
    return style._replace(colour="#000000", marker="^") if policy == "myopic-backlog" else style


def _plot_leads(axes: Axes, summary: pd.DataFrame, places: Places) -> None:
    policies = _DRAWN[1:]
    for number, policy in enumerate(policies):
        rows = summary[summary["policy"] == policy]
        heights = _heights(rows, places, number, len(policies))
        draw_means(axes, rows, "lead", heights, _contrasting_style(policy), ms=6, elinewidth=1.4)
    axes.axvline(0.0, color="0.4", linewidth=1)
    axes.margins(x=0.08)
    scale = symmetric_logarithmic(axes, 0.1, width=0.6)
    axes.set(
        title="the agent's lead over each policy",
        xlabel=f"difference of reward per decision (Eq. 7); right: agent better\n{scale}",
    )


def _plot_drops(axes: Axes, summary: pd.DataFrame, places: Places) -> None:
    policies = ordered(summary["policy"])
    for number, policy in enumerate(policies):
        rows, style = summary[summary["policy"] == policy], _contrasting_style(policy)
        axes.plot(
            rows["dropped"], _heights(rows, places, number, len(policies)), color=style.colour, marker=style.marker,
            ms=5, mew=0, linestyle="", zorder=3 if policy == AGENT else 2, label=style.label,
        )  # fmt: skip
    axes.set_xlim(-0.3, 2.0 * max(1.0, summary["dropped"].max()))
    scale = symmetric_logarithmic(axes, 1.0, width=0.5, digits=[1.0], label="{:,.0f}".format)
    axes.set(title="dropped requests", xlabel=f"requests per cycle, mean\n{scale}")


def _heights(rows: pd.DataFrame, places: Places, number: int, policies: int) -> np.ndarray:
    """Heights of the marks of a policy: in the line of the condition, a little below those of the previous policy."""
    lines = np.array([places[variant] for variant in zip(rows["world"], rows["variant"], strict=True)])
    return lines + np.linspace(-0.5 * _SPAN, 0.5 * _SPAN, policies)[number]
