"""Conditions along the four axes: known answers of what they change, and that they change nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_pipelines import ocr_pipeline
from small_study import CYCLE, setting_on, waves

from opd.control.policies import Policy
from opd.measurement import idle_observation
from opd.profiling.attainable import attainable_load
from opd.study.analysis.conditions import (
    AXES,
    NO_FORECAST,
    SMOOTHED_SECONDS,
    Case,
    LastInterval,
    PartlyTrue,
    ToldPolicy,
    amplified_counts,
    forecast_error,
    moving_mean,
    run_case,
    whole_counts,
    with_bursts,
    with_forecast,
    with_peak,
    with_startup,
)
from opd.study.evaluation.cycles import cycle_summary
from opd.workload.forecast import RecentMaximum
from opd.workload.trace import cycle_counts

USUAL = Case(setting_on(waves(), {}), ocr_pipeline(), CYCLE)


class Same:
    """Futures that are always alike: 4 requests in every second."""

    def predict(self, history: np.ndarray) -> float:
        return 4.0

    @property
    def futures(self) -> Same:
        return self

    def sample(self, history, predicted_load, paths, seconds, generator) -> np.ndarray:
        return np.full((paths, seconds), 4)

    def quantiles(self, history, predicted_load) -> np.ndarray:
        return np.full((6, 7), 4.0)


# ------------------------------------------------------------------------------------------------------- start-up time


def test_the_slowest_variant_takes_the_time_and_ratios_stay():
    changed = with_startup(USUAL, 30.0)
    before, after = (case.pipeline.tables.startup_time for case in (USUAL, changed))
    known = np.isfinite(before)
    assert after[known].max() == pytest.approx(30.0)
    np.testing.assert_allclose(after[known] / before[known], 30.0 / before[known].max())
    assert changed._replace(pipeline=USUAL.pipeline) == USUAL


# ------------------------------------------------------------------------------------------------------------ forecast


def test_without_a_forecast_the_last_interval_is_expected():
    changed = with_forecast(USUAL, NO_FORECAST)
    forecaster = changed.setting.forecaster
    assert isinstance(forecaster, LastInterval)
    assert forecaster.predict(np.array([100] * 30 + [2, 4] * 5)) == 3.0
    assert forecaster.predict(np.zeros(0)) == 0.0
    assert replace(changed.setting, forecaster=USUAL.setting.forecaster) == USUAL.setting
    assert with_forecast(USUAL, 0.0) == USUAL


def test_a_quarter_of_the_truth_moves_forecast_futures_and_quantiles_by_a_quarter():
    forecaster, generator = PartlyTrue(Same(), 0.25), np.random.default_rng(0)
    forecaster.coming = np.repeat([8, 12], 10)
    drawn = forecaster.sample(np.zeros(9), 0.0, 3, 20, generator)
    np.testing.assert_array_equal(drawn, np.tile(np.repeat([5, 6], 10), (3, 1)))
    expected = [5.0, 6.0, 6.0, 6.0, 6.0, 6.0]  # after the end of the workload its last second is repeated
    np.testing.assert_allclose(forecaster.quantiles(np.zeros(9), 0.0), np.tile(expected, (7, 1)).T)
    assert forecaster.predict(np.zeros(9)) == 4.0


class Noting(Policy):
    """Keeps what it was told and what runs."""

    fallback = True

    def __init__(self):
        self.loads = []

    def decide(self, observation):
        self.loads.append(observation.predicted_load)
        return observation.configuration


def test_a_policy_is_told_the_load_between_forecast_and_truth():
    policy, forecaster = Noting(), PartlyTrue(Same(), 0.5)
    told, seen = ToldPolicy(policy, forecaster), idle_observation(USUAL.pipeline)
    coming = np.array([3, 10, 1])
    seen = replace(seen, predicted_load=4.0, coming_load=10.0, coming_counts=coming)
    assert told.decide(seen) == seen.configuration
    assert policy.loads == [7.0] and told.fallback
    np.testing.assert_array_equal(forecaster.coming, coming)


def test_with_the_truth_a_myopic_policy_decides_like_the_clairvoyant_one():
    true = run_case(with_forecast(USUAL, 1.0), "myopic", 0)
    known = run_case(USUAL, "clairvoyant", 0)
    assert [step.configuration for step in true] == [step.configuration for step in known]
    assert cycle_summary(true)["reward"] == cycle_summary(known)["reward"]


@pytest.mark.parametrize("policy", ["lookahead", "agent"])
def test_policies_with_futures_run_on_the_truth(policy: str):
    """The futures of the truth have no spread at all."""
    short = with_forecast(USUAL, 1.0)
    forecaster = PartlyTrue(short.setting.forecaster, 1.0)
    told = replace(short.setting, forecaster=forecaster)  # type: ignore[arg-type]
    decider = ToldPolicy(told.policy(policy, short.pipeline, 0), forecaster)
    counts = cycle_counts(short.setting.trace, CYCLE)
    seen = replace(
        idle_observation(short.pipeline),
        history=counts[:120],
        coming_load=9.0,
        coming_counts=counts[120:],
        incoming_load=8.0,
    )
    decided = decider.decide(seen)
    assert len(decided) == len(short.pipeline.tasks) and not decider.fallback


def test_the_error_of_a_forecast_by_hand():
    steps = run_case(USUAL, "greedy", 0)
    known = [(step.observation.predicted_load, step.observation.coming_load) for step in steps]
    guessed, came = np.array(known).T
    assert forecast_error(steps) == pytest.approx(100.0 * np.abs(guessed - came).mean() / came.mean())
    assert forecast_error(run_case(USUAL, "greedy", 0)[:1]) == pytest.approx(
        100.0 * abs(guessed[0] - came[0]) / came[0]
    )


# ------------------------------------------------------------------------------------------------------------ capacity


@pytest.mark.parametrize("share", [0.3, 1.1])
def test_the_busiest_interval_is_the_share_of_what_the_device_carries(share: float):
    changed = with_peak(USUAL, share)
    busiest = cycle_counts(changed.setting.trace, CYCLE).reshape(-1, 10).mean(axis=1).max()
    carried = attainable_load(USUAL.pipeline, 1e9)
    assert busiest == pytest.approx(share * carried, abs=0.1)  # one request in ten seconds
    assert changed.pipeline == USUAL.pipeline
    factor = busiest / cycle_counts(USUAL.setting.trace, CYCLE).reshape(-1, 10).mean(axis=1).max()
    assert changed.setting.usual_load == pytest.approx(factor * USUAL.setting.usual_load, rel=0.01)


def test_the_forecast_is_in_the_scale_of_the_load():
    changed = with_peak(USUAL, 0.7)
    assert isinstance(USUAL.setting.forecaster, RecentMaximum)
    counts = cycle_counts(changed.setting.trace, CYCLE)
    assert changed.setting.forecaster.predict(counts) == pytest.approx(counts[-20:].max())


def test_a_cycle_without_requests_stays_one():
    trace = USUAL.setting.trace
    empty = replace(trace, recorded=np.where(trace.raw_index < 15_000, trace.recorded, 0))
    changed = with_peak(USUAL._replace(setting=replace(USUAL.setting, trace=empty)), 0.5)
    assert not cycle_counts(changed.setting.trace, CYCLE).any()


# -------------------------------------------------------------------------------------------------------------- bursts


def test_the_moving_mean_by_hand():
    np.testing.assert_allclose(moving_mean(np.array([1.0, 2.0, 6.0, 3.0]), 2), [1.5, 3.0, 11.0 / 3.0, 4.5])
    np.testing.assert_allclose(moving_mean(np.full(50, 7.0), 20), 7.0)


def test_whole_counts_by_hand():
    assert whole_counts(np.full(8, 0.5)).tolist() == [0, 1, 1, 0, 0, 1, 1, 0]  # halves round to even
    assert whole_counts(np.array([3.0, 0.0, 2.0])).tolist() == [3, 0, 2]


def test_sums_of_whole_counts_are_never_off_by_more_than_half_a_request():
    rates = np.random.default_rng(0).uniform(0.0, 3.0, 5000)
    counts = whole_counts(rates)
    assert counts.min() >= 0
    assert np.abs(np.cumsum(counts) - np.cumsum(rates)).max() <= 0.5


def bursty() -> np.ndarray:
    """Six hours of 5 requests/s, and 20 for a minute in every twenty."""
    seconds = np.arange(6 * 3600)
    return np.where(seconds % 1200 < 60, 20, 5)


def amplified(counts: np.ndarray, factor: float) -> np.ndarray:
    return amplified_counts(counts, factor, slice(None))


def test_unchanged_bursts_are_the_same_load():
    counts = USUAL.setting.trace.counts
    np.testing.assert_array_equal(amplified(counts, 1.0), counts)
    np.testing.assert_array_equal(with_bursts(USUAL, 1.0).setting.trace.counts, counts)


def test_without_bursts_the_load_is_its_moving_mean():
    counts, level = amplified(bursty(), 0.0), moving_mean(bursty(), SMOOTHED_SECONDS)
    assert np.abs(counts - level).max() <= 1.1  # rounding, and what the ends lose
    assert np.abs(np.cumsum(counts) - np.cumsum(level)).max() < 0.02 * counts.sum()


def test_bursts_depart_twice_as_far_by_hand():
    """9 in a minute of every twenty, otherwise 8: nothing is cut off, and the moving mean in a burst is 8.1."""
    seconds = np.arange(6 * 3600)
    counts = np.where(seconds % 1200 < 60, 9, 8)
    changed = amplified(counts, 2.0)
    burst = (seconds % 1200 == 30) & (seconds > 1200) & (seconds < 20_000)
    quiet = (seconds % 1200 == 700) & (seconds > 1200) & (seconds < 20_000)
    assert changed[burst].mean() == pytest.approx(9.9, abs=0.2)
    assert changed[quiet].mean() == pytest.approx(8.0, abs=0.2)


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0, 4.0])
def test_the_mean_of_the_cycle_stays_and_the_load_before_it_changes_as_well(factor: float):
    changed = with_bursts(USUAL, factor).setting.trace
    before, after = cycle_counts(USUAL.setting.trace, CYCLE), cycle_counts(changed, CYCLE)
    assert after.min() >= 0
    assert after.mean() == pytest.approx(before.mean(), abs=1.0 / len(after))
    assert (changed.counts[: CYCLE.start] != USUAL.setting.trace.counts[: CYCLE.start]).mean() > 0.5


def test_more_bursts_vary_more():
    deviations = [amplified(bursty(), factor).std() for factor in (0.0, 0.5, 1.0, 2.0)]
    assert deviations == sorted(deviations) and deviations[0] < 0.6 * deviations[2]


def test_a_load_without_requests_has_no_bursts():
    assert not amplified(np.zeros(2000, dtype=np.int64), 3.0).any()


# ---------------------------------------------------------------------------------------------------------------- axes


def test_values_are_named():
    assert AXES["forecast"].name(NO_FORECAST) == "none"
    assert AXES["forecast"].name(0.5) == "0.5"
    assert AXES["start-up"].name(10.0) == "10"
