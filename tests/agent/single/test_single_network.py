"""The masked, autoregressive policy: feasible by construction, and with the probabilities it claims."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_agents import opinionated, random_states
from small_pipelines import everything_selectable, ocr_pipeline, pipelines, within_limits

from opd.agent.single.network import ActorCritic, FeaturesExtractor
from opd.pipeline import InfeasibleError, StageConfiguration, as_array, check_feasible, from_choices, to_choices

SEEDS = st.integers(0, 10_000)


def taken(network, states, choices):
    """Masks, log-probability and entropy of given choices."""
    masks = network.masks(states, choices)
    log_prob, entropy, _ = network.evaluate(states, choices, masks)
    return masks, log_prob.detach(), entropy.detach()


def configuration(rows):
    return tuple(StageConfiguration(*row) for row in rows.tolist())


# --- feasible by construction ----------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(pipelines(), SEEDS, st.booleans())
def test_every_action_keeps_every_limit(pipeline, seed, sampled):
    states = random_states(pipeline, seed, 64)
    generator = torch.Generator().manual_seed(seed) if sampled else None
    chosen = from_choices(opinionated(pipeline, seed).act(states, generator).choices.numpy())
    for rows, cores in zip(chosen, states[:, 0].tolist(), strict=True):
        check_feasible(replace(pipeline, capacity=int(cores)), configuration(rows))
        assert within_limits(pipeline, configuration(rows), cores)


@settings(max_examples=40)
@given(pipelines(max_tasks=2, max_replicas=3), SEEDS)
def test_probabilities_sum_to_one_over_exactly_the_feasible_actions(pipeline, seed):
    candidates = everything_selectable(pipeline)
    state = random_states(pipeline, seed, 1)
    choices = torch.as_tensor(to_choices(np.stack([as_array(candidate) for candidate in candidates])))
    log_prob = taken(opinionated(pipeline, seed), state.expand(len(choices), -1), choices)[1]
    probabilities = log_prob.double().exp().numpy()
    feasible = np.array([within_limits(pipeline, candidate, float(state[0, 0])) for candidate in candidates])
    assert probabilities[feasible].sum() == pytest.approx(1.0, abs=1e-4)
    assert (probabilities[feasible] > 0.0).all()
    assert (probabilities[~feasible] == 0.0).all()


def test_variants_that_a_task_does_not_have_have_no_probability():
    pipeline = ocr_pipeline(capacity=100)
    state = random_states(pipeline, 0, 1)
    padded = torch.tensor([[[2, 0, 0], [0, 0, 0]]])
    assert taken(opinionated(pipeline, 0), state, padded)[1].exp() == 0.0


def test_a_tight_device_leaves_a_single_variant_and_replica():
    pipeline = ocr_pipeline(capacity=2)
    states = random_states(pipeline, 3, 200)
    chosen = opinionated(pipeline, 3).act(states, torch.Generator().manual_seed(0)).choices
    assert (chosen[:, :, :2] == 0).all()
    assert set(chosen[:, :, 2].flatten().tolist()) == {0, 1}


# --- probabilities ---------------------------------------------------------------------------------------------------


def all_feasible(network, pipeline, state):
    """Choices (A, N, 3) of every feasible action, and the probabilities and entropies they have in ``state``."""
    candidates = [c for c in everything_selectable(pipeline) if within_limits(pipeline, c, float(state[0, 0]))]
    choices = torch.as_tensor(to_choices(np.stack([as_array(candidate) for candidate in candidates])))
    _, log_prob, entropy = taken(network, state.expand(len(choices), -1), choices)
    return choices, log_prob.exp(), entropy


def test_actions_are_sampled_as_often_as_their_probability_says():
    pipeline = ocr_pipeline(capacity=4, max_replicas=2)
    network, state = opinionated(pipeline, 26), random_states(pipeline, 26, 1)
    every, probabilities, _ = all_feasible(network, pipeline, state)
    probabilities = probabilities.numpy()
    number = 40_000
    sampled = network.act(state.expand(number, -1), torch.Generator().manual_seed(2)).choices.reshape(number, -1)
    same = (sampled[:, None] == every.reshape(1, len(probabilities), -1)).all(dim=2)
    counts = same.sum(dim=0).numpy()
    assert counts.sum() == number
    deviation = (counts - number * probabilities) / np.sqrt(number * probabilities * (1 - probabilities) + 1.0)
    assert np.abs(deviation).max() < 4.5


@settings(max_examples=60)
@given(pipelines(), SEEDS)
def test_what_is_recomputed_equals_what_was_stored(pipeline, seed):
    network, states = opinionated(pipeline, seed), random_states(pipeline, seed, 32)
    stored = network.act(states, torch.Generator().manual_seed(seed))
    log_prob, _, value = network.evaluate(states, stored.choices, stored.masks)
    torch.testing.assert_close(log_prob.detach(), stored.log_prob, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(value.detach(), stored.value, rtol=1e-5, atol=1e-5)
    assert torch.equal(network.masks(states, stored.choices), stored.masks)


def test_entropy_is_that_of_the_joint_distribution_in_the_mean():
    # By the chain rule the entropies of the choices along the sampled paths average to that of the whole action.
    pipeline = ocr_pipeline(capacity=5, max_replicas=2)
    network, state = opinionated(pipeline, 26), random_states(pipeline, 26, 1)
    _, probabilities, entropy = all_feasible(network, pipeline, state)
    joint = torch.special.entr(probabilities).sum()
    assert joint > 1.0
    torch.testing.assert_close((probabilities * entropy).sum(), joint, rtol=1e-4, atol=1e-4)


def test_without_a_generator_every_choice_is_the_most_probable_one():
    pipeline = ocr_pipeline()
    network, state = opinionated(pipeline, 6), random_states(pipeline, 6, 1)
    every, probabilities, _ = all_feasible(network, pipeline, state)
    flat = every.reshape(len(every), -1)
    prefix = torch.ones(len(flat), dtype=torch.bool)
    best = []
    for choice in range(flat.shape[1]):
        options = flat[prefix, choice].unique()
        mass = [probabilities[prefix & (flat[:, choice] == option)].sum() for option in options]
        best.append(int(options[int(np.argmax(mass))]))
        prefix &= flat[:, choice] == best[-1]
    assert network.act(state, None).choices.flatten().tolist() == best


def test_sampling_repeats_for_a_seed_and_only_then():
    pipeline = ocr_pipeline()
    network, states = opinionated(pipeline, 7), random_states(pipeline, 7, 50)
    first, second, other = (network.act(states, torch.Generator().manual_seed(s)).choices for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_fresh_network_explores_nearly_uniformly():
    torch.manual_seed(0)
    pipeline = ocr_pipeline(capacity=100)
    states = random_states(pipeline, 0, 100)
    states[:, 0] = pipeline.capacity
    decision = ActorCritic(pipeline).act(states, torch.Generator().manual_seed(0))
    uniform = -np.log(2 * 3 * 2) - np.log(3 * 3 * 2)
    np.testing.assert_allclose(decision.log_prob.numpy(), uniform, atol=0.5)


# --- indices and features --------------------------------------------------------------------------------------------


def test_choices_and_configurations_by_hand():
    choices = np.array([[[1, 0, 0], [2, 3, 3]]])
    assert from_choices(choices).tolist() == [[[1, 1, 1], [2, 4, 8]]]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 19), st.integers(0, 10)), min_size=1))
def test_choices_survive_the_way_to_configurations_and_back(rows):
    choices = np.array([rows])
    np.testing.assert_array_equal(to_choices(from_choices(choices)), choices)


def test_features_are_standardised_by_a_sample_of_states():
    extractor = FeaturesExtractor(inputs=2, width=4, blocks=0)
    extractor.standardise_by(np.array([[1.0, 5.0], [3.0, 5.0]]))
    with torch.no_grad():
        extractor.reduce.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
        extractor.reduce.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]))
        features = extractor(torch.tensor([[4.0, 5.0], [1e9, 1e9]]))
    # Mean 2 and deviation 1; the second input never varied; far values are cut at ten deviations.
    assert features.tolist() == [[2.0, 0.0, 0.0, 1.0], [10.0, 0.0, 10.0, 11.0]]


def test_a_residual_block_adds_to_what_passes_it():
    extractor = FeaturesExtractor(inputs=1, width=1, blocks=1)
    with torch.no_grad():
        for name, value in extractor.named_parameters():
            value.fill_(
                {"reduce.weight": 1.0, "blocks.0.inner.weight": 2.0, "blocks.0.outer.weight": 3.0}.get(name, 0.0)
            )
        assert extractor(torch.tensor([[1.5]])).tolist() == [[1.5 + 3.0 * 2.0 * 1.5]]


def test_every_weight_is_learned():
    pipeline = ocr_pipeline()
    network, states = opinionated(pipeline, 8), random_states(pipeline, 8, 400)
    stored = network.act(states, torch.Generator().manual_seed(8))
    log_prob, entropy, value = network.evaluate(states, stored.choices, stored.masks)
    (log_prob + entropy + value).sum().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0.0, name


def test_later_choices_depend_on_earlier_ones():
    pipeline = ocr_pipeline(capacity=100)
    network, state = opinionated(pipeline, 9), random_states(pipeline, 9, 1)
    last = range(len(pipeline.batch_sizes))

    def last_choice(first):
        given = torch.tensor([[[first, 0, 0], [0, 0, size]] for size in last])
        return taken(network, state.expand(len(given), -1), given)[1].log_softmax(dim=0)

    one, other = (last_choice(first) for first in range(2))
    assert not torch.allclose(one, other, atol=1e-3)


def states_with(pipeline, cores):
    states = random_states(pipeline, 0, len(cores))
    states[:, 0] = torch.tensor(cores)
    return states


def test_a_state_with_too_few_cores_leaves_no_option():
    pipeline = ocr_pipeline()
    states = states_with(pipeline, [0.0, 1.0, 2.0, 3.0])
    masks = ActorCritic(pipeline).masks(states, torch.zeros(4, 2, 3, dtype=torch.int64))
    assert masks[:, 0].any(dim=1).tolist() == [False, False, True, True]
    assert (ActorCritic(pipeline).act(states, None).choices < 0).any(dim=(1, 2)).tolist() == [True, True, False, False]
    with pytest.raises(InfeasibleError):
        replace(pipeline, capacity=1)


def test_masks_by_hand():
    pipeline = ocr_pipeline()
    # Detection runs one replica of 2 cores and one of 1, recognition then one of 1 and two of 2.
    choices = torch.tensor([[[1, 0, 0], [0, 0, 1]], [[0, 0, 1], [1, 1, 0]]])
    masks = ActorCritic(pipeline).masks(states_with(pipeline, [3.0, 5.0]), choices).tolist()
    # One core is kept for recognition: 2 and 4 are left for detection.
    assert [mask[0] for mask in masks] == [[True, True, False]] * 2
    assert [mask[1] for mask in masks] == [[True, False, False], [True, True, True]]
    assert [mask[2] for mask in masks] == [[True, True, False]] * 2
    # Nothing comes after recognition, which has 1 and 4.
    assert [mask[3] for mask in masks] == [[True, False, False], [True, True, True]]
    assert [mask[4] for mask in masks] == [[True, False, False], [True, True, False]]
