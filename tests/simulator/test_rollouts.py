"""Rollouts: the same as the simulator itself, from the same state and with the same arrivals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pipelines import stages
from small_queues import make_pipeline, make_task

from opd.measurement import SimulationParameters
from opd.pipeline import Pipeline, as_array
from opd.simulator.rollouts import Arrivals, Continuation, RolloutSimulator, draw_arrivals
from opd.simulator.simulator import Simulator, empty_state, place_stages, stage_states

QUIET = SimulationParameters(service_noise=0.0)
COMPARED = ("offered", "completed", "within", "dropped", "task_latency", "ready_throughput")


def two_stages() -> Pipeline:
    return make_pipeline(
        make_task(0.11, 0.23, 0.37, name="first", startup_time=3.0, max_batch_size=4),
        make_task(0.17, 0.29, 0.41, name="second", startup_time=12.0, max_batch_size=4),
        max_batch_size=4,
    )


def random_configuration(rng: np.random.Generator) -> np.ndarray:
    return np.stack([rng.integers(3, size=2), rng.integers(1, 5, 2), rng.choice([1, 2, 4], 2)], axis=-1)


def busy_simulator(rng: np.random.Generator, intervals: int, rate: float) -> Simulator:
    """A simulator in the midst of reconfigurations, with requests in all queues."""
    simulator = Simulator(two_stages(), QUIET, max_rate=200)
    simulator.reset(stages((0, 1, 1), (0, 1, 1)))
    for step in range(intervals):
        times = np.sort(rng.uniform(10.0 * step, 10.0 * (step + 1), rng.poisson(10 * rate)))
        simulator.step_arrivals(random_configuration(rng), times)
    return simulator


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), intervals=st.integers(0, 4), rate=st.sampled_from([1.0, 8.0, 20.0]))
def test_a_rollout_is_what_the_simulator_does_next(seed: int, intervals: int, rate: float):
    rng = np.random.default_rng(seed)
    simulator = busy_simulator(rng, intervals, rate)
    candidate, later = random_configuration(rng), random_configuration(rng)
    times = np.sort(rng.uniform(0.0, 30.0, rng.poisson(30 * rate)))
    arrivals = Arrivals(np.append(times, np.inf)[None], np.zeros((1, 3)))
    rollouts = RolloutSimulator(two_stages(), QUIET)
    rollouts.place(simulator.stage_states(), arrivals)
    ran, found = rollouts.run(candidate[None], arrivals, Continuation(np.zeros(1), later[None]), rng)
    start = 10.0 * intervals
    for h, configuration in enumerate((candidate, later, later)):
        inside = times[(times >= 10.0 * h) & (times < 10.0 * (h + 1))]
        expected = simulator.step_arrivals(configuration, start + inside)
        np.testing.assert_array_equal(ran[0, 0, h], configuration)
        for name in COMPARED:
            np.testing.assert_allclose(
                getattr(found, name)[0, 0, h], getattr(expected, name)[0], rtol=0, atol=1e-6, err_msg=name
            )


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), intervals=st.integers(1, 4))
def test_stages_can_be_read_back(seed: int, intervals: int):
    simulator = busy_simulator(np.random.default_rng(seed), intervals, 12.0)
    stages_there = simulator.stage_states()
    state = empty_state(1, 2, 4000, 40)
    place_stages(state, stages_there)
    for placed, there in zip(stage_states(state, 0), stages_there, strict=True):
        for name in there._fields:
            np.testing.assert_allclose(getattr(placed, name), getattr(there, name), atol=1e-9, err_msg=name)


def test_candidates_meet_the_same_futures_and_do_not_disturb_one_another():
    rng = np.random.default_rng(3)
    simulator = busy_simulator(rng, 2, 10.0)
    counts = rng.poisson(10.0, (4, 30))
    arrivals = draw_arrivals(counts, 10, rng)
    rollouts = RolloutSimulator(two_stages(), QUIET)
    rollouts.place(simulator.stage_states(), arrivals)
    continuation = Continuation(np.array([0.0, 10.0]), np.array([random_configuration(rng) for _ in range(2)]))
    candidates = np.array([random_configuration(rng) for _ in range(5)])
    together = rollouts.run(candidates, arrivals, continuation, rng)
    for number, candidate in enumerate(candidates):
        alone = rollouts.run(candidate[None], arrivals, continuation, rng)
        np.testing.assert_array_equal(alone.configurations[0], together.configurations[number])
        for name in COMPARED:
            np.testing.assert_array_equal(getattr(alone.interval, name)[0], getattr(together.interval, name)[number])
    offered = counts.reshape(4, 3, 10).sum(axis=2)
    assert (together.interval.offered == offered).all()


def test_the_continuation_follows_the_load_planned_for():
    """Nothing waits in these rollouts, so the row is that of the smallest load which is not below the planned one."""
    table = np.array([as_array(stages((0, replicas, 1), (0, 1, 1))) for replicas in (1, 2, 3)])
    continuation = Continuation(np.array([0.0, 5.0, 10.0]), table)
    arrivals = Arrivals(np.full((1, 1), np.inf), np.array([[9.0, 0.0, 0.1, 5.0, 5.1, 99.0]]))
    rollouts = RolloutSimulator(two_stages(), QUIET)
    simulator = Simulator(two_stages(), QUIET)
    simulator.reset(stages((0, 4, 1), (0, 1, 1)))
    rollouts.place(simulator.stage_states(), arrivals)
    ran, _ = rollouts.run(
        as_array(stages((0, 4, 1), (0, 1, 1)))[None], arrivals, continuation, np.random.default_rng(0)
    )
    assert ran[0, 0, :, 0, 1].tolist() == [4, 1, 2, 2, 3, 3]


def test_arrivals_keep_the_counts_of_every_second():
    counts = np.array([[3, 0, 2, 1], [0, 0, 0, 0]])
    arrivals = draw_arrivals(counts, 2, np.random.default_rng(0))
    seconds = np.floor(arrivals.times[0])
    assert [int((seconds == second).sum()) for second in range(4)] == [3, 0, 2, 1]
    assert np.isinf(arrivals.times[1]).all()
    assert (np.diff(arrivals.times[0][:6]) >= 0).all()
    np.testing.assert_allclose(arrivals.loads, 1.1 * np.array([[1.5, 1.5], [0.0, 0.0]]))


def test_too_many_requests_for_a_state_are_refused():
    simulator = busy_simulator(np.random.default_rng(0), 2, 20.0)
    with pytest.raises(ValueError, match="exceed"):
        place_stages(empty_state(1, 2, 1, 40), simulator.stage_states())
