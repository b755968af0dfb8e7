"""Calibration: what devices make of profiles, estimated from measured service times while a pipeline runs.

A batch of b requests of variant z takes ``factor * b ** slope`` times its profile. In logarithms that is linear, so one
Kalman filter estimates all of it, with the state

* d, the log factor of the device, common to all variants: a random walk;
* v_z, the log factor of each variant beyond that, and
* s_z, the slope of each variant. Both return to 0 slowly while the variant is not measured, so that a variant that was
  slow once is tried again.

The log factor of a variant is d + v_z. One that never ran therefore has the factor of the device, with a wider
deviation. Profiles are right within some percent (:data:`DEVICE`, :data:`VARIANT`); all else is a jump:

* A measurement outside the gate is an outlier and is ignored. A second one in a row, on the same side, is a jump.
* If most of the variants that were measured jumped to one side, the device did: d becomes uncertain. If not, those
  variants did: their v_z become uncertain. If only one was measured, both do, and later measurements tell.
* The state before a jump is kept. Where it explains the measurements after the next jump, it comes back at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from opd.measurement import Calibration, Interval
from opd.pipeline import Pipeline

DEVICE = 0.1
"""Standard deviation of the log factor of the device before anything was measured."""

VARIANT = 0.05
"""Standard deviation of the log factor of a variant beyond that of the device."""

SLOPE = 0.015
"""Standard deviation of the slope of a variant."""

DRIFT = 0.01
"""Standard deviation of what the device's log factor changes by in 10 s."""

MEMORY_SECONDS = 3600.0
"""Time in which a variant that is not measured loses 63 % of its slope, and of its factor beyond the device."""

BATCH_NOISE = 0.15
"""Relative standard deviation of the service time of one batch."""

FLOOR = 0.01
"""Relative standard deviation of the mean of very many."""

GATE = 3.0
"""Innovation, in standard deviations, up to which a measurement is believed."""

JUMP = 0.3
"""Standard deviation of a jump, in logarithms."""

LARGEST = np.log(20.0)
"""Log factor, up or down, beyond which a measurement is no service time: a call that hung, or a broken clock."""

BAND = 0.02
"""Change of a log factor or slope from which policies are told. They would otherwise plan again because of noise."""


class _Measurement(NamedTuple):
    """Mean service time of a variant in one interval.

    Attributes:
        place: of the variant, see :class:`CalibrationFilter`.
        log_ratio: logarithm of measured over profiled time.
        log_size: logarithm of the batch size, mean over the profiled time.
        variance: of ``log_ratio``.
    """

    place: int
    log_ratio: float
    log_size: float
    variance: float


class _State(NamedTuple):
    """Mean and covariance of the device's log factor, M log factors of variants, and M slopes."""

    mean: np.ndarray
    covariance: np.ndarray


class CalibrationFilter:
    """Estimates the factors of one pipeline; M variants in the order of its tasks.

    Args:
        pipeline: as profiled.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._profiled = pipeline.tables.service_time
        self._places = np.argwhere(np.isfinite(pipeline.tables.cores))
        variants = len(self._places)
        self._spread = np.concatenate([[DEVICE], np.full(variants, VARIANT), np.full(variants, SLOPE)])
        self._state = _State(np.zeros(1 + 2 * variants), np.diag(self._spread**2))
        self._before: _State | None = None  # the last jump
        self._side = np.zeros(variants)  # of the last measurement of each variant if it was an outlier
        self._told = np.zeros((2, variants))

    def update(self, interval: Interval, seconds: float) -> None:
        """Take in the measurements of an interval of that length; one without batches only adds uncertainty."""
        self._state = self._predicted(self._state, seconds)
        self._take_in(self._measurements(interval))
        levels = self._levels()
        self._told = np.where(np.abs(levels - self._told) > BAND, levels, self._told)

    def _take_in(self, measured: list[_Measurement]) -> None:
        """Correct the state with those measurements that are no outliers."""
        sides = [_side(self._state, self._row(each), each) for each in measured]
        jumped = [side != 0.0 and self._side[each.place] == side for side, each in zip(sides, measured, strict=True)]
        for side, each in zip(sides, measured, strict=True):
            self._side[each.place] = side
        if any(jumped):
            self._jump(measured, sides, jumped)
        for side, jump, each in zip(sides, jumped, measured, strict=True):
            if jump or side == 0.0:
                self._state = _corrected(self._state, self._row(each), each)

    def calibration(self) -> Calibration:
        """The present estimate; a factor changes only if it has moved by more than :data:`BAND`."""
        mean, covariance = self._state
        own = np.arange(1, 1 + len(self._places))
        variance = covariance[0, 0] + 2.0 * covariance[0, own] + covariance[own, own]
        shape = self._profiled.shape[:2]
        device = float(np.exp(mean[0]))
        factor, slope, deviation = np.full(shape, device), np.zeros(shape), np.zeros(shape)
        where = tuple(self._places.T)
        factor[where], slope[where], deviation[where] = np.exp(self._told[0]), self._told[1], np.sqrt(variance)
        return Calibration(factor, slope, deviation, device)

    def _levels(self) -> np.ndarray:
        """(2, M) log factor and slope of every variant."""
        mean, variants = self._state.mean, len(self._places)
        return np.stack([mean[0] + mean[1 : 1 + variants], mean[1 + variants :]])

    def _measurements(self, interval: Interval) -> list[_Measurement]:
        """The variants that served a whole batch, and times that can be true."""
        found: list[_Measurement] = []
        if not interval.busy.size:
            return found
        for place, (n, z) in enumerate(self._places):
            batches, busy = interval.batches[0, n, z], float(interval.busy[0, n, z])
            times = batches[1:] * self._profiled[n, z, 1:]
            number, profiled = float(batches.sum()), float(times.sum())
            if not (number >= 1.0 and 0.0 < busy < np.inf and profiled > 0.0):
                continue
            ratio = float(np.log(busy / profiled))
            if abs(ratio) <= LARGEST:
                size = float(times @ np.log(np.arange(1, len(batches))) / profiled)
                found.append(_Measurement(place, ratio, size, BATCH_NOISE**2 / number + FLOOR**2))
        return found

    def _row(self, measurement: _Measurement) -> np.ndarray:
        """The share of every entry of the state in a measurement."""
        variants = len(self._places)
        row = np.zeros(1 + 2 * variants)
        row[[0, 1 + measurement.place]] = 1.0
        row[1 + variants + measurement.place] = measurement.log_size
        return row

    def _predicted(self, state: _State, seconds: float) -> _State:
        """The state after that many seconds without a measurement."""
        kept = np.full(len(state.mean), np.exp(-seconds / MEMORY_SECONDS))
        noise = (1.0 - kept**2) * self._spread**2
        kept[0], noise[0] = 1.0, DRIFT**2 * seconds / 10.0
        return _State(kept * state.mean, kept[:, None] * state.covariance * kept + np.diag(noise))

    def _jump(self, measured: list[_Measurement], sides: list[float], jumped: list[bool]) -> None:
        """Return to the state before the last jump if it explains all measurements, else make room for a new one."""
        before = self._before
        if before is not None and not any(_side(before, self._row(each), each) for each in measured):
            self._before, self._state = self._state, before
            return
        self._before = self._state
        places = [each.place for each, jump in zip(measured, jumped, strict=True) if jump]
        together = 2 * max(sides.count(1.0), sides.count(-1.0)) > len(measured)
        uncertain = np.zeros(len(self._state.mean))
        if together:
            uncertain[0] = JUMP**2
        if not together or len(measured) == 1:
            uncertain[[1 + place for place in places]] = JUMP**2
        self._state = _State(self._state.mean, self._state.covariance + np.diag(uncertain))


def _innovation(state: _State, row: np.ndarray, measured: _Measurement) -> tuple[float, float]:
    """Difference of a measurement from its prediction, and its variance."""
    return measured.log_ratio - float(row @ state.mean), float(row @ state.covariance @ row) + measured.variance


def _side(state: _State, row: np.ndarray, measured: _Measurement) -> float:
    """1 for a measurement above the gate, -1 for one below, 0 for one within."""
    difference, variance = _innovation(state, row, measured)
    return float(np.sign(difference)) if difference**2 > GATE**2 * variance else 0.0


def _corrected(state: _State, row: np.ndarray, measured: _Measurement) -> _State:
    """The state with one measurement more."""
    difference, variance = _innovation(state, row, measured)
    gain = state.covariance @ row / variance
    covariance = state.covariance - np.outer(gain, row @ state.covariance)
    return _State(state.mean + gain * difference, 0.5 * (covariance + covariance.T))
