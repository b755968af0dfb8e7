"""Problems: tables by load, weights of an agent's own, and where episodes begin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_pipelines import ocr_pipeline, steady_workload
from small_trainings import problem_for

from opd.agent.single.problem import agent_objective, expert_table, look_up, table_policy
from opd.agent.single.rollout import begin_episodes
from opd.measurement import SimulationParameters
from opd.objective import Weights
from opd.pipeline import ServiceLevel, as_configuration
from opd.solvers import IpaParameters
from opd.solvers.service_level import best_for_level, ipa_for_level


def test_a_table_is_looked_up_by_the_load_rounded_up():
    table = np.arange(4)[:, None, None] * np.ones((1, 2, 3), dtype=int)
    loads = np.array([0.0, 0.2, 1.0, 1.0 + 1e-9, 1.1, 3.0, 50.0])
    expected = [0, 1, 1, 1, 2, 3, 3]
    assert look_up(table, loads)[:, 0, 0].tolist() == expected
    states = np.stack([np.full(7, 8.0), loads, np.zeros(7)], axis=1)
    assert table_policy(table)(states)[:, 0, 0].tolist() == expected


def test_an_agent_may_have_weights_of_its_own_for_each_pipeline():
    base = Weights()
    assert agent_objective(base, {}, "video") == base
    assert agent_objective(base, {"cost_weight": 0.4}, "nlp").cost_weight == 0.4
    own = {"cost_weight": {"video": 0.2, "nlp": 0.5}}
    assert agent_objective(base, own, "nlp") == replace(base, cost_weight=0.5)
    with pytest.raises(ValueError, match="no value for pipeline 'audio-qa'"):
        agent_objective(base, own, "audio-qa")
    with pytest.raises(ValueError, match="unknown weight 'price'"):
        agent_objective(base, {"price": 1.0}, "video")


def test_an_agent_may_have_a_service_level_of_its_own():
    level = ServiceLevel(0.5)
    assert agent_objective(level, {"accuracy_weight": 20.0}, "shop") == replace(level, accuracy_weight=20.0)
    with pytest.raises(ValueError, match="unknown weight 'alpha'; there are seconds, percentile"):
        agent_objective(level, {"alpha": 1.0}, "shop")


@pytest.mark.parametrize("expert", ["myopic", "ipa"])
def test_the_expert_of_a_service_level_plans_for_it(expert):
    pipeline, simulation, level = ocr_pipeline(), SimulationParameters(), ServiceLevel(1.0, accuracy_weight=6.0)
    table = expert_table(pipeline, level, simulation, expert, 12)
    ipa = IpaParameters(3.0, 1.0, 0.0)  # two tasks share the 6 cores of their mean accuracy
    for load in (0, 7, 12):
        by_ipa = ipa_for_level(pipeline, load, level, simulation, ipa)
        wanted = by_ipa if expert == "ipa" else best_for_level(pipeline, load, level, simulation)
        assert as_configuration(table[load]) == wanted


# --- episodes --------------------------------------------------------------------------------------------------------


def test_some_episodes_start_shortly_before_a_burst():
    problem = problem_for(bursts=(60, 150))
    starts = []
    for seed in range(20):
        episodes = begin_episodes(problem, problem.training, problem.training_bursts, 5, 12, 20, seed)
        starts.append(episodes.decision)
    start = np.array(starts)
    before = np.array([60, 150])[:, None] - start[:, :5].flatten()
    assert ((before >= 1) & (before <= 10)).any(axis=0).all()
    assert len(set(start[:, 5:].flatten())) > 50
    assert start.min() >= 1 and start.max() + 20 <= problem.training.decisions


def test_episodes_start_with_what_the_expert_runs():
    problem = problem_for()
    episodes = begin_episodes(problem, problem.training, problem.training_bursts, 0, 40, 20, 3)
    load = problem.training.windows(episodes.decision - 1).mean(axis=1)
    np.testing.assert_array_equal(episodes.configurations, look_up(problem.expert, load))


def test_episodes_repeat_for_a_seed_and_only_then():
    problem = problem_for()
    one, same, other = (begin_episodes(problem, problem.training, np.array([50]), 2, 12, 20, s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.state(), same.state())
    assert not np.array_equal(one.decision, other.decision)


def test_a_workload_shorter_than_an_episode_is_refused():
    problem = problem_for(workload=steady_workload(5, decisions=9))
    with pytest.raises(ValueError, match="a workload of 9 decisions is too short for episodes of 8"):
        begin_episodes(problem, problem.training, np.array([]), 0, 4, 8, 0)


def test_an_episode_of_one_decision_can_begin_before_a_burst():
    problem = problem_for(bursts=(60,))
    episodes = begin_episodes(problem, problem.training, problem.training_bursts, 4, 4, 1, 0)
    assert episodes.decision.tolist() == [59] * 4
