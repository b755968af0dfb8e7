"""The figure of :mod:`opd.study.analysis.robustness`: the agent's lead and the dropped requests by condition."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opd.control import AGENT
from opd.study.analysis.robustness_runs import BACKLOG, IPA, MYOPIC
from opd.study.plots.style import Style, legend_below, ordered, policy_style, symmetric_logarithmic

_LEADS = (BACKLOG, MYOPIC, IPA)

_LINE, _SPAN = 0.46, 0.6
"""Height of a line in inches, and the share of it for its marks; the rest separates the lines."""


def _contrasting_style(policy: str) -> Style:
    """The style of a policy, with more contrast between the two myopic ones, which are next to each other here."""
    style = policy_style(policy)
    return style._replace(colour="#000000", marker="^") if policy == BACKLOG else style


def plot_robustness(summary: pd.DataFrame, label: str) -> Figure:
    """Draw the agent's lead over the solvers and the requests that each policy drops; one row a condition.

    A whisker is the 95 % interval of the mean. Both scales are linear around zero and logarithmic beyond, because the
    effects differ by factors of a hundred.

    Args:
        summary: of :func:`opd.study.analysis.robustness_findings.summarise_robustness`.
        label: of the trace, for the title.

    Returns:
        The figure, not saved.
    """
    variants = list(dict.fromkeys(zip(summary["world"], summary["variant"], strict=True)))
    lines = [line for world in dict.fromkeys(summary["world"]) for line in _lines(world, variants)]
    figure, (leads, drops) = plt.subplots(
        1, 2, figsize=(12.5, 1.9 + _LINE * len(lines)), layout="constrained", sharey=True, width_ratios=(1.5, 1.0)
    )
    figure.suptitle(f"In and out of distribution: {label}")
    places = {variant: place for place, variant in enumerate(lines) if variant[1]}
    _plot_leads(leads, summary, places)
    _plot_drops(drops, summary, places)
    leads.set_yticks(range(len(lines)), [variant or world for world, variant in lines])
    for text, (_, variant) in zip(leads.get_yticklabels(), lines, strict=True):
        text.set_fontweight("normal" if variant else "bold")
    for axes in (leads, drops):
        axes.hlines(list(places.values()), 0.0, 1.0, color="0.92", zorder=0, transform=axes.get_yaxis_transform())
    leads.set_ylim(len(lines) - 0.4, -0.6)
    legend_below(figure, drops)
    return figure


def _lines(world: str, variants: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """A heading, which is a line without a variant, and below it the variants of one condition."""
    return [(world, ""), *(pair for pair in variants if pair[0] == world)]


def _plot_leads(axes: Axes, summary: pd.DataFrame, places: dict[tuple[str, str], int]) -> None:
    for number, policy in enumerate(_LEADS):
        rows, style = summary[summary["policy"] == policy], _contrasting_style(policy)
        whiskers = np.abs(rows[["lead_low", "lead_high"]].to_numpy().T - rows["lead"].to_numpy())
        axes.errorbar(
            rows["lead"], _heights(rows, places, number, len(_LEADS)), xerr=whiskers,
            color=style.colour, marker=style.marker, ms=6, linestyle="", elinewidth=1.4, capsize=3,
        )  # fmt: skip
    axes.axvline(0.0, color="0.4", linewidth=1)
    axes.margins(x=0.08)
    scale = symmetric_logarithmic(axes, 0.1, width=0.6)
    axes.grid(axis="x", alpha=0.3)
    axes.set(
        title="the agent's lead over each solver",
        xlabel=f"difference of reward per decision (Eq. 7); right: agent better\n{scale}",
    )


def _plot_drops(axes: Axes, summary: pd.DataFrame, places: dict[tuple[str, str], int]) -> None:
    policies = ordered(summary["policy"])
    for number, policy in enumerate(policies):
        rows, style = summary[summary["policy"] == policy], _contrasting_style(policy)
        heights = _heights(rows, places, number, len(policies))
        front = 3 if policy == AGENT else 2
        axes.plot(
            rows["dropped"], heights, color=style.colour, marker=style.marker, ms=5, mew=0, linestyle="", zorder=front,
            label=style.label,
        )  # fmt: skip
    axes.set_xlim(-0.3, 2.0 * max(1.0, summary["dropped"].max()))
    scale = symmetric_logarithmic(axes, 1.0, width=0.5, digits=[1.0], label="{:,.0f}".format)
    axes.grid(axis="x", alpha=0.3)
    axes.set(title="dropped requests", xlabel=f"requests per cycle, mean\n{scale}")


def _heights(rows: pd.DataFrame, places: dict[tuple[str, str], int], number: int, policies: int) -> np.ndarray:
    """Heights of the marks of a policy: in the line of the condition, a little below those of the previous policy."""
    lines = np.array([places[variant] for variant in zip(rows["world"], rows["variant"], strict=True)])
    return lines + np.linspace(-0.5 * _SPAN, 0.5 * _SPAN, policies)[number]
