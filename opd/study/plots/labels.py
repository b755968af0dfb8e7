"""Points and lines that carry their name: markers that coincide are set apart, and no name covers another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox, ScaledTranslation

from opd.study.plots.style import Style, annotate_row

_RADIUS = 4.5
"""Points from the centre of a marker to its edge."""

_DIRECTIONS = np.array([(1, 0), (-1, 0), (1, 1), (-1, 1), (0, 1), (1, -1), (-1, -1), (0, -1)])
"""Where a marker or a name may go; the first that is free is taken."""

_LINE = 10.0
"""Points from one line of text to the next."""

_DISTANCES = (1.4, 2.5, 4.0, 5.5, 7.5, 10.0, 13.0)
"""Of a name from its marker, in radii of a marker."""


def draw_named_points(axes: Axes, places: np.ndarray, styles: Sequence[Style], names: Sequence[str]) -> None:
    """Draw a marker and a name for each of several points; thin lines lead from what was moved to the true place.

    The layout and the limits of the axes must be final, because distances are measured on paper.

    Args:
        axes: to draw on.
        places: (P, 2) data coordinates; of points that coincide, the first keeps its place.
        styles: look of each point.
        names: what is written beside each.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    pixels = figure.dpi / 72.0
    true = axes.transData.transform(places)
    shown = set_apart(true, 1.6 * _RADIUS * pixels)
    for place, moved, style in zip(places, (shown - true) / pixels, styles, strict=True):
        transform = axes.transData + ScaledTranslation(moved[0] / 72.0, moved[1] / 72.0, figure.dpi_scale_trans)
        size = 150 if style.marker == "*" else 60
        look: dict[str, Any] = dict(color=style.colour, marker=style.marker, s=size, label=style.label, zorder=3)
        look |= {} if style.marker == "x" else dict(edgecolors="white", linewidths=0.5)
        axes.scatter(*place, transform=transform, **look)
        if moved.any():
            _lead(axes, tuple(place), moved, style)
    boxes = place_names(axes, shown, names, _RADIUS * pixels)
    for marker, box, style, name in zip(shown, boxes, styles, names, strict=True):
        place = tuple(axes.transData.inverted().transform(marker))
        look = dict(fontsize=8, color=style.colour, textcoords="offset points", va="bottom", annotation_clip=False)
        axes.annotate(name, place, tuple((box.min - marker) / pixels), **look)
        nearest = np.clip(marker, box.min, box.max)
        if np.hypot(*(nearest - marker)) > 3.0 * _RADIUS * pixels:
            _lead(axes, place, (nearest - marker) / pixels, style)


def _lead(axes: Axes, place: tuple[float, float], moved: np.ndarray, style: Style) -> None:
    """Draw a thin line from a place to one that is ``moved`` points away."""
    look = dict(arrowstyle="-", color=style.colour, linewidth=0.6, shrinkA=0, shrinkB=0, alpha=0.8)
    axes.annotate("", place, tuple(moved), textcoords="offset points", arrowprops=look, zorder=2)


def set_apart(places: np.ndarray, distance: float) -> np.ndarray:
    """Move points, in order, to the nearest free place around them, so that no two are closer than ``distance``.

    Args:
        places: (P, 2) points.
        distance: smallest distance of two, in the unit of the points.

    Returns:
        (P, 2) places; a point that is far enough from all before it stays.
    """
    free: list[np.ndarray] = []
    steps = [np.zeros(2), *(step * distance * way for step, way in product(np.arange(0.5, 8.0, 0.5), _DIRECTIONS))]
    for place in places:
        candidates = (place + step for step in steps)
        fits = (new for new in candidates if all(np.hypot(*(new - other)) >= 0.999 * distance for other in free))
        free.append(next(fits, place))
    return np.array(free).reshape(-1, 2)


def place_names(axes: Axes, shown: np.ndarray, names: Sequence[str], radius: float) -> list[Bbox]:
    """Find a box for each name that lies within the axes and overlaps neither a marker nor another name.

    Args:
        axes: that the names are written on.
        shown: (P, 2) centres of the markers, pixels.
        names: of the points.
        radius: of a marker, pixels.

    Returns:
        A box in pixels for each name; where none is free, the one beside the marker.
    """
    frame = axes.get_window_extent()
    markers = [Bbox([place - radius, place + radius]) for place in shown]
    boxes: dict[int, Bbox] = {}
    for number in sorted(range(len(names)), key=lambda number: -len(names[number])):  # long names need more space
        text = axes.text(0.5, 0.5, names[number], fontsize=8, transform=axes.transAxes)
        size, place = np.array(text.get_window_extent().size), shown[number]
        text.remove()
        corners = (
            np.clip(place + way * (distance * radius + size / 2) - size / 2, frame.min, frame.max - size)
            for distance, way in product(_DISTANCES, _DIRECTIONS)
        )
        candidates = [Bbox([corner, corner + size]) for corner in corners]
        free = (box for box in candidates if _is_free(place, box, markers, list(boxes.values())))
        boxes[number] = next(free, candidates[0])
    return [boxes[number] for number in range(len(names))]


def _is_free(place: np.ndarray, box: Bbox, markers: Sequence[Bbox], names: Sequence[Bbox]) -> bool:
    """True if a box covers nothing, and the straight way to it from a place crosses no name."""
    way = place + np.linspace(0.0, 1.0, 20)[:, None] * (np.clip(place, box.min, box.max) - place)
    covers = any(box.overlaps(other) for other in (*markers, *names))
    return not covers and not any(name.contains(*point) for name in names for point in way)


def name_lines(axes: Axes) -> None:
    """Write the label of every line to the right of the axes, in its colour and as high as its end, or nearly.

    The layout and the limits of the axes must be final, because distances are measured on paper.
    """
    lines = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    figure = axes.get_figure(root=True)
    assert figure is not None
    ends = axes.transData.transform([(1.0, float(np.asarray(line.get_ydata())[-1])) for line in lines])
    frame = axes.get_window_extent()
    ends[:, 1] = spaced(ends[:, 1], _LINE * figure.dpi / 72.0, frame.y0, frame.y1)
    heights = axes.transData.inverted().transform(ends)[:, 1]
    for line, height in zip(lines, heights, strict=True):
        annotate_row(axes, height, str(line.get_label()), str(line.get_color()))


def spaced(heights: np.ndarray, distance: float, low: float = -np.inf, high: float = np.inf) -> np.ndarray:
    """Set heights apart that are too close to one another, in their order.

    Args:
        heights: (P,) of points.
        distance: smallest of two.
        low: that none of them goes below, nor above ``high``, as long as there is room for all.
        high: see ``low``.

    Returns:
        (P,) heights; those that were too close are even around their mean.
    """

    def places(group: list[float]) -> np.ndarray:
        reach = distance * (len(group) - 1) / 2.0
        middle = max(min(float(np.mean(group)), high - reach), low + reach)
        return middle + np.linspace(-reach, reach, len(group))

    order = np.argsort(heights, kind="stable")
    groups: list[list[float]] = []
    for height in heights[order]:
        groups.append([float(height)])
        while len(groups) > 1 and places(groups[-1])[0] - places(groups[-2])[-1] < distance:
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = np.empty(len(heights))
    moved[order] = np.concatenate([*map(places, groups), np.zeros(0)])
    return moved
