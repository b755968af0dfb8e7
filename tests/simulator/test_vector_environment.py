"""The vectorised environment: episodes stepped together, and the interface of Gymnasium around them."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pipelines import ocr_pipeline, pipelines, steady_workload, varying_workload

from opd.measurement import Score, SimulationParameters, state_names
from opd.objective import Weights
from opd.pipeline import as_configuration
from opd.simulator.backend import SimulatedBackend
from opd.simulator.environment import PipelineEnv, PipelineVectorEnv

WEIGHTS = Weights(alpha=10.0, beta=0.5, gamma=0.25, delta=0.125, cost_weight=0.75, batch_weight=0.0625)
QUIET = SimulationParameters(service_noise=0.0)
SMALLEST = ((0, 1, 1), (0, 1, 1))


def rows(*triples):
    return np.array(triples, dtype=np.int64)


# --- episodes stepped by configurations ------------------------------------------------------------------------------


def test_the_first_state_shows_configuration_and_load():
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


def test_the_start_of_one_episode_does_not_affect_the_others():
    episodes = PipelineVectorEnv(ocr_pipeline(), steady_workload(14), WEIGHTS, QUIET, num_envs=3)
    episodes.begin(np.arange(3), np.array([1, 1, 1]), np.stack([rows(*SMALLEST)] * 3))
    for _ in range(3):
        episodes.run_interval(np.stack([rows(*SMALLEST)] * 3))
    before, queue = episodes.state(), state_names(ocr_pipeline()).index("detection.queue")
    assert (before[:, queue] > 0).all()  # 14 requests/s at a stage with a throughput of 10
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


def test_an_episode_is_observed_as_the_simulated_backend_is():
    """The same seed, load and configurations: everything that is no future is the same at every decision."""
    workload, start = varying_workload(), 14
    episodes = PipelineVectorEnv(ocr_pipeline(), workload, WEIGHTS, QUIET, num_envs=1, seed=3)
    episodes.begin(np.zeros(1, dtype=int), np.array([start]), rows(*SMALLEST)[None])
    now = start * workload.interval
    backend = SimulatedBackend(
        ocr_pipeline(), QUIET, workload.counts[:now], workload.counts[now:], as_configuration(rows(*SMALLEST)), seed=3
    )
    changing = [SMALLEST, ((1, 2, 2), (0, 1, 1)), ((1, 1, 1), (2, 1, 2)), ((0, 3, 1), (1, 2, 1))]
    for decision, configuration in enumerate(changing):
        seen, expected = episodes.observation(0), backend.observe()
        for name in ("history", "task_latency", "ready_throughput", "queue"):
            np.testing.assert_allclose(getattr(seen, name), getattr(expected, name), atol=1e-9, err_msg=name)
        for name in ("available_cores", "configuration", "incoming_load"):
            assert getattr(seen, name) == getattr(expected, name), name
        for stage, other in zip(seen.stages, expected.stages, strict=True):
            for name in stage._fields:
                np.testing.assert_allclose(getattr(stage, name), getattr(other, name), atol=1e-9, err_msg=name)
        assert seen.predicted_load == workload.forecasts[start + decision]
        assert seen.coming_load is seen.coming_counts is None
        episodes.run_interval(rows(*configuration)[None])
        backend.apply(as_configuration(rows(*configuration)))
        backend.wait()
    assert seen.queue.any()


def test_an_early_episode_has_a_short_history():
    episodes = PipelineVectorEnv(ocr_pipeline(), varying_workload(), WEIGHTS, QUIET, num_envs=2)
    episodes.begin(np.arange(2), np.array([3, 30]), np.stack([rows(*SMALLEST)] * 2))
    assert [len(episodes.observation(e).history) for e in range(2)] == [30, 120]


# --- the interface of Gymnasium --------------------------------------------------------------------------------------


def environments(num_envs=3, pipeline=None, episode_length=5, parameters=QUIET) -> PipelineVectorEnv:
    pipeline = pipeline or ocr_pipeline()
    return PipelineVectorEnv(pipeline, varying_workload(), WEIGHTS, parameters, episode_length, num_envs=num_envs)


def infeasible(envs: PipelineVectorEnv) -> np.ndarray:
    """(E, A) the largest action everywhere."""
    return np.tile(envs.single_action_space.nvec - 1, (envs.num_envs, 1))


@pytest.mark.parametrize("mode", [None, "vector_entry_point"])
def test_gymnasium_makes_a_batch_of_the_registered_environment(mode):
    made = gymnasium.make_vec("opd/Pipeline-v0", 32, mode, pipeline=ocr_pipeline(), workload=varying_workload())
    assert isinstance(made, PipelineVectorEnv)
    assert made.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    single = gymnasium.make("opd/Pipeline-v0", pipeline=ocr_pipeline(), workload=varying_workload())
    assert made.single_observation_space == single.observation_space
    assert made.single_action_space == single.action_space
    states, infos = made.reset(seed=0)
    assert made.observation_space.contains(states)
    assert infos["decision"].shape == infos["_decision"].shape == (32,)
    made.action_space.seed(0)
    for _ in range(130):  # past the end of an episode
        states, rewards, terminated, truncated, infos = made.step(made.action_space.sample())
        assert made.observation_space.contains(states)
        assert rewards.shape == terminated.shape == truncated.shape == (32,)
        assert np.isfinite(rewards).all() and not terminated.any()
    made.close()


@settings(max_examples=10)
@given(pipelines(), st.integers(0, 1000))
def test_a_batch_of_one_is_the_single_environment(pipeline, seed):
    arguments = (pipeline, varying_workload(), WEIGHTS, SimulationParameters(), 4)
    alone = SyncVectorEnv([lambda: PipelineEnv(*arguments)], autoreset_mode=AutoresetMode.SAME_STEP)
    batch = PipelineVectorEnv(*arguments)
    assert batch.observation_space == alone.observation_space
    assert batch.action_space == alone.action_space
    assert batch.action_masks().tolist() == [list(masks) for masks in alone.call("action_masks")]
    alone.action_space.seed(seed)
    expected, found = alone.reset(seed=seed), batch.reset(seed=seed)
    for _ in range(10):
        np.testing.assert_array_equal(found[0], expected[0])
        for one, other in zip(found[1:-1], expected[1:-1], strict=True):
            np.testing.assert_array_equal(one, other)
        assert_same_information(found[-1], expected[-1])
        action = alone.action_space.sample()
        expected, found = alone.step(action), batch.step(action)


def assert_same_information(found: dict, expected: dict) -> None:
    """Valid entries agree; the single environment gives the reason of a refusal, the batch a boolean."""
    if expected.get("_final_info", np.zeros(1)).any():
        assert_same_information(found["final_info"], expected["final_info"])
        np.testing.assert_array_equal(found["final_obs"][0], expected["final_obs"][0])
    for name in set(expected) - {"final_info", "final_obs"}:
        if not name.startswith("_") and expected[f"_{name}"][0]:
            assert found[f"_{name}"][0]
            assert found[name][0] == (bool(expected[name][0]) if name == "refused" else expected[name][0])


def test_a_seed_decides_everything_and_episodes_differ():
    def trajectory(seed):
        envs = environments(parameters=SimulationParameters())
        steps = [envs.reset(seed=seed)[0]]
        steps += [envs.step(np.tile([0, 1, 1, 0, 1, 1], (3, 1)))[0] for _ in range(8)]
        return np.stack(steps)

    first = trajectory(4)
    np.testing.assert_array_equal(first, trajectory(4))
    assert not np.array_equal(first, trajectory(5))
    assert not np.array_equal(first[:, 0], first[:, 1])


def test_a_reset_without_a_seed_continues_the_random_numbers():
    envs = environments(20)
    starts = [envs.reset(seed=seed)[1]["decision"].tolist() for seed in (3, None, 3)]
    assert starts[0] == starts[2] != starts[1]


def test_only_episodes_that_end_begin_again():
    envs = environments()
    _, infos = envs.reset(seed=1, options={"decision": np.array([10, 198, 197])})  # 2 and 3 decisions before the end
    assert infos["decision"].tolist() == [10, 198, 197]
    ends = []
    for _ in range(5):
        before = envs.decision.copy()
        states, _, _, truncated, infos = envs.step(np.zeros((3, 6), dtype=int))
        np.testing.assert_array_equal(states, envs.state())
        assert (envs.decision[~truncated] == before[~truncated] + 1).all()
        if truncated.any():
            assert infos["_final_obs"].tolist() == infos["_decision"].tolist() == truncated.tolist()
            assert (envs.configurations[truncated] == rows(*SMALLEST)).all()
            assert infos["decision"][truncated].tolist() == envs.decision[truncated].tolist()
            for ended in np.flatnonzero(truncated):
                assert not np.array_equal(infos["final_obs"][ended], states[ended])
        ends.append(truncated.tolist())
    assert ends[1] == [False, True, False]
    assert ends[2] == [False, False, True]
    assert ends[4][0]


def test_a_refused_action_changes_nothing_and_affects_no_other_episode():
    refused, repeated = environments(), environments()
    good = np.tile([1, 1, 0, 0, 1, 1], (3, 1))
    for envs in (refused, repeated):
        envs.reset(seed=5, options={"decision": 20})
        envs.step(good)
    too_large = good.copy()
    too_large[1] = infeasible(refused)[1]
    for _ in range(3):
        one, other = refused.step(too_large), repeated.step(good)
        assert one[4]["refused"].tolist() == [False, True, False]
        assert not other[4]["refused"].any()
        for left, right in zip(one[:4], other[:4], strict=True):
            np.testing.assert_array_equal(left, right)


def test_infos_hold_the_score_of_every_episode():
    envs = environments()
    envs.reset(seed=3)
    _, rewards, _, _, infos = envs.step(np.tile([1, 1, 1, 0, 1, 0], (3, 1)))
    assert rewards.tolist() == infos["reward"].tolist()
    for name in (*Score._fields, "offered", "dropped", "refused"):
        assert infos[name].shape == (3,)
        assert infos[f"_{name}"].all()


def test_results_are_not_changed_by_later_steps():
    envs = environments()
    results = [envs.reset(seed=2)[0]]
    copies = [results[0].copy()]
    for _ in range(7):
        states, rewards, _, truncated, infos = envs.step(np.tile([1, 0, 1, 1, 0, 1], (3, 1)))
        results += [states, rewards, truncated, infos["dropped"]]
        copies += [result.copy() for result in results[-4:]]
    for result, copy in zip(results, copies, strict=True):
        np.testing.assert_array_equal(result, copy)


def test_wrappers_of_gymnasium_work():
    envs = DictInfoToList(RecordEpisodeStatistics(environments()))
    _, infos = envs.reset(seed=0)
    assert [info["decision"] >= 1 for info in infos] == [True] * 3
    for _ in range(5):
        _, _, _, truncated, infos = envs.step(np.zeros((3, 6), dtype=int))
    assert truncated.all()
    assert [int(info["episode"]["l"]) for info in infos] == [5] * 3


def test_an_episode_must_begin_before_it_is_stepped():
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
        environments().step(np.zeros((3, 6), dtype=int))


@pytest.mark.parametrize("decision", [0, 200])
def test_a_start_outside_the_workload_is_refused(decision):
    with pytest.raises(ValueError, match=rf"decision 1\.\.199 of the workload, not {decision}"):
        environments().reset(options={"decision": decision})
