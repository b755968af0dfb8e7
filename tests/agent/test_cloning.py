"""Imitation: leads by hand, and a loss that falls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_pipelines import ocr_pipeline
from small_situations import described, random_situations, untrained

from opd.agent import cloning
from opd.agent.cloning import FARTHEST, Lessons, imitate, imitation_loss, leads
from opd.agent.demonstrations import PlannerDemonstrations
from opd.agent.network import AgentNetwork, batch_of
from opd.agent.scoring import UNIT, choose
from opd.pipeline import Pipeline, ServiceLevel, Task, Variant

ROWS = np.arange(8)


@pytest.fixture(autouse=True)
def small_minibatches(monkeypatch):
    monkeypatch.setattr(cloning, "PIPELINES", 2)
    monkeypatch.setattr(cloning, "SITUATIONS", 8)


def made_demonstrations(
    pipeline: Pipeline, compared: list, values: list[float], seed: int = 0
) -> PlannerDemonstrations:
    """Eight situations in which configurations (indices), the plan first, are worth ``values``."""
    d = described(pipeline)
    choices = np.repeat(np.array(compared, dtype=np.int16)[None], len(ROWS), axis=0)
    return PlannerDemonstrations(
        d, random_situations(d, len(ROWS), seed), choices, np.repeat(np.array(values)[None], len(ROWS), axis=0)
    )


def loss_of(network: AgentNetwork, *shown: PlannerDemonstrations) -> float:
    return float(imitation_loss(network, [(Lessons.of(each), ROWS) for each in shown]).detach())


OTHERS = [[[0, 0, 1], [2, 0, 0]], [[1, 0, 0], [0, 1, 1]], [[0, 0, 0], [0, 0, 0]]]
"""Of 1 + 4 cores, 2 + 2 and 1 + 1."""


def test_leads_by_hand():
    """The plan takes 5 cores: a configuration that is worth one unit of these more leads by 1."""
    unit = 5.0 * UNIT
    shown = made_demonstrations(ocr_pipeline(), OTHERS, [3.0, 3.0 + unit, 3.0 - 2.5 * unit])
    np.testing.assert_allclose(leads(shown), np.repeat([[0.0, 1.0, -2.5]], len(ROWS), axis=0))


def test_leads_are_cut_off():
    shown = made_demonstrations(ocr_pipeline(), OTHERS, [0.0, 1e6, -1e6])
    np.testing.assert_allclose(leads(shown), np.repeat([[0.0, FARTHEST, -FARTHEST]], len(ROWS), axis=0))


def two_options() -> Pipeline:
    task = Task("only", tuple(Variant(name, 0.9, 1, {1: 0.1}, 1.0) for name in ("one", "other")))
    return Pipeline("two", (task,), 1, 1, 1, ServiceLevel(1.0))


def test_the_loss_by_hand():
    """An indifferent network is off by what the leads are, here by the square of 1, an eighth of which counts."""
    network = untrained(0)
    with torch.no_grad():
        network.score_weight.zero_()
        network.direct_weight.zero_()
    both = [[[0, 0, 0]], [[1, 0, 0]]]
    equal, better = (made_demonstrations(two_options(), both, [1.0, 1.0 + units * UNIT]) for units in (0.0, 1.0))
    assert loss_of(network, equal) == pytest.approx(0.0, abs=1e-9)
    assert loss_of(network, better) == pytest.approx(0.5 / 4.0, rel=1e-4)
    assert loss_of(network, equal, better) == pytest.approx(0.25 / 4.0, rel=1e-4)


def test_imitation_lowers_the_loss_until_the_agent_chooses_what_was_best():
    """The second configuration is worth eight units more than the plan, and more than a third one."""
    shown = made_demonstrations(ocr_pipeline(), OTHERS, [0.0, 8.0 * 5.0 * UNIT, 0.0])
    network = untrained(0)
    before = loss_of(network, shown)
    losses = imitate(network, [Lessons.of(shown)], 150, 1e-2, np.random.default_rng(0))
    assert len(losses) == 150
    assert loss_of(network, shown) < 0.2 * before
    network_input = Lessons.of(shown).expanded
    log_prob = network(batch_of([network_input])).log_prob.detach().reshape(len(ROWS), 3)
    assert (log_prob.argmax(dim=1) == 1).all()


def test_noise_in_the_values_averages_out():
    """Of two options the second is worth 2 units more in the mean, but often looks worse: that is learned."""
    rng = np.random.default_rng(0)
    both = [[[0, 0, 0]], [[1, 0, 0]]]
    d = described(two_options())
    many = 400
    s = random_situations(d, 1, 0).part(np.zeros(many, dtype=np.int64))
    values = np.stack([np.zeros(many), UNIT * rng.normal(2.0, 3.0, many)], axis=1)
    choices = np.repeat(np.array(both, dtype=np.int16)[None], many, axis=0)
    network = untrained(0)
    imitate(network, [Lessons.of(PlannerDemonstrations(d, s, choices, values))], 200, 1e-2, np.random.default_rng(0))
    one = s.part(slice(0, 1))
    uniform = np.full((1, 3), -1.0)
    chosen, log_prob = choose(network.weights(), d, one, uniform)
    assert chosen[0, 0, 0] == 1
    assert np.log(np.exp(log_prob[0]) / (1.0 - np.exp(log_prob[0]))) == pytest.approx(2.0, abs=0.6)


def test_imitation_depends_on_the_seed_alone():
    shown = [Lessons.of(made_demonstrations(ocr_pipeline(), OTHERS, [1.0, 0.99, 0.9], seed)) for seed in (1, 2)]
    runs = [imitate(untrained(0), shown, 3, 1e-3, np.random.default_rng(seed)) for seed in (4, 4, 5)]
    assert runs[0] == runs[1] != runs[2]
