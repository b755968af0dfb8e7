"""Points and lines that carry their name: none hides another."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from opd.study.plots.labels import name_lines, place_names, set_apart, spaced

COORDINATES = st.floats(0.0, 60.0, allow_subnormal=False)
PLACES = st.lists(st.tuples(COORDINATES, COORDINATES), min_size=1, max_size=9)


def test_a_point_moves_to_the_side_of_the_one_that_it_hides():
    assert set_apart(np.array([[5.0, 5.0], [5.0, 5.0], [50.0, 5.0]]), 8.0).tolist() == [[5, 5], [13, 5], [50, 5]]


@given(PLACES)
def test_points_are_apart_and_do_not_move_without_need(places: list[tuple[float, float]]):
    before = np.array(places)
    after = set_apart(before, 8.0)
    distances = np.hypot(*(after[:, None] - after[None]).T)
    assert (distances[~np.eye(len(places), dtype=bool)] >= 7.9).all()
    assert (after[0] == before[0]).all()
    assert np.hypot(*(after - before).T).max() <= 8.0 * len(places)
    apart = np.hypot(*(before[:, None] - before[None]).T)[~np.eye(len(places), dtype=bool)]
    if (apart >= 8.0).all():
        assert (after == before).all()


def test_names_cover_neither_markers_nor_each_other():
    figure, axes = plt.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    shown = axes.transData.transform(np.array([[0.97, 0.95], [0.95, 0.95], [0.96, 0.93], [0.03, 0.5]]))
    boxes = place_names(axes, shown, ["agent", "clairvoyant", "myopic with backlog", "mine"], 6.0)
    frame = axes.get_window_extent()
    plt.close(figure)
    for number, box in enumerate(boxes):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])
        inside = (box.min < shown + 6.0).all(axis=1) & (shown - 6.0 < box.max).all(axis=1)
        assert not inside.any()


def test_heights_that_are_too_close_are_even_around_their_mean():
    assert spaced(np.array([5.0, 50.0, 3.0, 4.0]), 10.0).tolist() == [14.0, 50.0, -6.0, 4.0]
    assert spaced(np.array([0.0, 30.0]), 10.0).tolist() == [0.0, 30.0]
    assert spaced(np.zeros(0), 10.0).tolist() == []
    assert spaced(np.array([1.0, 2.0, 40.0]), 10.0, low=0.0, high=35.0).tolist() == [0.0, 10.0, 35.0]


@given(st.lists(COORDINATES, min_size=1, max_size=9))
def test_heights_keep_their_order_and_mean(heights: list[float]):
    before = np.array(heights)
    after = spaced(before, 8.0)
    order = np.argsort(before, kind="stable")
    assert (np.diff(after[order]) >= 7.999).all()
    assert abs(after.mean() - before.mean()) < 1e-9


def test_lines_are_named_at_their_ends_in_their_colours():
    figure, axes = plt.subplots()
    for end, name in ((1.0, "agent"), (1.01, "ladder"), (9.0, "HPA")):
        axes.plot([1.0, 2.0], [5.0, end], label=name, color={"agent": "#ff0000"}.get(name, "#00ff00"))
    axes.axhline(0.0)
    name_lines(axes)
    texts = {text.get_text(): text for text in axes.texts}
    assert list(texts) == ["agent", "ladder", "HPA"]
    assert texts["agent"].get_color() == "#ff0000"
    heights = {name: text.xy[1] for name, text in texts.items()}
    assert abs(heights["HPA"] - 9.0) < 1e-9
    apart = np.diff(axes.transData.transform([(1.0, heights["agent"]), (1.0, heights["ladder"])])[:, 1])[0]
    assert apart * 72.0 / figure.dpi >= 9.9
    plt.close(figure)
