"""Training of the load forecaster."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from opd.workload import forecast_training
from opd.workload.forecast import ForecastParameters
from opd.workload.forecast_comparison import compare_forecasts
from opd.workload.forecast_training import train_forecaster
from opd.workload.trace import Trace, load_trace

RULES_OF_THUMB = ("max_20", "max_120", "last_value")


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


def test_logs_and_a_checkpoint_are_written_on_request(trace, tmp_path):
    train_forecaster(trace, ForecastParameters(epochs=2, train_windows=512), log_folder=tmp_path)
    assert len(pd.read_csv(tmp_path / "metrics.csv")["train_loss"].dropna()) == 2
    assert list(tmp_path.glob("*.ckpt"))


def test_a_little_training_beats_every_rule_of_thumb(trace, forecaster):
    errors = compare_forecasts(forecaster, trace).errors.set_index("model")["smape"]
    assert errors["lstm"] < 8.2
    assert all(errors["lstm"] < errors[rule] for rule in RULES_OF_THUMB)


@pytest.mark.slow
@pytest.mark.parametrize(("damping", "limit"), [(1, 6.7), (8, 7.1)])
def test_the_full_recipe_on_the_twitter_test_week(damping, limit, monkeypatch):
    monkeypatch.setattr(forecast_training, "_QUANTILE_EPOCHS", 1)  # the error is that of the other outputs
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
