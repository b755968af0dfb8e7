"""Fine-tuning: what it keeps is never worse in validation than what it began with."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from small_pipelines import varying_workload
from small_situations import departing, load_of, small_practice

from opd.agent import fine_tuning as module
from opd.agent.fine_tuning import FineTuning, fine_tune, loaded, validated
from opd.agent.ppo import PpoParameters
from opd.agent.scoring import ScoringWeights
from opd.agent.weights import SHIPPED, TrainedAgent
from opd.profiling.pipelines import load_pipeline

BRIEF = FineTuning(updates=4, rollouts=1, learning_rate=3e-3, validate_every=2, episodes=3, decisions=6)
VIDEO = load_pipeline("video")
AGENT = TrainedAgent(departing(0).copied_weights(), {"traces": ["waves"]})


@pytest.fixture(autouse=True)
def short_rollouts(monkeypatch):
    monkeypatch.setattr(module, "PpoParameters", partial(PpoParameters, episodes=4, decisions=6))


def tuned(agent: TrainedAgent = AGENT, parameters: FineTuning = BRIEF, seed: int = 0, metrics=None) -> TrainedAgent:
    training = small_practice(VIDEO)
    validation = training._replace(load=load_of(varying_workload(decisions=60, seed=8), bursts=(20,)))
    return fine_tune(agent, training, validation, parameters, seed, metrics)


def worth(agent: TrainedAgent) -> float:
    validation = small_practice(VIDEO)._replace(load=load_of(varying_workload(decisions=60, seed=8), bursts=(20,)))
    return validated(loaded(agent.weights), validation, BRIEF)


def same(one: ScoringWeights, other: ScoringWeights) -> bool:
    return all(np.array_equal(*parts) for parts in zip(one, other, strict=True))


def scripted(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> list[ScoringWeights]:
    """Let validations give these values; return the weights that they see."""
    seen: list[ScoringWeights] = []

    def validate(network, problem, parameters):
        seen.append(network.copied_weights())
        return values[len(seen) - 1]

    monkeypatch.setattr(module, "validated", validate)
    return seen


@pytest.mark.parametrize(("values", "kept"), [([1.0, 3.0, 2.0], 1), ([1.0, 2.0, 3.0], 2), ([1.0, 1.0, 0.9], 0)])
def test_the_best_validation_is_kept_and_the_first_of_equals(monkeypatch, values, kept):
    seen = scripted(monkeypatch, values)
    found = tuned().weights
    assert len(seen) == 3 and not same(seen[0], seen[1]) and not same(seen[1], seen[2])
    assert [same(found, each) for each in seen] == [number == kept for number in range(3)]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_kept_is_not_worse_than_the_agent_before(seed):
    assert worth(tuned(seed=seed)) >= worth(AGENT)


def test_an_agent_that_gets_worse_stays_as_it_was(monkeypatch):
    """The update turns its preferences upside down, which is bad for one of the two agents that are so related."""

    def turn(network, *given):
        with torch.no_grad():
            network.score_weight.mul_(-1.0)
        return {}

    turned = replace(AGENT, weights=AGENT.weights._replace(score_weight=-AGENT.weights.score_weight))
    worse, better = sorted((AGENT, turned), key=worth)
    assert worth(worse) < worth(better)
    monkeypatch.setattr(module, "improve", turn)
    once = replace(BRIEF, updates=1, validate_every=1)
    assert same(tuned(better, once).weights, better.weights)
    assert same(tuned(worse, once).weights, better.weights)


def test_the_agent_before_and_the_shipped_file_are_kept():
    content, agent = SHIPPED.read_bytes(), TrainedAgent.load()
    before = ScoringWeights(*(part.copy() for part in agent.weights))
    found = tuned(agent)
    assert SHIPPED.read_bytes() == content
    assert same(agent.weights, before) and "fine_tuned_for" not in agent.about
    assert found.about == {**agent.about, "fine_tuned_for": "video"}


def test_metrics_hold_every_update(tmp_path):
    tuned(metrics=tmp_path / "runs" / "metrics.csv")
    table = pd.read_csv(tmp_path / "runs" / "metrics.csv")
    assert table["update"].tolist() == [0, 1, 2, 3, 4]
    assert table.dropna(subset="validation")["update"].tolist() == [0, 2, 4]
    assert np.isfinite(table[["lead", "divergence"]].to_numpy()[1:]).all()
    assert table["validation"][0] == pytest.approx(worth(AGENT))


def test_tuning_depends_on_the_seed_alone(monkeypatch):
    seen = scripted(monkeypatch, [0.0, 1.0, 2.0] * 3)
    runs = [tuned(seed=seed).weights for seed in (1, 1, 2)]
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])
    assert same(seen[0], seen[6])


def test_the_learning_rate_falls_linearly_to_a_tenth(monkeypatch):
    rates = []

    def noting(network, optimizer, *given):
        rates.extend(group["lr"] for group in optimizer.param_groups)
        return {}

    monkeypatch.setattr(module, "improve", noting)
    tuned(parameters=replace(BRIEF, updates=10, learning_rate=1.0))
    assert rates == pytest.approx([1.0 - 0.09 * update for update in range(10)])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"updates": 0}, r"updates\n.*greater than or equal to 1 .*input_value=0"),
        ({"updates": 5}, "updates 5 is not a multiple of validate_every 2"),
        ({"learning_rate": 0.0}, r"learning_rate\n.*greater than 0 .*input_value=0.0"),
        ({"rollouts": -1}, r"rollouts\n.*greater than or equal to 1 .*input_value=-1"),
        ({"learning_rate": float("inf")}, r"learning_rate\n.*finite number"),
    ],
)
def test_a_wrong_parameter_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(BRIEF, **wrong)


def test_an_unknown_parameter_is_named():
    with pytest.raises(ValueError, match=r"update\n.*Unexpected"):
        FineTuning(update=3)  # type: ignore[call-arg]
