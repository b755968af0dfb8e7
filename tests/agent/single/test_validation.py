"""Validation: the same episodes in every call, and a penalty for drops beyond the tolerated ones."""

from __future__ import annotations

import numpy as np
import pytest
from small_trainings import SHORT, overloaded_problem, problem_for

from opd.agent.single.problem import table_policy
from opd.agent.single.rollout import ipa_drops, validate
from opd.pipeline import as_array


def test_a_validation_meets_the_same_episodes_whenever_it_is_called():
    problem = problem_for()

    def smallest(states):
        return np.repeat(as_array(problem.pipeline.smallest_configuration())[None], len(states), axis=0)

    one, same = (validate(problem, SHORT, smallest) for _ in range(2))
    assert one == same
    assert validate(problem, SHORT, table_policy(problem.expert)).reward > one.reward


def test_drops_beyond_the_tolerated_cost_a_checkpoint_its_place():
    problem = overloaded_problem()

    def only(states):
        return np.ones((len(states), 1, 3), dtype=np.int64) * np.array([0, 1, 1])

    strict = validate(problem, SHORT, only)
    assert strict.dropped > 10
    assert strict.selection == pytest.approx(strict.reward - SHORT.drop_penalty * strict.dropped)
    tolerant = validate(problem, SHORT, only, strict.dropped - 10)
    assert tolerant.selection == pytest.approx(strict.reward - SHORT.drop_penalty * 10)
    assert validate(problem, SHORT, only, 1e6).selection == pytest.approx(strict.reward)
    assert ipa_drops(problem, SHORT) == strict.dropped  # there is nothing else to choose for IPA either
