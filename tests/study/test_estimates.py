"""Intervals of means over seeds and cycles."""

from __future__ import annotations

import numpy as np
import pytest

from opd.study.analysis.estimates import interval, resampled_means


def test_constant_values_are_sure():
    assert interval(np.full((3, 4), 2.5)) == (2.5, 2.5)


def test_values_that_differ_by_seed_alone():
    # The mean of two seeds drawn out of two is 1, 2 or 3, one time in four, two and four.
    values = np.array([[1.0] * 5, [3.0] * 5])
    assert interval(values) == (1.0, 3.0)
    assert set(resampled_means(values)) == {1.0, 2.0, 3.0}
    assert np.mean(resampled_means(values) == 2.0) == pytest.approx(0.5, abs=0.05)


def test_values_that_differ_by_cycle_alone_do_not_get_surer_by_more_seeds():
    cycles = np.random.default_rng(0).normal(size=12)
    few, many = (interval(np.tile(cycles, (seeds, 1))) for seeds in (1, 50))
    expected = 2 * 1.96 * cycles.std() / np.sqrt(12)
    for low, high in (few, many):
        assert high - low == pytest.approx(expected, rel=0.1)


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    held = 0
    for number in range(400):
        # As in the evaluation: seeds differ little, cycles a lot.
        values = (
            0.1 * generator.normal(size=(5, 1)) + generator.normal(size=(1, 20)) + 0.3 * generator.normal(size=(5, 20))
        )
        low, high = interval(values, samples=500, seed=number)
        held += low <= 0.0 <= high
    assert 0.90 <= held / 400 <= 0.98


def test_tables_of_one_shape_are_resampled_alike():
    one, other = np.random.default_rng(0).normal(size=(2, 3, 4))
    np.testing.assert_allclose(resampled_means(one + other), resampled_means(one) + resampled_means(other), atol=1e-12)
    assert interval(one, seed=1) == interval(one, seed=1) != interval(one, seed=2)


@pytest.mark.parametrize(
    "values", [np.zeros(3), np.zeros((0, 3)), np.array([[1.0, np.nan]])], ids=["row", "empty", "nan"]
)
def test_what_is_no_full_table_is_refused(values):
    with pytest.raises(ValueError, match="not a full table of finite figures"):
        interval(values)


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="samples is 0"):
        interval(np.zeros((2, 2)), samples=0)
