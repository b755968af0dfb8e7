"""Comparison of the network's forecasts with those of simpler models."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from opd.workload.forecast import Forecaster, ForecastParameters, RecentMaximum
from opd.workload.forecast_network import (
    BIN_SECONDS,
    HALF_REQUEST,
    HISTORY_SECONDS,
    standardise_level,
    window_features,
)
from opd.workload.trace import Split, Trace, Windows, windows


def smape(target: np.ndarray, prediction: np.ndarray) -> float:
    """Symmetric mean absolute percentage error: the mean of |y - p| / ((|y| + |p|) / 2), in percent.

    The error is zero where both are zero.

    Args:
        target: (N,) true values y.
        prediction: (N,) forecasts p.

    Raises:
        ValueError: if the shapes differ (arrays that broadcast would compare every value with every other), or there
            is no value.
    """
    _check_same_shape(target, prediction)
    size = (np.abs(target) + np.abs(prediction)) / 2.0
    return float(100.0 * np.mean(np.abs(target - prediction) / np.where(size > 0.0, size, 1.0)))


def under_prediction_rate(target: np.ndarray, prediction: np.ndarray) -> float:
    """Fraction of forecasts below the actual load.

    Raises:
        ValueError: if the shapes differ or there is no value.
    """
    _check_same_shape(target, prediction)
    return float(np.mean(prediction < target))


def _check_same_shape(target: np.ndarray, prediction: np.ndarray) -> None:
    if np.shape(target) != np.shape(prediction) or not np.size(target):
        raise ValueError(
            f"target {np.shape(target)} and prediction {np.shape(prediction)} must have the same shape and at least "
            "one value; flatten both to (N,)"
        )


def all_forecasts(forecaster: Forecaster, trace: Trace, ends: np.ndarray) -> dict[str, np.ndarray]:
    """Predict with the network and with simpler models at the same positions.

    ``ridge`` is a linear model of the network's features, fitted on the same windows; the others are not learned.

    Args:
        forecaster: the network.
        trace: the load, at the damping of the forecaster.
        ends: (N,) positions of the first unknown second, each with 120 s of history.

    Returns:
        By model name, (N,) forecasts in requests per second.
    """
    history = np.lib.stride_tricks.sliding_window_view(trace.counts, HISTORY_SECONDS)[ends - HISTORY_SECONDS]
    return {
        "lstm": forecaster.predict_many(trace.counts, ends),
        "ridge": _ridge_forecast(trace, forecaster.parameters, ends),
        "max_20": RecentMaximum().predict_many(trace.counts, ends),
        "max_120": history.max(axis=1).astype(float),
        "last_value": history[:, -1].astype(float),
    }


def _ridge_forecast(trace: Trace, parameters: ForecastParameters, ends: np.ndarray, penalty: float = 1.0) -> np.ndarray:
    """(N,) forecasts of a ridge regression of ln(y / m) on the network's features."""
    known, target = windows(trace, "train", parameters.stride, parameters.train_windows)
    features, level = window_features(trace.counts.astype(np.float64), known)
    mean, deviation = standardise_level(features)
    design = _design(features)
    gram = design.T @ design + penalty * np.eye(design.shape[1])
    weights = np.linalg.solve(gram, design.T @ np.log(np.maximum(target, HALF_REQUEST) / level))
    features, level = window_features(trace.counts.astype(np.float64), ends)
    features[:, :, 2] = (features[:, :, 2] - mean) / deviation
    forecast = level * np.exp(_design(features) @ weights)
    return np.rint(forecast) if trace.damping > 1 else forecast


def _design(features: np.ndarray) -> np.ndarray:
    """(N, 26) regressors: 24 of the bins, the level once, and a constant."""
    bins = features[:, :, :2].reshape(len(features), -1)
    return np.column_stack([bins, features[:, 0, 2], np.ones(len(features))]).astype(np.float64)


class Comparison(NamedTuple):
    """Forecasts of several models on one split of a trace.

    Attributes:
        windows: where the N forecasts were made, and the actual load.
        forecasts: by model name, (N,) requests per second.
        errors: one row per model with the columns ``damping``, ``model``, ``smape`` (percent),
            ``under_prediction_rate`` (fraction) and ``forecasts`` (their number N).
    """

    windows: Windows
    forecasts: dict[str, np.ndarray]
    errors: pd.DataFrame


def compare_forecasts(
    forecaster: Forecaster, trace: Trace, split: Split = "test", stride: int = BIN_SECONDS
) -> Comparison:
    """Forecast one split with the network and the simpler models, and measure their errors.

    Args:
        forecaster: the network.
        trace: the load, at the damping of the forecaster.
        split: the part of the trace to forecast.
        stride: seconds between two forecasts; the default is the interval between decisions.
    """
    asked = windows(trace, split, stride)
    forecasts = all_forecasts(forecaster, trace, asked.ends)
    rows = [
        {
            "damping": trace.damping,
            "model": model,
            "smape": smape(asked.target, forecast),
            "under_prediction_rate": under_prediction_rate(asked.target, forecast),
            "forecasts": len(forecast),
        }
        for model, forecast in forecasts.items()
    ]
    return Comparison(asked, forecasts, pd.DataFrame(rows))


def latency_ms_median(forecaster: Forecaster, trace: Trace, repeats: int = 1000) -> float:
    """Median wall-clock milliseconds of one forecast, over ``repeats`` windows of the test split."""
    start = trace.split("test").start
    forecaster.predict(trace.counts[start : start + HISTORY_SECONDS])  # compiles
    seconds = []
    for second in range(start, start + repeats):
        before = time.perf_counter()
        forecaster.predict(trace.counts[second : second + HISTORY_SECONDS])
        seconds.append(time.perf_counter() - before)
    return float(1000.0 * np.median(seconds))


def forecast_report(forecaster: Forecaster, trace: Trace, comparison: Comparison) -> dict[str, Any]:
    """Summary of one forecaster: trace, damping, seed, errors by model and the latency of a forecast."""
    by_model = comparison.errors.set_index("model")
    return {
        "trace": trace.name,
        "synthetic": trace.is_synthetic,
        "damping": trace.damping,
        "seed": forecaster.seed,
        "smape": by_model["smape"].to_dict(),
        "under_prediction_rate": by_model["under_prediction_rate"].to_dict(),
        "latency_ms_median": latency_ms_median(forecaster, trace),
    }
