import json
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from opd.study.plots import workload as plots_workload
from opd.workload.forecast import (
    Forecaster,
    ForecasterError,
    ForecastParameters,
    all_forecasts,
    compare_forecasts,
    forecast_report,
    smape,
    train_forecaster,
    under_prediction_rate,
    windows,
    write_reports,
)
from opd.workload.load import HISTORY_SECONDS, future_maximum
from opd.workload.trace import Trace, load_trace

SMALL = ForecastParameters(epochs=2, train_windows=12_000)
RULES_OF_THUMB = ("max_20", "max_120", "last_value")


@pytest.fixture(scope="module")
def trace():
    return load_trace("synthetic", damping=8)


@pytest.fixture(scope="module")
def forecaster(trace):
    return train_forecaster(trace, SMALL, seed=0)


@pytest.fixture(scope="module")
def undamped():
    return train_forecaster(load_trace("synthetic"), ForecastParameters(epochs=1, train_windows=1000), seed=1)


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


# The compiled forecast


def reference_forecast(forecaster, history):
    """The definition in plain numpy and torch: features, LSTM, dense layer."""
    network = forecaster.network
    bins = np.asarray(history, dtype=float).reshape(12, 10)
    level = max(bins.mean(), 0.5)
    features = np.column_stack(
        [
            3 * np.log((bins.max(axis=1) + 0.5) / level),
            3 * np.log((bins.mean(axis=1) + 0.5) / level),
            np.full(12, (np.log(level) - network.level_mean) / network.level_deviation),
        ]
    )
    lstm = nn.LSTM(3, len(network.output_weight), batch_first=True)
    state = {
        "weight_ih_l0": torch.from_numpy(network.input_weight.T.copy()),
        "weight_hh_l0": torch.from_numpy(network.hidden_weight.T.copy()),
        "bias_ih_l0": torch.from_numpy(network.bias),
        "bias_hh_l0": torch.zeros_like(torch.from_numpy(network.bias)),
    }
    lstm.load_state_dict(state)
    with torch.no_grad():
        states, _ = lstm(torch.from_numpy(features[None]).float())
    output = states[0, -1].numpy() @ network.output_weight + network.output_bias
    return level * np.exp(0.3 * output)


@given(seed=st.integers(0, 1000), level=st.sampled_from([0.0, 0.05, 1.0, 30.0, 900.0]))
@settings(max_examples=25, deadline=None)
def test_the_compiled_forecast_equals_the_network(undamped, seed, level):
    history = np.random.default_rng(seed).poisson(level, HISTORY_SECONDS)
    assert undamped.predict(history) == pytest.approx(reference_forecast(undamped, history), rel=1e-4)


def test_one_forecast_equals_many(trace, forecaster):
    ends = windows(trace, "test", stride=40_000).ends
    many = forecaster.predict_many(trace.counts, ends)
    assert many.tolist() == [forecaster.predict(trace.counts[end - HISTORY_SECONDS : end]) for end in ends]


def test_only_the_last_two_minutes_matter(undamped):
    history = np.random.default_rng(0).poisson(30.0, 500)
    assert undamped.predict(history) == undamped.predict(history[-HISTORY_SECONDS:])


@given(seconds=st.integers(1, 119), seed=st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_a_short_history_is_continued_backwards(undamped, seconds, seed):
    history = np.random.default_rng(seed).poisson(30.0, seconds).astype(float)
    padded = np.concatenate([np.full(HISTORY_SECONDS - seconds, history[:10].mean()), history])
    assert undamped.predict(history) == pytest.approx(undamped.predict(padded), rel=1e-6)


def test_silence_gives_a_small_finite_forecast(forecaster, undamped):
    for model in (forecaster, undamped):
        assert 0.0 <= model.predict(np.zeros(HISTORY_SECONDS, dtype=int)) < 5.0


def test_forecasts_of_damped_counts_are_whole(trace, forecaster, undamped):
    ends = windows(trace, "test", stride=5000).ends
    damped = forecaster.predict_many(trace.counts, ends)
    np.testing.assert_array_equal(damped, np.rint(damped))
    assert (undamped.predict_many(trace.counts, ends) % 1 > 0).any()


def test_impossible_questions_are_refused(forecaster):
    with pytest.raises(ValueError, match="at least one second of history"):
        forecaster.predict(np.array([]))
    for ends in ([0, 5], [5, 11]):
        with pytest.raises(ValueError, match=f"positions {ends[0]} to {ends[1]}, but the counts allow 1 to 10"):
            forecaster.predict_many(np.ones(10), ends)


# Training


@pytest.mark.parametrize(
    "change", [{"epochs": 0}, {"learning_rate": -1.0}, {"stride": 0}, {"train_windows": -5}, {"hidden_size": 0}]
)
def test_bad_parameters_are_named(change):
    name, value = next(iter(change.items()))
    with pytest.raises(ValueError, match=f"forecast parameter {name} is {value}"):
        ForecastParameters(**change)


def test_training_repeats_exactly_and_leaves_the_callers_state_alone(trace):
    parameters = ForecastParameters(epochs=1, train_windows=1500)
    threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    first, second, other = (train_forecaster(trace, parameters, seed) for seed in (3, 3, 4))
    for name, value in first.network._asdict().items():
        np.testing.assert_array_equal(value, getattr(second.network, name), err_msg=name)
    assert not np.array_equal(first.network.hidden_weight, other.network.hidden_weight)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random_state)


def test_training_sees_neither_validation_nor_test(trace):
    parameters = ForecastParameters(epochs=1, train_windows=1500)
    scrambled = trace.recorded.copy()
    scrambled[trace.split("validation").start :] = 7
    blinded = Trace("blinded", scrambled, trace.raw_index, trace.damping)
    weights = [train_forecaster(known, parameters, seed=0).network.hidden_weight for known in (trace, blinded)]
    np.testing.assert_array_equal(*weights)


def test_a_little_training_beats_every_rule_of_thumb(trace, forecaster):
    errors = compare_forecasts(forecaster, trace).errors.set_index("model")["smape"]
    assert errors["lstm"] < 8.2
    assert all(errors["lstm"] < errors[rule] for rule in RULES_OF_THUMB)


def test_logs_and_a_checkpoint_are_written_on_request(trace, tmp_path):
    train_forecaster(trace, ForecastParameters(epochs=2, train_windows=512), log_folder=tmp_path)
    assert len(pd.read_csv(tmp_path / "metrics.csv")["train_loss"].dropna()) == 2
    assert list(tmp_path.glob("*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize(("damping", "limit"), [(1, 6.7), (8, 7.1)])
def test_the_full_recipe_on_the_twitter_test_week(damping, limit):
    try:
        twitter = load_trace("twitter", damping)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    errors = compare_forecasts(train_forecaster(twitter), twitter).errors.set_index("model")["smape"]
    assert errors["lstm"] <= limit
    assert errors["lstm"] == errors.min()
    published = {1: {"last_value": 25.6, "max_20": 8.6}, 8: {"last_value": 27.1, "max_20": 9.0}}[damping]
    for model, value in published.items():
        assert errors[model] == pytest.approx(value, abs=0.1)


# Files


def test_a_saved_forecaster_forecasts_the_same(forecaster, trace, tmp_path):
    path = tmp_path / "new" / "forecaster.ckpt"
    forecaster.save(path)
    loaded = Forecaster.load(path, damping=8)
    assert (loaded.parameters, loaded.trace, loaded.damping, loaded.seed) == (SMALL, "synthetic", 8, 0)
    ends = windows(trace, "test", stride=5000).ends
    np.testing.assert_array_equal(loaded.predict_many(trace.counts, ends), forecaster.predict_many(trace.counts, ends))


def test_a_forecaster_for_another_damping_is_refused(forecaster, tmp_path):
    forecaster.save(tmp_path / "f.ckpt")
    with pytest.raises(ForecasterError, match="trained at damping 8, but the load has damping 2; train it again"):
        Forecaster.load(tmp_path / "f.ckpt", damping=2)


def test_damaged_or_foreign_files_are_refused(forecaster, tmp_path):
    whole = tmp_path / "whole.ckpt"
    forecaster.save(whole)
    with pytest.raises(FileNotFoundError, match="no forecaster at .*absent.ckpt; train one with notebook 02"):
        Forecaster.load(tmp_path / "absent.ckpt")
    for name, content in (
        ("cut.ckpt", whole.read_bytes()[:2000]),
        ("empty.ckpt", b""),
        ("text.ckpt", b"not a checkpoint"),
        ("pickle.ckpt", pickle.dumps(print, protocol=2)),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ForecasterError, match=f"{name} is damaged or not a forecaster"):
            Forecaster.load(tmp_path / name)
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ForecasterError, match="not a forecaster of this version"):
        Forecaster.load(tmp_path / "other.ckpt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["parameters"].update(hidden_size=30), "input_weight has the shape .* 30 hidden units"),
        (lambda content: content["network"].pop("bias"), "damaged or not a forecaster"),
        (lambda content: content.pop("damping"), "damaged or not a forecaster"),
        (lambda content: content["parameters"].update(layers=2), "damaged or not a forecaster"),
        (lambda content: content["network"]["bias"].fill_(float("nan")), "bias is not finite"),
    ],
)
def test_inconsistent_files_are_refused(forecaster, tmp_path, change, message):
    path = tmp_path / "f.ckpt"
    forecaster.save(path)
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(ForecasterError, match=message):
        Forecaster.load(path, damping=8)


def test_reports_hold_errors_and_latency_by_model(forecaster, trace, tmp_path):
    comparison = compare_forecasts(forecaster, trace, stride=500)
    write_reports(tmp_path / "r" / "forecast.json", {"damping_8": forecast_report(forecaster, trace, comparison)})
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
