"""The one agent as a policy: in the control loop, with changing devices, and where the planner decides instead."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_pipelines import ocr_pipeline, stages
from small_situations import QUIET, departing

from opd.agent.weights import TrainedAgent
from opd.control import agent as agent_policy
from opd.control.agent import LARGEST_BATCH, LARGEST_SHARE, LONGEST_START, MOST_REPLICAS, AgentPolicy
from opd.control.loop import run
from opd.control.policies import SolverPolicy, present_pipeline
from opd.measurement import Calibration, Observation, backlog, idle_observation, planned_load
from opd.objective import Objective, Weights
from opd.pipeline import Configuration, InfeasibleError, Pipeline, as_array, check_feasible
from opd.profiling.attainable import attainable_load
from opd.profiling.calibrated import calibrated_pipeline
from opd.profiling.generated import generate_pipeline
from opd.profiling.pipelines import load_pipeline
from opd.simulator.backend import SimulatedBackend
from opd.solvers import greedy
from opd.solvers.exact import solver_for
from opd.workload.forecast import RecentMaximum
from opd.workload.futures import RecentFutures

PLAIN = Weights()


class Fallbacks:
    """Makes greedy policies, and counts how many."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.made = pipeline, 0

    def __call__(self) -> SolverPolicy:
        self.made += 1
        return SolverPolicy(self.pipeline, greedy)


def policy_for(pipeline: Pipeline, objective: Objective = PLAIN, seed: int = 0) -> tuple[AgentPolicy, Fallbacks]:
    fallbacks = Fallbacks(pipeline)
    agent, solve = TrainedAgent(departing(seed).weights(), {}), solver_for(objective, QUIET)
    return AgentPolicy(pipeline, objective, QUIET, solve, agent, RecentFutures(), fallbacks), fallbacks


def observed(pipeline: Pipeline, load: float = 8.0, **figures) -> Observation:
    history = np.full(120, int(load))
    seen = replace(idle_observation(pipeline), history=history, incoming_load=load, predicted_load=load)
    return replace(seen, **figures)


def decisions(policy: AgentPolicy, pipeline: Pipeline, loads: np.ndarray) -> tuple[Configuration, ...]:
    return tuple(policy.decide(observed(pipeline, load)) for load in loads)


# --- in the control loop ---------------------------------------------------------------------------------------------


def pipelines_to_run() -> list[tuple[Pipeline, Objective, float]]:
    """The shipped video pipeline, and generated ones with another number of stages and another kind of objective."""
    weighted, level = generate_pipeline(5), generate_pipeline(11)
    return [
        (load_pipeline("video"), Weights(), 12.0),
        (weighted.pipeline, weighted.objective, 0.3 * weighted.peak_load),
        (level.pipeline, level.objective, 0.3 * level.peak_load),
    ]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_untrained_agent_runs_any_pipeline_within_its_limits(number):
    pipeline, objective, load = pipelines_to_run()[number]
    policy, fallbacks = policy_for(pipeline, objective)
    rng = np.random.default_rng(0)
    backend = SimulatedBackend(
        pipeline, QUIET, rng.poisson(load, 120), rng.poisson(load, 60), pipeline.smallest_configuration(), seed=0
    )
    steps = list(run(backend, pipeline, policy, RecentMaximum().predict, objective, 6))
    for step in steps:
        assert step.refused == "" and step.decided == step.configuration
        check_feasible(pipeline, step.configuration)
        assert np.isfinite(step.score.reward).all()
        # Untrained, it may let so much wait that the planner has to decide.
        seen = step.observation
        most = attainable_load(present_pipeline(pipeline, seen), 1e9)
        assert step.fallback == (planned_load(seen) + backlog(seen, QUIET.interval) > LARGEST_SHARE * most)
    assert not all(step.fallback for step in steps)
    assert fallbacks.made == int(any(step.fallback for step in steps))


def test_a_decision_depends_on_the_weights_and_on_nothing_before():
    pipeline = load_pipeline("video")
    loads = np.arange(5.0, 45.0, 4.0)
    (first, _), (second, _) = (policy_for(pipeline, seed=1) for _ in range(2))
    second.decide(observed(pipeline, 3.0))
    second.decide(observed(pipeline, available_cores=3.0))
    assert decisions(first, pipeline, loads) == decisions(second, pipeline, loads)
    decided = {decisions(policy_for(pipeline, seed=seed)[0], pipeline, loads) for seed in range(8)}
    assert len(decided) > 2


# --- devices that change ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_fewer_free_cores_are_respected(seed):
    pipeline = ocr_pipeline(capacity=12)
    policy, _ = policy_for(pipeline, seed=seed)
    for free in (12.0, 7.0, 4.5, 2.0, 12.0):
        check_feasible(replace(pipeline, capacity=int(free)), policy.decide(observed(pipeline, available_cores=free)))


def test_too_few_cores_for_anything_are_named():
    policy, _ = policy_for(ocr_pipeline())
    with pytest.raises(InfeasibleError, match="cores"):
        policy.decide(observed(ocr_pipeline(), available_cores=1.0))


def calibration(pipeline: Pipeline, factor: float) -> Calibration:
    shape = pipeline.tables.cores.shape
    return Calibration(np.full(shape, factor), np.zeros(shape), np.full(shape, 0.01), factor)


def test_calibration_changes_the_description():
    """A device twice as slow: service times double, and half the load is what it carries."""
    pipeline = ocr_pipeline()
    policy, _ = policy_for(pipeline)
    as_profiled = policy._descriptions.now(observed(pipeline))
    slower = policy._descriptions.now(observed(pipeline, calibration=calibration(pipeline, 2.0)))
    expected = calibrated_pipeline(pipeline, np.full((2, 3), 2.0), np.zeros((2, 3)))
    sizes = pipeline.tables.batch_sizes
    present = np.isfinite(pipeline.tables.cores)
    np.testing.assert_allclose(slower.service[present], expected.tables.service_time[:, :, sizes][present])
    np.testing.assert_allclose(slower.service[present], 2.0 * as_profiled.service[present], rtol=0.01)
    assert slower.loads[-1] == pytest.approx(as_profiled.loads[-1] / 2.0, rel=0.01)


def test_descriptions_are_made_once_a_device_and_few_are_kept(monkeypatch):
    pipeline, made = ocr_pipeline(capacity=20), []
    policy, _ = policy_for(pipeline)

    def noting(*arguments):
        made.append(arguments[0].capacity)
        return original(*arguments)

    original = agent_policy.describe
    monkeypatch.setattr(agent_policy, "describe", noting)
    for free in [20.0, 20.0, 10.0, 20.0, 10.0]:
        policy.decide(observed(pipeline, available_cores=free))
    assert made == [20, 10]
    for free in range(11, 19):
        policy.decide(observed(pipeline, available_cores=float(free)))
    policy.decide(observed(pipeline, available_cores=18.0))
    policy.decide(observed(pipeline, available_cores=20.0))
    assert made == [20, 10, *range(11, 19), 20]


# --- out of its distribution -----------------------------------------------------------------------------------------


def slow_start(seconds: float) -> Pipeline:
    pipeline = ocr_pipeline()
    first, second = pipeline.tasks
    variants = (replace(first.variants[0], startup_time=seconds), *first.variants[1:])
    return replace(pipeline, tasks=(replace(first, variants=variants), second))


def large_batches(size: int) -> Pipeline:
    pipeline = ocr_pipeline()
    tasks = tuple(
        replace(task, variants=tuple(replace(each, latency={1: 0.1, size: 4.0}) for each in task.variants))
        for task in pipeline.tasks
    )
    return replace(pipeline, max_batch_size=size, tasks=tasks)


STRANGE = {
    "start-up": slow_start(LONGEST_START + 1.0),
    "replicas": replace(ocr_pipeline(), max_replicas=MOST_REPLICAS + 1),
    "batch": large_batches(2 * LARGEST_BATCH),
}


@pytest.mark.parametrize("strange", list(STRANGE.values()), ids=list(STRANGE))
def test_the_planner_decides_for_a_pipeline_unlike_any_in_training(strange, monkeypatch):
    """Its decisions are flagged, it is made once, when the first of them is due, and the agent solves for no load."""
    monkeypatch.setattr(agent_policy, "describe", lambda *given: pytest.fail("described what the planner decides for"))
    policy, fallbacks = policy_for(strange)
    assert fallbacks.made == 0
    seen = observed(strange)
    for _ in range(3):
        assert policy.decide(seen) == SolverPolicy(strange, greedy).decide(seen)
        assert policy.fallback
    assert fallbacks.made == 1


def test_at_the_limits_the_agent_decides():
    for pipeline in (slow_start(LONGEST_START), replace(ocr_pipeline(), max_replicas=MOST_REPLICAS)):
        policy, fallbacks = policy_for(pipeline)
        policy.decide(observed(pipeline))
        assert (policy.fallback, fallbacks.made) == (False, 0)


def test_the_planner_decides_during_an_overload_and_the_agent_afterwards():
    pipeline = ocr_pipeline()
    policy, fallbacks = policy_for(pipeline)
    most = attainable_load(pipeline, 1e9)
    waiting = observed(pipeline, queue=np.array([16.0 * most, 0.0]))
    flags = []
    for seen in (observed(pipeline, 1.4 * most), observed(pipeline, 1.6 * most), observed(pipeline), waiting):
        policy.decide(seen)
        flags.append(policy.fallback)
    assert flags == [False, True, False, True]
    assert fallbacks.made == 1


def test_fallbacks_are_flagged_in_the_steps_of_the_loop():
    pipeline = slow_start(LONGEST_START + 1.0)
    policy, fallbacks = policy_for(pipeline)
    backend = SimulatedBackend(
        pipeline, QUIET, np.full(120, 6), np.full(30, 6), pipeline.smallest_configuration(), seed=0
    )
    steps = list(run(backend, pipeline, policy, RecentMaximum().predict, PLAIN, 3))
    assert [step.fallback for step in steps] == [True] * 3
    assert fallbacks.made == 1


def test_warming_up_changes_no_decision():
    pipeline = ocr_pipeline()
    (warm, _), (cold, _) = (policy_for(pipeline, seed=2) for _ in range(2))
    warm.warm_up(idle_observation(pipeline))
    assert warm.decide(observed(pipeline)) == cold.decide(observed(pipeline))
    strange, fallbacks = policy_for(slow_start(LONGEST_START + 1.0))
    strange.warm_up(idle_observation(pipeline))
    assert fallbacks.made == 1


def test_the_smallest_device_leaves_no_choice_but_batches():
    pipeline = ocr_pipeline(capacity=2)
    decided = as_array(policy_for(pipeline)[0].decide(observed(pipeline)))
    assert decided[:, :2].tolist() == as_array(stages((0, 1, 1), (0, 1, 1)))[:, :2].tolist()
