"""Which exact solver maximises an objective for one load."""

from __future__ import annotations

from functools import partial

from opd.measurement import SimulationParameters
from opd.objective import Objective
from opd.pipeline import ServiceLevel
from opd.solvers.ladder import Solve
from opd.solvers.myopic import myopic
from opd.solvers.service_level import best_for_level


def solver_for(objective: Objective, simulation: SimulationParameters) -> Solve:
    """The myopic solver for an objective; for a service level it plans with the latency's percentile."""
    if isinstance(objective, ServiceLevel):
        return partial(best_for_level, level=objective, simulation=simulation)
    return partial(myopic, weights=objective, batch_timeout=simulation.batch_timeout)
