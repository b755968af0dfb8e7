"""The arbiter, against trying every division, and the joint loop."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pipelines import every_configuration, ocr_pipeline, stages

from opd.control.arbiter import Arbiter, CoreValues, best_division, best_within_cores
from opd.control.loop import ApplyError
from opd.control.policies import BacklogPolicy, Policy, SolverPolicy
from opd.control.sharing import Member, StaticSplit, run_together
from opd.measurement import SimulationParameters, idle_observation, score
from opd.objective import Weights
from opd.pipeline import InfeasibleError, Pipeline, ServiceLevel, as_array, as_configuration, used_cores
from opd.planner.lookahead import DROP_PENALTY
from opd.simulator.backend import SimulatedBackend
from opd.solvers.exact import predicted_value, solver_for

QUIET = SimulationParameters(service_noise=0.0)
SMALLEST = stages((0, 1, 1), (0, 1, 1))


def ocr(capacity=8):
    return ocr_pipeline(capacity)


def seen(pipeline, load):
    return replace(idle_observation(pipeline), predicted_load=load, incoming_load=load)


@given(st.lists(st.lists(st.floats(-50, 50), min_size=1, max_size=8), min_size=1, max_size=4), st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_the_division_is_the_best_of_all(curves, capacity):
    arrays = [np.array(curve) for curve in curves]
    places = itertools.product(*(range(len(curve)) for curve in arrays))
    values = [sum(c[w] for c, w in zip(arrays, ws, strict=True)) for ws in places if sum(ws) <= capacity]
    shares = best_division(arrays, capacity)
    assert sum(shares) <= capacity
    assert sum(c[w] for c, w in zip(arrays, shares, strict=True)) == pytest.approx(max(values))


@pytest.mark.parametrize("load", [0.0, 4.0, 9.0, 30.0])
def test_within_any_number_of_cores_the_best_prediction_is_tried(load):
    pipeline, weights = ocr(), Weights()
    tried = best_within_cores(pipeline, solver_for(weights, QUIET), load)

    def best_of(configurations):
        each = [as_configuration(one) for one in configurations]
        predicted = [(used_cores(pipeline, c), predicted_value(pipeline, c, load, weights, QUIET)) for c in each]
        return [max((v for used, v in predicted if used <= w), default=-np.inf) for w in range(9)]

    assert best_of(tried) == pytest.approx(best_of(map(as_array, every_configuration(pipeline))))
    assert (np.diff(used_cores(pipeline, tried)) > 0).all()


class Steady:
    """Futures of one load."""

    def __init__(self, load):
        self.load = load

    def sample(self, history, predicted_load, paths, seconds, generator):
        return np.full((paths, seconds), self.load)


def values_of(load, weights=None, pipeline=None):
    return CoreValues(pipeline or ocr(), weights or Weights(), QUIET, Steady(load))


def test_the_value_of_cores_is_what_the_simulator_then_measures():
    """Also where replicas have to start first, and where a queue grows."""
    backend = SimulatedBackend(ocr(), QUIET, np.full(120, 15), np.full(40, 15), SMALLEST, 0)
    backend.wait(), backend.wait()
    observed = replace(backend.observe(), predicted_load=15.0)
    assert observed.queue.sum() > 10.0
    curve = values_of(15).curve(observed)
    assert (curve[:2] == -np.inf).all()
    load = 15.0 + observed.queue.sum() / 10.0
    for one in best_within_cores(ocr(), solver_for(Weights(), QUIET), load):
        simulator = copy.deepcopy(backend)
        simulator.apply(as_configuration(one))
        measured = [simulator.wait()[1] for _ in range(2)]
        worth = [
            score(ocr(), Weights(), one[None], each, 10.0).reward[0] - DROP_PENALTY * each.dropped[0]
            for each in measured
        ]
        assert curve[int(used_cores(ocr(), one))] == pytest.approx(np.mean(worth), abs=0.3)


def test_cores_go_where_they_are_worth_most_and_all_are_given():
    capacity_matters = Weights(alpha=0.5, gamma=2.0)  # and accuracy hardly does
    observed = [seen(ocr(), 1.0), seen(ocr(), 25.0)]

    def values():
        return [values_of(load, capacity_matters) for load in (1, 25)]

    shares = Arbiter(values(), 10).divide(observed, [2, 2])
    one, other = (each.curve(at) for each, at in zip(values(), observed, strict=True))
    best = max(one[w] + other[10 - w] for w in range(2, 9))
    assert sum(shares) == 10 and one[shares[0]] + other[shares[1]] == pytest.approx(best)


class Known(NamedTuple):
    """Values of cores that are known beforehand."""

    pipeline: Pipeline
    values: list[float]

    def curve(self, observation):
        return np.array([-np.inf, -np.inf, *self.values])


def test_cores_that_are_left_go_where_the_solver_would_still_use_them_and_then_evenly():
    flat, tall = Known(ocr(), [1.0] * 7), Known(ocr(), [5.0, 4.0, 4.0, 4.0, 4.5, 4.5, 4.5])
    both = [seen(ocr(), 1.0)] * 2
    assert [Arbiter([flat, tall], cores).divide(both, [2, 2]) for cores in (5, 8, 10, 20)] == [
        [2, 3], [2, 6], [3, 7], [8, 8]
    ]  # fmt: skip


def test_a_pipeline_that_is_not_seen_keeps_its_cores():
    arbiter = Arbiter([values_of(25), values_of(25)], 10)
    assert arbiter.divide([None, seen(ocr(), 25.0)], [6, 2]) == [6, 4]
    assert arbiter.divide([None, None], [6, 2]) == [6, 2]


def test_a_service_level_has_values_too():
    level = ServiceLevel(1.0, 95.0, accuracy_weight=20.0)
    pipeline = replace(ocr(), service_level=level)
    curve = values_of(9, level, pipeline).curve(seen(pipeline, 9.0))
    assert np.isfinite(curve[2:]).all() and curve[-1] > curve[2]


def test_pipelines_that_do_not_fit_are_refused():
    with pytest.raises(InfeasibleError, match=r"need 4 cores \(ocr 2, ocr 2\), the device has 3"):
        Arbiter([values_of(1), values_of(1)], 3)


# --- the joint loop ---------------------------------------------------------------------------------------------------


class Wanting(Policy):
    """Decides what it was made with, one after the other, and keeps what it saw."""

    def __init__(self, *wanted):
        self.wanted, self.seen = list(wanted), []

    def decide(self, observation):
        self.seen.append(observation)
        return self.wanted.pop(0) if len(self.wanted) > 1 else self.wanted[0]


def member(policy, initial=SMALLEST, counts=(4,) * 60, capacity=8, backend=SimulatedBackend):
    pipeline = ocr(capacity)
    made = backend(pipeline, QUIET, np.full(120, counts[0]), np.array(counts), initial, 0)
    return Member(made, pipeline, policy, lambda history: float(history[-10:].max()), Weights())


WIDE, NARROW = stages((1, 2, 2), (1, 1, 1)), stages((0, 2, 1), (0, 1, 1))
"""Six cores, and three."""


def test_policies_decide_within_their_shares():
    one, other = Wanting(NARROW), Wanting(NARROW)
    steps = list(run_together([member(one), member(other)], StaticSplit((3, 5)), 3))
    assert [len(each) for each in steps] == [2, 2, 2]
    assert {each.available_cores for each in one.seen} == {3.0} and {each.available_cores for each in other.seen} == {
        5.0
    }
    assert [step.outcome for step in steps[0]] == ["applied", "applied"]


def test_more_than_the_share_is_refused_and_what_runs_goes_on():
    (first, second), *_ = run_together([member(Wanting(WIDE)), member(Wanting(NARROW))], StaticSplit((4, 4)), 1)
    assert first.refused == "pipeline 'ocr': the configuration needs 6 cores, the device has 4"
    assert first.configuration == SMALLEST and second.configuration == NARROW


def test_cores_change_hands_within_one_interval():
    """The first gives three back, which the second takes: at no time do both have them."""
    steps = list(run_together([member(Wanting(NARROW), WIDE), member(Wanting(WIDE), NARROW)], StaticSplit((3, 6)), 1))
    assert [step.configuration for step in steps[0]] == [NARROW, WIDE]


def test_cores_that_did_not_come_back_are_not_taken():
    class Stuck(SimulatedBackend):
        def apply(self, configuration):
            if configuration != self.configuration:
                raise ApplyError("it does not end")

    members = [member(Wanting(NARROW), WIDE, backend=Stuck), member(Wanting(WIDE), NARROW)]
    for first, second in run_together(members, StaticSplit((3, 6)), 2):
        assert first.refused == "it does not end" and first.configuration == WIDE
        assert "needs 6 cores, the device has 3" in second.refused and second.configuration == NARROW


def test_a_policy_that_fails_or_confuses_ends_nobodys_loop():
    class Failing(Wanting):
        def decide(self, observation):
            raise ZeroDivisionError("a bug")

    none = stages((7, 1, 1), (0, 1, 1))
    members = [member(Failing(NARROW)), member(Wanting(none)), member(Wanting(NARROW))]
    ((first, second, third),) = run_together(members, StaticSplit((4, 4, 4)), 1)
    assert "ZeroDivisionError: a bug" in first.refused and "variant index 7" in second.refused
    assert third.outcome == "applied"


def test_an_arbiter_keeps_the_capacity_and_beats_an_even_split():
    """Loads that take turns: what one does not need, the other gets."""
    low, high = (2,) * 120, (16,) * 120

    def rewards(arbiter):
        members = [
            member(BacklogPolicy(SolverPolicy(ocr(), solver_for(Weights(), QUIET)), 10), counts=counts)
            for counts in (low + high, high + low)
        ]
        steps = list(run_together(members, arbiter, 24))
        assert all(sum(used_cores(ocr(), each.configuration) for each in both) <= 10 for both in steps)
        return np.array([sum(step.score.reward[0] for step in both) for both in steps])

    divided = rewards(Arbiter([CoreValues(ocr(), Weights(), QUIET)] * 2, 10))
    assert divided.mean() > rewards(StaticSplit((5, 5))).mean()
