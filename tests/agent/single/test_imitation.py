"""Imitation: demonstrations of the expert, the episodes in which it acts, and cloning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_trainings import SHORT, problem_for, trainer_for

from opd.agent.single.imitation import Demonstrations, demonstrate
from opd.agent.single.ppo import PPOTrainer
from opd.agent.single.problem import look_up
from opd.pipeline import from_choices


def demonstrations_of(trainer: PPOTrainer) -> Demonstrations:
    generator = np.random.default_rng((trainer.seed, 0))
    return demonstrate(trainer.expert, trainer.begin((trainer.seed, 0)), trainer.parameters, generator)


@pytest.mark.parametrize("expert", ["myopic", "ipa", "clairvoyant"])
def test_in_paper_mode_the_expert_acts_in_every_fth_episode(expert):
    trainer = trainer_for(problem=problem_for(expert=expert), expert=expert, expert_mode="paper", expert_frequency=3)
    episodes_done = 0
    for update in range(2):
        samples, _ = trainer.collect(update)
        shape = (SHORT.rollout_steps, SHORT.num_envs)
        states = samples.states.reshape(*shape, -1).numpy()
        configurations = from_choices(samples.choices.numpy()).reshape(*shape, 2, 3)
        begun = trainer.begin((trainer.seed, 1 + update))
        for environment in range(SHORT.num_envs):
            loads = states[:, environment, 1]
            if expert == "clairvoyant":
                decisions = begun.decision[environment] + np.arange(SHORT.rollout_steps)
                loads = trainer.problem.training.perfect_forecasts(decisions)
            same = (configurations[:, environment] == look_up(trainer.problem.expert, loads)).all()
            assert same == ((episodes_done + environment) % 3 == 0)
        episodes_done += SHORT.num_envs


def test_cloning_brings_the_network_to_the_expert():
    trainer = trainer_for(cloning_steps=600, expert_mode="none")
    rows = torch.arange(64)
    before = trainer.imitation.loss(rows).item()
    trainer.imitation.clone(trainer.seed)
    states, choices, _ = demonstrations_of(trainer)
    agreement = (trainer.network.act(states, None).choices == choices).all(dim=(1, 2)).float().mean()
    assert trainer.imitation.loss(rows).item() < 0.2 * before
    assert agreement > 0.9


@pytest.mark.parametrize("perturbation_share", [0.0, 0.5])
def test_demonstrations_are_always_the_choices_of_the_expert(perturbation_share):
    trainer = trainer_for(perturbation_share=perturbation_share)
    states, choices, rewards = demonstrations_of(trainer)
    expert = look_up(trainer.problem.expert, states.numpy()[:, 1])
    np.testing.assert_array_equal(from_choices(choices.numpy()), expert)
    later = states.numpy().reshape(SHORT.rollout_steps, SHORT.num_envs, -1)[1:]
    ran = later[:, :, [5, 6, 7, 12, 13, 14]].reshape(-1, 2, 3)
    followed = (ran == expert[: len(ran)]).all(axis=(1, 2))
    assert followed.all() == (perturbation_share == 0.0)
    assert followed.mean() >= 1 - 2 * perturbation_share
    assert rewards.shape == (SHORT.rollout_steps, SHORT.num_envs)
