"""The deployed forecaster: its compiled forward pass and its file."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from opd.host.archive import HEADER
from opd.workload.forecast import HISTORY_SECONDS, Forecaster, ForecasterError, ForecastParameters
from opd.workload.trace import windows

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
def test_a_short_history_is_extended_backwards(undamped, seconds, seed):
    history = np.random.default_rng(seed).poisson(30.0, seconds).astype(float)
    padded = np.concatenate([np.full(HISTORY_SECONDS - seconds, history[:10].mean()), history])
    assert undamped.predict(history) == pytest.approx(undamped.predict(padded), rel=1e-6)


def test_zero_load_gives_a_small_finite_forecast(forecaster, undamped):
    for model in (forecaster, undamped):
        assert 0.0 <= model.predict(np.zeros(HISTORY_SECONDS, dtype=int)) < 5.0


def test_forecasts_of_damped_counts_are_whole(trace, forecaster, undamped):
    ends = windows(trace, "test", stride=5000).ends
    damped = forecaster.predict_many(trace.counts, ends)
    np.testing.assert_array_equal(damped, np.rint(damped))
    assert (undamped.predict_many(trace.counts, ends) % 1 > 0).any()


def test_invalid_arguments_are_refused(forecaster):
    with pytest.raises(ValueError, match="at least one second of history"):
        forecaster.predict(np.array([]))
    for ends in ([0, 5], [5, 11]):
        with pytest.raises(ValueError, match=f"positions {ends[0]} to {ends[1]} were .*, but the counts allow 1 to 10"):
            forecaster.predict_many(np.ones(10), ends)


@pytest.mark.parametrize(
    "change", [{"epochs": 0}, {"learning_rate": -1.0}, {"stride": 0}, {"train_windows": -5}, {"hidden_size": 0}]
)
def test_bad_parameters_are_named(change):
    name, value = next(iter(change.items()))
    with pytest.raises(ValueError, match=rf"{name}\n.*input_value={value}"):
        ForecastParameters(**change)


# Files


def test_a_saved_forecaster_forecasts_the_same(forecaster, trace, tmp_path):
    path = tmp_path / "new" / "forecaster.npz"
    forecaster.save(path)
    loaded = Forecaster.load(path, damping=8)
    described = (loaded.parameters, loaded.trace, loaded.damping, loaded.seed)
    assert described == (forecaster.parameters, "synthetic", 8, 0)
    for name, value in forecaster.network._asdict().items():
        np.testing.assert_array_equal(getattr(loaded.network, name), value, err_msg=name)
    ends = windows(trace, "test", stride=5000).ends
    np.testing.assert_array_equal(loaded.predict_many(trace.counts, ends), forecaster.predict_many(trace.counts, ends))


def test_a_forecaster_for_another_damping_is_refused(forecaster, tmp_path):
    forecaster.save(tmp_path / "f.npz")
    with pytest.raises(ForecasterError, match="trained at damping 8, but the load has damping 2; train one"):
        Forecaster.load(tmp_path / "f.npz", damping=2)


def test_missing_damaged_foreign_and_older_files_are_refused(forecaster, tmp_path):
    whole = tmp_path / "whole.npz"
    forecaster.save(whole)
    with pytest.raises(ForecasterError, match="there is no file .*absent.npz; train one with notebook 02"):
        Forecaster.load(tmp_path / "absent.npz")
    for name, content in (
        ("cut.npz", whole.read_bytes()[:2000]),
        ("empty.npz", b""),
        ("text.npz", b"not an archive"),
        ("pickle.npz", pickle.dumps(print, protocol=2)),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ForecasterError, match=f"{name} is damaged, or not an archive.*; train one with"):
            Forecaster.load(tmp_path / name)
    torch.save({"format": "opd-forecaster-1", "network": {}}, tmp_path / "older.npz")  # as the first version wrote it
    with pytest.raises(ForecasterError, match="older.npz is damaged, or not an archive of format 'opd forecaster 4'"):
        Forecaster.load(tmp_path / "older.npz")


def rewrite(path, change):
    """Change the header and the arrays of an archive."""
    with np.load(path) as stored:
        arrays = dict(stored)
    header = json.loads(str(arrays[HEADER]))
    change(header, arrays)
    np.savez(path, **arrays | {HEADER: np.array(json.dumps(header))})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, arrays: header.update(format="opd forecaster 1"), "has format 'opd forecaster 1'"),
        (
            lambda header, arrays: header["metadata"]["parameters"].update(hidden_size=30),
            "input_weight has shape .* 30",
        ),
        (lambda header, arrays: arrays.pop("bias"), "not a forecaster of this version"),
        (lambda header, arrays: header["metadata"].pop("damping"), "not a forecaster of this version"),
        (
            lambda header, arrays: header["metadata"]["parameters"].update(layers=2),
            r"not a .* of this version \(.*\nlayers\n",
        ),
        (lambda header, arrays: arrays["bias"].fill(np.nan), "bias is not finite"),
    ],
)
def test_inconsistent_files_are_refused(forecaster, tmp_path, change, message):
    path = tmp_path / "f.npz"
    forecaster.save(path)
    rewrite(path, change)
    with pytest.raises(ForecasterError, match=f"(?s){message}.*; train one with notebook 02_load_forecast"):
        Forecaster.load(path, damping=8)
