"""What an axis is marked with that is linear around zero and logarithmic beyond."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest

from opd.study.plots.style import symmetric_logarithmic


@pytest.fixture
def axes():
    return plt.subplots()[1]


def labels(axes):
    return [text.get_text() for text in axes.get_xticklabels()]


def test_marks_are_round_and_lie_within_the_axis(axes):
    axes.set_xlim(-4.0, 0.5)
    symmetric_logarithmic(axes, 0.1)
    assert axes.get_xticks() == pytest.approx([-3.0, -1.0, -0.3, -0.1, 0.0, 0.1, 0.3])
    assert labels(axes) == ["−3", "−1", "−0.3", "−0.1", "0", "0.1", "0.3"]
    assert not len(axes.get_xticks(minor=True))


def test_digits_and_labels_can_be_chosen(axes):
    axes.set_xlim(-0.3, 2_000.0)
    symmetric_logarithmic(axes, 1.0, width=0.5, digits=[1.0], label="{:,.0f}".format)
    assert labels(axes) == ["0", "1", "10", "100", "1,000"]


@pytest.mark.parametrize(("low", "edge"), [(-4.0, "±0.1"), (-0.05, "0.1")])
def test_where_it_is_linear_is_said(axes, low, edge):
    axes.set_xlim(low, 4.0)
    assert symmetric_logarithmic(axes, 0.1) == f"(linear up to {edge}, logarithmic beyond)"


def test_the_linear_part_has_its_width(axes):
    axes.set_xlim(-100.0, 100.0)
    symmetric_logarithmic(axes, 1.0, width=2.0)
    place = axes.get_xaxis_transform().transform([(value, 0.0) for value in (0.0, 1.0, 10.0)])[:, 0]
    assert (place[1] - place[0]) / (place[2] - place[1]) == pytest.approx(2.0 / (1.0 - 0.1))  # so matplotlib counts


def test_the_other_axis_can_have_the_scale(axes):
    axes.set(xlim=(-4.0, 4.0), ylim=(-4.0, 0.5))
    symmetric_logarithmic(axes, 0.1, vertical=True)
    assert axes.get_yticks() == pytest.approx([-3.0, -1.0, -0.3, -0.1, 0.0, 0.1, 0.3])
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "symlog")
