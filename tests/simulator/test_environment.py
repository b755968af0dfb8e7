"""State, score and the two environments, on counts that can be followed by hand."""

from __future__ import annotations

import doctest
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pipelines import (
    every_configuration,
    ocr_pipeline,
    pipelines,
    steady_workload,
    varying_workload,
    within_limits,
)

import opd.simulator.environment
from opd.measurement import Interval, score, state_names, state_vector
from opd.objective import Weights
from opd.pipeline import StageConfiguration, as_array, as_configuration, from_choices
from opd.simulator.environment import PipelineEnv
from opd.simulator.parameters import SimulationParameters
from opd.simulator.vector_environment import PipelineVectorEnv
from opd.workload.load import RecentMaximum
from opd.workload.trace import Trace
from opd.workload.workload import Workload

WEIGHTS = Weights(alpha=10.0, beta=0.5, gamma=0.25, delta=0.125, cost_weight=0.75, batch_weight=0.0625)
QUIET = SimulationParameters(service_noise=0.0)
SMALLEST = ((0, 1, 1), (0, 1, 1))


def rows(*triples):
    return np.array(triples, dtype=np.int64)


def environment(pipeline=None, workload=None, episode_length=5, parameters=QUIET):
    pipeline, workload = pipeline or ocr_pipeline(), workload or varying_workload()
    return PipelineEnv(pipeline, workload, WEIGHTS, parameters, episode_length)


# --- state and score -------------------------------------------------------------------------------------------------


def test_the_state_by_hand():
    pipeline = ocr_pipeline()
    state = state_vector(
        pipeline,
        available_cores=np.array([8.0]),
        predicted_load=np.array([14.0]),
        incoming_load=np.array([11.5]),
        configurations=rows((1, 2, 2), (2, 1, 1))[None],
        task_latency=np.array([[0.25, 0.5]]),
        ready_throughput=np.array([[10.0, 4.0]]),
        queue=np.array([[3, 0]]),
    )
    named = dict(zip(state_names(pipeline), state[0].tolist(), strict=True))
    assert state.dtype == np.float32
    assert named == {
        "available_cores": 8.0,
        "predicted_load": 14.0,
        "incoming_load": 11.5,
        **{"detection.latency": 0.25, "detection.throughput": 10.0, "detection.variant": 1.0},
        **{"detection.replicas": 2.0, "detection.batch_size": 2.0, "detection.cost": 4.0, "detection.queue": 3.0},
        **{"recognition.latency": 0.5, "recognition.throughput": 4.0, "recognition.variant": 2.0},
        **{"recognition.replicas": 1.0, "recognition.batch_size": 1.0, "recognition.cost": 4.0},
        "recognition.queue": 0.0,
    }


def test_every_term_of_the_score_by_hand():
    pair = {
        "offered": np.array([120, 60]),
        "task_latency": np.array([[0.25, 0.5], [0.125, 0.25]]),
        "ready_throughput": np.array([[10.0, 20.0], [10.0, 8.0]]),
    }
    blank = dict.fromkeys(Interval._fields, np.zeros(2))
    configurations = np.stack([rows((1, 2, 2), (0, 1, 1)), rows((0, 1, 1), (0, 1, 1))])
    result = score(ocr_pipeline(), WEIGHTS, configurations, Interval(**(blank | pair)), 10.0)
    assert result.accuracy.tolist() == [1.375, 1.125]
    assert result.cost.tolist() == [5.0, 2.0]
    assert result.throughput.tolist() == [10.0, 8.0]
    assert result.latency.tolist() == [0.75, 0.375]
    assert result.excess_load.tolist() == [2.0, -2.0]
    assert result.qos.tolist() == [13.75 + 5.0 - 0.75 - 0.25 * 2, 11.25 + 4.0 - 0.375 - 0.125 * 2]
    assert result.reward.tolist() == [17.5 - 0.75 * 5 - 0.0625 * 2, 14.625 - 0.75 * 2 - 0.0625 * 1]


# --- workloads -------------------------------------------------------------------------------------------------------


def test_a_workload_knows_its_intervals():
    workload = Workload(np.arange(25), np.array([0.0, 5.0, 6.0]), 10)
    assert workload.decisions == 2
    assert workload.windows(np.array([1, 0])).tolist() == [list(range(10, 20)), list(range(10))]


def test_forecasts_of_a_split_stand_where_their_history_ends():
    counts = np.arange(6 * 3600)
    trace = Trace("ramp", counts, np.arange(len(counts)))
    split = trace.split("validation")
    asked: list[np.ndarray] = []

    def last_count(history: np.ndarray, ends: np.ndarray) -> np.ndarray:
        asked.append(history)
        return history[ends - 1].astype(float)

    workload = Workload.of(trace, "validation", 10, last_count)
    np.testing.assert_array_equal(workload.counts, counts[split])
    np.testing.assert_array_equal(asked[0], counts[split])
    assert len(workload.forecasts) == len(workload.counts) // 10 + 1
    assert workload.forecasts[0] == 0.0
    for decision in (1, 2, workload.decisions):
        assert workload.forecasts[decision] == workload.counts[10 * decision - 1]


def test_the_forecast_without_training_is_the_largest_recent_count():
    counts = np.array([9, *[1] * 19, 2, 3])
    assert RecentMaximum().predict_many(counts, np.array([0, 1, 20, 21, 22])).tolist() == [0.0, 9.0, 9.0, 2.0, 3.0]


# --- episodes --------------------------------------------------------------------------------------------------------


def test_an_episode_begins_with_what_runs_and_what_is_known():
    workload = varying_workload()
    episodes = PipelineVectorEnv(ocr_pipeline(), workload, WEIGHTS, QUIET, num_envs=2)
    configurations = np.stack([rows((1, 2, 2), (0, 1, 1)), rows(*SMALLEST)])
    episodes.begin(np.arange(2), np.array([7, 3]), configurations)
    state = dict(zip(state_names(ocr_pipeline()), episodes.state().T, strict=True))
    assert state["available_cores"].tolist() == [8.0, 8.0]
    assert state["predicted_load"].tolist() == workload.forecasts[[7, 3]].tolist()
    expected = [workload.counts[60:70].mean(), workload.counts[20:30].mean()]
    assert state["incoming_load"].tolist() == pytest.approx(expected)
    assert state["detection.latency"].tolist() == pytest.approx([0.4, 0.1])
    assert state["detection.throughput"].tolist() == pytest.approx([10.0, 10.0])
    assert state["recognition.throughput"].tolist() == pytest.approx([20.0, 20.0])
    assert state["detection.queue"].tolist() == [0.0, 0.0]


def test_an_episode_sees_every_window_of_its_workload_in_turn():
    workload = varying_workload()
    episodes = PipelineVectorEnv(ocr_pipeline(), workload, WEIGHTS, QUIET, num_envs=2)
    start = np.array([5, 90])
    episodes.begin(np.arange(2), start, np.stack([rows(*SMALLEST)] * 2))
    for step in range(20):
        _, interval = episodes.run_interval(np.stack([rows(*SMALLEST)] * 2))
        assert interval.offered.tolist() == workload.windows(start + step).sum(axis=1).tolist()
        state = dict(zip(state_names(ocr_pipeline()), episodes.state().T, strict=True))
        assert state["predicted_load"].tolist() == workload.forecasts[start + step + 1].tolist()
        assert (10 * state["incoming_load"]).round().tolist() == interval.offered.tolist()
        assert state["detection.queue"].tolist() == interval.queue[:, 0].tolist()
        np.testing.assert_allclose(state["recognition.latency"], interval.task_latency[:, 1], rtol=1e-6)


def test_beginning_one_episode_leaves_the_others_alone():
    episodes = PipelineVectorEnv(ocr_pipeline(), steady_workload(14), WEIGHTS, QUIET, num_envs=3)
    episodes.begin(np.arange(3), np.array([1, 1, 1]), np.stack([rows(*SMALLEST)] * 3))
    for _ in range(3):
        episodes.run_interval(np.stack([rows(*SMALLEST)] * 3))
    before, queue = episodes.state(), state_names(ocr_pipeline()).index("detection.queue")
    assert (before[:, queue] > 0).all()  # 14 requests/s for a stage of 10
    episodes.begin(np.array([1]), np.array([50]), rows((1, 1, 1), (1, 1, 1))[None])
    after = episodes.state()
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert after[1, queue] == 0
    assert episodes.decision.tolist() == [4, 50, 4]


@pytest.mark.parametrize("decision", [0, -1, 200])
def test_an_episode_outside_its_workload_is_refused(decision):
    episodes = PipelineVectorEnv(ocr_pipeline(), varying_workload(), WEIGHTS, QUIET, num_envs=1)
    with pytest.raises(ValueError, match=rf"must start at decision 1\.\.199 of the workload, not {decision}"):
        episodes.begin(np.array([0]), np.array([decision]), rows(*SMALLEST)[None])


def test_a_workload_on_another_grid_is_refused():
    with pytest.raises(ValueError, match="forecasts every 5 s, the simulation decides every 10 s"):
        PipelineVectorEnv(ocr_pipeline(), steady_workload(5, interval=5), WEIGHTS, QUIET, num_envs=1)


# --- the Gymnasium environment ---------------------------------------------------------------------------------------


def test_gymnasium_knows_the_environment_and_accepts_it():
    made = gymnasium.make("opd/Pipeline-v0", pipeline=ocr_pipeline(), workload=varying_workload(), episode_length=5)
    assert isinstance(made.unwrapped, PipelineEnv)
    check_env(made.unwrapped, skip_render_check=True)


@settings(max_examples=15)
@given(pipelines())
def test_gymnasium_accepts_it_for_any_pipeline(pipeline):
    check_env(environment(pipeline), skip_render_check=True)


def test_the_example_in_the_documentation_works():
    results = doctest.testmod(opd.simulator.environment)
    assert results.attempted > 0
    assert results.failed == 0


def test_a_pipeline_of_the_catalogue_and_the_bundled_workload_are_the_default():
    made = PipelineEnv("video", episode_length=3)
    state, _ = made.reset(seed=0)
    assert made.pipeline.name == "video"
    assert made.observation_space.contains(state)
    with pytest.raises(KeyError, match="radio"):
        PipelineEnv("radio", varying_workload())


def test_actions_stand_for_configurations():
    assert as_configuration(from_choices(np.asarray(np.array([1, 0, 0, 2, 2, 1])).reshape(-1, 3))) == (
        StageConfiguration(1, 1, 1),
        StageConfiguration(2, 3, 2),
    )
    assert environment().action_space.nvec.tolist() == [2, 3, 2, 3, 3, 2]


@settings(max_examples=50)
@given(pipelines(max_tasks=2, max_replicas=3))
def test_masks_allow_exactly_what_some_feasible_action_contains(pipeline):
    made = environment(pipeline)
    feasible = np.array([as_array(candidate) for candidate in every_configuration(pipeline)])
    expected = []
    for n, task in enumerate(pipeline.tasks):
        expected += [z in feasible[:, n, 0] for z in range(len(task.variants))]
        expected += [f in feasible[:, n, 1] for f in range(1, pipeline.max_replicas + 1)]
        expected += [b in feasible[:, n, 2] for b in pipeline.batch_sizes]
    masks = made.action_masks()
    assert masks.dtype == bool
    assert masks.tolist() == expected
    assert len(masks) == made.action_space.nvec.sum()


def test_an_episode_is_truncated_at_its_length_and_never_terminated():
    made = environment(episode_length=4)
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
        made.step(np.zeros(6, dtype=int))
    for _ in range(2):
        made.reset(seed=1)
        ends = [made.step(np.zeros(6, dtype=int))[2:4] for _ in range(4)]
        assert ends == [(False, False)] * 3 + [(False, True)]
        with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
            made.step(np.zeros(6, dtype=int))


def test_an_episode_that_fills_its_workload_ends_with_it():
    made = environment(workload=varying_workload(decisions=6), episode_length=5)
    for seed in range(5):
        _, info = made.reset(seed=seed)
        assert info == {"decision": 1}
        assert [made.step(np.zeros(6, dtype=int))[3] for _ in range(5)] == [False] * 4 + [True]
    made.reset(options={"decision": 4})
    assert [made.step(np.zeros(6, dtype=int))[3] for _ in range(2)] == [False, True]


@pytest.mark.parametrize("length", [0, 200])
def test_an_episode_longer_than_the_workload_is_refused(length):
    with pytest.raises(ValueError, match=rf"episode_length {length} must be within 1\.\.199"):
        environment(episode_length=length)


def test_the_start_can_be_chosen_and_is_random_otherwise():
    made = environment()
    assert made.reset(seed=0, options={"decision": 17})[1] == {"decision": 17}
    starts = {made.reset(seed=seed)[1]["decision"] for seed in range(40)}
    assert len(starts) > 20
    assert min(starts) >= 1 and max(starts) <= 195
    with pytest.raises(ValueError, match=r"decision 1\.\.199 of the workload, not 200"):
        made.reset(options={"decision": 200})


def test_the_reward_is_eq_7_of_what_the_step_measured():
    made = environment()
    made.reset(seed=3)
    _, reward, _, _, info = made.step(np.array([1, 1, 1, 0, 1, 0]))
    excess = info["offered"] / 10 - info["throughput"]
    spare_or_unmet = 0.25 * excess if excess >= 0 else 0.125 * -excess
    quality = 10.0 * 1.375 + 0.5 * info["throughput"] - info["latency"] - spare_or_unmet
    assert info["refused"] == ""
    assert info["qos"] == pytest.approx(quality)
    assert reward == info["reward"] == pytest.approx(quality - 0.75 * (4 + 2) - 0.0625 * 2)


def test_a_refused_action_leaves_what_ran_before_and_says_why():
    good, too_large = np.array([1, 1, 0, 0, 1, 1]), np.array([1, 2, 0, 2, 2, 0])
    refused, repeated = environment(), environment()
    for made in (refused, repeated):
        made.reset(seed=5, options={"decision": 20})
        made.step(good)
    for _ in range(3):
        one, other = refused.step(too_large), repeated.step(good)
        assert "needs 18 cores, the device has 8" in one[4].pop("refused")
        assert other[4].pop("refused") == ""
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1:] == other[1:]


@pytest.mark.parametrize("action", [[2, 0, 0, 0, 0, 0], [0, 3, 0, 0, 0, 0], [0, 0, 2, 0, 0, 0], [-1, 0, 0, 0, 0, 0]])
def test_an_action_outside_the_space_is_refused_too(action):
    made = environment()
    made.reset(seed=0)
    assert "task 'detection'" in made.step(np.array(action))[4]["refused"]


@settings(max_examples=30)
@given(pipelines(), st.integers(0, 1000))
def test_any_action_of_the_space_is_either_run_or_refused(pipeline, seed):
    made = environment(pipeline, episode_length=6)
    state, _ = made.reset(seed=seed)
    made.action_space.seed(seed)

    def running(state):
        """(N, 3) variant, replicas and batch size that the state shows."""
        return state[3:].reshape(-1, 7)[:, 2:5].tolist()

    before = running(state)
    for _ in range(6):
        action = made.action_space.sample()
        state, reward, _, _, info = made.step(action)
        wanted = as_configuration(from_choices(np.asarray(action).reshape(-1, 3)))
        assert (info["refused"] == "") == within_limits(pipeline, wanted, pipeline.capacity)
        assert running(state) == (before if info["refused"] else [list(stage) for stage in wanted])
        assert np.isfinite(reward) and made.observation_space.contains(state)
        before = running(state)


def test_episodes_repeat_for_a_seed_and_only_then():
    def trajectory(seed):
        made = environment(parameters=replace(QUIET, service_noise=0.1))
        states = [made.reset(seed=seed, options={"decision": 30})[0]]
        states += [made.step(np.array([0, 1, 1, 0, 1, 1]))[0] for _ in range(5)]
        return np.stack(states)

    np.testing.assert_array_equal(trajectory(4), trajectory(4))
    assert not np.array_equal(trajectory(4), trajectory(5))
