"""The Gymnasium environment, on counts that are easy to follow by hand."""

from __future__ import annotations

import doctest
import subprocess
import sys
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from deadlines import PATIENCE
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pipelines import every_configuration, ocr_pipeline, pipelines, varying_workload, within_limits

import opd.simulator.environment
from opd.measurement import SimulationParameters
from opd.objective import Weights
from opd.pipeline import StageConfiguration, as_array, as_configuration, from_choices
from opd.simulator.environment import PipelineEnv, PipelineVectorEnv

WEIGHTS = Weights(alpha=10.0, beta=0.5, gamma=0.25, delta=0.125, cost_weight=0.75, batch_weight=0.0625)
QUIET = SimulationParameters(service_noise=0.0)


def environment(pipeline=None, workload=None, episode_length=5, parameters=QUIET, **options):
    pipeline, workload = pipeline or ocr_pipeline(), workload or varying_workload()
    return PipelineEnv(pipeline, workload, WEIGHTS, parameters, episode_length, **options)


def test_the_environment_is_registered_and_passes_the_checks_of_gymnasium():
    made = gymnasium.make("opd/Pipeline-v0", pipeline=ocr_pipeline(), workload=varying_workload(), episode_length=5)
    assert isinstance(made.unwrapped, PipelineEnv)
    check_env(made.unwrapped)


@pytest.mark.processes
def test_gymnasium_finds_the_environment_by_the_name_of_its_module(tmp_path):
    name = "opd.simulator.environment:opd/Pipeline-v0"
    program = f'import gymnasium; print(gymnasium.make("{name}", pipeline="video").reset(seed=0))'
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert "decision" in done.stdout


@settings(max_examples=15)
@given(pipelines())
def test_the_checks_of_gymnasium_pass_for_any_pipeline(pipeline):
    check_env(environment(pipeline), skip_render_check=True)


def test_the_examples_in_the_documentation_work():
    finder = doctest.DocTestFinder()
    for documented in (PipelineEnv, PipelineVectorEnv):
        assert any(each.examples for each in finder.find(documented)), documented
    results = doctest.testmod(opd.simulator.environment)
    assert results.failed == 0


def test_a_shipped_pipeline_and_the_bundled_workload_are_the_default():
    made = PipelineEnv("video", episode_length=3)
    state, _ = made.reset(seed=0)
    assert made.pipeline.name == "video"
    assert made.observation_space.contains(state)
    with pytest.raises(FileNotFoundError, match="no pipeline .radio."):
        PipelineEnv("radio", varying_workload())


def test_actions_stand_for_configurations():
    assert as_configuration(from_choices(np.array([[1, 0, 0], [2, 2, 1]]))) == (
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


def test_a_refused_action_changes_nothing_and_gives_the_reason():
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


def test_a_refused_action_costs_the_penalty_and_only_that():
    good, too_large = np.array([1, 1, 0, 0, 1, 1]), np.array([1, 2, 0, 2, 2, 0])
    free, charged = environment(), environment(refused_penalty=2.5)
    for action, penalty in ((good, 0.0), (too_large, 2.5), (good, 0.0)):
        for made in (free, charged):
            made.reset(seed=5, options={"decision": 20})
        one, other = free.step(action), charged.step(action)
        assert other[1] == one[1] - penalty
        assert other[4] == one[4] and other[4]["reward"] == one[1]


def test_episodes_side_by_side_are_charged_one_by_one():
    options = {"num_envs": 2, "episode_length": 5}
    made = PipelineVectorEnv(ocr_pipeline(), varying_workload(), WEIGHTS, QUIET, refused_penalty=2.5, **options)
    made.reset(seed=5)
    _, rewards, _, _, infos = made.step(np.array([[1, 1, 0, 0, 1, 1], [1, 2, 0, 2, 2, 0]]))
    assert infos["refused"].tolist() == [False, True]
    assert rewards.tolist() == [infos["reward"][0], infos["reward"][1] - 2.5]


@pytest.mark.parametrize("penalty", [-1.0, np.nan, np.inf])
def test_a_penalty_that_is_none_is_refused(penalty):
    with pytest.raises(ValueError, match="refused_penalty .* must be a finite number of at least 0"):
        environment(refused_penalty=penalty)


@pytest.mark.parametrize("action", [[2, 0, 0, 0, 0, 0], [0, 3, 0, 0, 0, 0], [0, 0, 2, 0, 0, 0], [-1, 0, 0, 0, 0, 0]])
def test_an_action_outside_the_space_is_refused(action):
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
        wanted = as_configuration(from_choices(action.reshape(-1, 3)))
        assert (info["refused"] == "") == within_limits(pipeline, wanted, pipeline.capacity)
        assert running(state) == (before if info["refused"] else [list(stage) for stage in wanted])
        assert np.isfinite(reward) and made.observation_space.contains(state)
        before = running(state)


def test_episodes_repeat_only_for_the_same_seed():
    def trajectory(seed):
        made = environment(parameters=replace(QUIET, service_noise=0.1))
        states = [made.reset(seed=seed, options={"decision": 30})[0]]
        states += [made.step(np.array([0, 1, 1, 0, 1, 1]))[0] for _ in range(5)]
        return np.stack(states)

    np.testing.assert_array_equal(trajectory(4), trajectory(4))
    assert not np.array_equal(trajectory(4), trajectory(5))
