"""Scores of futures: known answers, and that they prefer the truth."""

from __future__ import annotations

import numpy as np
import pytest

from opd.study.plots import workload as plots
from opd.workload.futures_scores import compare_futures, crps, energy_score, futures_report


def test_the_crps_of_equal_draws_is_their_absolute_error():
    np.testing.assert_allclose(crps(np.full((2, 5), 3.0), np.array([1.0, 7.0])), [2.0, 4.0])


def test_the_crps_of_two_draws_by_hand():
    """Draws 0 and 4, truth 1: mean error 2, half the mean distance of two different draws 2."""
    np.testing.assert_allclose(crps(np.array([[0.0, 4.0]]), np.array([1.0])), [0.0])


def test_the_crps_is_the_energy_score_of_vectors_of_length_one():
    rng = np.random.default_rng(2)
    drawn, actual = rng.normal(size=(20, 7)), rng.normal(size=20)
    np.testing.assert_allclose(crps(drawn, actual), energy_score(drawn[..., None], actual[:, None]))


def test_the_crps_of_a_normal_distribution():
    """Of a standard normal whose truth is 0: (sqrt(2) - 1) / sqrt(pi) (Gneiting and Raftery 2007, Eq. 21)."""
    drawn = np.random.default_rng(0).normal(size=(200, 400))
    assert crps(drawn, np.zeros(200)).mean() == pytest.approx((np.sqrt(2) - 1) / np.sqrt(np.pi), abs=0.01)


def test_the_energy_score_is_the_distance_in_the_plane():
    drawn = np.tile([3.0, 4.0], (1, 6, 1))
    np.testing.assert_allclose(energy_score(drawn, np.zeros((1, 2))), [5.0])


def test_the_energy_score_prefers_the_true_dependence():
    rng = np.random.default_rng(1)
    common, apart = rng.normal(size=(2000, 1)), rng.normal(size=(2000, 4))
    truth = np.repeat(common, 4, axis=1)
    together = np.repeat(rng.normal(size=(2000, 20, 1)), 4, axis=2)
    independent = rng.normal(size=(2000, 20, 4))
    assert energy_score(together, truth).mean() < energy_score(independent, truth).mean()
    assert energy_score(independent, apart).mean() < energy_score(together, apart).mean()


def test_sources_are_compared_on_the_bundled_trace(trace, forecaster, tmp_path):
    comparison = compare_futures(forecaster, trace, ["validation"], stride=300)
    table = comparison.scores.pivot(index="figure", columns="futures", values="score")
    assert len(table) == 9 and (table > 0).all(axis=None)
    # Near futures are easier to tell than far ones, and those that know the training days tell them better.
    assert (table.loc["interval 1"] < table.loc["interval 6"]).all()
    assert (table["nearest"] < table["recent"]).all()
    covered = comparison.covered
    assert len(covered) == 6 * 7
    assert covered["observed"].between(0, 1).all()
    assert (covered.groupby("interval")["observed"].diff().dropna() >= 0).all()
    report = futures_report(comparison)
    assert report["energy_score"]["validation"]["nearest"] == table["nearest"]["intervals"]
    assert 0.0 < report["coverage_error"]["validation"] < 0.2
    for figure in (
        plots.plot_futures_scores(trace, comparison, tmp_path / "futures_scores.png"),
        plots.plot_futures(trace, forecaster, comparison.sources, tmp_path / "futures.png"),
    ):
        assert "synthetic" in figure.get_suptitle()
    assert {path.name for path in tmp_path.glob("*.png")} == {"futures_scores.png", "futures.png"}
