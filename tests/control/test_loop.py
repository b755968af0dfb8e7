"""The guard, and the control loop (Alg. 1) on the simulated backend."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_agents import ThriftyAgent, agent_for, trained_with
from small_pipelines import ocr_pipeline, pipelines, stages, varying_workload, within_limits

from opd.agent.single.deployed import Agent
from opd.control import loop as control
from opd.control.factory import agent_policy
from opd.control.loop import ApplyError, Guard, NoRequestsError, ObservationError, run
from opd.control.policies import TRAINED_LOAD_SHARE, Policy, SingleAgentPolicy, SolverPolicy
from opd.measurement import SimulationParameters
from opd.objective import Weights
from opd.pipeline import InfeasibleError, as_array
from opd.profiling.calibrated import calibrated_pipeline
from opd.simulator.backend import SimulatedBackend
from opd.simulator.environment import PipelineVectorEnv
from opd.solvers import greedy

WEIGHTS = Weights()
QUIET = SimulationParameters(service_noise=0.0)


SMALLEST = stages((0, 1, 1), (0, 1, 1))
GOOD = stages((1, 2, 1), (0, 2, 2))
TOO_LARGE = stages((1, 2, 1), (2, 2, 1))


def backend_for(pipeline=None, counts=None, history=None, configuration=SMALLEST, seed=0, kind=SimulatedBackend):
    counts = varying_workload().counts[:300] if counts is None else counts
    history = np.arange(120) if history is None else history
    return kind(pipeline or ocr_pipeline(), QUIET, history, counts, configuration, seed)


class Scripted(Policy):
    """A policy that says what it was told to say."""

    def __init__(self, *script):
        self.script = list(script)
        self.seen = []

    def decide(self, observation):
        self.seen.append(observation)
        return self.script.pop(0)


def last_count(history):
    return float(history[-1])


def loop(backend, policy, decisions, pipeline=None, forecast=last_count):
    return list(run(backend, pipeline or ocr_pipeline(), policy, forecast, WEIGHTS, decisions))


# --- the guard -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "cores", "reason"),
    [
        (TOO_LARGE, 8.0, "needs 12 cores, the device has 8"),
        (GOOD, 5.5, "needs 6 cores, the device has 5"),
        (SMALLEST, 1.0, "capacity 1 cores is too small for any configuration"),
        (stages((2, 1, 1), (0, 1, 1)), 8.0, "task 'detection': variant index 2"),
        (stages((0, 1, 1), (3, 1, 1)), 8.0, "task 'recognition': variant index 3"),
        (stages((0, 4, 1), (0, 1, 1)), 8.0, "task 'detection': 4 replicas"),
        (stages((0, 0, 1), (0, 1, 1)), 8.0, "task 'detection': 0 replicas"),
        (stages((0, 1, 3), (0, 1, 1)), 8.0, "task 'detection': batch size 3"),
        (stages((0, 1, 1)), 8.0, "has 2 tasks, the configuration 1"),
        (stages((0, 1.5, 1), (0, 1, 1)), 8.0, "1.5"),
        (GOOD, float("nan"), "nan"),
    ],
)
def test_the_guard_refuses_with_a_reason_and_keeps_the_last_good_configuration(wanted, cores, reason):
    guard = Guard(ocr_pipeline(), SMALLEST)
    assert guard.admit(stages((0, 2, 1), (0, 1, 1)), 8.0) == ""
    assert reason in guard.admit(wanted, cores)
    assert guard.configuration == stages((0, 2, 1), (0, 1, 1))


def test_the_guard_admits_up_to_the_last_core():
    guard = Guard(ocr_pipeline(), SMALLEST)
    assert guard.admit(GOOD, 6.0) == ""
    assert guard.configuration == GOOD


def test_a_guard_over_something_that_is_already_too_large_is_refused():
    with pytest.raises(InfeasibleError, match="needs 12 cores, the device has 8"):
        Guard(ocr_pipeline(), TOO_LARGE)


@given(pipelines(), st.data())
def test_the_guard_admits_exactly_what_eq_4_allows(pipeline, data):
    guard = Guard(pipeline, pipeline.smallest_configuration())
    entry = st.tuples(st.integers(-1, 4), st.integers(0, 5), st.sampled_from([0, 1, 2, 3, 4, 8, 16]))
    for _ in range(3):
        before = guard.configuration
        wanted = stages(*data.draw(st.tuples(*(entry for _ in pipeline.tasks))))
        cores = data.draw(st.floats(0.0, pipeline.capacity))
        reason = guard.admit(wanted, cores)
        assert (reason == "") == within_limits(pipeline, wanted, cores)
        assert guard.configuration == (before if reason else wanted)


# --- the loop --------------------------------------------------------------------------------------------------------


def test_the_loop_makes_the_calls_of_alg_1_in_order():
    calls: list[object] = []

    class Recording(SimulatedBackend):
        def observe(self):
            calls.append("observe")
            return super().observe()

        def apply(self, configuration):
            calls.append(("apply", configuration))
            super().apply(configuration)

        def wait(self):
            calls.append("wait")
            return super().wait()

    class Deciding(Scripted):
        def decide(self, observation):
            calls.append(("decide", observation.predicted_load))
            return super().decide(observation)

    def forecast(history):
        calls.append("forecast")
        return 7.0

    steps = run(backend_for(kind=Recording), ocr_pipeline(), Deciding(GOOD, TOO_LARGE, SMALLEST), forecast, WEIGHTS, 3)
    assert calls == []  # nothing happens before the first step is asked for
    list(steps)
    assert calls == [
        *("observe", "forecast", ("decide", 7.0), ("apply", GOOD), "wait"),
        *("observe", "forecast", ("decide", 7.0), ("apply", GOOD), "wait"),
        *("observe", "forecast", ("decide", 7.0), ("apply", SMALLEST), "wait"),
    ]


def test_the_loop_tells_the_policy_what_service_times_say_of_the_profiles():
    pipeline = ocr_pipeline()
    slower = calibrated_pipeline(pipeline, np.full(pipeline.tables.cores.shape, 1.3))
    counts, policies = varying_workload().counts[:300], (Scripted(*[SMALLEST] * 8), Scripted(*[SMALLEST] * 8))
    for calibrate, policy in zip((True, False), policies, strict=True):
        backend = SimulatedBackend(pipeline, QUIET, np.arange(120), counts, SMALLEST, 0, lambda seconds: slower)
        steps = list(run(backend, pipeline, policy, last_count, WEIGHTS, 8, calibrate))
        assert [step.observation.calibration for step in steps] == [seen.calibration for seen in policy.seen]
    told, untold = ([seen.calibration for seen in policy.seen] for policy in policies)
    assert untold == [None] * 8
    assert (told[0].factor == 1.0).all()
    assert told[-1].factor[:, 0] == pytest.approx(1.3, rel=0.03)


class Blind(SimulatedBackend):
    """Cannot be seen at its second decision, and cannot run GOOD at its third."""

    looks = 0

    def observe(self):
        self.looks += 1
        if self.looks == 2:
            raise ObservationError("no sample of the last 5 s")
        return super().observe()

    def apply(self, configuration):
        if self.looks == 3:
            raise ApplyError("variant 'large' did not start")
        super().apply(configuration)


def test_without_an_observation_the_last_good_configuration_stays_and_the_loop_recovers():
    steps = loop(backend_for(kind=Blind), Scripted(GOOD, SMALLEST, SMALLEST), 2)
    assert [step.configuration for step in steps] == [GOOD, GOOD]
    assert steps[1].refused == "no decision: no sample of the last 5 s"
    assert np.isnan(steps[1].predicted_load) and not np.isnan(steps[1].score.reward[0])


def test_until_the_first_request_the_configuration_stays_and_nothing_is_refused():
    class Waiting(SimulatedBackend):
        def observe(self):
            if self._now < 140:
                raise NoRequestsError("no request has arrived yet")
            return super().observe()

    policy = Scripted(GOOD)
    steps = loop(backend_for(kind=Waiting), policy, 3)
    assert [step.configuration for step in steps] == [SMALLEST, SMALLEST, GOOD]
    assert [step.idle for step in steps] == [True, True, False] and len(policy.seen) == 1
    assert not any(step.refused for step in steps) and np.isnan(steps[0].predicted_load)


def test_a_configuration_that_does_not_come_up_is_taken_back_and_may_be_tried_again():
    steps = loop(backend_for(kind=Blind), Scripted(SMALLEST, GOOD, GOOD), 4)
    assert [step.configuration for step in steps] == [SMALLEST, SMALLEST, SMALLEST, GOOD]
    assert [step.refused for step in steps][2:] == ["variant 'large' did not start", ""]


def test_a_refused_decision_is_recorded_and_what_ran_is_scored():
    steps = loop(backend_for(), Scripted(GOOD, TOO_LARGE, SMALLEST), 3)
    assert [step.configuration for step in steps] == [GOOD, GOOD, SMALLEST]
    assert [bool(step.refused) for step in steps] == [False, True, False]
    assert "needs 12 cores, the device has 8" in steps[1].refused
    assert [step.score.cost.tolist() for step in steps] == [[6.0], [6.0], [2.0]]
    assert [step.score.accuracy.tolist() for step in steps] == [[1.375], [1.375], [1.125]]


def test_cores_that_are_taken_away_are_respected_at_once():
    class Shrinking(SimulatedBackend):
        def observe(self):
            return replace(super().observe(), available_cores=8.0 if self._now < 140 else 5.0)

    steps = loop(backend_for(kind=Shrinking), Scripted(GOOD, SMALLEST, GOOD), 3)
    assert [step.configuration for step in steps] == [GOOD, SMALLEST, SMALLEST]
    assert "needs 6 cores, the device has 5" in steps[2].refused


@pytest.mark.parametrize(
    "policy",
    [SolverPolicy(ocr_pipeline(), greedy), SingleAgentPolicy(agent_for(ocr_pipeline()))],
    ids=["solver", "agent"],
)
def test_where_nothing_fits_the_cores_that_are_left_what_runs_goes_on(policy):
    class Crowded(SimulatedBackend):
        def observe(self):
            return replace(super().observe(), available_cores=1.0)

    (step,) = loop(backend_for(kind=Crowded), policy, 1)
    assert step.configuration == SMALLEST
    assert "too " in step.refused and "for any configuration" in step.refused


def test_decision_time_is_that_of_forecast_and_policy(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(control, "perf_counter", lambda: clock[0])

    def spend(seconds, value=None):
        clock[0] += seconds
        return value

    class Slow(SimulatedBackend):
        def observe(self):
            return spend(100.0, super().observe())

        def apply(self, configuration):
            spend(200.0, super().apply(configuration))

        def wait(self):
            return spend(300.0, super().wait())

    class Thoughtful(Scripted):
        def decide(self, observation):
            return spend(0.5, super().decide(observation))

    steps = loop(backend_for(kind=Slow), Thoughtful(GOOD, SMALLEST), 2, forecast=lambda history: spend(0.25, 5.0))
    assert [step.decision_seconds for step in steps] == [0.75, 0.75]


def test_the_forecast_sees_the_recent_history_and_the_policy_the_forecast():
    counts = varying_workload().counts[:300]
    policy, seen = Scripted(*[SMALLEST] * 15), []

    def forecast(history):
        seen.append(history)
        return float(history.max())

    steps = loop(backend_for(counts=counts, history=np.arange(35)), policy, 15, forecast=forecast)
    everything = np.concatenate([np.arange(35), counts])
    for number, history in enumerate(seen):
        now = 35 + 10 * number
        np.testing.assert_array_equal(history, everything[max(0, now - 120) : now])
        assert steps[number].predicted_load == policy.seen[number].predicted_load == history.max()


@pytest.mark.parametrize("said", [np.nan, np.inf, -1.0, KeyError("weights")], ids=str)
def test_where_the_forecast_fails_the_largest_recent_load_takes_its_place(said):
    counts = varying_workload().counts[:300]
    policy, answers = Scripted(SMALLEST, SMALLEST, SMALLEST), [7.0, said, 8.0]

    def forecast(history):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    first, broken, last = loop(backend_for(counts=counts), policy, 3, forecast=forecast)
    everything = np.concatenate([np.arange(120), counts])
    assert [seen.predicted_load for seen in policy.seen] == [7.0, everything[110:130].max(), 8.0]
    assert broken.predicted_load == everything[110:130].max()
    assert str(said) in broken.forecast_failure and broken.refused == ""
    assert first.forecast_failure == last.forecast_failure == ""


def test_a_policy_that_fails_changes_nothing_and_is_asked_again():
    class Failing(Scripted):
        def decide(self, observation):
            if super().decide(observation) is None:
                raise ZeroDivisionError("no idea")
            return GOOD

    steps = loop(backend_for(), Failing(GOOD, None, GOOD), 3)
    assert [step.configuration for step in steps] == [GOOD, GOOD, GOOD]
    assert [step.refused for step in steps] == ["", "no decision: ZeroDivisionError: no idea", ""]
    assert steps[1].decided is None


def test_a_policy_needs_no_base_class_and_no_types():
    class Plain:
        def decide(self, observation):
            return [list(stage) for stage in GOOD]

    (step,) = loop(backend_for(), Plain(), 1)
    assert step.decided == step.configuration == GOOD
    assert (step.refused, step.fallback) == ("", False)


# --- the simulated backend -------------------------------------------------------------------------------------------


def test_the_first_observation_by_hand():
    backend = backend_for(counts=np.arange(100, 120), history=np.arange(35), configuration=GOOD)
    seen = backend.observe()
    assert seen.history.tolist() == list(range(35))
    assert seen.incoming_load == np.arange(25, 35).mean()
    assert seen.coming_load == 119  # the largest of the next 20 s, as the forecast means to be
    assert seen.available_cores == 8.0
    assert seen.configuration == GOOD
    assert seen.task_latency.tolist() == pytest.approx([0.2, 0.08])
    assert seen.ready_throughput.tolist() == pytest.approx([2 / 0.2, 2 * 2 / 0.08])
    assert seen.queue.tolist() == [0, 0]


def test_a_workload_without_history_can_be_observed():
    seen = backend_for(history=np.zeros(0, dtype=int)).observe()
    assert len(seen.history) == 0
    assert seen.incoming_load == 0.0


def test_the_second_observation_is_what_the_first_interval_measured():
    backend = backend_for(counts=np.full(20, 14))
    backend.apply(GOOD)
    span, interval = backend.wait()
    seen = backend.observe()
    assert span == (0.0, 10.0) and interval.offered.tolist() == [140]
    assert seen.incoming_load == 14.0
    assert seen.configuration == GOOD
    for name in ("task_latency", "ready_throughput", "queue"):
        np.testing.assert_array_equal(getattr(seen, name), getattr(interval, name)[0])


def test_a_workload_that_ends_too_early_is_an_error_that_says_so():
    backend = backend_for(counts=np.full(25, 5))
    with pytest.raises(ValueError, match="workload ends at 145 s, within the interval that begins at 140 s"):
        loop(backend, Scripted(*[SMALLEST] * 3), 3)


def test_the_loop_and_the_training_environment_are_the_same_world():
    """The agent decides and earns the same through the control loop as in the episodes it is trained in."""
    workload, start, seed = varying_workload(), 12, 9
    agent = agent_for(ocr_pipeline(), seed=1)
    episodes = PipelineVectorEnv(ocr_pipeline(), workload, WEIGHTS, QUIET, seed=seed)
    episodes.begin(np.array([0]), np.array([start]), as_array(GOOD)[None])
    history, counts = workload.counts[: 10 * start], workload.counts[10 * start :]
    backend = SimulatedBackend(ocr_pipeline(), QUIET, history, counts, GOOD, seed)
    forecasts = iter(workload.forecasts[start:])
    steps = loop(backend, SingleAgentPolicy(agent), 40, forecast=lambda history: float(next(forecasts)))
    for step in steps:
        configuration = agent.decide(episodes.state()[0])
        score, _ = episodes.run_interval(as_array(configuration)[None])
        assert step.configuration == configuration
        for measured, expected in zip(step.score, score, strict=True):
            np.testing.assert_array_equal(measured, expected)
    assert len({step.configuration for step in steps}) > 1


# --- an agent with a fallback ---------------------------------------------------------------------------------------


def test_steps_record_the_decisions_of_the_fallback():
    pipeline = ocr_pipeline()
    agent = agent_for(pipeline)
    known = Agent(pipeline, agent.weights, trained_with(30.0 / TRAINED_LOAD_SHARE, WEIGHTS))
    loads = iter([5.0, 31.0, 5.0])
    backend = backend_for(counts=np.full(400, 5), history=np.full(120, 5))
    steps = loop(backend, agent_policy(known), 3, forecast=lambda history: next(loads))
    assert [step.fallback for step in steps] == [False, True, False]


def test_the_fallback_ends_the_loss_of_requests():
    """A thrifty agent alone loses requests all the time; with a fallback it loses some at first and then no more."""
    lost = []
    for largest in (np.inf, 100.0):
        policy = agent_policy(ThriftyAgent(ocr_pipeline(), largest))  # type: ignore[arg-type]
        steps = loop(backend_for(counts=np.full(400, 20)), policy, 40)
        lost.append([int(step.interval.dropped[0]) for step in steps])
    alone, helped = lost
    assert min(alone[6:]) > 0
    assert sum(helped[6:]) == 0
