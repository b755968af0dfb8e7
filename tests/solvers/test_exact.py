"""The exact solvers of an objective, and their tables."""

from __future__ import annotations

import numpy as np
import pytest

from opd.measurement import SimulationParameters
from opd.objective import Weights
from opd.pipeline import ServiceLevel
from opd.profiling.synthetic import synthetic_pipeline
from opd.solvers import IpaParameters, ipa_dynamic_program, myopic
from opd.solvers.exact import ipa_solver_for, solution_table, solver_for
from opd.solvers.service_level import best_for_level, ipa_for_level

PIPELINE = synthetic_pipeline(3, 6, 2)
SIMULATION = SimulationParameters(batch_timeout=0.1, service_noise=0.3)
WEIGHTS, IPA = Weights(cost_weight=0.4), IpaParameters(alpha=30.0, beta=0.5)
LEVEL = ServiceLevel(PIPELINE.service_level.seconds, accuracy_weight=40.0)
SOLVERS = [
    (solver_for(WEIGHTS, SIMULATION), lambda load: myopic(PIPELINE, load, WEIGHTS, 0.1)),
    (solver_for(LEVEL, SIMULATION), lambda load: best_for_level(PIPELINE, load, LEVEL, SIMULATION)),
    (ipa_solver_for(WEIGHTS, SIMULATION, IPA), lambda load: ipa_dynamic_program(PIPELINE, load, IPA)),
    (ipa_solver_for(LEVEL, SIMULATION, IPA), lambda load: ipa_for_level(PIPELINE, load, LEVEL, SIMULATION, IPA)),
]


@pytest.mark.parametrize(("solve", "expected"), SOLVERS)
def test_the_solver_of_an_objective_solves_for_it(solve, expected):
    for load in (0.0, 3.5, 17.0, 400.0):
        assert solve(PIPELINE, load) == expected(load)


def test_another_objective_has_another_solution():
    found = [solve(PIPELINE, 17.0) for solve, _ in SOLVERS]
    assert len(set(found)) == len(found)


def test_a_table_holds_the_solutions():
    solve = solver_for(WEIGHTS, SIMULATION)
    table = solution_table(PIPELINE, solve, 50)
    assert table.shape == (51, 3, 3)
    for load in (0, 1, 23, 50):
        assert np.array_equal(table[load], solve(PIPELINE, load))
