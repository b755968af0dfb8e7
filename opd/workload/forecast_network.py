"""The network of the load forecast (Sec. IV, Fig. 3), compiled: an LSTM with 25 units and two kinds of outputs.

One is the paper's, a dense layer for the largest load of the next 20 seconds. The others are quantiles of the mean load
in each of the next six intervals of ten seconds. They come from two dense layers, which see the state of the LSTM, the
loads of the window, and the single seconds at its end: these tell whether a burst has just begun or is already over.

All compiled functions are in this module because Numba's cache notices changes in the file of a function, but not in
the files of the functions that it calls.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

HISTORY_SECONDS = 120
"""Past seconds that a forecast sees (Sec. IV); the trace must hold them before a cycle starts."""

HORIZON_SECONDS = 20
"""Coming seconds for which the largest load is forecast (Sec. IV-A)."""

BIN_SECONDS = 10
"""Seconds of history that one step of the LSTM sees, and of each coming interval whose load has quantiles."""

INTERVALS = 6
"""Coming intervals whose mean load has quantiles."""

QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
"""Probabilities that the mean load of an interval is not above each of its quantiles."""

QUANTILE_UNITS = 128
"""Rectified units before the quantiles."""

RECENT_SECONDS = 20
"""Last single seconds that the quantiles depend on; with 60 they are no better on validation days."""

BINS = HISTORY_SECONDS // BIN_SECONDS
QUANTILE_LOADS = BINS + RECENT_SECONDS + 1
"""Inputs of the quantiles besides the state of the LSTM."""

FEATURES = 3
TARGET_SCALE = 0.3
"""The network predicts the logarithm of a load over the window's mean, divided by this."""

HALF_REQUEST = 0.5
"""Added to loads to keep logarithms finite at zero."""

_FEATURE_SCALE = 3.0
_LEAST_STEP = 1e-4  # between quantiles, on the scale of the network, so that no two are equal


@numba.njit(cache=True)
def _filler(counts: np.ndarray, end: int) -> float:
    """Mean of the first ten known seconds of the window before ``end``, which stands for the seconds before them."""
    known = min(end, HISTORY_SECONDS)
    first = min(known, BIN_SECONDS)
    filler = 0.0
    for second in range(end - known, end - known + first):
        filler += counts[second] / first
    return filler


@numba.njit(cache=True)
def _fill_features(counts: np.ndarray, end: int, features: np.ndarray) -> float:
    """Write the features of the window before ``end`` into (12, 3) ``features``; return the window's mean.

    Seconds before the start of ``counts`` take the mean of the first ten known ones.
    """
    missing = HISTORY_SECONDS - min(end, HISTORY_SECONDS)
    filler = _filler(counts, end)
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
        output_weight: (H,) of the largest load.
        output_bias: number.
        quantile_hidden_weight: (U, H + 33) of the layer between :func:`quantile_inputs` and the quantiles.
        quantile_hidden_bias: (U,).
        quantile_weight: (6 Q, U) of the quantiles, interval by interval.
        quantile_bias: (6 Q,).
    """

    level_mean: float
    level_deviation: float
    input_weight: np.ndarray
    hidden_weight: np.ndarray
    bias: np.ndarray
    output_weight: np.ndarray
    output_bias: float
    quantile_hidden_weight: np.ndarray
    quantile_hidden_bias: np.ndarray
    quantile_weight: np.ndarray
    quantile_bias: np.ndarray


@numba.njit(cache=True)
def _sigmoid(value: np.float32) -> np.float32:
    return np.float32(1.0) / (np.float32(1.0) + np.exp(-value))


@numba.njit(cache=True)
def _tanh(value: np.float32) -> np.float32:
    # Twice as fast as np.tanh and accurate enough for gates.
    return np.float32(2.0) * _sigmoid(np.float32(2.0) * value) - np.float32(1.0)


@numba.njit(cache=True, fastmath=True)
def hidden_states(counts: np.ndarray, ends: np.ndarray, network: ForecastNetwork) -> tuple[np.ndarray, np.ndarray]:
    """(N, H) last hidden states of the LSTM and (N,) mean loads of the windows before ``ends`` of ``counts``."""
    units = len(network.output_weight)
    features = np.empty((BINS, FEATURES), dtype=np.float32)
    gates = np.empty(4 * units, dtype=np.float32)
    states = np.zeros((len(ends), units), dtype=np.float32)
    cell = np.empty(units, dtype=np.float32)
    levels = np.empty(len(ends))
    for index in range(len(ends)):
        level = _fill_features(counts, ends[index], features)
        standardised = (np.log(level) - network.level_mean) / network.level_deviation
        hidden = states[index]
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
        levels[index] = level
    return states, levels


def scaled(loads: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Loads in requests/s to the scaled logarithms that the quantiles are of; ``levels`` are mean loads of windows."""
    return np.log((loads + HALF_REQUEST) / levels) / TARGET_SCALE


def unscaled(logarithms: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Invert :func:`scaled`; loads are at least 0."""
    return np.maximum(levels * np.exp(TARGET_SCALE * logarithms) - HALF_REQUEST, 0.0)


@numba.njit(cache=True)
def quantile_inputs(counts: np.ndarray, ends: np.ndarray, network: ForecastNetwork) -> tuple[np.ndarray, np.ndarray]:
    """Collect what the quantiles depend on.

    Args:
        counts: (T,) requests per second.
        ends: (N,) positions within 1..T.
        network: the trained LSTM.

    Returns:
        (N, H + 33) float32 inputs: the last hidden state, 3 ln((load + 0.5) / m) for the mean loads of the twelve bins
        and for the last 20 single seconds, and the standardised ln m, with m the mean of the window; and (N,) means m.
    """
    states, levels = hidden_states(counts, ends, network)
    units = states.shape[1]
    features = np.empty((BINS, FEATURES), dtype=np.float32)
    inputs = np.empty((len(ends), units + QUANTILE_LOADS), dtype=np.float32)
    for index in range(len(ends)):
        end = ends[index]
        level = _fill_features(counts, end, features)
        filler = _filler(counts, end)
        inputs[index, :units] = states[index]
        inputs[index, units : units + BINS] = features[:, 1]
        for second in range(RECENT_SECONDS):
            position = end - RECENT_SECONDS + second
            load = filler if position < 0 else float(counts[position])
            inputs[index, units + BINS + second] = _FEATURE_SCALE * np.log((load + HALF_REQUEST) / level)
        inputs[index, -1] = (np.log(level) - network.level_mean) / network.level_deviation
    return inputs, levels


@numba.njit(cache=True, fastmath=True)
def _largest_load(inputs: np.ndarray, level: float, network: ForecastNetwork) -> float:
    """Forecast largest load in requests/s from the hidden state, the first of the inputs (H + 33,)."""
    output = network.output_bias
    for unit in range(len(network.output_weight)):
        output += inputs[unit] * network.output_weight[unit]
    return level * np.exp(TARGET_SCALE * output)


@numba.njit(cache=True)
def _highest_load(inputs: np.ndarray) -> float:
    """Bound on the loads that are predicted from inputs (H + 33,), as a scaled logarithm: twice the largest among them.

    Far from what the network was trained on, for instance where an idle device meets a burst, its outputs grow without
    limit.
    """
    return (inputs[-QUANTILE_LOADS:-1].max() / _FEATURE_SCALE + np.log(2.0)) / TARGET_SCALE


@numba.njit(cache=True, fastmath=True)
def _dense(weight: np.ndarray, bias: np.ndarray, inputs: np.ndarray, outputs: np.ndarray) -> None:
    """Write the outputs of a dense layer."""
    for unit in range(len(bias)):
        total = bias[unit]
        for source in range(len(inputs)):
            total += weight[unit, source] * inputs[source]
        outputs[unit] = total


@numba.njit(cache=True)
def _sort_apart(values: np.ndarray) -> None:
    """Sort a few values by insertion, then move them apart a little."""
    for place in range(1, len(values)):
        value = values[place]
        while place > 0 and values[place - 1] > value:
            values[place] = values[place - 1]
            place -= 1
        values[place] = value
    for place in range(len(values)):
        values[place] += _LEAST_STEP * place


class Outlook(NamedTuple):
    """What the network says of the loads that follow each of N positions.

    Attributes:
        largest: (N,) largest load of the next 20 seconds, requests/s, not rounded.
        quantiles: (N, 6, Q) scaled logarithms of the mean loads of the coming intervals. They increase, even where the
            outputs of the network do not.
        highest: (N,) bound on these.
        levels: (N,) mean loads of the windows before the positions, requests/s.
    """

    largest: np.ndarray
    quantiles: np.ndarray
    highest: np.ndarray
    levels: np.ndarray


@numba.njit(cache=True)
def outlooks(counts: np.ndarray, ends: np.ndarray, network: ForecastNetwork) -> Outlook:
    """Run the LSTM and both kinds of outputs for the windows before ``ends`` (N,) of ``counts`` (T,)."""
    inputs, levels = quantile_inputs(counts, ends, network)
    hidden = np.empty(len(network.quantile_hidden_bias), dtype=np.float32)
    outputs = np.empty((INTERVALS, len(QUANTILES)), dtype=np.float32)
    largest, highest = np.empty(len(ends)), np.empty(len(ends))
    quantiles = np.empty((len(ends), *outputs.shape))
    for index in range(len(ends)):
        largest[index] = _largest_load(inputs[index], levels[index], network)
        highest[index] = _highest_load(inputs[index])
        _dense(network.quantile_hidden_weight, network.quantile_hidden_bias, inputs[index], hidden)
        _dense(network.quantile_weight, network.quantile_bias, np.maximum(hidden, np.float32(0.0)), outputs.reshape(-1))
        for interval in range(INTERVALS):
            quantiles[index, interval] = np.minimum(outputs[interval], highest[index])
            _sort_apart(quantiles[index, interval])
    return Outlook(largest, quantiles, highest, levels)
