"""Ablated networks: each lacks the part that it says and nothing else, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_pipelines import every_configuration, everything_selectable, ocr_pipeline
from small_study import (
    FEASIBLE,
    PARAMETERS,
    TOO_LARGE,
    begun_episodes,
    lively,
    small_problem,
    some_states,
)

from opd.agent.single.network import ActorCritic
from opd.agent.single.ppo import train
from opd.agent.single.rollout import training_reward
from opd.measurement import running_configurations, state_names
from opd.pipeline import as_array, to_choices
from opd.simulator.environment import admit
from opd.study.analysis.ablation_networks import (
    AblatedTrainer,
    IndependentNetwork,
    PlainNetwork,
    QueuelessNetwork,
    RefusingEpisodes,
    entry_masks,
)

NAMES = state_names(ocr_pipeline())
QUEUES = [entry for entry, name in enumerate(NAMES) if name in ("detection.queue", "recognition.queue")]


# --- features --------------------------------------------------------------------------------------------------------


def test_plain_features_are_layers_one_after_the_other():
    network = PlainNetwork(ocr_pipeline(), width=8, blocks=2)
    states = some_states()
    network.features_extractor.standardise_by(states.numpy())
    w = {name: tensor.numpy() for name, tensor in network.features_extractor.state_dict().items()}
    layer = np.clip((states.numpy() - w["mean"]) / w["std"], -10.0, 10.0)
    for name in ("reduce", "blocks.0.inner", "blocks.0.outer", "blocks.1.inner", "blocks.1.outer"):
        layer = np.maximum(layer @ w[f"{name}.weight"].T + w[f"{name}.bias"], 0.0)
    np.testing.assert_allclose(network.features_extractor(states).detach().numpy(), layer, atol=1e-5)


@pytest.mark.parametrize("network_class", [PlainNetwork, QueuelessNetwork, IndependentNetwork])
def test_an_ablated_network_begins_with_the_weights_of_the_full_one(network_class):
    weights = []
    for kind in (ActorCritic, network_class):
        torch.manual_seed(3)
        weights.append(kind(ocr_pipeline(), 16, 2).state_dict())
    full, ablated = weights
    assert full.keys() == ablated.keys()
    changed = [name for name in full if not torch.equal(full[name], ablated[name])]
    assert changed == (["choice_embedding"] if network_class is IndependentNetwork else [])


# --- queues ----------------------------------------------------------------------------------------------------------


def test_the_queues_are_zero_in_what_the_network_sees():
    network = lively(QueuelessNetwork(ocr_pipeline(), 16, 1))
    states = some_states()
    network.features_extractor.standardise_by(states.numpy())
    seen = []
    network.features_extractor.reduce.register_forward_hook(lambda module, given, result: seen.append(given[0]))
    other = states.clone()
    other[:, QUEUES] = 1000.0
    first, second = network.act(states, None), network.act(other, None)
    assert (torch.cat(seen)[:, QUEUES] == 0.0).all()
    assert torch.equal(first.choices, second.choices) and torch.equal(first.value, second.value)
    for own, given in zip(*(network.evaluate(s, first.choices, first.masks) for s in (states, other)), strict=True):
        assert torch.equal(own, given)


def test_all_else_is_seen_as_the_full_agent_sees_it():
    networks = [lively(kind(ocr_pipeline(), 16, 1)) for kind in (ActorCritic, QueuelessNetwork)]
    networks[1].load_state_dict(networks[0].state_dict())
    states = some_states()
    states[:, QUEUES] = 0.0
    for network in networks:
        network.features_extractor.standardise_by(states.numpy())
    full, ablated = (network.act(states, None) for network in networks)
    assert torch.equal(full.choices, ablated.choices) and torch.equal(full.value, ablated.value)


# --- heads -----------------------------------------------------------------------------------------------------------


def test_entry_masks_allow_exactly_what_some_feasible_configuration_contains():
    for capacity in (3, 5, 8):
        pipeline = ocr_pipeline(capacity)
        feasible = to_choices(np.array(every_configuration(pipeline))).reshape(-1, 6)
        masks = entry_masks(pipeline)
        assert masks.shape == (6, 3)
        for entry, mask in enumerate(masks):
            assert set(np.flatnonzero(mask.numpy())) == set(feasible[:, entry]), (capacity, entry)


def test_no_choice_of_independent_heads_depends_on_another():
    network = lively(IndependentNetwork(ocr_pipeline(), 16, 1))
    states = some_states(1)
    everything = torch.as_tensor(to_choices(np.array(everything_selectable(ocr_pipeline()))))
    masks = network.masks(states.expand(len(everything), -1), everything)
    with torch.no_grad():
        logarithm, _, _ = network.evaluate(states.expand(len(everything), -1), everything, masks)
        # Each head alone, written out: probabilities of its options in this state.
        hidden = torch.relu(network.context(network.features_extractor(states)) + network.head_shift)
        logits = torch.einsum("sw,skw->sk", hidden, network.head_weight) + network.head_bias
        heads = torch.log_softmax(logits.masked_fill(~entry_masks(ocr_pipeline()), -torch.inf), dim=-1)
    flat = everything.reshape(len(everything), -1)
    expected = sum(heads[step, flat[:, step]] for step in range(6))
    torch.testing.assert_close(logarithm, expected, atol=1e-5, rtol=1e-5)
    # All of the capacity is not feasible, but has a probability: together they make one.
    assert len(everything) > len(every_configuration(ocr_pipeline()))
    assert float(logarithm.exp().sum()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("network_class", [PlainNetwork, QueuelessNetwork, IndependentNetwork])
@pytest.mark.parametrize("seed", [None, 5])
def test_evaluate_agrees_with_act(network_class, seed):
    network = lively(network_class(ocr_pipeline(), 16, 1))
    states = some_states()
    decision = network.act(states, None if seed is None else torch.Generator().manual_seed(seed))
    assert torch.equal(decision.masks, network.masks(states, decision.choices))
    logarithm, entropy, value = network.evaluate(states, decision.choices, decision.masks)
    torch.testing.assert_close(logarithm, decision.log_prob, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(value, decision.value)
    assert (entropy > 0.0).all()
    taken = decision.choices.reshape(len(states), -1)
    assert decision.masks.gather(2, taken[..., None]).all()


def test_independent_heads_sample_what_they_say():
    network = lively(IndependentNetwork(ocr_pipeline(), 16, 1))
    states = some_states(1).expand(20_000, -1)
    choices = network.act(states, torch.Generator().manual_seed(0)).choices.reshape(-1, 6)
    with torch.no_grad():
        hidden = torch.relu(network.context(network.features_extractor(states[:1])) + network.head_shift)
        logits = torch.einsum("sw,skw->sk", hidden, network.head_weight) + network.head_bias
        expected = torch.softmax(logits.masked_fill(~entry_masks(ocr_pipeline()), -torch.inf), dim=-1)
    shares = torch.stack([(choices == option).float().mean(dim=0) for option in range(3)], dim=1)
    torch.testing.assert_close(shares, expected, atol=0.02, rtol=0.0)
    # Detection's replicas and recognition's variant are drawn apart: their joint shares are the products.
    together = ((choices[:, 1] == 0) & (choices[:, 3] == 0)).float().mean()
    assert float(together) == pytest.approx(float(expected[1, 0] * expected[3, 0]), abs=0.02)


# --- refusal ---------------------------------------------------------------------------------------------------------


def test_a_refused_action_keeps_what_ran():
    wanted = np.array([FEASIBLE, TOO_LARGE])
    running = np.array([[[0, 1, 1], [0, 1, 1]], [[1, 1, 2], [1, 1, 1]]])
    admitted, refused = admit(ocr_pipeline(), running, wanted)
    assert refused.tolist() == [False, True]
    assert admitted.tolist() == [FEASIBLE, running[1].tolist()]


def test_a_refused_action_costs_the_penalty_and_nothing_else():
    pipeline = ocr_pipeline()
    refusing, plain = RefusingEpisodes(begun_episodes(pipeline), 2.5), begun_episodes(pipeline)
    smallest = as_array(pipeline.smallest_configuration()).tolist()
    for wanted, runs, cost in (
        ([FEASIBLE, TOO_LARGE], [FEASIBLE, smallest], [0.0, 2.5]),
        ([TOO_LARGE, FEASIBLE], [FEASIBLE, FEASIBLE], [2.5, 0.0]),
    ):
        (score, interval), (expected, same) = (
            refusing.run_interval(np.array(wanted)),
            plain.run_interval(np.array(runs)),
        )
        np.testing.assert_allclose(score.reward, expected.reward - cost, atol=1e-12)
        assert score.qos.tolist() == expected.qos.tolist()
        assert interval.dropped.tolist() == same.dropped.tolist()
        assert refusing.configurations.tolist() == runs
        np.testing.assert_array_equal(refusing.state(), plain.state())
        np.testing.assert_array_equal(running_configurations(pipeline, refusing.state()), runs)


def test_training_and_validation_refuse_what_independent_heads_take(monkeypatch):
    trainer = AblatedTrainer(IndependentNetwork, 100.0, small_problem(), PARAMETERS, 0)
    trainer.network.features_extractor.standardise_by(some_states().numpy())
    wanted = torch.as_tensor(to_choices(np.array([TOO_LARGE])))
    act = trainer.network.act

    def take_too_much(states, generator):
        return act(states, generator)._replace(choices=wanted.expand(len(states), -1, -1))

    monkeypatch.setattr(trainer.network, "act", take_too_much)
    episodes = trainer.begin((0, 1))
    state, running = episodes.state(), episodes.configurations.copy()
    assert trainer.configure(state).tolist() == running.tolist()
    score, interval = episodes.run_interval(np.array([TOO_LARGE] * len(state)))
    assert (training_reward(score, interval, PARAMETERS.drop_penalty) < -80.0).all()
    _, metrics = trainer.collect(0)
    assert metrics["rollout/reward"] < -80.0
    monkeypatch.undo()


def test_the_full_agent_is_trained_as_ever(tmp_path):
    problem = small_problem()
    usual = train(problem, PARAMETERS, 3, tmp_path / "usual")

    def new_trainer(*arguments):
        return AblatedTrainer(ActorCritic, 0.0, *arguments)

    here = train(problem, PARAMETERS, 3, tmp_path / "here", new_trainer=new_trainer)
    for name, weight in usual.state_dict().items():
        assert torch.equal(weight, here.state_dict()[name]), name
