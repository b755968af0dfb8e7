"""Rollouts: advantages by hand, and samples that match the episodes."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_pipelines import within_limits
from small_trainings import overloaded_problem, trainer_for

from opd.agent.single.ppo import ppo_loss
from opd.agent.single.problem import ExpertMode
from opd.agent.single.rollout import RewardScale, Samples, compute_gae
from opd.pipeline import StageConfiguration, from_choices

# --- advantages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.95, 1.0])
def test_advantages_are_the_discounted_sum_of_temporal_differences(discount, gae_lambda):
    generator = np.random.default_rng(0)
    rewards, values = generator.normal(size=(6, 3)), generator.normal(size=(7, 3))
    expected = np.zeros((6, 3))
    for t in range(6):
        for k in range(t, 6):
            delta = rewards[k] + discount * values[k + 1] - values[k]
            expected[t] += (discount * gae_lambda) ** (k - t) * delta
    np.testing.assert_allclose(compute_gae(rewards, values, discount, gae_lambda), expected, atol=1e-12)


def test_advantages_of_two_steps_by_hand():
    # Temporal differences: 1 + .5 x 4 - 2 = 1 and 3 + .5 x 6 - 4 = 2; the second counts .5 x .25 = 1/8 in the first.
    advantages = compute_gae(np.array([[1.0], [3.0]]), np.array([[2.0], [4.0], [6.0]]), 0.5, 0.25)
    assert advantages.tolist() == [[1.25], [2.0]]


@given(st.floats(0.0, 1.0), st.integers(0, 100))
def test_with_lambda_of_one_advantages_are_returns_less_values(discount, seed):
    generator = np.random.default_rng(seed)
    rewards, values = generator.normal(size=(5, 2)), generator.normal(size=(6, 2))
    returns = values[-1]
    for t in reversed(range(5)):
        returns = rewards[t] + discount * returns
        advantages = compute_gae(rewards, values, discount, 1.0)[t]
        np.testing.assert_allclose(advantages, returns - values[t], atol=1e-10)


# --- rollouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", get_args(ExpertMode))
def test_the_ratio_is_one_on_the_first_minibatch(mode):
    trainer = trainer_for(expert_mode=mode, expert_frequency=3)
    samples, _ = trainer.collect(0)
    log_prob, _, value = trainer.network.evaluate(samples.states, samples.choices, samples.masks)
    torch.testing.assert_close(log_prob.detach(), samples.log_probs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(value.detach(), samples.returns - samples.advantages, rtol=1e-3, atol=1e-4)
    first = Samples(*(part[:40] for part in samples))
    _, terms = ppo_loss(trainer.network, first, trainer.parameters, 0.005)
    assert terms["divergence"].item() == pytest.approx(0.0, abs=1e-6)
    assert terms["clip_share"].item() == 0.0
    assert terms["policy_loss"].item() == pytest.approx(0.0, abs=1e-4)  # the mean of normalised advantages


def test_every_action_of_a_rollout_is_feasible_and_its_reward_that_of_the_episodes():
    trainer = trainer_for(expert_mode="none", drop_penalty=0.0)
    samples, metrics = trainer.collect(3)
    problem, parameters = trainer.problem, trainer.parameters
    envs = trainer.begin((trainer.seed, 4))
    choices = samples.choices.reshape(parameters.rollout_steps, parameters.num_envs, 2, 3).numpy()
    rewards = []
    for step, chosen in enumerate(choices):
        start = step * parameters.num_envs
        np.testing.assert_array_equal(envs.state(), samples.states[start : start + parameters.num_envs])
        configurations = from_choices(chosen)
        for rows in configurations.tolist():
            configuration = tuple(StageConfiguration(*row) for row in rows)
            assert within_limits(problem.pipeline, configuration, problem.pipeline.capacity)
        rewards.append(envs.run_interval(configurations)[0].reward)
    assert metrics["rollout/reward"] == pytest.approx(np.mean(rewards))


def test_dropped_requests_are_charged_in_training_only():
    problem = overloaded_problem()
    free, charged = (
        trainer_for(problem=problem, expert_mode="none", rollout_steps=12, drop_penalty=penalty).collect(0)[1]
        for penalty in (0.0, 0.5)
    )
    assert free["rollout/dropped"] == charged["rollout/dropped"] > 100
    lost = 0.5 * free["rollout/dropped"] / (12 * 8)
    assert charged["rollout/reward"] == pytest.approx(free["rollout/reward"] - lost)


def test_rewards_are_scaled_by_the_demonstrated_ones_and_compressed():
    scale = RewardScale.fitted_to(np.array([[8.0, 12.0], [12.0, 8.0]]))
    assert (scale.mean, scale.std) == (10.0, 2.0)
    scaled = scale(np.array([10.0, 12.0, 8.0, 10.0 + 2.0 * (np.e**3 - 1.0)]))
    assert scaled.tolist() == pytest.approx([0.0, np.log(2.0), -np.log(2.0), 3.0])
