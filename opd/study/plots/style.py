"""The common style of all figures: a colour-blind palette, the look of each policy, panels, axes, saving."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, ScalarFormatter
from numpy.typing import ArrayLike

PALETTE = sns.color_palette("colorblind").as_hex()


class Style(NamedTuple):
    """The look of a policy, or of anything else that a figure compares."""

    label: str
    colour: str
    marker: str

    @property
    def marker_size(self) -> float:
        """Points; stars look smaller than they are."""
        return 9.0 if self.marker == "*" else 7.0


_STYLES = {
    "random": Style("random", "#b0b0b0", "x"),
    "greedy": Style("greedy", PALETTE[1], "v"),
    "ipa": Style("IPA", PALETTE[2], "s"),
    "ipa-highs": Style("IPA (HiGHS)", PALETTE[2], "s"),
    "ipa-gurobi": Style("IPA (Gurobi)", PALETTE[8], "D"),
    "dynamic-program": Style("IPA (exact dynamic program)", "#8cb8ad", "^"),
    "hpa": Style("HPA", "#c79d5a", "<"),
    "queue-threshold": Style("queue threshold", "#8fa3bf", ">"),
    "ladder": Style("ladder", "#a8b35c", "h"),
    "myopic": Style("myopic (exact)", PALETTE[4], "D"),
    "myopic-backlog": Style("myopic with backlog", "#9a86a4", "d"),
    "clairvoyant": Style("clairvoyant (knows the load)", "#606060", "P"),
    "lookahead": Style("lookahead", "#7fa3b5", "p"),
    "foresight": Style("foresight (lookahead that knows the load)", "#404040", "H"),
    "agent": Style("agent", PALETTE[0], "o"),
    "agent-tuned": Style("agent-tuned", "#004a80", "X"),
    "agent-single": Style("agent-single", PALETTE[9], "P"),
    "agent-frugal": Style("agent-frugal", PALETTE[3], "*"),
}
"""Policies that ship, from the simplest to the agents. References are muted, so that five strong colours are enough."""

_OTHER_COLOURS = ("#7a3b00", "#004d40", "#4b0082", "#8b1a4b", "#39530f", "#000000", "#1f4e5f", "#5d4d00")
"""Dark colours for policies of users; no policy above has one of them."""


def policy_style(policy: str) -> Style:
    """Look up the style of a policy; an unknown one gets a style derived from its name, always the same."""
    number = zlib.crc32(policy.encode())
    markers = "hp<>"
    # The colour depends on the lower part of the number, the marker on the higher one.
    colour, marker = number % len(_OTHER_COLOURS), number // len(_OTHER_COLOURS) % len(markers)
    return _STYLES.get(policy, Style(policy, _OTHER_COLOURS[colour], markers[marker]))


def variant_colours(count: int) -> list[str]:
    """Colours for the variants of a task, from light for the first to dark; none is the colour of a policy."""
    return list(sns.color_palette("ch:start=2.2,rot=-0.5,light=0.72,dark=0.22", count).as_hex())


def short_label(policy: str) -> str:
    """The label of a policy without its explanation in brackets."""
    return policy_style(policy).label.split(" (")[0]


def ordered(policies: Iterable[str]) -> list[str]:
    """Policies without repetition, from the simplest to the agents, others last by name."""
    known = list(_STYLES)
    return sorted(set(policies), key=lambda policy: (known.index(policy) if policy in known else len(known), policy))


def panel_grid(names: Iterable[str], width: float, height: float, title: str) -> tuple[Figure, dict[str, Axes]]:
    """Make a figure of named panels, three in a row.

    Args:
        names: titles of the panels.
        width: of each, inches.
        height: of each, inches.
        title: of the figure.

    Returns:
        The figure, and the axes by name.
    """
    titles = list(dict.fromkeys(names))
    columns = min(len(titles), 3)
    rows = -(-len(titles) // columns)
    size = (1.0 + width * columns, 1.3 + height * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    figure.suptitle(title)
    for axes in grid.flat[len(titles) :]:
        axes.remove()
    panels = dict(zip(titles, grid.flat, strict=False))
    for name, axes in panels.items():
        axes.set_title(name)
    return figure, panels


def draw_means(axes: Axes, rows: pd.DataFrame, name: str, places: ArrayLike, style: Style, **look: Any) -> None:
    """Draw means with their intervals, one at each height.

    Args:
        axes: to draw on.
        rows: a row a mean, with the ends of its interval in ``<name>_low`` and ``<name>_high``.
        name: column of the means.
        places: height of each.
        style: colour and marker.
        look: further arguments of :meth:`~matplotlib.axes.Axes.errorbar`.
    """
    whiskers = np.abs(rows[[f"{name}_low", f"{name}_high"]].to_numpy().T - rows[name].to_numpy())
    look = {"ms": 7, "linestyle": "", "capsize": 3, **look}
    axes.errorbar(rows[name], places, xerr=whiskers, color=style.colour, marker=style.marker, **look)


def annotate_row(axes: Axes, place: float, text: str, colour: str = "0.3") -> None:
    """Write a text to the right of the axes, at one height."""
    axes.annotate(
        text, (1.0, place), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
        va="center", fontsize=8, color=colour,
    )  # fmt: skip


def legend_below(figure: Figure, *labelled: Axes, columns: int | None = None) -> None:
    """Put one legend below a figure; a label that occurs several times is shown once.

    Args:
        figure: of the axes.
        labelled: axes with the labels.
        columns: of the legend; by default a single row.
    """
    found: dict[str, Any] = {}
    for axes in labelled:
        handles, labels = axes.get_legend_handles_labels()
        found |= {label: handle for label, handle in zip(labels, handles, strict=True) if label not in found}
    columns = columns or len(found)
    figure.legend([*found.values()], [*found], loc="outside lower center", ncols=columns, frameon=False)


def label_decades(axis: Axis) -> None:
    """Label 1, 2 and 5 of every decade of a logarithmic axis with plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


MOST_MARKS = 11
"""Ticks of a logarithmic axis whose labels fit side by side in a panel."""


def _symmetric_marks(linear: float, digits: Sequence[float], limits: tuple[float, float]) -> list[float]:
    beyond = [linear * digit * 10.0**decade for decade in range(8) for digit in digits]
    marks = (*(-mark for mark in reversed(beyond)), 0.0, *beyond)
    return [mark for mark in marks if limits[0] <= mark <= limits[1]]


def symmetric_logarithmic(
    axes: Axes,
    linear: float,
    width: float = 1.0,
    digits: Sequence[float] = (1.0, 3.0),
    label: Callable[[float], str] = lambda value: f"{value:g}".replace("-", "−"),
    vertical: bool = False,
) -> str:
    """Make the x or y axis linear around zero and logarithmic beyond, so that small and large differences can be read.

    Args:
        axes: complete except for this, because the ticks depend on their limits.
        linear: distance from zero up to which the axis is linear.
        width: length of that distance on paper, in about as many decades: matplotlib makes it 10/9 of that.
        digits: ticks in every decade beyond, in multiples of its beginning; where their labels would not fit side by
            side, only the first of them.
        label: formats a tick label.
        vertical: whether it is the y axis.

    Returns:
        A description of the scale for the label of the axis.
    """
    scale, limits, ticks = (
        (axes.set_yscale, axes.get_ylim, axes.set_yticks)
        if vertical
        else (axes.set_xscale, axes.get_xlim, axes.set_xticks)
    )
    scale("symlog", linthresh=linear, linscale=width)
    marks = _symmetric_marks(linear, digits, limits())
    if len(marks) > MOST_MARKS:
        marks = _symmetric_marks(linear, digits[:1], limits())
    ticks(marks, [label(mark) for mark in marks])
    axes.minorticks_off()
    return f"(linear up to {'±' if limits()[0] < -linear else ''}{linear:g}, logarithmic beyond)"


def padded_limits(values: ArrayLike, margin: float = 0.08, least: float = 0.02) -> tuple[float, float]:
    """Compute limits of an axis around values, also where all are equal.

    Args:
        values: that the axis must show; those that are not finite are left out.
        margin: free space at both ends, as a share of the range.
        least: smallest range, as a share of the largest absolute value.

    Returns:
        Lowest and highest value of the axis; 0 and 1 without a finite value.
    """
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    size = max(abs(low), abs(high)) or 1.0
    space = max(margin * (high - low), (least * size - (high - low)) / 2)
    return low - space, high + space


def plain_numbers(figure: Figure) -> None:
    """Label all linear axes with plain numbers, never with an offset such as ``1e-10+2``."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            formatter = axis.get_major_formatter()
            if isinstance(formatter, ScalarFormatter):
                formatter.set_useOffset(False)


def save_figure(figure: Figure, path: str | Path) -> Figure:
    """Write a figure to an image file, with its folder, and as SVG beside it for the book; then close it.

    The same figure gives the same SVG, so that results can be compared.
    """
    plain_numbers(figure)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    with plt.rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)
    return figure
