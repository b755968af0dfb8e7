"""Forecasts compared: windows, error measures, simple models, reports and figures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd.study.plots import workload as plots_workload
from opd.study.report.files import write_json
from opd.workload.forecast import HISTORY_SECONDS, future_maximum
from opd.workload.forecast_comparison import (
    all_forecasts,
    compare_forecasts,
    forecast_report,
    smape,
    under_prediction_rate,
)
from opd.workload.trace import Trace, windows

# Error measures


def test_smape_by_hand():
    target, prediction = np.array([100.0, 50.0, 0.0]), np.array([50.0, 50.0, 0.0])
    assert smape(target, prediction) == pytest.approx(100 * (50 / 75) / 3)
    assert smape(np.array([0.0]), np.array([3.0])) == pytest.approx(200.0)


def test_under_prediction_by_hand():
    assert under_prediction_rate(np.array([5, 5, 5, 5]), np.array([4, 5, 6, 4.9])) == 0.5


@pytest.mark.parametrize("measure", [smape, under_prediction_rate])
def test_measures_refuse_arrays_that_would_broadcast(measure):
    with pytest.raises(ValueError, match=r"target \(4,\) and prediction \(4, 1\) must have the same shape"):
        measure(np.ones(4), np.ones((4, 1)))
    with pytest.raises(ValueError, match=r"\(0,\)"):
        measure(np.ones(0), np.ones(0))


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e4)), min_size=1))
def test_smape_is_symmetric_and_bounded(pairs):
    target, prediction = np.array(pairs).T
    assert smape(target, prediction) == pytest.approx(smape(prediction, target))
    assert 0.0 <= smape(target, prediction) <= 200.0 + 1e-9
    assert smape(target, target) == 0.0


# Windows


def test_the_target_is_the_largest_of_the_next_twenty_seconds():
    counts = np.arange(100)
    counts[50] = 1000
    assert future_maximum(counts, np.array([0, 30, 31, 50, 51, 80])).tolist() == [19, 49, 1000, 1000, 70, 99]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_windows_stay_inside_their_split(trace, split):
    ends, target = windows(trace, split, stride=7)
    positions = trace.split(split)
    assert ends[0] - HISTORY_SECONDS == positions.start
    assert positions.stop - 7 < ends[-1] + 20 <= positions.stop
    some = len(ends) // 3
    assert target[some] == max(trace.counts[ends[some] : ends[some] + 20])


def test_simple_forecasts_by_hand(trace, forecaster):
    ends = np.array([trace.split("test").start + 5000])
    history = trace.counts[: ends[0]]
    forecasts = all_forecasts(forecaster, trace, ends)
    assert forecasts["last_value"][0] == history[-1]
    assert forecasts["max_20"][0] == max(history[-20:])
    assert forecasts["max_120"][0] == max(history[-120:])
    assert forecasts["lstm"][0] == forecaster.predict(history)


def test_ridge_learns_a_constant_load(forecaster):
    constant = Trace("constant", np.full(30_000, 40), np.arange(30_000))
    forecasts = all_forecasts(forecaster, constant, np.array([25_000]))
    assert forecasts["ridge"][0] == pytest.approx(40.0, rel=1e-3)


# Reports and figures


def test_reports_hold_errors_and_latency_by_model(forecaster, trace, tmp_path):
    comparison = compare_forecasts(forecaster, trace, stride=500)
    write_json(tmp_path / "r" / "forecast.json", {"damping_8": forecast_report(forecaster, trace, comparison)})
    report = json.loads((tmp_path / "r" / "forecast.json").read_text())["damping_8"]
    assert (report["trace"], report["synthetic"], report["damping"], report["seed"]) == ("synthetic", True, 8, 0)
    target = comparison.windows.target
    for model, forecast in comparison.forecasts.items():
        assert report["smape"][model] == pytest.approx(smape(target, forecast))
        assert report["under_prediction_rate"][model] == under_prediction_rate(target, forecast)
    assert report["latency_ms_median"] > 0.0


def test_every_figure_is_written_and_says_synthetic(forecaster, trace, tmp_path):
    comparison = compare_forecasts(forecaster, trace, stride=10)
    figures = {
        "trace": plots_workload.plot_trace(trace, tmp_path / "trace.png"),
        "forecast": plots_workload.plot_forecast(trace, comparison, tmp_path / "forecast.png"),
        "errors": plots_workload.plot_errors(trace, comparison.errors, tmp_path / "errors.png"),
        "by-load": plots_workload.plot_error_by_load(trace, comparison, tmp_path / "by-load.png"),
    }
    for name, figure in figures.items():
        titles = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
        assert any("synthetic" in title for title in titles)
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
