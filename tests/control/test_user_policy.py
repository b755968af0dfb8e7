"""Policies of users: how they are found, what they may do, and that nothing they do breaks the loop."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from deadlines import PATIENCE
from hypothesis import given, settings
from hypothesis import strategies as st
from nonsense import NONSENSE
from small_pipelines import ocr_pipeline, pipelines, stages, varying_workload, within_limits
from user_projects import user_project

from opd.control.factory import build_policy
from opd.control.loop import run
from opd.control.policies import BacklogPolicy, SolverPolicy
from opd.control.user_policy import PolicyError, UserPolicy
from opd.measurement import SimulationParameters, idle_observation
from opd.objective import Weights
from opd.pipeline import Pipeline
from opd.simulator.backend import SimulatedBackend
from opd.solvers import IpaParameters
from opd.solvers.exact import solver_for

QUIET = SimulationParameters(service_noise=0.0)
SMALLEST = stages((0, 1, 1), (0, 1, 1))
GOOD = stages((1, 2, 1), (0, 2, 2))
TOO_LARGE = stages((1, 2, 1), (2, 2, 1))


def fallback_for(pipeline):
    return BacklogPolicy(SolverPolicy(pipeline, solver_for(Weights(), SimulationParameters())), 10)


class Answers:
    """Decides what it was told; an exception is raised, a function called."""

    def __init__(self, *answers):
        self.answers, self.seen = list(answers), []

    def decide(self, observation):
        self.seen.append(observation)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer() if callable(answer) else answer


def user_policy(policy, pipeline=None, seconds=PATIENCE):
    pipeline = pipeline or ocr_pipeline()
    return UserPolicy("Mine", policy, pipeline, fallback_for(pipeline), seconds)


def loop(policy, decisions, pipeline=None):
    pipeline = pipeline or ocr_pipeline()
    counts = varying_workload().counts[:300]
    backend = SimulatedBackend(pipeline, QUIET, np.arange(120), counts, pipeline.smallest_configuration(), 0)
    return list(run(backend, pipeline, policy, lambda history: float(history[-1]), Weights(), decisions))


# --- decisions -------------------------------------------------------------------------------------------------------


def test_decisions_of_a_user_are_applied_whatever_sequence_they_are():
    steps = loop(user_policy(Answers(GOOD, [[0, 1, 1], [0, 1, 1]], np.array(GOOD))), 3)
    assert [step.configuration for step in steps] == [GOOD, SMALLEST, GOOD]
    assert not any(step.refused or step.fallback for step in steps)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "the decision None is not a configuration"),
        (TOO_LARGE, "needs 12 cores, the device has 8"),
        (stages((2, 1, 1), (0, 1, 1)), "task 'detection': variant index 2"),
        ([[0, 1, 3], [0, 1, 1]], "batch size 3"),
        ([[0, 1.5, 1], [0, 1, 1]], "not whole numbers"),
        (ZeroDivisionError("no idea"), "ZeroDivisionError: no idea"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
    ids=str,
)
def test_where_a_policy_fails_the_fallback_decides_and_the_reason_is_recorded(answer, reason):
    steps = loop(user_policy(Answers(GOOD, answer, GOOD)), 3)
    expected = fallback_for(ocr_pipeline()).decide(steps[1].observation)
    assert [step.configuration for step in steps] == [GOOD, expected, GOOD]
    assert [step.fallback for step in steps] == [False, True, False]
    assert [bool(step.refused) for step in steps] == [False, True, False]
    assert steps[1].refused.startswith("policy Mine: ") and reason in steps[1].refused


@settings(max_examples=60)
@given(pipelines(max_tasks=2, max_replicas=3), st.lists(NONSENSE, min_size=2, max_size=2))
def test_no_answer_breaks_the_loop(pipeline, answers):
    for policy in (user_policy(Answers(*answers), pipeline), Answers(*answers)):
        steps = loop(policy, len(answers), pipeline)
        assert len(steps) == len(answers)
        for step in steps:
            assert within_limits(pipeline, step.configuration, pipeline.capacity)
            assert step.refused or step.configuration == step.decided


def test_a_policy_that_hangs_is_left_behind_and_its_late_answer_discarded():
    go_on = threading.Event()

    def hang():
        go_on.wait()
        return GOOD

    inner = Answers(hang, SMALLEST)
    policy, seen = user_policy(inner, seconds=0.05), replace(idle_observation(ocr_pipeline()), predicted_load=9.0)
    own = fallback_for(ocr_pipeline()).decide(seen)
    assert own not in (GOOD, SMALLEST)
    assert policy.decide(seen) == own and policy.refused == "policy Mine has not decided within 0.05 s"
    assert policy.decide(seen) == own and policy.refused == "policy Mine is still busy with an earlier decision"
    assert policy.fallback and len(inner.seen) == 1
    go_on.set()
    policy._thread.join(PATIENCE)
    policy._seconds = PATIENCE
    assert policy.decide(seen) == SMALLEST
    assert not policy.fallback and policy.refused == "" and len(inner.seen) == 2


def test_a_policy_gets_copies_and_does_not_know_the_future():
    def spoil():
        seen = inner.seen[-1]
        seen.queue[:] = 1000
        seen.history[:] = 0
        return GOOD

    inner = Answers(spoil)
    seen = replace(idle_observation(ocr_pipeline()), coming_load=7.0, history=np.arange(5))
    assert user_policy(inner).decide(seen) == GOOD
    assert seen.queue.tolist() == [0, 0] and seen.history.tolist() == [0, 1, 2, 3, 4]
    assert inner.seen[0].coming_load is None


def test_the_cores_that_are_left_are_respected():
    policy = user_policy(Answers(GOOD))
    seen = replace(idle_observation(ocr_pipeline()), available_cores=5.0)
    assert within_limits(ocr_pipeline(), policy.decide(seen), 5.0)
    assert "needs 6 cores, the device has 5" in policy.refused


def test_where_not_even_the_fallback_can_decide_both_reasons_are_recorded():
    class Crowded(SimulatedBackend):
        def observe(self):
            return replace(super().observe(), available_cores=1.0)

    backend = Crowded(ocr_pipeline(), QUIET, np.arange(120), np.full(20, 5), SMALLEST, 0)
    policy = user_policy(Answers(ZeroDivisionError("no idea")))
    (step,) = run(backend, ocr_pipeline(), policy, lambda history: 5.0, Weights(), 1)
    assert step.configuration == SMALLEST
    assert "ZeroDivisionError: no idea; no decision: " in step.refused and "too small" in step.refused


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_that_is_none_is_refused(seconds):
    with pytest.raises(ValueError, match="the limit of a decision is .* s, but must be positive"):
        user_policy(Answers(), seconds=seconds)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    with user_project(tmp_path, monkeypatch) as folder:
        yield folder


def build(name, **options):
    known = ocr_pipeline(), Weights(alpha=3.0), SimulationParameters(), IpaParameters()
    return build_policy(f"policies_of_the_project:{name}", *known, **options)


@pytest.mark.parametrize("name", ["Nothing", "Pipelined", "Complete", "Anything", "Outer.Inner"])
def test_a_class_of_the_project_is_a_policy(project, name):
    policy = build(name)
    assert policy.decide(idle_observation(ocr_pipeline())) == SMALLEST
    assert not policy.fallback


def test_a_constructor_gets_what_it_names(project):
    pipelined, complete, anything = (build(name)._policy for name in ("Pipelined", "Complete", "Anything"))
    assert pipelined.pipeline == ocr_pipeline() and isinstance(pipelined.pipeline, Pipeline)
    assert (complete.pipeline, complete.objective, complete.threshold) == (ocr_pipeline(), Weights(alpha=3.0), 0.5)
    assert anything.given == {"pipeline": ocr_pipeline(), "objective": Weights(alpha=3.0)}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module:Mine", "imported: No module named 'no_such_module'"),
        ("policies_of_the_project:Mine", "imported: .*no attribute 'Mine'"),
        ("policies_of_the_project:", "used: TypeError: it is <module 'policies_of_the_project'"),
        ("policies_of_the_project:number", "used: TypeError: it is 3, not a class"),
        (":Mine", "imported: ValueError: invalid format"),
        ("of the project:Mine", "imported: ValueError: invalid format"),
        ("unfinished_of_the_project:Mine", "imported: SyntaxError"),
        ("policies_of_the_project:Demanding", "used: TypeError: .*missing 1 required positional argument: 'trace'"),
        ("policies_of_the_project:Broken", "used: KeyError: 'weights'"),
        ("policies_of_the_project:Leaving", "used: SystemExit: 1"),
        ("policies_of_the_project:Undecided", "used: TypeError: Undecided has no method decide"),
    ],
)
def test_what_is_no_policy_is_one_error_with_the_name_the_reason_and_the_contract(project, name, reason):
    with pytest.raises(PolicyError, match=rf"policy '{name}' cannot be {reason}.*; write module:Class, .*decide"):
        build_policy(name, ocr_pipeline(), Weights(), SimulationParameters(), IpaParameters())


def test_a_decision_may_take_half_of_the_interval_unless_told_otherwise(project):
    assert build("Nothing")._seconds == 5.0
    assert build("Nothing", decision_seconds=0.25)._seconds == 0.25
