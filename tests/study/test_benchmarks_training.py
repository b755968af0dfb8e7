"""Training against Stable-Baselines3: what its actions mean, that all are evaluated alike, and what the tables hold."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import gymnasium
import numpy as np
import pandas as pd
import pytest
from gymnasium.utils.seeding import np_random
from small_pipelines import everything_selectable, ocr_pipeline, varying_workload, within_limits
from small_study import PARAMETERS, SIMULATION, WEIGHTS, small_problem
from stable_baselines3.common.running_mean_std import RunningMeanStd

from opd.agent.single.network import ActorCritic
from opd.agent.single.ppo import train
from opd.agent.single.rollout import Validation, validate
from opd.pipeline import as_array, as_configuration, from_choices
from opd.simulator.environment import PipelineEnv, PipelineVectorEnv
from opd.study.benchmarks.budgets import SMOKE
from opd.study.benchmarks.criteria import training_criteria
from opd.study.benchmarks.peer_stable_baselines import (
    BATCHED,
    PEERS,
    GreedyPeer,
    StageActions,
    applied_configurations,
    build_model,
    environments,
    train_peer,
)
from opd.study.benchmarks.plots import STYLES, plot_training_speed
from opd.study.benchmarks.training import (
    METHODS,
    TrainingResult,
    above_for_good,
    first_above,
    measure_training,
    summarise_training,
    with_test_days,
)
from opd.study.benchmarks.training_observer import TrainingObserver, train_agent


def small_environment() -> PipelineEnv:
    return PipelineEnv(ocr_pipeline(), varying_workload(), WEIGHTS, SIMULATION, episode_length=50)


class Stubborn:
    """A policy that always takes one action."""

    def __init__(self, action):
        self.action = np.array(action)

    def predict(self, observation, deterministic, **masks):
        return np.tile(self.action, (len(observation), 1)), None


def stubborn(action, stages=None) -> GreedyPeer:
    statistics = RunningMeanStd(shape=(17,))
    return GreedyPeer(ocr_pipeline(), Stubborn(action), statistics, 10.0, stages)


# --- actions ---------------------------------------------------------------------------------------------------------


def test_the_mask_of_a_stage_allows_exactly_what_some_feasible_configuration_contains():
    pipeline, wrapped = ocr_pipeline(), StageActions(small_environment())
    assert wrapped.action_space == gymnasium.spaces.MultiDiscrete([2 * 3 * 2, 3 * 3 * 2])
    feasible = [chosen for chosen in everything_selectable(pipeline) if within_limits(pipeline, chosen, 8)]
    allowed = np.split(wrapped.action_masks(), [12])
    for n, mask in enumerate(allowed):
        for entry, kept in enumerate(mask):
            other = [0, 0]
            other[n] = entry
            stage = as_configuration(from_choices(np.asarray(wrapped.action(np.array(other))).reshape(-1, 3)))[n]
            assert kept == any(chosen[n] == stage for chosen in feasible), (n, stage)
    # Two or three replicas of the largest recognition need 8 and 12 cores; detection needs one of the 8.
    assert not allowed[1][2 * 6 + 2 :].any()
    assert allowed[1][: 2 * 6 + 2].all() and allowed[0].all()


def test_no_mask_of_a_stage_can_express_the_limit_that_stages_share():
    wrapped = StageActions(small_environment())
    detection, recognition = 1 * 6 + 2 * 2, 2 * 6  # three large detections, one large recognition: 6 and 4 of 8 cores
    assert wrapped.action_masks()[[detection, 12 + recognition]].all()
    wrapped.reset(seed=0)
    assert "10 cores" in wrapped.step(np.array([detection, recognition]))[4]["refused"]


def test_an_action_of_a_stage_is_the_configuration_that_one_expects():
    wrapped = StageActions(small_environment())
    # Variants 1 and 2, 3 and 1 replicas, batch sizes 2 and 1.
    action = np.array([1 * 6 + 2 * 2 + 1, 2 * 6 + 0 * 2 + 0])
    assert wrapped.action(action).tolist() == [1, 2, 1, 2, 0, 0]
    assert [
        tuple(stage) for stage in as_configuration(from_choices(np.asarray(wrapped.action(action)).reshape(-1, 3)))
    ] == [(1, 3, 2), (2, 1, 1)]
    everything = np.stack(np.unravel_index(np.arange(12 * 18), (12, 18)), axis=1)
    flat = wrapped.flat(everything)
    assert len(np.unique(flat, axis=0)) == 12 * 18
    assert (flat >= 0).all() and (flat < wrapped.unwrapped.action_space.nvec).all()


def test_a_refused_action_leaves_running_what_runs_as_in_the_environment():
    environment = small_environment()
    state, _ = environment.reset(seed=3)
    good, bad = np.array([1, 1, 1, 0, 2, 0]), np.array([1, 2, 0, 2, 0, 0])
    for action, expected in ((good, [[1, 2, 2], [0, 3, 1]]), (bad, [[1, 2, 2], [0, 3, 1]])):
        applied = applied_configurations(environment.pipeline, action[None], state[None])[0]
        state, _, _, _, info = environment.step(action)
        assert applied.tolist() == expected
        assert bool(info["refused"]) == (action is bad)
        # After the step, the state tells what ran: variant, replicas, batch size of each task.
        assert state[3:].reshape(2, 7)[:, 2:5].tolist() == expected


# --- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [[0, 1, 1, 1, 1, 1], [1, 2, 0, 2, 0, 0]], ids=["feasible", "refused"])
def test_a_fixed_action_earns_the_same_in_the_environment_and_in_the_evaluation(action):
    environment, peer = small_environment(), stubborn(action)
    environment.reset(seed=7, options={"decision": 40})
    generator, _ = np_random(7)
    seed = int(generator.integers(2**31))
    episodes = PipelineVectorEnv(environment.pipeline, varying_workload(), WEIGHTS, SIMULATION, seed=seed)
    episodes.begin(np.array([0]), np.array([40]), as_array(environment.pipeline.smallest_configuration())[None])
    for _ in range(20):
        _, reward, _, _, info = environment.step(np.array(action))
        score, interval = episodes.run_interval(peer(episodes.state()))
        assert score.reward[0] == pytest.approx(reward, abs=1e-12)
        assert int(interval.dropped[0]) == info["dropped"]


def test_a_peer_is_evaluated_as_ours_is():
    problem = small_problem()
    wanted = np.array([[1, 2, 2], [1, 1, 2]])
    fixed = validate(problem, PARAMETERS, lambda states: np.tile(wanted, (len(states), 1, 1)))
    stages = StageActions(small_environment())
    as_stages = [1 * 6 + 1 * 2 + 1, 1 * 6 + 0 * 2 + 1]
    for peer in (stubborn([1, 1, 1, 1, 0, 1]), stubborn(as_stages, stages)):
        assert validate(problem, PARAMETERS, peer) == fixed


@pytest.mark.parametrize("peer", BATCHED)
def test_environments_stepped_together_are_those_of_gymnasium(peer):
    problem = small_problem()
    together = environments(peer, problem, PARAMETERS).venv
    together.seed(7)
    states, number = together.reset(), together.num_envs
    alone = deepcopy(together.together)
    running = np.tile(as_array(problem.pipeline.smallest_configuration()), (number, 1, 1))
    refused, episode_length = 0, 120
    for step in range(episode_length):
        np.testing.assert_array_equal(states, alone.state())
        actions = np.stack([together.action_space.sample() for _ in range(number)])
        for place, (single, action) in enumerate(zip(together.envs, actions, strict=True)):
            wanted = as_configuration(
                from_choices(
                    np.asarray(single.action(action) if isinstance(single, StageActions) else action).reshape(-1, 3)
                )
            )
            if within_limits(problem.pipeline, wanted, problem.pipeline.capacity):
                running[place] = as_array(wanted)
            else:
                refused += 1
        score, _ = alone.run_interval(running)
        states, rewards, ends, more = together.step(actions)
        np.testing.assert_allclose(rewards, score.reward, rtol=1e-6)
        assert ends.all() == ends.any() == (step == episode_length - 1)
    assert refused
    np.testing.assert_array_equal([each["terminal_observation"] for each in more], alone.state())
    assert all(each["TimeLimit.truncated"] for each in more)
    assert not np.array_equal(states, alone.state()), "the next episodes have begun"


@pytest.mark.parametrize("peer", (*PEERS, *BATCHED))
def test_the_copy_of_a_peer_decides_like_the_library_and_is_not_trained_further(peer):
    problem = small_problem()
    copies = []
    train_peer(peer, problem, PARAMETERS, 0, lambda steps, copy: copies.append((steps, copy())))
    assert [steps for steps, _ in copies] == [0, 32, 64]
    states = np.random.default_rng(0).uniform(0.0, 8.0, (200, 17)).astype(np.float32)
    first, middle, last = (copy for _, copy in copies)
    assert np.array_equal(last(states), last(states))
    assert not np.array_equal(first.observations(states), last.observations(states))
    assert not np.array_equal(first.policy.action_net.weight.detach(), middle.policy.action_net.weight.detach())


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_sees_what_vec_normalize_shows_it_and_has_a_network_like_ours(peer):
    problem = small_problem()
    vectorised = environments(peer, problem, PARAMETERS)
    model = build_model(peer, vectorised, PARAMETERS, 0)
    vectorised.reset()
    states = np.random.default_rng(0).uniform(0.0, 8.0, (50, 17)).astype(np.float32)
    greedy = GreedyPeer(problem.pipeline, model.policy, vectorised.obs_rms, vectorised.clip_obs, None)
    np.testing.assert_array_equal(greedy.observations(states), vectorised.normalize_obs(states))
    ours = ActorCritic(problem.pipeline, PARAMETERS.width, PARAMETERS.blocks)
    trunk = [part.shape for part in model.policy.features_extractor.trunk.parameters()]
    assert trunk == [part.shape for part in ours.features_extractor.parameters()]
    for hidden in (model.policy.mlp_extractor.policy_net, model.policy.mlp_extractor.value_net):
        assert hidden[0].weight.shape == ours.context.weight.shape == ours.critic[0].weight.shape


def test_an_unknown_peer_is_refused():
    with pytest.raises(ValueError, match="'a2c' is not one of"):
        build_model("a2c", environments("ppo", small_problem(), PARAMETERS), PARAMETERS, 0)


def test_observing_our_training_changes_nothing_of_it(tmp_path):
    problem, own = small_problem(), replace(PARAMETERS, expert_mode="pretrain")
    observer = TrainingObserver(problem, own)
    with observer.training():
        train_agent("agent", problem, PARAMETERS, 3, observer.observe)
    network = train(problem, own, 3, tmp_path)
    best = max(observer.rows[1:], key=lambda row: row["selection"])
    assert observer.best is not None
    alone = validate(problem, own, network.configure)
    assert alone.reward == pytest.approx(best["reward"], abs=1e-9)
    assert validate(problem, own, observer.best).reward == alone.reward
    assert [row["steps"] for row in observer.rows] == [0, 32, 64]


# --- tables ----------------------------------------------------------------------------------------------------------


def test_when_a_curve_passes_a_level():
    curve = pd.DataFrame({"cpu_seconds": [0.0, 1.0, 2.0, 3.0, 4.0], "reward": [5.0, 7.0, 6.0, 7.0, 8.0]})
    assert (first_above(curve, 6.5), above_for_good(curve, 6.5)) == (1.0, 3.0)
    assert (first_above(curve, 4.0), above_for_good(curve, 4.0)) == (0.0, 0.0)
    assert (first_above(curve, 7.0), above_for_good(curve, 7.0)) == (4.0, 4.0)
    assert np.isnan(first_above(curve, 8.0)) and np.isnan(above_for_good(curve, 8.0))


def run_of(method, seed, seconds, rewards, test_reward) -> TrainingResult:
    steps = np.arange(len(rewards)) * 100
    curve = pd.DataFrame({"method": method, "seed": seed, "steps": steps, "cpu_seconds": seconds, "reward": rewards})
    curve["gradient_steps"] = 3 * steps
    return TrainingResult(method, seed, curve, Validation(test_reward, 0.0, 0.0, 2.0, 0.0))


def test_the_summary_of_known_runs():
    runs = [
        run_of("agent", 0, [1.0, 2.0], [9.0, 11.0], 11.0),
        run_of("agent", 1, [1.0, 4.0], [9.0, 9.5], 12.0),
        run_of("ppo", 0, [0.0, 4.0], [1.0, 8.0], 10.0),
        run_of("ppo", 1, [0.0, 5.0], [1.0, 9.0], 8.0),
    ]
    solver = Validation(10.0, 0.0, 0.0, 0.0, 0.0), Validation(10.5, 0.0, 0.0, 0.0, 0.0)
    table = summarise_training(runs, *solver).set_index("method")
    assert list(table.index) == ["agent", "ppo", "myopic"]
    agent, ppo, myopic = (table.loc[name] for name in table.index)
    assert (agent["reached"], ppo["reached"], myopic["reached"]) == ("1 of 2", "not reached", "")
    # Speeds: 50 and 25 steps a second against 25 and 20.
    assert agent["steps_per_cpu_second"] == 37.5
    speed = [ppo[f"agent_times_speed{part}"] for part in ("", "_min", "_max")]
    assert speed == pytest.approx([1.625, 1.25, 2.0])
    assert [ppo[f"agent_more_reward{part}"] for part in ("", "_min", "_max")] == [2.5, 1.0, 4.0]
    assert [myopic[f"agent_more_reward{part}"] for part in ("", "_min", "_max")] == [1.0, 0.5, 1.5]
    assert agent["to_myopic_cpu_seconds"] == agent["above_myopic_cpu_seconds"] == 2.0
    assert np.isnan(ppo["to_myopic_cpu_seconds"])
    assert (ppo["final_reward"], ppo["final_reward_min"], ppo["final_reward_max"]) == (8.5, 8.0, 9.0)


def test_the_criteria_are_those_of_the_worst_seed():
    runs = [
        run_of("agent", 0, [0.0, 1.0], [9.0, 9.0], 11.0),
        run_of("agent", 1, [0.0, 1.0], [9.0, 9.0], 12.0),
        run_of("ppo", 0, [0.0, 4.0], [9.0, 9.0], 11.0),
        run_of("ppo", 1, [0.0, 2.0], [9.0, 9.0], 10.0),
        run_of("maskable-ppo", 0, [0.0, 9.0], [9.0, 9.0], 9.0),
        run_of("maskable-ppo", 1, [0.0, 1.9], [9.0, 9.0], 12.5),
    ]
    solver = Validation(10.0, 0.0, 0.0, 0.0, 0.0)
    table = training_criteria(summarise_training(runs, solver, solver))
    assert [" ppo" in bar for bar in table["bar"]] == [True, True, False, False]
    assert table["measured"].tolist() == pytest.approx([2.0, 0.0, 1.9, -0.5])
    assert table["met"].tolist() == [True, True, False, False]


def test_everything_is_trained_measured_and_drawn():
    problem = small_problem()
    benchmark = with_test_days(problem, varying_workload(seed=6), np.array([50]), PARAMETERS, SMOKE.training)
    summary, curves = measure_training(benchmark, SMOKE.training)
    assert list(summary["method"]) == [*METHODS, "myopic"]
    spent = ["steps", "cpu_seconds", "gradient_steps"]
    assert list(curves.columns) == ["method", "seed", *spent, "reward", "qos", "cost", "dropped"]
    assert curves.groupby("method", sort=False)["steps"].agg(list).to_dict() == {name: [0, 32, 64] for name in METHODS}
    for _, run in curves.groupby("method"):
        assert (np.diff(run["cpu_seconds"]) > 0.0).all()
    trained = summary.iloc[:-1]
    assert np.isfinite(trained[["steps_per_cpu_second", "test_reward", "agent_times_speed"]]).all(axis=None)
    assert (trained["steps"] == 64).all()
    # Two updates of two epochs of two minibatches, unless the policy moves too far; five steps of imitation.
    assert (trained["gradient_steps"] <= 8 + 5 * (trained["method"] == "agent")).all()
    assert (trained["gradient_steps"] >= 2 + 5 * (trained["method"] == "agent")).all()
    figure = plot_training_speed(summary, curves)
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels == [*(STYLES[name].label for name in METHODS), "myopic (exact) solver"]
