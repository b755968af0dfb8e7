"""Training: advantages, rollouts and losses by hand, small runs that must solve, repeat and resume."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_pipelines import best_steady, ocr_pipeline, steady_workload, varying_workload, within_limits

from opd.agent import training
from opd.agent.agent import Agent, export
from opd.agent.training import (
    EXPERT_MODES,
    Job,
    Problem,
    ProximalPolicyOptimisation,
    TrainingParameters,
    begin_episodes,
    expert_table,
    generalised_advantages,
    look_up,
    read_metrics,
    run_job,
    train,
    validate,
)
from opd.objective import Weights
from opd.pipeline import Pipeline, StageConfiguration, Task, Variant, as_array, from_choices
from opd.simulator.parameters import SimulationParameters
from opd.simulator.vector_environment import PipelineVectorEnv

WEIGHTS = Weights()
QUIET = SimulationParameters(service_noise=0.0)
SHORT = TrainingParameters(
    updates=4,
    environments=8,
    rollout=8,
    epochs=2,
    minibatch=32,
    width=16,
    blocks=1,
    cloning_steps=20,
    validate_every=2,
    validation_episodes=4,
    validation_decisions=5,
)


def problem_for(pipeline=None, workload=None, expert="myopic", bursts=(30, 90)):
    pipeline, workload = pipeline or ocr_pipeline(), workload or varying_workload()
    table = expert_table(pipeline, WEIGHTS, QUIET, expert, 30)
    both = np.array(bursts, dtype=np.int64)
    return Problem(pipeline, WEIGHTS, QUIET, workload, workload, both, both, table, table)


def weights_of(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


# --- advantages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95, 1.0])
def test_advantages_are_the_discounted_sum_of_surprises(discount, decay):
    generator = np.random.default_rng(0)
    rewards, values = generator.normal(size=(6, 3)), generator.normal(size=(7, 3))
    expected = np.zeros((6, 3))
    for t in range(6):
        for k in range(t, 6):
            surprise = rewards[k] + discount * values[k + 1] - values[k]
            expected[t] += (discount * decay) ** (k - t) * surprise
    np.testing.assert_allclose(generalised_advantages(rewards, values, discount, decay), expected, atol=1e-12)


def test_advantages_of_two_steps_by_hand():
    # Surprises: 1 + .5 x 4 - 2 = 1 and 3 + .5 x 6 - 4 = 2; the second counts .5 x .25 = 1/8 in the first.
    advantages = generalised_advantages(np.array([[1.0], [3.0]]), np.array([[2.0], [4.0], [6.0]]), 0.5, 0.25)
    assert advantages.tolist() == [[1.25], [2.0]]


@given(st.floats(0.0, 1.0), st.integers(0, 100))
def test_without_decay_to_the_end_advantages_are_returns_above_the_value(discount, seed):
    generator = np.random.default_rng(seed)
    rewards, values = generator.normal(size=(5, 2)), generator.normal(size=(6, 2))
    returns = values[-1]
    for t in reversed(range(5)):
        returns = rewards[t] + discount * returns
        advantages = generalised_advantages(rewards, values, discount, 1.0)[t]
        np.testing.assert_allclose(advantages, returns - values[t], atol=1e-10)


# --- the expert and the episodes -------------------------------------------------------------------------------------


def test_a_table_is_looked_up_by_the_load_rounded_up():
    table = np.arange(4)[:, None, None] * np.ones((1, 2, 3), dtype=int)
    loads = np.array([0.0, 0.2, 1.0, 1.0 + 1e-9, 1.1, 3.0, 50.0])
    assert look_up(table, loads)[:, 0, 0].tolist() == [0, 1, 1, 1, 2, 3, 3]


def test_some_episodes_start_shortly_before_a_burst():
    problem = problem_for(bursts=(60, 150))
    starts = []
    for seed in range(20):
        episodes = begin_episodes(problem, problem.training, problem.training_bursts, 5, 12, 20, seed)
        starts.append(episodes.decision)
    start = np.array(starts)
    before = np.array([60, 150])[:, None] - start[:, :5].flatten()
    assert ((before >= 1) & (before <= 10)).any(axis=0).all()
    assert len(set(start[:, 5:].flatten())) > 50
    assert start.min() >= 1 and start.max() + 20 <= problem.training.decisions


def test_episodes_start_with_what_the_expert_runs():
    problem = problem_for()
    episodes = begin_episodes(problem, problem.training, problem.training_bursts, 0, 40, 20, 3)
    load = problem.training.windows(episodes.decision - 1).mean(axis=1)
    np.testing.assert_array_equal(episodes.configurations, look_up(problem.expert, load))


def test_episodes_repeat_for_a_seed_and_only_then():
    problem = problem_for()
    one, same, other = (begin_episodes(problem, problem.training, np.array([50]), 2, 12, 20, s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.state(), same.state())
    assert not np.array_equal(one.decision, other.decision)


def test_a_workload_shorter_than_an_episode_is_refused():
    problem = problem_for(workload=steady_workload(5, decisions=9))
    with pytest.raises(ValueError, match="a workload of 9 decisions is too short for episodes of 8"):
        begin_episodes(problem, problem.training, np.array([]), 0, 4, 8, 0)


def test_an_episode_of_one_decision_can_begin_before_a_burst():
    problem = problem_for(bursts=(60,))
    episodes = begin_episodes(problem, problem.training, problem.training_bursts, 4, 4, 1, 0)
    assert episodes.decision.tolist() == [59] * 4


# --- rollouts and losses ---------------------------------------------------------------------------------------------


def module_for(seed=0, problem=None, **changes):
    module = ProximalPolicyOptimisation(problem or problem_for(), replace(SHORT, **changes), seed)
    module.on_fit_start()
    return module


@pytest.mark.parametrize("mode", EXPERT_MODES)
def test_the_ratio_is_one_on_the_first_minibatch(mode):
    module = module_for(expert_mode=mode, expert_frequency=3)
    rollout, _ = module.collect(0)
    rows = torch.arange(40)
    log_probability, _, value = module.network.evaluate(rollout.states, rollout.choices, rollout.masks)
    torch.testing.assert_close(log_probability.detach(), rollout.log_probabilities, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(value.detach(), rollout.returns - rollout.advantages, rtol=1e-3, atol=1e-4)
    _, terms = module.loss(rollout, rows, 0.0)
    assert terms["divergence"].item() == pytest.approx(0.0, abs=1e-6)
    assert terms["clip_share"].item() == 0.0
    assert terms["policy_loss"].item() == pytest.approx(0.0, abs=1e-4)  # the mean of normalised advantages


def test_the_loss_by_hand():
    """Eqs. 11 and 12 on two samples whose probabilities have doubled and halved since they were drawn."""
    module = module_for(clip=0.2, value_coefficient=0.5, entropy_coefficient=0.25)
    rollout, _ = module.collect(0)
    rows = torch.tensor([0, 1])
    log_probability, entropy, value = (
        part.detach() for part in module.network.evaluate(rollout.states, rollout.choices, rollout.masks)
    )
    changed = rollout._replace(
        log_probabilities=log_probability - torch.tensor([2.0, 0.5]).log().repeat(32),
        advantages=torch.tensor([3.0, 1.0]).repeat(32),
        returns=value + torch.tensor([0.5, 1.0]).repeat(32),
    )
    total, terms = module.loss(changed, rows, progress=0.5)
    normalised = terms["policy_loss"].item()
    # Normalised to +a and -a. Doubled with a gain counts 1.2 only, halved with a loss counts 0.8, the worse of the two.
    size = 1.0 / changed.advantages[rows].std(correction=0).item()
    possible = [-(1.2 * a - 0.8 * a) / 2 for a in (size, 2**-0.5)]
    assert any(normalised == pytest.approx(value, rel=1e-4) for value in possible)
    assert terms["value_loss"].item() == pytest.approx((0.25 + 1.0) / 2, rel=1e-4)
    expected = normalised + 0.5 * 0.625 - 0.25 * 0.5 * entropy[rows].mean().item()
    assert total.item() == pytest.approx(expected, rel=1e-4)
    assert terms["clip_share"].item() == 1.0


def test_a_minibatch_of_one_sample_keeps_the_loss_finite():
    module = module_for()
    rollout, _ = module.collect(0)
    total, _ = module.loss(rollout, torch.tensor([0]), 0.0)
    assert torch.isfinite(total)


def test_every_action_of_a_rollout_is_feasible_and_its_reward_that_of_the_episodes():
    module = module_for(expert_mode="none", drop_penalty=0.0)
    rollout, metrics = module.collect(3)
    problem, parameters = module.problem, module.settings
    episodes = module.begin((module.seed, 4))
    choices = rollout.choices.reshape(parameters.rollout, parameters.environments, 2, 3).numpy()
    rewards = []
    for step, chosen in enumerate(choices):
        start = step * parameters.environments
        np.testing.assert_array_equal(episodes.state(), rollout.states[start : start + parameters.environments])
        configurations = from_choices(chosen)
        for rows in configurations.tolist():
            configuration = tuple(StageConfiguration(*row) for row in rows)
            assert within_limits(problem.pipeline, configuration, problem.pipeline.capacity)
        rewards.append(episodes.run_interval(configurations)[0].reward)
    assert metrics["rollout/reward"] == pytest.approx(np.mean(rewards))


def test_dropped_requests_are_charged_in_training_only():
    slow = Pipeline("slow", (Task("only", (Variant("slow", 0.5, 1, {1: 1.0}, 1.0),)),), 1, 1, 1, 1.0)
    problem = problem_for(slow, steady_workload(5), bursts=())
    free, charged = (
        module_for(problem=problem, expert_mode="none", rollout=12, drop_penalty=penalty).collect(0)[1]
        for penalty in (0.0, 0.5)
    )
    assert free["rollout/dropped"] == charged["rollout/dropped"] > 100
    lost = 0.5 * free["rollout/dropped"] / (12 * 8)
    assert charged["rollout/reward"] == pytest.approx(free["rollout/reward"] - lost)


@pytest.mark.parametrize("expert", ["myopic", "ipa", "clairvoyant"])
def test_every_fth_episode_of_the_paper_s_mode_is_the_expert_s(expert):
    module = module_for(problem=problem_for(expert=expert), expert=expert, expert_mode="paper", expert_frequency=3)
    episodes_done = 0
    for update in range(2):
        rollout, _ = module.collect(update)
        shape = (SHORT.rollout, SHORT.environments)
        states = rollout.states.reshape(*shape, -1).numpy()
        configurations = from_choices(rollout.choices.numpy()).reshape(*shape, 2, 3)
        begun = module.begin((module.seed, 1 + update))
        for environment in range(SHORT.environments):
            loads = states[:, environment, 1]
            if expert == "clairvoyant":
                decisions = begun.decision[environment] + np.arange(SHORT.rollout)
                loads = module.problem.training.perfect_forecasts(decisions)
            same = (configurations[:, environment] == look_up(module.problem.expert, loads)).all()
            assert same == ((episodes_done + environment) % 3 == 0)
        episodes_done += SHORT.environments


def test_cloning_brings_the_network_to_the_expert():
    module = ProximalPolicyOptimisation(problem_for(), replace(SHORT, cloning_steps=600, expert_mode="none"), 0)
    module.on_fit_start()
    rows = torch.arange(64)
    before = module.imitation_loss(rows).item()
    module.imitate()
    states, choices = module.demonstrations[:2]
    agreement = (module.network.act(states, None).choices == choices).all(dim=(1, 2)).float().mean()
    assert module.imitation_loss(rows).item() < 0.2 * before
    assert agreement > 0.9


@pytest.mark.parametrize("stray_share", [0.0, 0.5])
def test_what_is_demonstrated_is_always_the_expert_s(stray_share):
    module = module_for(stray_share=stray_share)
    states, choices, rewards = module.demonstrate()
    expert = look_up(module.problem.expert, states[:, 1])
    np.testing.assert_array_equal(from_choices(choices.numpy()), expert)
    ran = states.reshape(SHORT.rollout, SHORT.environments, -1)[1:, :, [5, 6, 7, 12, 13, 14]].reshape(-1, 2, 3)
    followed = (ran == expert[: len(ran)]).all(axis=(1, 2))
    assert followed.all() == (stray_share == 0.0)
    assert followed.mean() >= 1 - 2 * stray_share
    assert rewards.shape == (SHORT.rollout, SHORT.environments)


def test_rewards_are_scaled_by_the_demonstrated_ones_and_compressed():
    module = module_for()
    module.reward_mean.fill_(10.0)
    module.reward_deviation.fill_(2.0)
    scaled = module.scale(np.array([10.0, 12.0, 8.0, 10.0 + 2.0 * (np.e**3 - 1.0)]))
    assert scaled.tolist() == pytest.approx([0.0, np.log(2.0), -np.log(2.0), 3.0])


def test_a_validation_meets_the_same_episodes_whenever_it_is_called():
    problem = problem_for()

    def smallest(states):
        return np.repeat(as_array(problem.pipeline.smallest_configuration())[None], len(states), axis=0)

    one, same = (validate(problem, SHORT, smallest) for _ in range(2))
    assert one == same
    assert validate(problem, SHORT, lambda states: look_up(problem.expert, states[:, 1])).reward > one.reward


def test_drops_beyond_the_tolerated_cost_a_checkpoint_its_place():
    slow = Pipeline("slow", (Task("only", (Variant("slow", 0.5, 1, {1: 1.0}, 1.0),)),), 1, 1, 1, 1.0)
    problem = problem_for(slow, steady_workload(5), bursts=())

    def only(states):
        return np.ones((len(states), 1, 3), dtype=np.int64) * np.array([0, 1, 1])

    strict = validate(problem, SHORT, only)
    assert strict.dropped > 10
    assert strict.selection == pytest.approx(strict.reward - SHORT.drop_penalty * strict.dropped)
    tolerant = validate(problem, SHORT, only, strict.dropped - 10)
    assert tolerant.selection == pytest.approx(strict.reward - SHORT.drop_penalty * 10)
    assert validate(problem, SHORT, only, 1e6).selection == pytest.approx(strict.reward)


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"expert_mode": "oracle"}, r"expert_mode 'oracle' is not one of \('paper', 'pretrain', 'none'\)"),
        ({"expert": "gurobi"}, r"expert 'gurobi' is not one of"),
        ({"updates": 0}, "updates is 0, but must be at least 1"),
        ({"environments": 0}, "environments is 0"),
        ({"rollout": -1}, "rollout is -1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"minibatch": 0}, "minibatch is 0"),
        ({"validate_every": 0}, "validate_every is 0"),
        ({"expert_frequency": 0}, "expert_frequency is 0"),
        ({"validation_decisions": 0}, "validation_decisions is 0"),
        ({"validation_episodes": 0}, "validation_episodes is 0"),
        ({"burst_share": 1.5}, "burst_share 1.5 is not a share between 0 and 1"),
        ({"burst_share": -0.5}, "burst_share -0.5 is not a share"),
        ({"discount": 1.5}, "discount 1.5"),
        ({"learning_rate": -1e-3}, "learning_rate -0.001|learning_rate is -0.001"),
        ({"updates": 5, "validate_every": 2}, "updates.*5.*multiple.*validate_every"),
    ],
)
def test_a_wrong_parameter_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(SHORT, **wrong)


def test_an_unknown_parameter_is_named():
    with pytest.raises(TypeError, match="learning_speed"):
        TrainingParameters(learning_speed=1.0)  # type: ignore[call-arg]


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", EXPERT_MODES)
def test_a_run_of_every_mode_logs_every_metric_of_every_update(mode, tmp_path):
    train(problem_for(), replace(SHORT, expert_mode=mode), 0, tmp_path)
    metrics = read_metrics(tmp_path)
    updates = metrics.dropna(subset="rollout/reward")
    validations = metrics.dropna(subset="validation/reward")
    assert len(updates) == SHORT.updates
    assert len(validations) == SHORT.updates // SHORT.validate_every
    names = ["loss", "policy_loss", "value_loss", "entropy", "divergence", "clip_share"]
    assert np.isfinite(updates[["rollout/dropped", *(f"train/{name}" for name in names)]].to_numpy()).all()
    assert np.isfinite(validations[["validation/dropped", "validation/selection"]].to_numpy()).all()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return weights_of(train(problem_for(), SHORT, 7, folder)), read_metrics(folder)


def test_two_runs_with_a_seed_are_equal_bit_for_bit(uninterrupted, tmp_path):
    network = train(problem_for(), SHORT, 7, tmp_path)
    assert_same_weights(uninterrupted[0], weights_of(network))
    assert read_metrics(tmp_path).equals(uninterrupted[1])


def test_another_seed_is_another_run(uninterrupted, tmp_path):
    network = train(problem_for(), SHORT, 8, tmp_path)
    assert not torch.equal(network.head_weight, uninterrupted[0]["head_weight"])


class PowerCut(Exception):
    """What stops a run in these tests."""


def cut_off_power(monkeypatch: pytest.MonkeyPatch, at_update: int) -> None:
    collect = ProximalPolicyOptimisation.collect

    def collect_or_fail(self, update):
        if update == at_update:
            raise PowerCut
        return collect(self, update)

    monkeypatch.setattr(ProximalPolicyOptimisation, "collect", collect_or_fail)


@pytest.mark.parametrize("at_update", [1, 2, 3])
def test_an_interrupted_run_resumes_to_the_same_result(uninterrupted, tmp_path, monkeypatch, at_update):
    with monkeypatch.context() as patch:
        cut_off_power(patch, at_update)
        with pytest.raises(PowerCut):
            train(problem_for(), SHORT, 7, tmp_path)
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file() == (at_update >= SHORT.validate_every)
    network = train(problem_for(), SHORT, 7, tmp_path)
    assert_same_weights(uninterrupted[0], weights_of(network))


@pytest.mark.parametrize("at_update", [1, 2, 3])
def test_an_interrupted_run_has_every_metric_once(uninterrupted, tmp_path, monkeypatch, at_update):
    with monkeypatch.context() as patch:
        cut_off_power(patch, at_update)
        with pytest.raises(PowerCut):
            train(problem_for(), SHORT, 7, tmp_path)
    train(problem_for(), SHORT, 7, tmp_path)
    for kind in ("rollout/reward", "train/loss", "validation/reward"):
        resumed, whole = (metrics[kind].dropna().tolist() for metrics in (read_metrics(tmp_path), uninterrupted[1]))
        assert resumed == whole


def test_a_finished_run_is_not_trained_further(tmp_path, monkeypatch):
    first = weights_of(train(problem_for(), SHORT, 1, tmp_path))
    cut_off_power(monkeypatch, at_update=SHORT.updates)
    assert_same_weights(first, weights_of(train(problem_for(), SHORT, 1, tmp_path)))


def test_the_best_checkpoint_is_kept_not_the_last(tmp_path, monkeypatch):
    scores = iter([1.0, 3.0, 2.0, 0.0])
    kept = []

    def scored(problem, parameters, decide, tolerated_drops=0.0):
        score = next(scores, -1.0)
        return training.Validation(score, 0.0, 0.0, 0.0, score)

    step = ProximalPolicyOptimisation.validation_step

    def recording(self, batch, batch_index):
        kept.append(weights_of(self.network))
        return step(self, batch, batch_index)

    monkeypatch.setattr(ProximalPolicyOptimisation, "on_fit_start", lambda self: None)
    monkeypatch.setattr(ProximalPolicyOptimisation, "validation_step", recording)
    monkeypatch.setattr(training, "validate", scored)
    network = train(problem_for(), replace(SHORT, validate_every=1, expert_mode="none"), 0, tmp_path)
    assert len(kept) == 4
    assert_same_weights(kept[1], weights_of(network))


def test_a_job_leaves_an_agent_with_all_that_made_it_and_is_done_only_once(tmp_path, monkeypatch):
    problem = problem_for()
    job = Job("agent", 2, problem, SHORT, tmp_path / "agents" / "agent.pt")
    assert run_job(job) == job.path
    agent = Agent.load(job.path, problem.pipeline)
    assert agent.parameters["seed"] == 2
    assert agent.parameters["weights"]["alpha"] == WEIGHTS.alpha
    assert agent.parameters["training"]["updates"] == SHORT.updates
    assert agent.parameters["simulation"]["service_noise"] == 0.0
    written = job.path.stat().st_mtime_ns
    monkeypatch.setattr(training, "train", lambda *given: pytest.fail("trained a finished job again"))
    assert run_job(job) == job.path
    assert job.path.stat().st_mtime_ns == written


# --- what must be learned --------------------------------------------------------------------------------------------

LEARNING = TrainingParameters(
    updates=30,
    environments=16,
    rollout=32,
    epochs=4,
    minibatch=128,
    learning_rate=2e-3,
    discount=0.5,
    width=32,
    blocks=1,
    expert_mode="none",
    burst_share=0.0,
    validate_every=10,
    validation_episodes=8,
    validation_decisions=20,
)


def reward_of(agent: Agent, load: int) -> tuple[float, list]:
    """Mean reward under a steady load once the agent has settled, and what it runs."""
    pipeline = agent.pipeline
    episodes = PipelineVectorEnv(pipeline, steady_workload(load), WEIGHTS, QUIET, seed=5)
    episodes.begin(np.array([0]), np.array([1]), as_array(pipeline.smallest_configuration())[None])
    rewards, configurations = [], []
    for _ in range(60):
        configurations.append(agent.decide(episodes.state()[0]))
        rewards.append(episodes.run_interval(as_array(configurations[-1])[None])[0].reward[0])
    return float(np.mean(rewards[10:])), configurations[10:]


def learn(pipeline, load, folder, **changes):
    """Train without an expert, whose table holds nothing but the smallest configuration."""
    table = np.repeat(as_array(pipeline.smallest_configuration())[None], load + 1, axis=0)
    workload, none = steady_workload(load), np.array([], dtype=np.int64)
    problem = Problem(pipeline, WEIGHTS, QUIET, workload, workload, none, none, table, table)
    return Agent(pipeline, export(train(problem, replace(LEARNING, **changes), 0, folder)), {})


def test_the_agent_finds_the_variant_that_dominates(tmp_path):
    worse, better = (Variant(name, v, 1, {1: s}, 1.0) for name, v, s in (("worse", 0.4, 0.2), ("better", 0.9, 0.05)))
    pipeline = Pipeline("dominated", (Task("only", (worse, better)),), 4, 4, 1, 1.0)
    best, _ = best_steady(pipeline, WEIGHTS, QUIET, load=8)
    assert best == (StageConfiguration(1, 1, 1),)
    _, configurations = reward_of(learn(pipeline, 8, tmp_path, updates=10), 8)
    assert set(configurations) == {best}


def test_the_agent_finds_the_best_of_two_stages_on_a_tight_device(tmp_path):
    pipeline = ocr_pipeline(capacity=6)
    best, highest = best_steady(pipeline, WEIGHTS, QUIET, load=9)
    assert best != pipeline.smallest_configuration()
    reached, configurations = reward_of(learn(pipeline, 9, tmp_path), 9)
    assert reached > highest - 0.05, (best, set(configurations), reached, highest)


def test_an_agent_may_have_weights_of_its_own_for_each_pipeline():
    base = Weights()
    assert training.agent_weights(base, {}, "video") == base
    assert training.agent_weights(base, {"cost_weight": 0.4}, "nlp").cost_weight == 0.4
    own = {"cost_weight": {"video": 0.2, "nlp": 0.5}}
    assert training.agent_weights(base, own, "nlp") == replace(base, cost_weight=0.5)
    with pytest.raises(ValueError, match="no value for pipeline 'audio-qa'"):
        training.agent_weights(base, own, "audio-qa")
    with pytest.raises(ValueError, match="unknown weight 'price'"):
        training.agent_weights(base, {"price": 1.0}, "video")


def test_a_job_with_other_parameters_is_not_taken_for_done(tmp_path):
    problem = problem_for()
    job = Job("agent", 2, problem, SHORT, tmp_path / "agent.pt")
    run_job(job)
    other = replace(job, parameters=replace(SHORT, learning_rate=2 * SHORT.learning_rate))
    assert job.done
    assert not other.done
    assert job.folder != other.folder
