"""PPO across pipelines: advantages by hand, leads of nothing, and the better action that becomes more likely."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_situations import calm_situations, described, small_practice, untrained

from opd.agent import ppo as ppo_module
from opd.agent.network import AgentNetwork, batch_of
from opd.agent.ppo import (
    LARGE_LEAD,
    Experience,
    Minibatch,
    PpoParameters,
    Rollout,
    evaluated,
    improve,
    minibatches,
    ppo_loss,
    roll_out,
    squashed,
)
from opd.agent.practice import solved_choices
from opd.agent.scoring import Expanded, expand
from opd.pipeline import Pipeline, ServiceLevel, Task, Variant

SHORT = PpoParameters(episodes=3, decisions=5)


# --- rollouts --------------------------------------------------------------------------------------------------------


def test_the_solver_leads_itself_by_nothing(monkeypatch):
    """A policy that does what the solver does: its twin meets the same requests and gets the same reward."""

    def as_the_solver(weights, description, situations, uniform):
        loads = situations.loads
        return solved_choices(description, loads[:, 1] + loads[:, 2]), np.zeros(len(loads))

    monkeypatch.setattr(ppo_module, "choose", as_the_solver)
    rollout = roll_out(small_practice(), untrained(0).weights(), 3, SHORT)
    assert rollout.leads.shape == (5, 3)
    assert (rollout.leads == 0.0).all()


def test_a_rollout_is_what_the_policy_did():
    problem, network = small_practice(), untrained(1)
    rollout = roll_out(problem, network.weights(), 3, SHORT)
    again, other = (roll_out(problem, network.weights(), seed, SHORT) for seed in (3, 4))
    np.testing.assert_array_equal(again.choices, rollout.choices)
    np.testing.assert_array_equal(again.leads, rollout.leads)
    assert not np.array_equal(other.choices, rollout.choices)
    assert rollout.choices.shape == (18, 2, 3) and rollout.log_prob.shape == (15,)
    # What was chosen runs at the next decision.
    np.testing.assert_array_equal(rollout.situations.running[3:], rollout.choices[:-3])
    rows = Expanded(*expand(rollout.description, rollout.situations, rollout.choices[:, None]))
    log_prob = network(batch_of([rows])).log_prob.detach().numpy()
    np.testing.assert_allclose(log_prob[:15], rollout.log_prob, rtol=1e-3, atol=1e-3)
    assert rollout.leads.any()


# --- advantages ------------------------------------------------------------------------------------------------------


def two_actions() -> Pipeline:
    """One stage with two variants of a core each, and nothing else to choose."""
    variants = tuple(Variant(name, accuracy, 1, {1: 0.1}, 1.0) for name, accuracy in (("one", 0.7), ("other", 0.8)))
    return Pipeline("two", (Task("only", variants),), 1, 1, 1, ServiceLevel(1.0))


def made_rollout(network: AgentNetwork, leads: np.ndarray, variants: np.ndarray) -> Rollout:
    """Variants (D + 1, E) chosen in a situation that never changes, with leads (D, E)."""
    d = described(two_actions())
    choices = np.zeros((variants.size, 1, 3), dtype=np.int64)
    choices[:, 0, 0] = variants.ravel()
    s = calm_situations(d, [[0, 0, 0]], many=variants.size)
    log_prob = network(batch_of([Expanded(*expand(d, s, choices[:, None]))])).log_prob.detach().numpy()
    return Rollout(d, s, choices, log_prob[: leads.size], leads)


def valued(network: AgentNetwork, value: float) -> AgentNetwork:
    """The network with a critic that says ``value`` everywhere."""
    with torch.no_grad():
        network.critic[2].weight.zero_()
        network.critic[2].bias.fill_(value)
    return network


def test_only_large_leads_are_squashed():
    large = LARGE_LEAD * (np.e - 1.0)
    np.testing.assert_allclose(squashed(np.array([0.0, large, -large])), [0.0, LARGE_LEAD, -LARGE_LEAD])
    assert squashed(np.array([0.01]))[0] == pytest.approx(0.01, rel=1e-3)


def test_advantages_by_hand():
    """Leads that are L, 0 and -L after squashing, a value of 2 everywhere, gamma 0.5 and lambda 0.8."""
    network = valued(untrained(0), 2.0)
    leads = LARGE_LEAD * np.array([[np.e - 1.0], [0.0], [1.0 - np.e]])
    rollout = made_rollout(network, leads, np.zeros((4, 1), dtype=np.int64))
    found = evaluated(network, rollout, PpoParameters(discount=0.5, gae_lambda=0.8))
    last = -LARGE_LEAD + 0.5 * 2.0 - 2.0
    middle = 0.0 + 0.5 * 2.0 - 2.0 + 0.5 * 0.8 * last
    first = LARGE_LEAD + 0.5 * 2.0 - 2.0 + 0.5 * 0.8 * middle
    advantages = np.array([first, middle, last])
    np.testing.assert_allclose(found.returns, advantages + 2.0, rtol=1e-5)
    np.testing.assert_allclose(found.advantages, advantages / advantages.std(), rtol=1e-5)


def test_advantages_of_an_episode_do_not_depend_on_the_others():
    network = untrained(2)
    leads = np.random.default_rng(0).normal(size=(4, 3))
    rollout = made_rollout(network, leads, np.random.default_rng(1).integers(2, size=(5, 3)))
    together = evaluated(network, rollout, PpoParameters()).returns.reshape(4, 3)
    for e in range(3):
        one = made_rollout(network, leads[:, e : e + 1], rollout.choices[:, 0, 0].reshape(5, 3)[:, e : e + 1])
        np.testing.assert_allclose(evaluated(network, one, PpoParameters()).returns, together[:, e], rtol=1e-4)


# --- the update ------------------------------------------------------------------------------------------------------


def experience_of(rollout: Rollout, advantages: np.ndarray, returns: np.ndarray) -> Experience:
    expanded = Expanded(*expand(rollout.description, rollout.situations, rollout.choices[:, None]))
    return Experience(expanded, rollout.log_prob, advantages, returns)


def whole(experience: Experience) -> Minibatch:
    """All decisions of an experience in one minibatch."""
    (only,) = minibatches([experience], len(experience.returns), np.random.default_rng(0))
    return only


def test_minibatches_hold_every_decision_once():
    network = untrained(0)
    rollouts = [made_rollout(network, np.zeros((many, 2)), np.zeros((many + 1, 2), dtype=int)) for many in (3, 5)]
    numbers = np.split(np.arange(16.0), [6])
    experience = [experience_of(each, own, -own) for each, own in zip(rollouts, numbers, strict=True)]
    found = minibatches(experience, 5, np.random.default_rng(1))
    assert [len(each.returns) for each in found] == [6, 5, 5]
    advantages = np.concatenate([each.advantage.numpy() for each in found])
    assert sorted(advantages.tolist()) == list(range(16))
    for each in found:
        assert torch.equal(each.returns, -each.advantage)
        assert len(network(each.batch).log_prob) == len(each.returns)


def test_the_loss_by_hand():
    """Nothing has changed, so the ratio is 1: minus the mean advantage, half the error in value, less the entropy."""
    network = valued(untrained(0), 1.0)
    with torch.no_grad():
        network.score_weight.zero_()  # both variants are equally likely
        network.direct_weight.zero_()
    rollout = made_rollout(network, np.zeros((2, 2)), np.array([[0, 1], [0, 1], [0, 0]]))
    returns = np.array([1.0, 3.0, 1.0, 1.0])  # Huber: 2 - 1/2
    experience = experience_of(rollout, np.array([1.0, 2.0, -1.0, 4.0]), returns)
    parameters = PpoParameters(value_coefficient=0.5, entropy_coefficient=0.1)
    loss, divergence = ppo_loss(network, whole(experience), parameters)
    assert float(loss.detach()) == pytest.approx(-6.0 / 4.0 + 0.5 * 1.5 / 4.0 - 0.1 * np.log(2.0), abs=1e-5)
    assert divergence == pytest.approx(0.0, abs=1e-6)


def test_ratios_beyond_the_clip_range_earn_nothing_more():
    """The better action is three times as likely as before: it counts as 1.2 times."""
    network = valued(untrained(0), 0.0)
    rollout = made_rollout(network, np.zeros((1, 1)), np.ones((2, 1), dtype=np.int64))
    before = rollout._replace(log_prob=rollout.log_prob - np.log(3.0))
    experience = experience_of(before, np.array([1.0]), np.array([0.0]))
    parameters = PpoParameters(clip_range=0.2, entropy_coefficient=0.0)
    loss, divergence = ppo_loss(network, whole(experience), parameters)
    assert float(loss.detach()) == pytest.approx(-1.2, abs=1e-5)
    assert divergence == pytest.approx(2.0 - np.log(3.0), abs=1e-4)


def probability_of_the_second(network: AgentNetwork) -> float:
    one = made_rollout(network, np.zeros((1, 1)), np.ones((2, 1), dtype=np.int64))
    return float(np.exp(one.log_prob[0]))


def test_the_better_of_two_actions_becomes_more_likely():
    network, random = untrained(4), np.random.default_rng(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    parameters = replace(PpoParameters(), minibatch=64, target_kl=1.0)
    found = [probability_of_the_second(network)]
    for _ in range(4):
        variants = random.integers(2, size=(9, 16))
        rollout = made_rollout(network, np.where(variants[:-1] == 1, 1.0, -1.0), variants)
        metrics = improve(network, optimizer, [rollout], [], parameters, random)
        assert metrics["lead"] == pytest.approx(rollout.leads.mean())
        found.append(probability_of_the_second(network))
    assert (np.diff(found) > 0.0).all()
    assert found[-1] > found[0] + 0.1
