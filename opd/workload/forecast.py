"""The deployed load forecaster: the largest load of the next 20 seconds from the last 120 (Sec. IV, Fig. 3).

The network of the paper as plain arrays and compiled functions (:mod:`opd.workload.forecast_network`). Every decision
needs a forecast, so it takes microseconds and loads no training library; :mod:`opd.workload.forecast_training` trains
the network.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pydantic.dataclasses
from pydantic import Field

from opd.host.archive import ArchiveError, load_archive, save_archive
from opd.workload.forecast_network import (
    BIN_SECONDS,
    FEATURES,
    HISTORY_SECONDS,
    HORIZON_SECONDS,
    INTERVALS,
    QUANTILE_LOADS,
    QUANTILE_UNITS,
    QUANTILES,
    ForecastNetwork,
    Outlook,
    outlooks,
    unscaled,
)

_Count = Annotated[int, Field(ge=1)]
_Positive = Annotated[float, Field(gt=0.0)]
_FORMAT = "opd forecaster 4"
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
        epochs: passes over the training windows; the outputs for quantiles take twice as many.
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


class Patterns(NamedTuple):
    """Variation of R past stretches of six intervals about the quantiles that were predicted for them.

    Attributes:
        ranks: (R, 6) where the mean load of each interval lay between its quantiles
            (:func:`opd.workload.quantile_futures.ranks`).
        departures: (R, 6, 10) departures of the counts from the mean load of their interval, over the square root of
            that mean plus one half.
    """

    ranks: np.ndarray
    departures: np.ndarray


@dataclass(frozen=True, eq=False)
class Forecaster:
    """A trained forecaster, fast enough to be called before every decision.

    Attributes:
        network: its weights.
        patterns: how past loads varied, for futures.
        parameters: those of its training.
        trace: name of the trace that it was trained on.
        damping: damping of that trace; forecasts of damped counts are rounded to whole requests.
        seed: seed of its training.
        data: checksum of the counts that it was trained on; None if the file does not say, as older ones.
    """

    network: ForecastNetwork
    patterns: Patterns
    parameters: ForecastParameters
    trace: str
    damping: int
    seed: int
    data: int | None = None

    def predict(self, history: np.ndarray) -> float:
        """Predict the largest load of the next 20 s, in requests/s.

        Args:
            history: the most recent counts, one per second, oldest first. Only the last 120 matter; if there are
                fewer, the mean of the first ten replaces the missing ones.

        Raises:
            ValueError: if ``history`` is empty.
        """
        return float(self._rounded(self.outlook(history).largest)[0])

    def outlook(self, history: np.ndarray) -> Outlook:
        """What the network says of the loads that follow a history, as of one position.

        Forecast, quantiles and futures of one decision need it; it is computed once.

        Args:
            history: as in :meth:`predict`.

        Raises:
            ValueError: if ``history`` is empty.
        """
        if len(history) == 0:
            raise ValueError("a forecast needs at least one second of history, but got none")
        return _outlook(self, np.ascontiguousarray(history[-HISTORY_SECONDS:], dtype=np.float64).tobytes())

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
        return self._rounded(outlooks(*_checked(counts, ends), self.network).largest)

    def _rounded(self, forecasts: np.ndarray) -> np.ndarray:
        return np.rint(forecasts) if self.damping > 1 else forecasts

    def quantiles(self, counts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Predict quantiles of the mean load in each of the next six intervals of ten seconds.

        Args:
            counts: (T,) requests per second.
            ends: (N,) positions within 1..T; the forecast at ``end`` knows ``counts[:end]``.

        Returns:
            (N, 6, 7) requests/s, increasing, at the probabilities
            :data:`~opd.workload.forecast_network.QUANTILES`; not rounded.

        Raises:
            ValueError: if a position is out of range.
        """
        outlook = outlooks(*_checked(counts, ends), self.network)
        return unscaled(outlook.quantiles, outlook.levels[:, None, None])

    def save(self, path: str | Path) -> None:
        """Write the forecaster to an archive that :meth:`load` reads."""
        arrays = {name: np.asarray(value) for name, value in _arrays(self).items()}
        metadata = {
            "parameters": asdict(self.parameters),
            "trace": self.trace,
            "damping": self.damping,
            "seed": self.seed,
            "data": self.data,
        }
        save_archive(Path(path), _FORMAT, metadata, arrays)

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
            metadata, arrays = load_archive(Path(path), _FORMAT)
            patterns = Patterns(*(arrays.pop(name) for name in Patterns._fields))
            forecaster = cls(
                ForecastNetwork(**{name: _scalar_or_array(value) for name, value in arrays.items()}),
                patterns,
                ForecastParameters(**metadata["parameters"]),
                metadata["trace"],
                metadata["damping"],
                metadata["seed"],
                metadata.get("data"),
            )
        except ArchiveError as error:
            raise ForecasterError(f"the forecaster cannot be loaded: {error}; {_TRAIN_AGAIN}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise ForecasterError(f"{path} is not a forecaster of this version ({error}); {_TRAIN_AGAIN}") from error
        _check_arrays(forecaster, path)
        if damping is not None and forecaster.damping != damping:
            raise ForecasterError(
                f"{path} was trained at damping {forecaster.damping}, but the load has damping {damping}; "
                f"{_TRAIN_AGAIN} or use the same damping"
            )
        return forecaster


@lru_cache(maxsize=1)
def _outlook(forecaster: Forecaster, history: bytes) -> Outlook:
    """The outlook after a history of float64 counts; the last one is remembered."""
    counts = np.frombuffer(history).copy()  # compiled code takes writable arrays
    return outlooks(counts, np.array([len(counts)]), forecaster.network)


def _checked(counts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts and positions as the compiled functions take them; raise if a position is out of range."""
    ends = np.asarray(ends, dtype=np.int64)
    if len(ends) and not (ends.min() >= 1 and ends.max() <= len(counts)):
        raise ValueError(
            f"forecasts at positions {ends.min()} to {ends.max()} were requested, but the counts allow 1 to "
            f"{len(counts)}"
        )
    return np.ascontiguousarray(counts, dtype=np.float64), ends


def _arrays(forecaster: Forecaster) -> dict[str, Any]:
    """Weights and patterns by name."""
    return forecaster.network._asdict() | forecaster.patterns._asdict()


def _scalar_or_array(value: np.ndarray) -> Any:
    return value if value.ndim else float(value)


def _check_arrays(forecaster: Forecaster, path: str | Path) -> None:
    """Raise unless all arrays are finite and have the shapes that the parameters imply."""
    units, outputs = forecaster.parameters.hidden_size, INTERVALS * len(QUANTILES)
    expected = {
        "input_weight": (FEATURES, 4 * units),
        "hidden_weight": (units, 4 * units),
        "bias": (4 * units,),
        "output_weight": (units,),
        "quantile_hidden_weight": (QUANTILE_UNITS, units + QUANTILE_LOADS),
        "quantile_hidden_bias": (QUANTILE_UNITS,),
        "quantile_weight": (outputs, QUANTILE_UNITS),
        "quantile_bias": (outputs,),
        "ranks": (len(forecaster.patterns.ranks), INTERVALS),
        "departures": (len(forecaster.patterns.ranks), INTERVALS, BIN_SECONDS),
    }
    arrays = _arrays(forecaster)
    for name, shape in expected.items():
        found = np.shape(arrays[name])
        if found != shape or 0 in shape:
            raise ForecasterError(
                f"{path}: {name} has shape {found}, but {units} hidden units need {shape}; {_TRAIN_AGAIN}"
            )
    for name, value in arrays.items():
        if not np.all(np.isfinite(value)):
            raise ForecasterError(f"{path}: {name} is not finite; {_TRAIN_AGAIN}")
