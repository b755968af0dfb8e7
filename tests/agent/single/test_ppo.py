"""PPO: the loss by hand, small runs that must repeat, resume and learn."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from small_pipelines import best_steady, ocr_pipeline, steady_workload
from small_trainings import QUIET, SHORT, WEIGHTS, assert_same_weights, problem_for, trainer_for, weights_of

from opd.agent.single import ppo
from opd.agent.single.deployed import Agent
from opd.agent.single.network import export
from opd.agent.single.ppo import CHECKPOINT, PPOTrainer, ppo_loss, read_metrics, train
from opd.agent.single.problem import ExpertMode, Problem, TrainingParameters
from opd.agent.single.rollout import Samples, Validation
from opd.pipeline import Pipeline, ServiceLevel, StageConfiguration, Task, Variant, as_array
from opd.simulator.environment import PipelineVectorEnv
from opd.workload.trace import Workload

# --- the loss --------------------------------------------------------------------------------------------------------


def test_the_loss_by_hand():
    """Eqs. 11 and 12 on two samples whose probabilities have doubled and halved since they were drawn."""
    trainer = trainer_for(clip_range=0.2, value_coefficient=0.5)
    two = Samples(*(part[:2] for part in trainer.collect(0)[0]))
    log_prob, entropy, value = (part.detach() for part in trainer.network.evaluate(two.states, two.choices, two.masks))
    changed = two._replace(
        log_probs=log_prob - torch.tensor([2.0, 0.5]).log(),
        advantages=torch.tensor([3.0, 1.0]),
        returns=value + torch.tensor([0.5, 1.0]),
    )
    total, terms = ppo_loss(trainer.network, changed, trainer.parameters, entropy_coefficient=0.125)
    # Advantages are normalised to 1 and -1. A doubled probability counts as 1.2 only, a halved one as 0.8.
    assert terms["policy_loss"].item() == pytest.approx(-(1.2 - 0.8) / 2, rel=1e-4)
    assert terms["value_loss"].item() == pytest.approx((0.25 + 1.0) / 2, rel=1e-4)
    expected = -0.2 + 0.5 * 0.625 - 0.125 * entropy.mean().item()
    assert total.item() == pytest.approx(expected, rel=1e-4)
    assert terms["clip_share"].item() == 1.0


def test_a_minibatch_of_one_sample_keeps_the_loss_finite():
    trainer = trainer_for()
    one = Samples(*(part[:1] for part in trainer.collect(0)[0]))
    total, _ = ppo_loss(trainer.network, one, trainer.parameters, 0.005)
    assert torch.isfinite(total)


def test_learning_rate_entropy_bonus_and_demonstrations_fade_linearly(monkeypatch):
    trainer = trainer_for(learning_rate=0.1, entropy_coefficient=0.2, demonstration_weight=0.4)  # 4 updates
    samples, _ = trainer.collect(0)
    bonuses, demonstrations = [], []
    imitation_loss = trainer.imitation.loss

    def noting_loss(network, minibatch, parameters, entropy_coefficient):
        bonuses.append(entropy_coefficient)
        return ppo_loss(network, minibatch, parameters, entropy_coefficient)

    def noting_imitation(rows):
        demonstrations.append(len(rows))
        return imitation_loss(rows)

    monkeypatch.setattr(ppo, "ppo_loss", noting_loss)
    monkeypatch.setattr(trainer.imitation, "loss", noting_imitation)
    for update, share in enumerate([1.0, 0.75, 0.5, 0.25]):
        bonuses.clear()
        demonstrations.clear()
        trainer.learn(samples, update)
        assert set(bonuses) == {0.2 * share}
        assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.1 * share]
        assert set(demonstrations) == ({32 // 4 + 1} if update < 2 else set())


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", get_args(ExpertMode))
def test_a_run_of_every_mode_logs_every_metric_of_every_update(mode, tmp_path):
    train(problem_for(), replace(SHORT, expert_mode=mode), 0, tmp_path)
    metrics = read_metrics(tmp_path)
    assert metrics["update"].tolist() == [1, 2, 3, 4]
    validations = metrics.dropna(subset="validation/reward")
    assert validations["update"].tolist() == [2, 4]
    names = ["loss", "policy_loss", "value_loss", "entropy", "divergence", "clip_share"]
    assert np.isfinite(metrics[["rollout/dropped", *(f"train/{name}" for name in names)]].to_numpy()).all()
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
    """Interrupts a run."""


def cut_off_power(monkeypatch: pytest.MonkeyPatch, at_update: int) -> None:
    collect = PPOTrainer.collect

    def collect_or_fail(self, update):
        if update == at_update:
            raise PowerCut
        return collect(self, update)

    monkeypatch.setattr(PPOTrainer, "collect", collect_or_fail)


@pytest.mark.parametrize("at_update", [1, 2, 3])
def test_an_interrupted_run_resumes_to_the_same_result(uninterrupted, tmp_path, monkeypatch, at_update):
    with monkeypatch.context() as patch:
        cut_off_power(patch, at_update)
        with pytest.raises(PowerCut):
            train(problem_for(), SHORT, 7, tmp_path)
    assert (tmp_path / CHECKPOINT).is_file() == (at_update >= SHORT.validate_every)
    network = train(problem_for(), SHORT, 7, tmp_path)
    assert_same_weights(uninterrupted[0], weights_of(network))


def test_a_run_that_is_interrupted_while_it_saves_resumes_to_the_same_result(uninterrupted, tmp_path, monkeypatch):
    save = torch.save
    saves = iter([save])

    def save_once(*arguments):
        next(saves, fail)(*arguments)

    def fail(state, path):
        path.write_bytes(b"half a checkpoint")
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_once)
        with pytest.raises(PowerCut):
            train(problem_for(), SHORT, 7, tmp_path)
    assert read_metrics(tmp_path)["update"].tolist() == [1, 2, 3, 4]  # written before the checkpoint
    network = train(problem_for(), SHORT, 7, tmp_path)
    assert_same_weights(uninterrupted[0], weights_of(network))
    pd.testing.assert_frame_equal(read_metrics(tmp_path), uninterrupted[1], check_exact=True)


@pytest.mark.parametrize("at_update", [1, 2, 3])
def test_an_interrupted_run_has_every_metric_once(uninterrupted, tmp_path, monkeypatch, at_update):
    with monkeypatch.context() as patch:
        cut_off_power(patch, at_update)
        with pytest.raises(PowerCut):
            train(problem_for(), SHORT, 7, tmp_path)
    train(problem_for(), SHORT, 7, tmp_path)
    pd.testing.assert_frame_equal(read_metrics(tmp_path), uninterrupted[1], check_exact=True)


def test_a_finished_run_is_not_trained_further(tmp_path, monkeypatch):
    first = weights_of(train(problem_for(), SHORT, 1, tmp_path))
    cut_off_power(monkeypatch, at_update=SHORT.updates)
    assert_same_weights(first, weights_of(train(problem_for(), SHORT, 1, tmp_path)))


def test_the_best_checkpoint_is_kept_not_the_last(tmp_path, monkeypatch):
    scores = iter([1.0, 3.0, 3.0, 0.0])  # the first of equals is kept
    kept = []

    def scored(self, updates_done):
        kept.append(weights_of(self.network))
        score = next(scores)
        return Validation(score, 0.0, 0.0, 0.0, score)

    monkeypatch.setattr(PPOTrainer, "validate", scored)
    network = train(problem_for(), replace(SHORT, validate_every=1, expert_mode="none"), 0, tmp_path)
    assert len(kept) == 4
    assert_same_weights(kept[1], weights_of(network))


# --- what must be learned --------------------------------------------------------------------------------------------

LEARNING = TrainingParameters(
    updates=30,
    num_envs=16,
    rollout_steps=32,
    epochs=4,
    minibatch_size=128,
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
    """Mean reward under a steady load once the agent has settled, and the configurations it chooses."""
    pipeline = agent.pipeline
    envs = PipelineVectorEnv(pipeline, steady_workload(load), WEIGHTS, QUIET, seed=5)
    envs.begin(np.array([0]), np.array([1]), as_array(pipeline.smallest_configuration())[None])
    rewards, configurations = [], []
    for _ in range(60):
        configurations.append(agent.decide(envs.state()[0]))
        rewards.append(envs.run_interval(as_array(configurations[-1])[None])[0].reward[0])
    return float(np.mean(rewards[10:])), configurations[10:]


def learn(pipeline, load, folder, **changes):
    """Train without an expert, whose table holds nothing but the smallest configuration."""
    table = np.repeat(as_array(pipeline.smallest_configuration())[None], load + 1, axis=0)
    workload, none = steady_workload(load), np.array([], dtype=np.int64)
    problem = Problem(pipeline, WEIGHTS, QUIET, workload, workload, none, none, table, table)
    return Agent(pipeline, export(train(problem, replace(LEARNING, **changes), 0, folder)), {})


def test_the_agent_finds_the_variant_that_dominates(tmp_path):
    worse, better = (Variant(name, v, 1, {1: s}, 1.0) for name, v, s in (("worse", 0.4, 0.2), ("better", 0.9, 0.05)))
    pipeline = Pipeline("dominated", (Task("only", (worse, better)),), 4, 4, 1, ServiceLevel(1.0))
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


@pytest.mark.parametrize("requests", [0, 5])
def test_samples_are_finite_with_and_without_requests(requests):
    counts = np.zeros(2000, dtype=np.int64)
    counts[1000:] = requests
    workload = Workload(counts, np.append(counts[::10], requests).astype(float), 10)
    with np.errstate(all="raise", under="ignore"):
        samples, _ = trainer_for(problem=problem_for(workload=workload, bursts=())).collect(0)
    assert all(np.isfinite(part.numpy()).all() for part in samples)
