"""Pipelines with scaled latencies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_pipelines import ocr_pipeline

from opd.profiling.calibrated import SLOPE_STEP, STEP, calibrated_pipeline

PIPELINE = ocr_pipeline()
SHAPE = PIPELINE.tables.cores.shape


def test_latencies_are_scaled_by_factor_and_slope_and_nothing_else_changes():
    factor, slope = np.ones(SHAPE), np.zeros(SHAPE)
    factor[0, 1], slope[0, 1] = 1.5, 0.1
    calibrated = calibrated_pipeline(PIPELINE, factor, slope)
    small, large = calibrated.tasks[0].variants
    assert small.latency == PIPELINE.tasks[0].variants[0].latency
    assert large.latency == pytest.approx({1: 0.2 * 1.5, 2: 0.4 * 1.5 * 2**0.1}, rel=STEP / 2)
    assert (large.accuracy, large.cores, large.startup_time) == (0.75, 2, 2.0)
    assert calibrated.tasks[1].variants == PIPELINE.tasks[1].variants
    assert (calibrated.capacity, calibrated.service_level) == (PIPELINE.capacity, PIPELINE.service_level)


@given(st.floats(0.05, 20.0), st.floats(-0.3, 0.3))
def test_factors_are_rounded_to_less_than_a_percent(factor, slope):
    calibrated = calibrated_pipeline(PIPELINE, np.full(SHAPE, factor), np.full(SHAPE, slope))
    expected = PIPELINE.tables.service_time[0, 0, 1:] * factor * np.arange(1, 3) ** slope
    tolerance = (STEP + SLOPE_STEP * np.log(2)) / 2
    np.testing.assert_allclose(calibrated.tables.service_time[0, 0, 1:], expected, rtol=tolerance + 1e-4)


def test_equal_steps_give_the_same_pipeline_so_that_its_tables_are_computed_once():
    once = calibrated_pipeline(PIPELINE, np.full(SHAPE, 1.2))
    assert calibrated_pipeline(PIPELINE, np.full(SHAPE, 1.2 * (1 + STEP / 4))) is once
    assert calibrated_pipeline(PIPELINE, np.full(SHAPE, 1.2 * (1 + 2 * STEP))) is not once
    assert calibrated_pipeline(PIPELINE, np.full(SHAPE, 1.0 + STEP / 4)) is PIPELINE
    other = ocr_pipeline(capacity=6)
    assert calibrated_pipeline(other, np.full(SHAPE, 1.2)).capacity == 6


@pytest.mark.parametrize("factor", [0.0, -1.0, np.nan, np.inf])
def test_a_factor_that_is_none_is_refused(factor):
    with pytest.raises(ValueError, match="must be positive and finite"):
        calibrated_pipeline(PIPELINE, np.full(SHAPE, factor))
