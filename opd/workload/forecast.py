"""The deployed load forecaster: the largest load of the next 20 seconds from the last 120 (Sec. IV, Fig. 3).

The network of the paper, an LSTM with 25 units and a dense layer, as plain arrays and one compiled function. Every
decision needs a forecast, so it takes microseconds and loads no training library;
:mod:`opd.workload.forecast_training` trains the network.

All compiled functions are in this module because Numba's cache notices changes in the file of a function, but not in
the files of the functions that it calls.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numba
import numpy as np
import pydantic.dataclasses
from pydantic import Field

from opd.host.archive import ArchiveError, load_archive, save_archive

HISTORY_SECONDS = 120
"""Past seconds that a forecast sees (Sec. IV); the trace must hold them before a cycle starts."""

HORIZON_SECONDS = 20
"""Coming seconds for which the largest load is forecast (Sec. IV-A)."""

BIN_SECONDS = 10
"""Seconds of history that one step of the LSTM sees."""

BINS = HISTORY_SECONDS // BIN_SECONDS
FEATURES = 3
TARGET_SCALE = 0.3
"""The network predicts the logarithm of the forecast over the window's mean, divided by this."""

HALF_REQUEST = 0.5
"""Added to loads to keep logarithms finite at zero."""

_Count = Annotated[int, Field(ge=1)]
_Positive = Annotated[float, Field(gt=0.0)]
_FEATURE_SCALE = 3.0
_FORMAT = "opd forecaster 2"
_TRAIN_AGAIN = "train one with notebook 02_load_forecast"


def future_maximum(counts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Largest count of the :data:`HORIZON_SECONDS` that follow each position: the target of the forecast.

    Args:
        counts: (T,) requests per second.
        ends: (M,) positions 0..T. Where fewer seconds follow, those there are; at T the last count.

    Returns:
        (M,) requests/s, of the type of ``counts``.
    """
    padded = np.pad(counts, (0, HORIZON_SECONDS), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, HORIZON_SECONDS)[ends].max(axis=1)


class RecentMaximum:
    """Forecaster without training: the largest count of the last 20 s; the fallback of trained forecasters."""

    def predict(self, history: np.ndarray) -> float:
        """Predict requests/s from a history of counts per second; 0 if it is empty."""
        return float(history[-HORIZON_SECONDS:].max(initial=0))

    def predict_many(self, counts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """(M,) forecasts for counts (T,) up to each of the positions ``ends`` (M,)."""
        return np.array([self.predict(counts[:end]) for end in ends], dtype=float)


class ForecasterError(ValueError):
    """A forecaster file cannot be used; the message gives the reason and the remedy."""


@pydantic.dataclasses.dataclass(frozen=True, config={"extra": "forbid", "allow_inf_nan": False})
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

    hidden_size: _Count = 25
    epochs: _Count = 6
    batch_size: _Count = 256
    learning_rate: _Positive = 5e-3
    gradient_clip: _Positive = 1.0
    stride: _Count = 10
    train_windows: Annotated[int, Field(ge=0)] = 0


@numba.njit(cache=True)
def _fill_features(counts: np.ndarray, end: int, features: np.ndarray) -> float:
    """Write the features of the window before ``end`` into (12, 3) ``features``; return the window's mean.

    Seconds before the start of ``counts`` take the mean of the first ten known ones.
    """
    known = min(end, HISTORY_SECONDS)
    missing = HISTORY_SECONDS - known
    first = min(known, BIN_SECONDS)
    filler = 0.0
    for second in range(end - known, end - known + first):
        filler += counts[second] / first
    level = 0.0
    for index in range(BINS):
        largest = 0.0
        total = 0.0
        for second in range(index * BIN_SECONDS, (index + 1) * BIN_SECONDS):
            value = filler if second < missing else float(counts[end - HISTORY_SECONDS + second])
            largest = max(largest, value)
            total += value
        features[index, 0] = largest
        features[index, 1] = total / BIN_SECONDS
        level += total / HISTORY_SECONDS
    level = max(level, HALF_REQUEST)
    for index in range(BINS):
        features[index, 0] = _FEATURE_SCALE * np.log((features[index, 0] + HALF_REQUEST) / level)
        features[index, 1] = _FEATURE_SCALE * np.log((features[index, 1] + HALF_REQUEST) / level)
        features[index, 2] = np.log(level)
    return level


@numba.njit(cache=True)
def window_features(counts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 12, 3) features, the last one not yet standardised, and (N,) mean loads of the windows before ``ends``."""
    features = np.empty((len(ends), BINS, FEATURES), dtype=np.float32)
    level = np.empty(len(ends))
    for index in range(len(ends)):
        level[index] = _fill_features(counts, ends[index], features[index])
    return features, level


def standardise_level(features: np.ndarray) -> tuple[float, float]:
    """Standardise the level in place; return the mean and the standard deviation that were removed."""
    mean = float(features[:, 0, 2].mean(dtype=np.float64))
    deviation = max(float(features[:, 0, 2].std(dtype=np.float64)), 1e-6)
    features[:, :, 2] = (features[:, :, 2] - mean) / deviation
    return mean, deviation


class ForecastNetwork(NamedTuple):
    """The trained network as arrays; H hidden units, gates in the order of torch.

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
    # Twice as fast as np.tanh and accurate enough for gates.
    return np.float32(2.0) * _sigmoid(np.float32(2.0) * value) - np.float32(1.0)


@numba.njit(cache=True, fastmath=True)
def _forecast(counts: np.ndarray, ends: np.ndarray, network: ForecastNetwork) -> np.ndarray:
    """(N,) forecasts at positions ``ends`` of ``counts``, not rounded."""
    units = len(network.output_weight)
    features = np.empty((BINS, FEATURES), dtype=np.float32)
    gates = np.empty(4 * units, dtype=np.float32)
    hidden = np.empty(units, dtype=np.float32)
    cell = np.empty(units, dtype=np.float32)
    forecast = np.empty(len(ends))
    for index in range(len(ends)):
        level = _fill_features(counts, ends[index], features)
        standardised = (np.log(level) - network.level_mean) / network.level_deviation
        hidden[:] = 0.0
        cell[:] = 0.0
        for step in range(BINS):
            features[step, 2] = standardised
            gates[:] = network.bias
            for feature in range(FEATURES):
                for gate in range(4 * units):
                    gates[gate] += features[step, feature] * network.input_weight[feature, gate]
            for source in range(units):
                for gate in range(4 * units):
                    gates[gate] += hidden[source] * network.hidden_weight[source, gate]
            for unit in range(units):
                input_gate = _sigmoid(gates[unit])
                forget_gate = _sigmoid(gates[units + unit])
                output_gate = _sigmoid(gates[3 * units + unit])
                cell[unit] = forget_gate * cell[unit] + input_gate * _tanh(gates[2 * units + unit])
                hidden[unit] = output_gate * _tanh(cell[unit])
        output = network.output_bias
        for unit in range(units):
            output += hidden[unit] * network.output_weight[unit]
        forecast[index] = level * np.exp(TARGET_SCALE * output)
    return forecast


@dataclass(frozen=True, eq=False)
class Forecaster:
    """A trained forecaster, fast enough to be called before every decision.

    Attributes:
        network: its weights.
        parameters: those of its training.
        trace: name of the trace that it was trained on.
        damping: damping of that trace; forecasts of damped counts are rounded to whole requests.
        seed: seed of its training.
    """

    network: ForecastNetwork
    parameters: ForecastParameters
    trace: str
    damping: int
    seed: int

    def predict(self, history: np.ndarray) -> float:
        """Predict the largest load of the next 20 s, in requests/s.

        Args:
            history: the most recent counts, one per second, oldest first. Only the last 120 matter; if there are
                fewer, the mean of the first ten replaces the missing ones.

        Raises:
            ValueError: if ``history`` is empty.
        """
        if len(history) == 0:
            raise ValueError("a forecast needs at least one second of history, but got none")
        recent = history[-HISTORY_SECONDS:]
        return float(self.predict_many(recent, np.array([len(recent)]))[0])

    def predict_many(self, counts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Predict the largest load of the next 20 s at many positions of a trace.

        Args:
            counts: (T,) requests per second.
            ends: (N,) positions within 1..T; the forecast at ``end`` knows ``counts[:end]``.

        Returns:
            (N,) requests/s.

        Raises:
            ValueError: if a position is out of range.
        """
        ends = np.asarray(ends, dtype=np.int64)
        if len(ends) and not (ends.min() >= 1 and ends.max() <= len(counts)):
            raise ValueError(
                f"forecasts at positions {ends.min()} to {ends.max()} were requested, but the counts allow 1 to "
                f"{len(counts)}"
            )
        forecast = _forecast(np.ascontiguousarray(counts, dtype=np.float64), ends, self.network)
        return np.rint(forecast) if self.damping > 1 else forecast

    def save(self, path: str | Path) -> None:
        """Write the forecaster to an archive that :meth:`load` reads."""
        weights = {name: np.asarray(value) for name, value in self.network._asdict().items()}
        metadata = {
            "parameters": asdict(self.parameters),
            "trace": self.trace,
            "damping": self.damping,
            "seed": self.seed,
        }
        save_archive(Path(path), _FORMAT, metadata, weights)

    @classmethod
    def load(cls, path: str | Path, damping: int | None = None) -> Forecaster:
        """Read a forecaster.

        Args:
            path: file written by :meth:`save`.
            damping: damping of the counts that it will be given; ``None`` accepts any.

        Raises:
            ForecasterError: if the file is missing, damaged, not a forecaster, of an older version, or was trained for
                another damping.
        """
        try:
            metadata, weights = load_archive(Path(path), _FORMAT)
            forecaster = cls(
                ForecastNetwork(**{name: _scalar_or_array(value) for name, value in weights.items()}),
                ForecastParameters(**metadata["parameters"]),
                metadata["trace"],
                metadata["damping"],
                metadata["seed"],
            )
        except ArchiveError as error:
            raise ForecasterError(f"the forecaster cannot be loaded: {error}; {_TRAIN_AGAIN}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise ForecasterError(f"{path} is not a forecaster of this version ({error}); {_TRAIN_AGAIN}") from error
        _check_network(forecaster.network, forecaster.parameters, path)
        if damping is not None and forecaster.damping != damping:
            raise ForecasterError(
                f"{path} was trained at damping {forecaster.damping}, but the load has damping {damping}; "
                f"{_TRAIN_AGAIN} or use the same damping"
            )
        return forecaster


def _scalar_or_array(value: np.ndarray) -> Any:
    return value if value.ndim else float(value)


def _check_network(network: ForecastNetwork, parameters: ForecastParameters, path: str | Path) -> None:
    """Raise unless all weights are finite and have the shapes that the parameters imply."""
    units = parameters.hidden_size
    expected = {
        "input_weight": (FEATURES, 4 * units),
        "hidden_weight": (units, 4 * units),
        "bias": (4 * units,),
        "output_weight": (units,),
    }
    for name, shape in expected.items():
        found = np.shape(getattr(network, name))
        if found != shape:
            raise ForecasterError(
                f"{path}: {name} has shape {found}, but {units} hidden units need {shape}; {_TRAIN_AGAIN}"
            )
    for name, value in network._asdict().items():
        if not np.all(np.isfinite(value)):
            raise ForecasterError(f"{path}: {name} is not finite; {_TRAIN_AGAIN}")
