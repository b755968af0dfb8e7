"""Devices that are not as profiled, and policies that learn it or are told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_pipelines import ocr_pipeline
from small_study import CYCLE, setting_on, waves

from opd.control.policies import Policy
from opd.study.analysis.devices import (
    DEVICES,
    DRIFT,
    SLOW_VARIANT,
    InformedPolicy,
    device_with,
    one_slow,
    ramp,
    random,
    step,
    with_latency_factors,
    with_startup_factor,
)
from opd.study.evaluation.cycles import run_cycle
from opd.workload.trace import Cycle

LATER = Cycle("later", 17_000)


@pytest.fixture(scope="module")
def setting():
    return setting_on(waves(), {})


def test_a_factor_is_on_every_latency_of_its_variant_and_on_nothing_else():
    known = ocr_pipeline()
    factors = np.array([[1.2, 0.5, 9.0], [1.0, 2.0, 3.0]])  # detection has two variants
    real = with_latency_factors(known, factors)
    for n, (before, after) in enumerate(zip(known.tasks, real.tasks, strict=True)):
        for z, (old, new) in enumerate(zip(before.variants, after.variants, strict=True)):
            assert new.latency == {size: factors[n, z] * seconds for size, seconds in old.latency.items()}
            assert replace(new, latency=old.latency) == old
    assert replace(real, tasks=known.tasks) == known


@pytest.mark.parametrize("factor", [0.0, 3.0])
def test_a_factor_is_on_every_startup_time_and_on_nothing_else(factor):
    known = ocr_pipeline()
    real = with_startup_factor(known, factor)
    for before, after in zip(known.tasks, real.tasks, strict=True):
        for old, new in zip(before.variants, after.variants, strict=True):
            assert new.startup_time == factor * old.startup_time
            assert replace(new, startup_time=old.startup_time) == old
    assert replace(real, tasks=known.tasks) == known


def test_drawn_devices_are_the_same_for_a_cycle_and_seed_and_only_then(setting):
    known = ocr_pipeline()

    def factors(cycle, seed, pipeline=known):
        drawn = random(setting, pipeline, cycle, seed)
        np.testing.assert_array_equal(drawn(0.0), drawn(1200.0))
        return drawn(0.0)[np.isfinite(pipeline.tables.cores)].tolist()

    one = factors(CYCLE, 0)
    assert one == factors(CYCLE, 0)
    assert all(0.8 <= factor <= 1.2 for factor in one) and len(set(one)) == 5
    others = factors(CYCLE, 1), factors(LATER, 0), factors(CYCLE, 0, replace(known, name="another"))
    assert all(not set(one) & set(other) for other in others)


def test_the_one_slow_variant_is_one_that_runs(setting):
    pipeline = ocr_pipeline()
    factors = one_slow(setting, pipeline, CYCLE, 0)(600.0)
    (place,) = np.argwhere(factors != 1.0)
    assert factors[tuple(place)] == SLOW_VARIANT
    steps = run_cycle(pipeline, setting.policy("myopic", pipeline, 0), CYCLE, 0, setting)
    assert place[1] in {each.configuration[place[0]].variant for each in steps}


def test_devices_drift_in_steps_and_ramps(setting):
    def at(draw, *seconds):
        factors = draw(setting, ocr_pipeline(), CYCLE, 0)
        return [float(factors(second).max()) for second in seconds]

    assert at(step, 0.0, 390.0, 400.0, 790.0, 800.0) == [1.0, 1.0, 1.0 + DRIFT, 1.0 + DRIFT, 1.0]
    assert at(ramp, 0.0, 600.0, 1200.0) == pytest.approx([1.0, 1.0 + DRIFT / 2, 1.0 + DRIFT])


def test_the_simulated_device_changes_when_its_factors_do(setting):
    pipeline = ocr_pipeline()
    device = device_with(pipeline, step(setting, pipeline, CYCLE, 0))
    assert device(0.0) is device(900.0)
    steps = run_cycle(pipeline, setting.policy("greedy", pipeline, 0), CYCLE, 0, setting, device)
    taken = np.array([each.interval.busy[0].sum() for each in steps])
    profiled = [np.nansum(each.interval.batches[0] * _finite(pipeline.tables.service_time)) for each in steps]
    ratio = (taken / profiled).reshape(3, 40).mean(axis=1)
    assert ratio == pytest.approx([1.0, 1.0 + DRIFT, 1.0], rel=0.01)


def _finite(times):
    return np.where(np.isfinite(times), times, 0.0)


class Recording(Policy):
    """Remembers what it was told and keeps what runs."""

    def __init__(self):
        self.told = []

    def decide(self, observation):
        self.told.append(observation.calibration)
        return observation.configuration


@pytest.mark.parametrize("name", ["20 % slower", "40 % slower for a third of the cycle", "one variant 50 % slower"])
def test_calibration_finds_what_an_informed_policy_is_told(setting, name):
    pipeline = ocr_pipeline()
    factors = DEVICES[name](setting, pipeline, CYCLE, 0)
    told, found = Recording(), Recording()
    device = device_with(pipeline, factors)
    run_cycle(pipeline, InformedPolicy(told, factors, setting.simulation.interval), CYCLE, 0, setting, device)
    steps = run_cycle(pipeline, found, CYCLE, 0, replace(setting, calibration=True), device)
    truth = np.array([[each.factor[n, 0] for n in range(2)] for each in told.told])
    measured = np.array([[each.factor[n, 0] for n in range(2)] for each in found.told])
    assert {stage.variant for each in steps for stage in each.configuration} == {0}
    settled = np.delete(np.arange(120), [*range(6), *range(40, 46), *range(80, 86)])
    assert np.abs(measured / truth - 1.0)[settled].max() < 0.05


def test_without_calibration_nothing_is_told(setting):
    policy = Recording()
    run_cycle(ocr_pipeline(), policy, CYCLE, 0, setting)
    assert policy.told == [None] * 120
