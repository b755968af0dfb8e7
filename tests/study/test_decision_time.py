"""Decision times under a clock that is set by hand: who is timed when, and which figures follow."""

from __future__ import annotations

import numpy as np
import pytest

from opd.pipeline import Pipeline
from opd.profiling.synthetic import synthetic_pipeline
from opd.solvers import IpaParameters
from opd.study.evaluation import decision_time
from opd.study.evaluation.decision_time import (
    Decided,
    measure_decision_times,
    observations,
    take_turns,
    time_summary,
)

DECISIONS = 5
COUNTS = np.arange(120 + 10 * DECISIONS)


class Clock:
    """Stands still but for what is set on it, in milliseconds; it also keeps who decided, in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self.decided: list[str] = []

    def __call__(self) -> float:
        return self.now / 1e3


class Forecast:
    """The newest count, after a millisecond."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def predict(self, history: np.ndarray) -> float:
        self.clock.now += 1.0
        return float(history[-1])


class Steady:
    """Decides in the same time always, but for one call in which the machine stalls."""

    def __init__(self, clock: Clock, pipeline: Pipeline, name: str, milliseconds: float, stalls_at: int = -1) -> None:
        self.clock, self.pipeline, self.name = clock, pipeline, name
        self.milliseconds, self.stalls_at, self.calls = milliseconds, stalls_at, 0

    def decide(self, observation):
        self.clock.now += 500.0 if self.calls == self.stalls_at else self.milliseconds
        self.clock.decided.append(self.name)
        self.calls += 1
        return self.pipeline.smallest_configuration()


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(decision_time, "perf_counter", clock)
    return clock


def test_policies_take_turns_and_forecasts_are_timed_apart(clock):
    pipeline = synthetic_pipeline(2, 2, 0)
    policies = {name: Steady(clock, pipeline, name, took) for name, took in (("one", 2.0), ("two", 4.0))}
    cycles = take_turns(policies, observations(pipeline, COUNTS, DECISIONS), Forecast(clock), 2)
    assert clock.decided == 2 * ["one", *DECISIONS * ["one"], "two", *DECISIONS * ["two"]], "one more to warm up"
    assert [len(each) for each in cycles.values()] == [2, 2]
    for name, took in (("one", 2.0), ("two", 4.0)):
        for cycle in cycles[name]:
            np.testing.assert_allclose(cycle.forecast_ms, np.full(DECISIONS, 1.0))
            np.testing.assert_allclose(cycle.decision_ms, np.full(DECISIONS, took))
            np.testing.assert_array_equal(cycle.loads, 119 + 10 * np.arange(DECISIONS))
            assert cycle.chosen == DECISIONS * [pipeline.smallest_configuration()]


def test_the_planner_is_timed_in_one_cycle_only(clock):
    pipeline = synthetic_pipeline(2, 2, 0)
    policies = {name: Steady(clock, pipeline, name, 2.0) for name in ("agent", "lookahead")}
    cycles = take_turns(policies, observations(pipeline, COUNTS, DECISIONS), Forecast(clock), 3)
    assert {name: len(each) for name, each in cycles.items()} == {"agent": 3, "lookahead": 1}


def test_a_stall_of_the_machine_is_in_no_total(clock, monkeypatch):
    def policies(pipeline, ipa, forecaster, seed):
        # Its second cycle is of calls 6 to 11, of which the first is to warm up.
        return {"quick": Steady(clock, pipeline, "quick", 2.0), "stalled": Steady(clock, pipeline, "stalled", 3.0, 8)}

    monkeypatch.setattr(decision_time, "policies", policies)
    table = measure_decision_times(COUNTS, Forecast(clock), IpaParameters(), [(2, 2)], DECISIONS)
    assert table.columns.tolist() == ["stages", "variants", "policy", "median_ms", "p99_ms", "total_ms"]
    quick, stalled = table.to_dict("records")
    assert quick == {"stages": 2, "variants": 2, "policy": "quick"} | {
        "median_ms": pytest.approx(3.0), "p99_ms": pytest.approx(3.0), "total_ms": pytest.approx(15.0)
    }  # fmt: skip
    assert stalled["median_ms"] == pytest.approx(4.0) and stalled["total_ms"] == pytest.approx(20.0)
    assert stalled["p99_ms"] > 400.0, "the tail does show it"


def test_figures_are_of_all_decisions_and_the_total_of_the_median_cycle():
    """Forecasts of 1 ms before decisions of 0 to 100, 101 to 201 and 202 to 302 ms."""
    forecast_ms = np.ones(101)
    cycles = [Decided(forecast_ms, start + np.arange(101.0), forecast_ms, []) for start in (202, 0, 101)]
    figures = time_summary(cycles)
    assert figures == pytest.approx({"median_ms": 152.0, "p99_ms": 1 + 0.99 * 302, "total_ms": 101 * 152.0})
