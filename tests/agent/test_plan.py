"""The plan in closed form: as the planner's formula says, by hand, and no single change is better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from small_pipelines import every_configuration, ocr_pipeline, pipelines
from small_situations import QUIET, calm_situations, described, random_situations

from opd.agent import scoring
from opd.agent.description import WAITING, Description, Situations
from opd.agent.network import AgentNetwork
from opd.agent.scoring import choose, plan
from opd.measurement import StageState
from opd.objective import Weights
from opd.pipeline import Pipeline, ServiceLevel, as_array, as_configuration, check_feasible, from_choices, to_choices
from opd.planner.expected import expected_rewards, ready_rates
from opd.profiling.generated import generate_pipeline

SEEDS = st.integers(0, 10_000)


def expected(d: Description, s: Situations, choices: np.ndarray) -> float:
    """Expected reward of a configuration in the first situation, in cores."""
    return float(scoring.expected_rewards(d, s, 0, scoring.prospects(d, s, 0), np.array(choices)[None])[0])


def all_choices(pipeline: Pipeline) -> np.ndarray:
    return to_choices(np.array([as_array(each) for each in every_configuration(pipeline)]))


def stages_of(s: Situations) -> tuple[StageState, ...]:
    """The state of the stages that a situation without starting replicas tells of; what waits is in the first."""
    nothing, found = np.zeros((0, 2)), []
    for n, serving in enumerate(s.serving[0]):
        rows = [[z, 0.0, 0.0, np.inf] for z in range(len(serving)) for _ in range(int(serving[z]))]
        waiting = np.zeros((int(round(10.0 * s.loads[0, WAITING])), 2)) if n == 0 else nothing
        found.append(StageState(waiting, nothing, np.array(rows)))
    return tuple(found)


@pytest.mark.parametrize("load", [1.0, 4.0, 9.0])
def test_the_compiled_formula_is_that_of_the_planner(load):
    """Where nothing waits, no batch has to form and the load is carried: the same differences, in cores."""
    pipeline, weights = ocr_pipeline(), Weights()
    d = described(pipeline, weights)
    s = calm_situations(d, [[0, 1, 0], [1, 0, 0]], load)
    every = all_choices(pipeline)
    every = every[(every[..., 2] == 0).all(axis=1)]
    rates = ready_rates(pipeline, stages_of(s), from_choices(every), 10.0, 2)
    every = every[(rates > load).all(axis=(1, 2))]
    assert len(every) > 5
    found = np.array([expected(d, s, choices) for choices in every])
    loads = np.full((1, 2), load)
    known = expected_rewards(pipeline, weights, QUIET, stages_of(s), from_choices(every), loads) / weights.cost_weight
    np.testing.assert_allclose(found - found[0], known - known[0], rtol=2e-3, atol=0.02)


def test_what_piles_up_by_hand():
    """10 requests wait, 3/s come and 2/s are served: 20 wait at the end, 15 in the mean, which take 7.5 s."""
    assert scoring._piled_up(10.0, 10.0, 3.0, 2.0, 10.0) == (7.5, 20.0)
    assert scoring._piled_up(10.0, 10.0, 2.0, 4.0, 20.0) == (2.5, 0.0)
    assert scoring._piled_up(10.0, 10.0, 3.0, 4.0, 0.0) == (0.0, 0.0)
    assert scoring._piled_up(10.0, 10.0, 9.0, 2.0, 30.0) == (10.0, 20.0)  # nobody waits longer than ten seconds


def test_a_queue_has_to_be_served_by_somebody():
    """Replicas that carry the load with little to spare leave 60 waiting requests where they are: a plan adds some."""
    d = described(ocr_pipeline(capacity=20), Weights(alpha=0.1))
    calm = calm_situations(d, [[0, 0, 0], [0, 0, 0]], load=9.0)
    behind = calm._replace(loads=np.array([[9.0, 9.0, 6.0]]))
    carried = [min(scoring._rate(d, n, *choice) for n, choice in enumerate(plan(d, s, 0)[0])) for s in (calm, behind)]
    assert carried[1] > carried[0]


def test_a_service_level_by_hand():
    """One replica each at 4 requests/s: 0.1 s and 0.05 s of service, and the queues of M/D/1 as far as they count.

    40 % and 20 % of the requests wait, for exponential times. The latency is taken to be distributed normally.
    """
    level = ServiceLevel(0.2, percentile=90.0, accuracy_floor=0.6, accuracy_weight=12.0)
    d = described(replace(ocr_pipeline(), service_level=level), level)._replace(variation=0.04)
    s = calm_situations(d, [[0, 0, 0], [0, 0, 0]], load=4.0)
    busy, queued = np.array([0.4, 0.2]), scoring.LEVEL_WAITING * np.array([0.1 / (2.0 * 0.6), 0.05 / (2.0 * 0.8)])
    mean = 0.15 + (busy * queued).sum()
    variance = 0.04 * (0.1**2 + 0.05**2) + (busy * (2.0 - busy) * queued**2).sum()
    late = 0.9 - ndtr((0.2 / scoring.LEVEL_MARGIN - mean) / np.sqrt(variance))
    lost = 100.0 * 8.0 * (max(late, 0.0) + 0.6 - 0.5625)
    worth = d.worth[0, 0] + d.worth[1, 0]
    assert expected(d, s, np.zeros((2, 3), dtype=np.int64)) == pytest.approx(worth - 2.0 - lost, rel=1e-3)
    assert expected(d._replace(seconds=0.01), s, np.zeros((2, 3), dtype=np.int64)) < -100.0 * 8.0 * 0.9


def settled(d: Description, s: Situations) -> tuple[Description, Situations]:
    """The same where replicas serve at once, so that the same stage is the slowest in every interval."""
    return d._replace(startup=np.zeros_like(d.startup)), s._replace(starting=np.zeros_like(s.starting))


@settings(max_examples=40)
@given(pipelines(), SEEDS)
def test_no_change_of_one_stage_improves_a_plan(pipeline: Pipeline, seed: int):
    d = described(pipeline, solved_loads=3)
    d, s = settled(d, random_situations(d, 1, seed))
    found, _ = plan(d, s, 0)
    check_feasible(pipeline, as_configuration(from_choices(found)))
    best = expected(d, s, found)
    every = all_choices(pipeline) if len(pipeline.tasks) < 3 else d.solved
    one_stage = every[(every != found).any(axis=2).sum(axis=1) <= 1]
    assert max((expected(d, s, each) for each in one_stage), default=-np.inf) <= best + 1e-6


def test_plans_are_close_to_the_best_of_all_configurations():
    """By enumeration, in 60 situations: the best in most, and never far from it."""
    pipeline = ocr_pipeline()
    d, every = described(pipeline, solved_loads=20), all_choices(pipeline)
    lost = []
    for seed in range(60):
        s = random_situations(d, 1, seed)
        values = np.array([expected(d, s, each) for each in every])
        lost.append((values.max() - expected(d, s, plan(d, s, 0)[0])) / (values.max() - np.median(values)))
    assert np.mean(np.array(lost) < 1e-9) > 0.8
    assert max(lost) < 0.2


@settings(max_examples=30)
@given(pipelines(), SEEDS)
def test_before_it_has_learned_the_agent_does_as_planned(pipeline: Pipeline, seed: int):
    d = described(pipeline, solved_loads=3)
    d, s = settled(d, random_situations(d, 4, seed))
    chosen, _ = choose(AgentNetwork(8, 1).weights(), d, s, np.full((4, 3 * len(d.cores)), -1.0))
    for e in range(4):
        planned = plan(d, s, e)[0]
        values = [expected(d, s.part(slice(e, e + 1)), each) for each in (chosen[e], planned)]
        assert values[0] == pytest.approx(values[1], abs=1e-3 + 1e-4 * abs(values[1]))


@pytest.mark.parametrize("range", ["inside", "outside"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_generated_pipelines_have_feasible_plans(range, seed):
    generated = generate_pipeline(seed, range)
    d = described(generated.pipeline, generated.objective, 2)
    s = random_situations(d, 3, seed)
    for e in np.arange(3):
        check_feasible(generated.pipeline, as_configuration(from_choices(plan(d, s, e)[0])))


def test_later_stages_are_planned_anew_after_another_choice():
    """By enumeration: the best second stage beside three small replicas, which leave two of five cores."""
    d, every = described(ocr_pipeline(capacity=5)), all_choices(ocr_pipeline(capacity=5))
    s, chosen = calm_situations(d, [[0, 0, 0], [0, 0, 0]], load=9.0), np.array([0, 2, 1])
    found, p = plan(d, s, 0)
    assert (found[0] != chosen).any()
    beside = every[(every[:, 0] == chosen).all(axis=1)]
    best = beside[np.argmax([expected(d, s, each) for each in beside])]
    np.testing.assert_array_equal(scoring._go_on(d, s, 0, p, found, 0, chosen), best)
    np.testing.assert_array_equal(scoring._go_on(d, s, 0, p, found, 0, found[0]), found)
