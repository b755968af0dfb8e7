"""The filter of calibration on a device whose factors are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pipelines import ocr_pipeline

from opd.control.calibration import BAND, CalibrationFilter
from opd.measurement import Calibration, Interval, unmeasured

NOISE = 0.1
"""Sigma of the service time of a batch."""

SMALL, LARGE, TINY = (0, 0), (0, 1), (1, 0)


class Device:
    """Serves batches with factors of its own, and shows the filter what they took."""

    def __init__(self, seed: int = 0, noise: float = NOISE) -> None:
        self.pipeline = ocr_pipeline()
        self.filter = CalibrationFilter(self.pipeline)
        self.factor = np.ones(self.pipeline.tables.cores.shape)
        self.slope = np.zeros_like(self.factor)
        self._generator, self._noise = np.random.default_rng(seed), noise

    def serve(
        self, *variants: tuple[int, int], intervals: int = 1, batches: int = 100, full: float = 0.5
    ) -> Calibration:
        """Run these variants, a share of the batches full; returns the calibration after the last interval."""
        for _ in range(intervals):
            self.filter.update(self._interval(variants, batches, full), 10.0)
        return self.filter.calibration()

    def _interval(self, variants: tuple[tuple[int, int], ...], batches: int, full: float) -> Interval:
        profiled = self.pipeline.tables.service_time
        number, busy = np.zeros((1, *profiled.shape)), np.zeros((1, *profiled.shape[:2]))
        for place in variants:
            sizes = 1 + (np.arange(batches) < full * batches)
            number[(0, *place)] = np.bincount(sizes, minlength=profiled.shape[2])
            times = profiled[place][sizes] * self.factor[place] * sizes ** self.slope[place]
            busy[(0, *place)] = (times * np.exp(self._noise * self._generator.standard_normal(batches))).sum()
        return unmeasured(self.pipeline)._replace(busy=busy, batches=number)


def test_a_device_as_profiled_is_left_alone():
    calibration = Device(noise=0.0).serve(SMALL, TINY, intervals=20)
    np.testing.assert_allclose(calibration.factor, 1.0)
    np.testing.assert_array_equal(calibration.slope, 0.0)
    assert calibration.device == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(5))
def test_a_step_of_a_fifth_is_found_within_four_intervals(seed):
    device = Device(seed)
    device.serve(SMALL, TINY, intervals=20)
    device.factor *= 1.2
    calibration = device.serve(SMALL, TINY, intervals=4, batches=400)
    assert calibration.factor[SMALL] == pytest.approx(1.2, rel=0.02)
    assert calibration.factor[TINY] == pytest.approx(1.2, rel=0.02)


def test_a_variant_that_never_ran_follows_the_device_with_a_wider_deviation():
    device = Device()
    device.factor *= 0.8
    calibration = device.serve(SMALL, TINY, intervals=20)
    assert calibration.factor[LARGE] == pytest.approx(0.8, rel=0.04)  # part of it may be chance
    assert calibration.device == pytest.approx(0.8, rel=0.04)
    assert calibration.deviation[LARGE] > 2 * calibration.deviation[SMALL] > 0.0
    device.factor *= 1.5
    assert device.serve(SMALL, TINY, intervals=5).factor[LARGE] == pytest.approx(1.2, rel=0.04)


def test_one_slow_variant_does_not_make_the_device_slow():
    device = Device()
    device.serve(SMALL, TINY, intervals=10)
    device.factor[SMALL] = 1.5
    calibration = device.serve(SMALL, TINY, intervals=5)
    assert calibration.factor[SMALL] == pytest.approx(1.5, rel=0.03)
    assert calibration.factor[[0, 1, 1, 1], [1, 0, 1, 2]] == pytest.approx(1.0, abs=0.05)


def test_one_slow_variant_from_the_start_is_told_from_a_slow_device_by_the_next():
    device = Device()
    device.factor[SMALL] = 1.5
    device.serve(SMALL, intervals=5)  # nothing else runs, so it could be either
    calibration = device.serve(LARGE, intervals=5)
    assert calibration.factor[SMALL] == pytest.approx(1.5, rel=0.1)
    assert calibration.factor[LARGE] == pytest.approx(1.0, abs=0.03)
    assert calibration.device == pytest.approx(1.0, abs=0.1)


def test_an_outlier_is_ignored():
    device = Device()
    before = device.serve(SMALL, TINY, intervals=20)
    device.factor *= 2.0
    outlier = device.serve(SMALL, TINY)
    device.factor /= 2.0
    after = device.serve(SMALL, TINY, intervals=3)
    for calibration in (outlier, after):
        assert calibration.factor == pytest.approx(before.factor, rel=2 * BAND)


def test_after_a_disturbance_the_last_good_state_returns():
    device = Device()
    good = device.serve(SMALL, TINY, intervals=20)
    device.factor *= 2.0
    assert device.serve(SMALL, TINY, intervals=3).factor[SMALL] == pytest.approx(2.0, rel=0.05)
    device.factor /= 2.0
    back = device.serve(SMALL, TINY, intervals=2)
    assert back.factor == pytest.approx(good.factor, rel=2 * BAND)
    assert back.deviation == pytest.approx(good.deviation, rel=0.3)


def test_a_time_that_cannot_be_true_is_ignored_however_often_it_comes():
    device = Device()
    device.serve(SMALL, TINY, intervals=10)
    device.factor[SMALL] = 100.0
    assert device.serve(SMALL, TINY, intervals=10).factor[SMALL] == pytest.approx(1.0, abs=0.03)


def test_the_slope_over_batch_sizes_is_found_when_the_sizes_vary():
    device = Device()
    device.slope[SMALL] = 0.05
    for _ in range(60):
        device.serve(SMALL, TINY, full=0.0, batches=400)
        calibration = device.serve(SMALL, TINY, full=1.0, batches=400)
    assert calibration.slope[SMALL] == pytest.approx(0.05, abs=0.02)
    assert calibration.factor[SMALL] == pytest.approx(1.0, abs=0.02)
    assert calibration.slope[TINY] == pytest.approx(0.0, abs=0.015)


def test_a_slow_variant_that_no_longer_runs_is_slowly_forgotten():
    device = Device()
    device.serve(SMALL, TINY, intervals=10)
    device.factor[SMALL] = 1.5
    device.serve(SMALL, TINY, intervals=5)
    soon = device.serve(LARGE, TINY, intervals=30)
    later = device.serve(LARGE, TINY, intervals=720)
    assert soon.factor[SMALL] > 1.4
    assert later.factor[SMALL] < 1.1
    assert later.deviation[SMALL] > 2 * later.deviation[LARGE]


def test_an_interval_without_measurements_only_adds_uncertainty():
    device = Device()
    before = device.serve(SMALL, TINY, intervals=10)
    device.filter.update(unmeasured(device.pipeline), 600.0)
    after = device.filter.calibration()
    np.testing.assert_array_equal(after.factor, before.factor)
    assert (after.deviation > before.deviation)[np.isfinite(device.pipeline.tables.cores)].all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.lists(st.sampled_from([SMALL, LARGE, TINY, (1, 1), (1, 2)]), min_size=1, max_size=30))
def test_factors_stay_finite_and_padding_is_no_variant(seed, variants):
    device = Device(seed)
    generator = np.random.default_rng(seed)
    for variant in variants:
        device.factor = np.exp(generator.normal(0.0, 1.0, device.factor.shape))
        calibration = device.serve(variant, batches=int(generator.integers(1, 200)))
        assert np.isfinite(calibration.factor).all() and (calibration.factor > 0.0).all()
        assert np.isfinite(calibration.deviation).all() and (calibration.deviation >= 0.0).all()
        assert calibration.factor[0, 2] == calibration.device and calibration.deviation[0, 2] == 0.0
