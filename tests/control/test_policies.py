"""Policies: they plan for what they should, and stay within the limits; the agent hands over to its fallback."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_agents import ThriftyAgent, agent_for
from small_pipelines import ocr_pipeline, pipelines, within_limits

from opd.control.policies import (
    RECOVERY_DECISIONS,
    TRAINED_LOAD_SHARE,
    BacklogPolicy,
    ClairvoyantPolicy,
    Policy,
    RandomPolicy,
    SingleAgentPolicy,
    SolverPolicy,
)
from opd.measurement import Calibration, Observation
from opd.objective import Weights
from opd.pipeline import StageConfiguration, used_cores
from opd.profiling.calibrated import calibrated_pipeline
from opd.solvers import IpaParameters, greedy, ipa_dynamic_program, ipa_highs, myopic

IPA, HIGHS = (partial(solve, parameters=IpaParameters()) for solve in (ipa_dynamic_program, ipa_highs))
MYOPIC = partial(myopic, weights=Weights(), batch_timeout=0.25)
SOLVERS = (greedy, IPA, HIGHS, MYOPIC)
SMALLEST = ocr_pipeline().smallest_configuration()
GOOD = (StageConfiguration(1, 2, 1), StageConfiguration(0, 2, 2))


def observation(pipeline, predicted_load=9.0, coming_load=None):
    tasks = len(pipeline.tasks)
    return Observation(
        history=np.full(120, 9),
        available_cores=float(pipeline.capacity),
        configuration=pipeline.smallest_configuration(),
        task_latency=np.full(tasks, 0.1),
        ready_throughput=np.full(tasks, 10.0),
        queue=np.zeros(tasks),
        incoming_load=9.0,
        predicted_load=predicted_load,
        coming_load=coming_load,
    )


@settings(max_examples=40)
@given(pipelines(), st.floats(0.0, 60.0), st.floats(0.0, 1.0), st.integers(0, 1000))
def test_every_policy_decides_within_the_limits_and_the_cores_that_are_left(pipeline, load, share, seed):
    smallest = used_cores(pipeline, pipeline.smallest_configuration())
    left = float(smallest + share * (pipeline.capacity - smallest))
    seen = replace(observation(pipeline, load, coming_load=load), available_cores=left)
    for policy in (
        RandomPolicy(pipeline, seed),
        *(SolverPolicy(pipeline, solve) for solve in SOLVERS),
        ClairvoyantPolicy(SolverPolicy(pipeline, MYOPIC)),
        SingleAgentPolicy(agent_for(pipeline, seed)),
    ):
        assert within_limits(pipeline, policy.decide(seen), left), type(policy).__name__


def test_an_agent_for_one_pipeline_does_not_use_a_core_that_is_almost_there():
    """Its state is of single precision, in which a little less than 8 cores are 8."""
    pipeline = ocr_pipeline(capacity=8)
    for seed in range(20):
        for cores in (np.nextafter(8.0, 0.0), 7.9):
            seen = replace(observation(pipeline, 20.0), available_cores=float(cores))
            assert within_limits(pipeline, SingleAgentPolicy(agent_for(pipeline, seed)).decide(seen), cores)


def calibration(pipeline, factor):
    shape = pipeline.tables.cores.shape
    return Calibration(np.full(shape, factor), np.zeros(shape), np.full(shape, 0.01), factor)


@pytest.mark.parametrize("solve", SOLVERS)
def test_solvers_plan_with_calibrated_profiles(solve):
    pipeline = ocr_pipeline(capacity=16)
    seen = replace(observation(pipeline, predicted_load=10.0), calibration=calibration(pipeline, 2.0))
    slower = calibrated_pipeline(pipeline, np.full(pipeline.tables.cores.shape, 2.0))
    policy, expected = SolverPolicy(pipeline, solve), solve(slower, 10.0)
    assert policy.decide(seen) == expected
    assert policy.decide(replace(seen, calibration=None)) != expected


def test_on_a_device_unlike_its_profile_the_fallback_of_an_agent_decides():
    pipeline = ocr_pipeline()
    policy = SingleAgentPolicy(agent_for(pipeline), BacklogPolicy(SolverPolicy(pipeline, greedy), 10.0))
    seen = observation(pipeline, predicted_load=6.0)
    for factor, fallback in ((1.0, False), (1.08, False), (0.85, True), (1.3, True), (1.0, False)):
        decided = policy.decide(replace(seen, calibration=calibration(pipeline, factor)))
        assert policy.fallback == fallback
        if factor == 1.3:
            slower = calibrated_pipeline(pipeline, np.full(pipeline.tables.cores.shape, 1.3))
            assert decided == greedy(slower, 9.0)


def test_a_solver_plans_for_the_forecast_and_the_clairvoyant_for_the_truth():
    pipeline = ocr_pipeline(capacity=16)
    seen = observation(pipeline, predicted_load=4.0, coming_load=25.0)
    assert SolverPolicy(pipeline, MYOPIC).decide(seen) == MYOPIC(pipeline, 4.0)
    clairvoyant = ClairvoyantPolicy(SolverPolicy(pipeline, MYOPIC)).decide(seen)
    assert clairvoyant == MYOPIC(pipeline, 25.0) != MYOPIC(pipeline, 4.0)


def test_the_clairvoyant_policy_says_where_it_cannot_work():
    pipeline = ocr_pipeline()
    with pytest.raises(ValueError, match="needs the coming load, which only the simulated backend knows"):
        ClairvoyantPolicy(SolverPolicy(pipeline, MYOPIC)).decide(observation(pipeline))


def test_random_decisions_repeat_for_a_seed_and_only_then():
    pipeline = ocr_pipeline()
    seen = observation(pipeline)

    def decisions(seed):
        policy = RandomPolicy(pipeline, seed)
        return [policy.decide(seen) for _ in range(20)]

    assert decisions(1) == decisions(1) != decisions(2)
    assert len(set(decisions(1))) > 5


def test_the_agent_sees_every_part_of_the_observation():
    pipeline = ocr_pipeline()
    states = []

    class Recording:
        def __init__(self):
            self.pipeline = pipeline
            self.parameters = {}

        def decide(self, state):
            states.append(state)
            return SMALLEST

    seen = replace(
        observation(pipeline, predicted_load=13.0),
        configuration=GOOD,
        task_latency=np.array([0.25, 0.5]),
        ready_throughput=np.array([10.0, 50.0]),
        queue=np.array([3, 4]),
        available_cores=7.0,
        incoming_load=11.0,
    )
    SingleAgentPolicy(Recording()).decide(seen)  # type: ignore[arg-type]
    assert states[0].tolist() == [7, 13, 11, 0.25, 10, 1, 2, 1, 4, 3, 0.5, 50, 0, 2, 2, 2, 4]


# --- backlog ---------------------------------------------------------------------------------------------------------


class Planning(Policy):
    """A policy that records the loads it plans for."""

    def __init__(self):
        self.loads: list[float] = []

    def decide(self, observation):
        self.loads.append(observation.predicted_load)
        return GOOD


def test_a_backlog_policy_plans_for_the_load_and_the_backlog():
    planning = Planning()
    policy = BacklogPolicy(planning, 10.0)
    for predicted, incoming in ((8.0, 6.0), (6.0, 9.0)):
        seen = replace(observation(ocr_pipeline(), predicted), incoming_load=incoming, queue=np.array([5, 4]))
        assert policy.decide(seen) == GOOD
    assert planning.loads == [8.0 + 0.9, 9.0 + 0.9]


# --- the agent and its fallback --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("predicted", "incoming"), [(30.5, 5.0), (5.0, 31.0), (30.0, 30.0)])
def test_the_fallback_decides_above_the_loads_of_training(predicted, incoming):
    agent = ThriftyAgent(ocr_pipeline(), 30.0 / TRAINED_LOAD_SHARE)
    policy = SingleAgentPolicy(agent, Planning())  # type: ignore[arg-type]
    decided = policy.decide(replace(observation(ocr_pipeline(), predicted_load=predicted), incoming_load=incoming))
    assert policy.fallback == (max(predicted, incoming) > 30.0)
    assert decided == (GOOD if policy.fallback else SMALLEST)


def test_after_a_backlog_the_fallback_decides_until_the_pipeline_has_recovered():
    agent = ThriftyAgent(ocr_pipeline())
    policy = SingleAgentPolicy(agent, Planning())  # type: ignore[arg-type]
    calm = replace(observation(ocr_pipeline(), predicted_load=8.0), incoming_load=6.0, queue=np.array([5, 5]))
    # 10 wait: the requests of one second, and a forming batch of one at each of two stages.
    assert policy.decide(calm) == SMALLEST and not policy.fallback
    assert policy.decide(replace(calm, queue=np.array([5, 6]))) == GOOD and policy.fallback
    for _ in range(RECOVERY_DECISIONS - 1):
        assert policy.decide(calm) == GOOD and policy.fallback
    assert agent.decisions == 1
    assert policy.decide(calm) == SMALLEST and not policy.fallback


def test_forming_batches_are_no_backlog():
    """Large batches wait by design: one at every stage is allowed in addition to a second of load."""
    policy = SingleAgentPolicy(ThriftyAgent(ocr_pipeline()), Planning())  # type: ignore[arg-type]
    batches = tuple(stage._replace(batch_size=4) for stage in SMALLEST)
    seen = replace(observation(ocr_pipeline(), predicted_load=8.0), incoming_load=8.0, configuration=batches)
    policy.decide(replace(seen, queue=np.array([8, 8])))
    assert not policy.fallback
    policy.decide(replace(seen, queue=np.array([8, 9])))
    assert policy.fallback


def test_without_a_fallback_the_agent_always_decides():
    policy = SingleAgentPolicy(ThriftyAgent(ocr_pipeline()))  # type: ignore[arg-type]
    seen = replace(observation(ocr_pipeline(), predicted_load=8000.0), queue=np.array([500, 500]))
    assert policy.decide(seen) == SMALLEST and not policy.fallback
