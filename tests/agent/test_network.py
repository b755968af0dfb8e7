"""The network in torch: the same policy as the compiled one, for pipelines of any shape in one batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pipelines import every_configuration, ocr_pipeline, pipelines
from small_situations import described, random_situations, untrained

from opd.agent.description import Description
from opd.agent.network import AgentNetwork, batch_of, part_of
from opd.agent.scoring import Expanded, ScoringWeights, choose, expand
from opd.pipeline import Pipeline, as_array, to_choices
from opd.profiling.generated import generate_pipeline

GENERATED = [("inside", seed) for seed in (4, 1, 5, 10, 0)] + [("outside", seed) for seed in (3, 6, 10)]
"""Pipelines of 2 to 6 stages as in training; of 12 variants, of another shape, and of ten stages outside."""


def drawn(d: Description, seed: int, many: int = 12) -> tuple[Expanded, np.ndarray]:
    """What the compiled policy draws in random situations: its choices as the network sees them, log-probabilities."""
    s = random_situations(d, many, seed)
    uniform = np.random.default_rng(seed).random((many, 3 * len(d.cores)))
    choices, log_prob = choose(untrained(seed).weights(), d, s, uniform)
    return Expanded(*expand(d, s, choices[:, None])), log_prob


def of_network(network: AgentNetwork, *groups: Expanded) -> np.ndarray:
    return network(batch_of(groups)).log_prob.detach().numpy()


# --- one policy, two implementations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("range", "seed"), GENERATED)
def test_both_implementations_agree_on_generated_pipelines(range, seed):
    expanded, log_prob = drawn(described(generate_pipeline(seed, range).pipeline, solved_loads=2), seed)
    assert log_prob.std() > 0.0
    np.testing.assert_allclose(of_network(untrained(seed), expanded), log_prob, rtol=1e-3, atol=1e-3)


@settings(max_examples=30)
@given(pipelines(), st.integers(0, 1000))
def test_both_implementations_agree(pipeline: Pipeline, seed: int):
    expanded, log_prob = drawn(described(pipeline, solved_loads=2), seed)
    np.testing.assert_allclose(of_network(untrained(seed), expanded), log_prob, rtol=1e-3, atol=1e-3)


def test_weights_are_those_of_the_network():
    network = untrained(0, width=8, blocks=3)
    weights = network.weights()
    assert set(dict(network.named_parameters())) == set(ScoringWeights._fields) | {
        f"critic.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")
    }
    assert {part.dtype for part in weights} == {np.dtype(np.float32)}
    with torch.no_grad():
        network.score_weight[0, 0] = 77.0
    assert weights.score_weight[0, 0] == 77.0  # no copy


# --- batches ---------------------------------------------------------------------------------------------------------


def three_shapes() -> list[Expanded]:
    """A pipeline of two stages, one of three and one of six."""
    shapes = [ocr_pipeline(), generate_pipeline(1).pipeline, generate_pipeline(0).pipeline]
    return [drawn(described(pipeline, solved_loads=2), 7, 5)[0] for pipeline in shapes]


def test_pipelines_in_a_batch_do_not_disturb_one_another():
    network, groups = untrained(7), three_shapes()
    alone = [of_network(network, group) for group in groups]
    for order in ((0, 1, 2), (2, 0, 1), (1, 2)):
        together = of_network(network, *(groups[i] for i in order))
        np.testing.assert_allclose(together, np.concatenate([alone[i] for i in order]), rtol=1e-4, atol=1e-4)


def test_values_and_entropies_keep_their_places():
    network, groups = untrained(7), three_shapes()
    alone, together = network(batch_of(groups[1:2])), network(batch_of(groups))
    for name in ("value", "entropy"):
        torch.testing.assert_close(getattr(together, name)[5:10], getattr(alone, name), rtol=1e-4, atol=1e-4)


def test_a_part_is_what_its_situations_alone_expand_to():
    """Three sequences of choices in every situation, which differ in the number of their options."""
    d, every = described(ocr_pipeline()), np.stack([as_array(each) for each in every_configuration(ocr_pipeline())])
    choices = to_choices(every[np.random.default_rng(1).integers(len(every), size=(6, 3))])
    s, rows = random_situations(d, 6, 3), np.array([4, 1, 1, 5])
    whole = Expanded(*expand(d, s, choices))
    alone = Expanded(*expand(d, s.part(rows), choices[rows]))
    assert len({len(part_of(whole, rows[[i]]).options) for i in range(4)}) > 1
    for name, found, expected in zip(Expanded._fields, part_of(whole, rows), alone, strict=True):
        np.testing.assert_array_equal(found, expected, err_msg=name)


def several_sequences() -> tuple[Description, Expanded, np.ndarray]:
    """Two situations of a tight pipeline, each with all of its actions (2, M, N, 3)."""
    pipeline = ocr_pipeline(capacity=4, max_replicas=2)
    d = described(pipeline)
    every = to_choices(np.stack([as_array(each) for each in every_configuration(pipeline)]))
    choices = np.stack([every, every])
    return d, Expanded(*expand(d, random_situations(d, 2, 26), choices)), choices


def test_a_situation_has_one_value_whatever_is_chosen():
    _, expanded, choices = several_sequences()
    found = untrained(26)(batch_of([expanded]))
    assert found.value.shape == (2,)
    assert found.log_prob.shape == found.entropy.shape == (2 * choices.shape[1],)
    assert len(set(found.value.tolist())) == 2


def test_probabilities_of_all_actions_sum_to_one():
    _, expanded, _ = several_sequences()
    log_prob = untrained(26)(batch_of([expanded])).log_prob.detach().double().reshape(2, -1)
    np.testing.assert_allclose(log_prob.exp().sum(dim=1), [1.0, 1.0], atol=1e-4)


def test_entropy_is_that_of_the_joint_distribution_in_the_mean():
    """By the chain rule the entropies of the choices along the paths average to that of the whole action."""
    _, expanded, _ = several_sequences()
    found = untrained(26)(batch_of([expanded]))
    probability = found.log_prob.detach().exp().reshape(2, -1)
    mean = (probability * found.entropy.detach().reshape(2, -1)).sum(dim=1)
    joint = torch.special.entr(probability).sum(dim=1)
    assert (joint > 0.5).all()
    torch.testing.assert_close(mean, joint, rtol=1e-3, atol=1e-3)


# --- what is learned -------------------------------------------------------------------------------------------------


def test_every_weight_is_learned():
    network, expanded = untrained(8), drawn(described(generate_pipeline(5).pipeline, solved_loads=2), 8, 40)[0]
    found = network(batch_of([expanded]))
    (found.log_prob.sum() + found.entropy.sum() + found.value.sum()).backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0.0, name


def test_later_choices_depend_on_earlier_ones():
    """Probabilities of the last batch size after each of the two variants of the first stage."""
    d = described(ocr_pipeline(capacity=100))
    sequences = np.array([[[[first, 0, 0], [0, 0, size]] for first in (0, 1) for size in (0, 1)]])
    expanded = Expanded(*expand(d, random_situations(d, 1, 9), sequences))
    found = untrained(9)(batch_of([expanded])).log_prob.detach().reshape(2, 2)
    one, other = found.log_softmax(dim=1)
    assert not torch.allclose(one, other, atol=1e-3)
