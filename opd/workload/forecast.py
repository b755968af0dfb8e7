"""Load forecast: the largest load of the next 20 seconds from the last 120 (Sec. IV, Fig. 3).

:func:`train_forecaster` fits the paper's network, an LSTM with 25 units and a dense layer, and returns a
:class:`Forecaster`, which is plain arrays and one compiled function: a forecast costs microseconds, because it is
part of every decision. :func:`compare_forecasts` puts it beside simple forecasts.
"""

from __future__ import annotations

import json
import logging
import pickle
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from opd.workload.load import HISTORY_SECONDS, HORIZON_SECONDS, future_maximum
from opd.workload.trace import Split, Trace

_BIN_SECONDS = 10
_BINS = HISTORY_SECONDS // _BIN_SECONDS
_FEATURES = 3
_FEATURE_SCALE = 3.0
_TARGET_SCALE = 0.3
_HALF = 0.5
"""Half a request keeps logarithms finite at zero load."""
_FORMAT = "opd-forecaster-1"


class ForecasterError(ValueError):
    """A forecaster file cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class ForecastParameters:
    """Network and training of the forecaster.

    Attributes:
        hidden_size: units of the LSTM (25 in the paper).
        epochs: passes over the training windows.
        batch_size: windows per gradient step.
        learning_rate: peak of the one-cycle schedule of Adam.
        gradient_clip: largest norm of a gradient.
        stride: seconds between the ends of consecutive training windows.
        train_windows: use only the last so many training windows; 0 for all.

    Raises:
        ValueError: if a value is out of its range.
    """

    hidden_size: int = 25
    epochs: int = 6
    batch_size: int = 256
    learning_rate: float = 5e-3
    gradient_clip: float = 1.0
    stride: int = 10
    train_windows: int = 0

    def __post_init__(self) -> None:
        for name in ("hidden_size", "epochs", "batch_size", "learning_rate", "gradient_clip", "stride"):
            if not getattr(self, name) > 0:
                raise ValueError(f"forecast parameter {name} is {getattr(self, name)}, but must be positive")
        if self.train_windows < 0:
            raise ValueError(f"forecast parameter train_windows is {self.train_windows}; use 0 for all windows")


class Windows(NamedTuple):
    """Where forecasts are made in a trace, and what they should have been.

    Attributes:
        ends: (N,) positions of the first second that a forecast does not know.
        target: (N,) largest count of the ``HORIZON_SECONDS`` from there on.
    """

    ends: np.ndarray
    target: np.ndarray


def windows(trace: Trace, split: Split, stride: int = 10) -> Windows:
    """Every ``stride`` seconds of a split, a forecast whose history and horizon lie inside the split."""
    positions = trace.split(split)
    ends = np.arange(positions.start + HISTORY_SECONDS, positions.stop - HORIZON_SECONDS + 1, stride)
    return Windows(ends, future_maximum(trace.counts, ends))


@numba.njit(cache=True)
def _fill_features(counts: np.ndarray, end: int, features: np.ndarray) -> float:
    """Write the features of the window before ``end`` into (12, 3) ``features``; return the window's mean.

    Seconds before the start of ``counts`` count as the mean of the first ten known ones.
    """
    known = min(end, HISTORY_SECONDS)
    missing = HISTORY_SECONDS - known
    first = min(known, _BIN_SECONDS)
    filler = 0.0
    for second in range(end - known, end - known + first):
        filler += counts[second] / first
    level = 0.0
    for index in range(_BINS):
        largest = 0.0
        total = 0.0
        for second in range(index * _BIN_SECONDS, (index + 1) * _BIN_SECONDS):
            value = filler if second < missing else float(counts[end - HISTORY_SECONDS + second])
            largest = max(largest, value)
            total += value
        features[index, 0] = largest
        features[index, 1] = total / _BIN_SECONDS
        level += total / HISTORY_SECONDS
    level = max(level, _HALF)
    for index in range(_BINS):
        features[index, 0] = _FEATURE_SCALE * np.log((features[index, 0] + _HALF) / level)
        features[index, 1] = _FEATURE_SCALE * np.log((features[index, 1] + _HALF) / level)
        features[index, 2] = np.log(level)
    return level


@numba.njit(cache=True)
def _features(counts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 12, 3) features, the last one not yet standardised, and (N,) mean loads of the windows before ``ends``."""
    features = np.empty((len(ends), _BINS, _FEATURES), dtype=np.float32)
    level = np.empty(len(ends))
    for index in range(len(ends)):
        level[index] = _fill_features(counts, ends[index], features[index])
    return features, level


class Network(NamedTuple):
    """The trained network as arrays for :func:`_forecast`; H hidden units, gates in the order of torch.

    Attributes:
        level_mean: mean of the logarithm of the window's mean over the training windows.
        level_deviation: its standard deviation.
        input_weight: (3, 4 H).
        hidden_weight: (H, 4 H).
        bias: (4 H,).
        output_weight: (H,).
        output_bias: number.
    """

    level_mean: float
    level_deviation: float
    input_weight: np.ndarray
    hidden_weight: np.ndarray
    bias: np.ndarray
    output_weight: np.ndarray
    output_bias: float


@numba.njit(cache=True)
def _sigmoid(value: np.float32) -> np.float32:
    return np.float32(1.0) / (np.float32(1.0) + np.exp(-value))


@numba.njit(cache=True)
def _tanh(value: np.float32) -> np.float32:
    # Twice as fast as the library's, and exact enough for gates.
    return np.float32(2.0) * _sigmoid(np.float32(2.0) * value) - np.float32(1.0)


@numba.njit(cache=True, fastmath=True)
def _forecast(counts: np.ndarray, ends: np.ndarray, network: Network) -> np.ndarray:
    """(N,) forecasts at positions ``ends`` of ``counts``, not rounded."""
    units = len(network.output_weight)
    features = np.empty((_BINS, _FEATURES), dtype=np.float32)
    gates = np.empty(4 * units, dtype=np.float32)
    hidden = np.empty(units, dtype=np.float32)
    cell = np.empty(units, dtype=np.float32)
    forecast = np.empty(len(ends))
    for index in range(len(ends)):
        level = _fill_features(counts, ends[index], features)
        standardised = (np.log(level) - network.level_mean) / network.level_deviation
        hidden[:] = 0.0
        cell[:] = 0.0
        for step in range(_BINS):
            features[step, 2] = standardised
            gates[:] = network.bias
            for feature in range(_FEATURES):
                for gate in range(4 * units):
                    gates[gate] += features[step, feature] * network.input_weight[feature, gate]
            for source in range(units):
                for gate in range(4 * units):
                    gates[gate] += hidden[source] * network.hidden_weight[source, gate]
            for unit in range(units):
                enter = _sigmoid(gates[unit])
                keep = _sigmoid(gates[units + unit])
                leave = _sigmoid(gates[3 * units + unit])
                cell[unit] = keep * cell[unit] + enter * _tanh(gates[2 * units + unit])
                hidden[unit] = leave * _tanh(cell[unit])
        output = network.output_bias
        for unit in range(units):
            output += hidden[unit] * network.output_weight[unit]
        forecast[index] = level * np.exp(_TARGET_SCALE * output)
    return forecast


class LoadForecaster(pl.LightningModule):
    """The network of Sec. IV for training: an LSTM over twelve bins of ten seconds and a dense layer.

    Inputs are (B, 12, 3): per bin, 3 ln((largest + 0.5) / m), 3 ln((mean + 0.5) / m) and the standardised ln m, with
    m the mean of the window; the output (B,) is ln(y / m) / 0.3 for the largest coming load y. Relative to the
    window's own level, quiet and busy hours look alike.
    """

    def __init__(self, parameters: ForecastParameters) -> None:
        super().__init__()
        self.parameters_ = parameters
        self.lstm = nn.LSTM(_FEATURES, parameters.hidden_size, batch_first=True)
        self.dense = nn.Linear(parameters.hidden_size, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, 12, 3) features to (B,) scaled logarithms of the forecast over the window's mean."""
        states, _ = self.lstm(features)
        return self.dense(states[:, -1]).squeeze(-1)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean absolute error of one batch, on the scaled logarithm."""
        features, target = batch
        loss = nn.functional.l1_loss(self(features), target)
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam with a one-cycle learning rate over the whole training."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.parameters_.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.parameters_.learning_rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True, eq=False)
class Forecaster:
    """A trained forecaster, fast enough to be asked before every decision.

    Attributes:
        network: its weights.
        parameters: how it was trained.
        trace: name of the trace it learned from.
        damping: damping of that trace; forecasts of damped counts are rounded to whole requests.
        seed: seed of its training.
    """

    network: Network
    parameters: ForecastParameters
    trace: str
    damping: int
    seed: int

    def predict(self, history: np.ndarray) -> float:
        """The largest load expected within the next 20 s, in requests per second.

        Args:
            history: the most recent counts, one a second, oldest first. Only the last 120 matter; if there are
                fewer, the mean of the first ten stands in for the missing ones.

        Raises:
            ValueError: if there is no count at all.
        """
        if len(history) == 0:
            raise ValueError("a forecast needs at least one second of history, but got none")
        recent = history[-HISTORY_SECONDS:]
        return float(self.predict_many(recent, np.array([len(recent)]))[0])

    def predict_many(self, counts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Forecasts at many positions of a trace.

        Args:
            counts: (T,) requests per second.
            ends: (N,) positions; the forecast at ``end`` knows ``counts[:end]``, so every one is within 1..T.

        Returns:
            (N,) largest loads expected in the 20 s from each position on, in requests per second.

        Raises:
            ValueError: if a position is out of range.
        """
        ends = np.asarray(ends, dtype=np.int64)
        if len(ends) and not (ends.min() >= 1 and ends.max() <= len(counts)):
            raise ValueError(
                f"forecasts asked at positions {ends.min()} to {ends.max()}, but the counts allow 1 to {len(counts)}"
            )
        forecast = _forecast(np.ascontiguousarray(counts, dtype=np.float64), ends, self.network)
        return np.rint(forecast) if self.damping > 1 else forecast

    def save(self, path: str | Path) -> None:
        """Write the forecaster to a file that :meth:`load` reads."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        weights = {
            name: torch.from_numpy(value) if isinstance(value, np.ndarray) else float(value)
            for name, value in self.network._asdict().items()
        }
        content = {
            "format": _FORMAT,
            "network": weights,
            "parameters": asdict(self.parameters),
            "trace": self.trace,
            "damping": self.damping,
            "seed": self.seed,
        }
        torch.save(content, path)

    @classmethod
    def load(cls, path: str | Path, damping: int | None = None) -> Forecaster:
        """Read a forecaster.

        Args:
            path: file written by :meth:`save`.
            damping: damping of the counts it will be asked about; ``None`` accepts any.

        Raises:
            FileNotFoundError: if there is no such file.
            ForecasterError: if the file is damaged, not a forecaster, or was trained for another damping.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no forecaster at {path}; train one with notebook 02_load_forecast")
        try:
            content = torch.load(path, weights_only=True, map_location="cpu")
        except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
            raise ForecasterError(
                f"{path} is damaged or not a forecaster ({type(error).__name__}); "
                "train it again with notebook 02_load_forecast"
            ) from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ForecasterError(
                f"{path} is not a forecaster of this version ({_FORMAT}); train one with notebook 02_load_forecast"
            )
        try:
            parameters = ForecastParameters(**content["parameters"])
            weights: dict[str, Any] = {
                name: value.numpy() if isinstance(value, Tensor) else value
                for name, value in content["network"].items()
            }
            forecaster = cls(Network(**weights), parameters, content["trace"], content["damping"], content["seed"])
        except (KeyError, TypeError, ValueError) as error:
            raise ForecasterError(
                f"{path} is damaged or not a forecaster: {error}; train it again with notebook 02_load_forecast"
            ) from error
        _check_network(forecaster.network, parameters, path)
        if damping is not None and forecaster.damping != damping:
            raise ForecasterError(
                f"{path} was trained at damping {forecaster.damping}, but the load has damping {damping}; "
                "train it again with notebook 02_load_forecast or use the same damping"
            )
        return forecaster


def _check_network(network: Network, parameters: ForecastParameters, path: str | Path) -> None:
    units = parameters.hidden_size
    expected = {
        "input_weight": (_FEATURES, 4 * units),
        "hidden_weight": (units, 4 * units),
        "bias": (4 * units,),
        "output_weight": (units,),
    }
    for name, shape in expected.items():
        found = np.shape(getattr(network, name))
        if found != shape:
            raise ForecasterError(
                f"{path}: {name} has the shape {found}, but {units} hidden units need {shape}; "
                "train it again with notebook 02_load_forecast"
            )
    for name, value in network._asdict().items():
        if not np.all(np.isfinite(value)):
            raise ForecasterError(f"{path}: {name} is not finite; train it again with notebook 02_load_forecast")


def train_forecaster(
    trace: Trace,
    parameters: ForecastParameters | None = None,
    seed: int = 0,
    progress: bool = False,
    log_folder: str | Path | None = None,
) -> Forecaster:
    """Fit the forecaster on the training split of a trace; the validation days stay unseen.

    Args:
        trace: the load, damped as it will be when forecasts are asked for.
        parameters: network and training.
        seed: of the initial weights and the order of the windows; the same seed gives the same forecaster.
        progress: show a progress bar.
        log_folder: write the loss of every epoch as CSV and a checkpoint there; nothing is written by default.
    """
    parameters = parameters or ForecastParameters()
    ends, target = _training_windows(trace, parameters)
    features, level = _features(trace.counts.astype(np.float64), ends)
    level_mean, level_deviation = _standardise_level(features)
    scaled = np.log(np.maximum(target, _HALF) / level) / _TARGET_SCALE

    data = TensorDataset(torch.from_numpy(features), torch.from_numpy(scaled.astype(np.float32)))
    with _repeatable(seed):
        module = LoadForecaster(parameters)
        # Whole batches are taken from the tensors at once; a loader that collects single windows is far slower.
        order = RandomSampler(data, generator=torch.Generator().manual_seed(seed))
        batches = DataLoader(data, sampler=BatchSampler(order, parameters.batch_size, drop_last=False), batch_size=None)
        _trainer(parameters, progress, log_folder).fit(module, batches)
    return Forecaster(_network(module, level_mean, level_deviation), parameters, trace.name, trace.damping, seed)


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Seeded torch on one thread, because sums depend on the number of threads; the caller's state is restored."""
    threads = torch.get_num_threads()
    lightning = logging.getLogger("pytorch_lightning")
    level = lightning.level
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Notes on devices, and advice on data loaders for data that does not fit into memory, are no news here.
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        lightning.setLevel(logging.WARNING)
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            lightning.setLevel(level)


def _training_windows(trace: Trace, parameters: ForecastParameters) -> Windows:
    known = windows(trace, "train", parameters.stride)
    return Windows(known.ends[-parameters.train_windows :], known.target[-parameters.train_windows :])


def _standardise_level(features: np.ndarray) -> tuple[float, float]:
    """Standardise the level in place; return the mean and the deviation that were taken out."""
    mean = float(features[:, 0, 2].mean(dtype=np.float64))
    deviation = max(float(features[:, 0, 2].std(dtype=np.float64)), 1e-6)
    features[:, :, 2] = (features[:, :, 2] - mean) / deviation
    return mean, deviation


def _trainer(parameters: ForecastParameters, progress: bool, log_folder: str | Path | None) -> pl.Trainer:
    callbacks: list[Callback] = []
    if progress:
        callbacks.append(TQDMProgressBar(refresh_rate=50))  # more often, and a notebook is busy with the bar
    if log_folder is not None:
        callbacks.append(ModelCheckpoint(dirpath=log_folder))
    return pl.Trainer(
        max_epochs=parameters.epochs,
        accelerator="cpu",
        devices=1,
        gradient_clip_val=parameters.gradient_clip,
        enable_progress_bar=progress,
        enable_model_summary=False,
        enable_checkpointing=log_folder is not None,
        callbacks=callbacks,
        logger=CSVLogger(log_folder, name=None, version="") if log_folder is not None else False,
    )


def _network(module: LoadForecaster, level_mean: float, level_deviation: float) -> Network:
    """The module's weights, transposed so that the compiled loops run over contiguous gates."""
    weights = {name: value.detach().numpy() for name, value in module.named_parameters()}
    return Network(
        level_mean=level_mean,
        level_deviation=level_deviation,
        input_weight=np.ascontiguousarray(weights["lstm.weight_ih_l0"].T),
        hidden_weight=np.ascontiguousarray(weights["lstm.weight_hh_l0"].T),
        bias=weights["lstm.bias_ih_l0"] + weights["lstm.bias_hh_l0"],
        output_weight=weights["dense.weight"][0].copy(),
        output_bias=float(weights["dense.bias"][0]),
    )


def smape(target: np.ndarray, prediction: np.ndarray) -> float:
    """Symmetric mean absolute percentage error: the mean of |y - p| / ((|y| + |p|) / 2), in percent.

    Where both are zero the error is zero.

    Args:
        target: (N,) true values y.
        prediction: (N,) forecasts p.

    Raises:
        ValueError: if the shapes differ, which would compare every value with every other, or there is no value.
    """
    _check_same_shape(target, prediction)
    size = (np.abs(target) + np.abs(prediction)) / 2.0
    return float(100.0 * np.mean(np.abs(target - prediction) / np.where(size > 0.0, size, 1.0)))


def under_prediction_rate(target: np.ndarray, prediction: np.ndarray) -> float:
    """Fraction of forecasts below the load that came.

    Raises:
        ValueError: as :func:`smape`.
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
    """Forecasts of the network and of simpler models at the same positions.

    ``ridge`` is a linear model of the network's features, fitted on the same windows; the others are not learned.

    Args:
        forecaster: the network.
        trace: the load, damped as the forecaster expects.
        ends: (N,) positions of the first unknown second, each with 120 s of history.

    Returns:
        By model name, (N,) forecasts in requests per second.
    """
    history = np.lib.stride_tricks.sliding_window_view(trace.counts, HISTORY_SECONDS)[ends - HISTORY_SECONDS]
    return {
        "lstm": forecaster.predict_many(trace.counts, ends),
        "ridge": _ridge_forecast(trace, forecaster.parameters, ends),
        "max_20": history[:, -20:].max(axis=1).astype(float),
        "max_120": history.max(axis=1).astype(float),
        "last_value": history[:, -1].astype(float),
    }


def _ridge_forecast(trace: Trace, parameters: ForecastParameters, ends: np.ndarray, penalty: float = 1.0) -> np.ndarray:
    """(N,) forecasts of a ridge regression of ln(y / m) on the network's features."""
    known, target = _training_windows(trace, parameters)
    features, level = _features(trace.counts.astype(np.float64), known)
    mean, deviation = _standardise_level(features)
    design = _design(features)
    gram = design.T @ design + penalty * np.eye(design.shape[1])
    weights = np.linalg.solve(gram, design.T @ np.log(np.maximum(target, _HALF) / level))
    features, level = _features(trace.counts.astype(np.float64), ends)
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
        windows: where the N forecasts were made, and the load that came.
        forecasts: by model name, (N,) requests per second.
        errors: one row per model with the columns ``damping``, ``model``, ``smape`` (percent),
            ``under_prediction_rate`` (fraction) and ``forecasts`` (their number N).
    """

    windows: Windows
    forecasts: dict[str, np.ndarray]
    errors: pd.DataFrame


def compare_forecasts(
    forecaster: Forecaster, trace: Trace, split: Split = "test", stride: int = _BIN_SECONDS
) -> Comparison:
    """Forecast one split with the network and the simpler models, and measure their errors.

    Args:
        forecaster: the network.
        trace: the load, damped as the forecaster expects.
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
    forecaster.predict(trace.counts[start : start + HISTORY_SECONDS])  # compiles, which is not part of a forecast
    seconds = []
    for second in range(start, start + repeats):
        before = time.perf_counter()
        forecaster.predict(trace.counts[second : second + HISTORY_SECONDS])
        seconds.append(time.perf_counter() - before)
    return float(1000.0 * np.median(seconds))


def forecast_report(forecaster: Forecaster, trace: Trace, comparison: Comparison) -> dict[str, Any]:
    """What is worth keeping of one forecaster: trace, damping, seed, errors by model and the latency of a forecast."""
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


def write_reports(path: str | Path, reports: Mapping[str, Mapping[str, Any]]) -> None:
    """Write reports as JSON, by name such as ``damping_8``."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(reports, indent=2) + "\n", encoding="utf-8")
