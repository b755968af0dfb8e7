"""Imitation: targets by hand, and a loss that falls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_pipelines import ocr_pipeline
from small_situations import described, random_situations, untrained

from opd.agent import cloning
from opd.agent.cloning import TOLERANCE, imitate, imitation_loss, targets
from opd.agent.demonstrations import COMPARED, PlannerDemonstrations
from opd.agent.network import AgentNetwork
from opd.agent.scoring import choose
from opd.pipeline import Pipeline, ServiceLevel, Task, Variant

ROWS = np.arange(8)


@pytest.fixture(autouse=True)
def small_minibatches(monkeypatch):
    monkeypatch.setattr(cloning, "PIPELINES", 2)
    monkeypatch.setattr(cloning, "SITUATIONS", 8)


def made_demonstrations(pipeline: Pipeline, best: list, values: list[float], seed: int = 0) -> PlannerDemonstrations:
    """Eight situations in which configurations ``best`` (indices) are worth ``values``; the first one fills up."""
    d = described(pipeline)
    filled = best + best[:1] * (COMPARED - len(best))
    worth = values + [-np.inf] * (COMPARED - len(values))
    choices = np.repeat(np.array(filled, dtype=np.int16)[None], len(ROWS), axis=0)
    return PlannerDemonstrations(
        d, random_situations(d, len(ROWS), seed), choices, np.repeat(np.array(worth)[None], len(ROWS), axis=0)
    )


def loss_of(network: AgentNetwork, *groups: tuple[PlannerDemonstrations, np.ndarray], seed: int = 0) -> float:
    """The loss with some drawn configurations."""
    return float(imitation_loss(network, groups, np.random.default_rng(seed)).detach())


OTHER = [[[0, 0, 1], [2, 0, 0]], [[1, 0, 0], [0, 1, 1]]]
"""Of 1 + 4 cores, and of 2 + 2."""


def test_targets_by_hand():
    """The best uses 5 cores: what is worth a tolerance of these less is e times less likely."""
    tolerance = 5.0 * TOLERANCE
    shown = made_demonstrations(ocr_pipeline(), [*OTHER, OTHER[0]], [3.0, 3.0 - tolerance, 3.0 - 2.0 * tolerance])
    expected = np.array([1.0, np.exp(-1.0), np.exp(-2.0), 0.0, 0.0, 0.0])
    np.testing.assert_allclose(targets(shown, ROWS[:2]), np.repeat(expected[None] / expected.sum(), 2, axis=0))


def test_configurations_of_equal_worth_are_equally_likely():
    shown = made_demonstrations(ocr_pipeline(), OTHER, [-4.0, -4.0])
    np.testing.assert_allclose(targets(shown, ROWS)[:, :3], np.repeat([[0.5, 0.5, 0.0]], len(ROWS), axis=0))


def test_the_loss_by_hand():
    """Where there is no choice, everything is certain. Of two equal actions one is a logarithm of 2 away."""
    task = Task("only", tuple(Variant(name, 0.9, 1, {1: 0.1}, 1.0) for name in ("one", "other")))
    two = Pipeline("two", (task,), 1, 1, 1, ServiceLevel(1.0))
    one = Pipeline("one", (Task("only", task.variants[:1]),), 1, 1, 1, ServiceLevel(1.0))
    network = untrained(0)
    with torch.no_grad():
        network.score_weight.zero_()
    certain, open_choice = (made_demonstrations(each, [[[0, 0, 0]]], [1.0]) for each in (one, two))
    assert loss_of(network, (certain, ROWS)) == pytest.approx(0.0, abs=1e-6)
    assert loss_of(network, (open_choice, ROWS)) == pytest.approx(np.log(2.0), abs=1e-5)
    both = loss_of(network, (open_choice, ROWS), (certain, ROWS))
    assert both == pytest.approx(np.log(2.0) / 2.0, abs=1e-5)


def test_imitation_lowers_the_loss_until_the_agent_chooses_what_was_shown():
    shown = made_demonstrations(ocr_pipeline(), [[[0, 0, 1], [2, 0, 0]]], [1.0])
    network = untrained(0)
    before = loss_of(network, (shown, ROWS))
    losses = imitate(network, [shown], 80, 1e-2, np.random.default_rng(0))
    after = loss_of(network, (shown, ROWS))
    assert len(losses) == 80
    assert after < 0.3 * before
    chosen, _ = choose(network.weights(), shown.description, shown.situations, np.full((len(ROWS), 6), -1.0))
    assert (chosen == shown.choices[:, 0]).all()


def test_imitation_depends_on_the_seed_alone():
    shown = [made_demonstrations(ocr_pipeline(), OTHER, [1.0, 0.99], seed) for seed in (1, 2)]
    runs = [imitate(untrained(0), shown, 3, 1e-3, np.random.default_rng(seed)) for seed in (4, 4, 5)]
    assert runs[0] == runs[1] != runs[2]


def test_the_loss_estimates_the_cross_entropy_with_the_targets():
    """The mean over many draws is the sum over the configurations that were compared."""
    worth = [3.0, 3.0 - 5.0 * TOLERANCE]
    shown = made_demonstrations(ocr_pipeline(), OTHER, worth)
    network = untrained(0)
    alone = [loss_of(network, (made_demonstrations(ocr_pipeline(), [each], [1.0]), ROWS)) for each in OTHER]
    likely = targets(shown, ROWS)[0]
    expected = likely[0] * alone[0] + likely[1] * alone[1]
    drawn = [loss_of(network, (shown, ROWS), seed=seed) for seed in range(200)]
    assert np.mean(drawn) == pytest.approx(expected, abs=4.0 * np.std(drawn) / np.sqrt(len(drawn)))
    assert np.std(drawn) > 0.0
