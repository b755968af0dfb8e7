"""The common style of all figures: a colour-blind palette, the look of each policy, panels, axes, saving."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

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
    "random": Style("random", PALETTE[7], "x"),
    "greedy": Style("greedy", PALETTE[1], "v"),
    "ipa": Style("IPA", PALETTE[2], "s"),
    "ipa-highs": Style("IPA (HiGHS)", PALETTE[2], "s"),
    "ipa-gurobi": Style("IPA (Gurobi)", PALETTE[1], "D"),
    "dynamic-program": Style("IPA (exact dynamic program)", PALETTE[9], "^"),
    "myopic": Style("myopic (exact)", PALETTE[4], "D"),
    "myopic-backlog": Style("myopic with backlog", PALETTE[6], "d"),
    "clairvoyant": Style("clairvoyant (knows the load)", PALETTE[5], "P"),
    "agent": Style("agent", PALETTE[0], "o"),
    "agent-frugal": Style("agent-frugal", PALETTE[3], "*"),
}
# For agents named by users.
_OTHER_COLOURS = (PALETTE[8], PALETTE[9], "#000000")
_OTHER_MARKERS = "hp<>"
_DECADES = 8


def policy_style(policy: str) -> Style:
    """Look up the style of a policy; an unknown one gets a style derived from its name, always the same."""
    number = zlib.crc32(policy.encode())
    other = Style(policy, _OTHER_COLOURS[number % len(_OTHER_COLOURS)], _OTHER_MARKERS[number % len(_OTHER_MARKERS)])
    return _STYLES.get(policy, other)


def short_label(policy: str) -> str:
    """The label of a policy without its explanation in brackets."""
    return policy_style(policy).label.split(" (")[0]


def ordered(policies: Iterable[str]) -> list[str]:
    """Policies without repetition, from the simplest to the agents, others last by name."""
    known = list(_STYLES)
    return sorted(set(policies), key=lambda policy: (known.index(policy) if policy in known else len(known), policy))


def panel_grid(number: int, width: float, height: float) -> tuple[Figure, Sequence[Axes]]:
    """Make a figure of panels, three in a row.

    Args:
        number: of panels.
        width: of each, inches.
        height: of each, inches.
    """
    columns = min(number, 3)
    rows = -(-number // columns)
    size = (1.0 + width * columns, 1.3 + height * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axes in grid.flat[number:]:
        axes.remove()
    return figure, list(grid.flat[:number])


def legend_below(figure: Figure, *labelled: Axes, columns: int | None = None) -> None:
    """Put one legend below a figure.

    Args:
        figure: of the axes.
        labelled: axes with the labels.
        columns: of the legend; by default a single row.
    """
    handles = [handle for axes in labelled for handle in axes.get_legend_handles_labels()[0]]
    labels = [str(label) for axes in labelled for label in axes.get_legend_handles_labels()[1]]
    figure.legend(handles, labels, loc="outside lower center", ncols=columns or len(handles), frameon=False)


def label_decades(axis: Axis) -> None:
    """Label 1, 2 and 5 of every decade of a logarithmic axis with plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def symmetric_logarithmic(
    axes: Axes,
    linear: float,
    width: float = 1.0,
    digits: Sequence[float] = (1.0, 3.0),
    label: Callable[[float], str] = lambda value: f"{value:g}".replace("-", "−"),
) -> str:
    """Make the x axis linear around zero and logarithmic beyond, so that small and large differences can be read.

    Args:
        axes: complete except for this, because the ticks depend on their limits.
        linear: distance from zero up to which the axis is linear.
        width: length of that distance on paper, in about as many decades: matplotlib makes it 10/9 of that.
        digits: ticks in every decade beyond, in multiples of its beginning.
        label: formats a tick label.

    Returns:
        A description of the scale for the label of the axis.
    """
    axes.set_xscale("symlog", linthresh=linear, linscale=width)
    beyond = [linear * digit * 10.0**decade for decade in range(_DECADES) for digit in digits]
    low, high = axes.get_xlim()
    marks = [mark for mark in (*(-mark for mark in reversed(beyond)), 0.0, *beyond) if low <= mark <= high]
    axes.set_xticks(marks, [label(mark) for mark in marks])
    axes.minorticks_off()
    return f"(linear up to {'±' if low < -linear else ''}{linear:g}, logarithmic beyond)"


def save_figure(figure: Figure, path: str | Path) -> Figure:
    """Write a figure to an image file, with its folder, and close it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return figure
