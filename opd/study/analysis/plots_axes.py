"""The axis on which small differences can be read beside some that dwarf them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes

from opd.study.analysis.wording import plainly

_DECADES = 8


def symmetric_logarithmic(
    axes: Axes,
    linear: float,
    width: float = 1.0,
    digits: Sequence[float] = (1.0, 3.0),
    label: Callable[[float], str] = plainly,
) -> str:
    """Make the x axis linear around zero and logarithmic beyond.

    Args:
        axes: with all that they show: what is marked depends on where they end.
        linear: distance from zero up to which the axis is linear.
        width: that distance on paper, in about as many decades: matplotlib makes it 10/9 of that.
        digits: what is marked of every decade beyond, in multiples of its beginning.
        label: says what is written beside a mark.

    Returns:
        Where it is linear, in words for the axis' label.
    """
    axes.set_xscale("symlog", linthresh=linear, linscale=width)
    beyond = [linear * digit * 10.0**decade for decade in range(_DECADES) for digit in digits]
    low, high = axes.get_xlim()
    marks = [mark for mark in (*(-mark for mark in reversed(beyond)), 0.0, *beyond) if low <= mark <= high]
    axes.set_xticks(marks, [label(mark) for mark in marks])
    axes.minorticks_off()
    return f"(linear up to {'±' if low < -linear else ''}{linear:g}, logarithmic beyond)"
