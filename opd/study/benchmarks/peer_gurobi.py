"""IPA's problem in Gurobi, the solver of the original work, with the same mixed-integer programme as HiGHS.

The package ``gurobipy`` includes a licence for programmes of at most 2000 variables and 2000 constraints, which expires
some time after its release. If package or licence is missing, or a programme is too large, :class:`GurobiUnavailable`
is raised, and a benchmark can continue without Gurobi.
"""

from __future__ import annotations

from functools import cache

import highspy
import numpy as np
from scipy import sparse

from opd.pipeline import Configuration, Pipeline
from opd.solvers import IpaParameters
from opd.solvers.ipa import LATENCY_TOLERANCE, ipa_by_mip

try:
    import gurobipy
except ImportError:
    gurobipy = None  # type: ignore[assignment]

_OPTIONS: dict[str, int | float] = {
    "OutputFlag": 0,
    "Threads": 1,
    "MIPGap": 0.0,
    "MIPGapAbs": 0.0,
    "FeasibilityTol": LATENCY_TOLERANCE,
    "IntFeasTol": LATENCY_TOLERANCE,
}
"""The options of HiGHS, with Gurobi's names."""


class GurobiUnavailable(RuntimeError):
    """Gurobi cannot solve the problem here; the message states the reason."""


@cache
def _environment() -> gurobipy.Env:
    """Start one environment for all programmes, as a service would; it reads the licence.

    Raises:
        GurobiUnavailable: if package or licence is missing.
    """
    if gurobipy is None:
        raise GurobiUnavailable("the package gurobipy is not installed; install it with: pip install gurobipy")
    try:
        # Options of the empty environment, because a started one announces its licence on standard output.
        environment = gurobipy.Env(empty=True)
        for option, value in _OPTIONS.items():
            environment.setParam(option, value)
        environment.start()
    except gurobipy.GurobiError as error:
        raise GurobiUnavailable(f"Gurobi does not start: {error}") from error
    return environment


def ipa_gurobi(pipeline: Pipeline, load: float, parameters: IpaParameters, time_limit: float = 10.0) -> Configuration:
    """Find IPA's optimum with Gurobi, on one thread and with an optimality gap of 0.

    Args:
        pipeline: the pipeline.
        load: requests/s to plan for.
        parameters: the weights of the objective.
        time_limit: seconds that Gurobi may take.

    Raises:
        ValueError: if the load is negative, infinite or not a number.
        GurobiUnavailable: if package or licence is missing, or the licence is too small.
        TimeoutError: if Gurobi has not proved an optimum within ``time_limit``.
        RuntimeError: if Gurobi stops for any other reason.
    """
    what = f"pipeline {pipeline.name!r} at {load:g} requests/s"
    return ipa_by_mip(pipeline, load, parameters, lambda programme: _solve(programme, time_limit, what))


def _solve(programme: highspy.HighsLp, time_limit: float, what: str) -> np.ndarray:
    """(columns,) the optimal values of a programme with binary variables.

    Raises:
        GurobiUnavailable: if it is too large for the licence, or there is no licence.
        TimeoutError: if there is no proven optimum in time.
        RuntimeError: if Gurobi stops for any other reason.
    """
    upper = np.array(programme.row_upper_)
    equal = np.array(programme.row_lower_) == upper
    entries = programme.a_matrix_
    matrix = sparse.csc_array(
        (entries.value_, entries.index_, entries.start_), shape=(programme.num_row_, programme.num_col_)
    )
    with gurobipy.Model(env=_environment()) as model:
        model.Params.TimeLimit = time_limit
        taken = model.addMVar(programme.num_col_, vtype=gurobipy.GRB.BINARY, obj=np.array(programme.col_cost_))
        model.ModelSense = gurobipy.GRB.MAXIMIZE
        model.addMConstr(matrix, taken, np.where(equal, "=", "<"), upper)
        try:
            model.optimize()
        except gurobipy.GurobiError as error:
            if error.errno == gurobipy.GRB.Error.SIZE_LIMIT_EXCEEDED:
                raise GurobiUnavailable(
                    f"{what} has {programme.num_col_} variables and {programme.num_row_} constraints, more than "
                    "Gurobi's size-limited licence allows (2000 of each)"
                ) from error
            raise RuntimeError(f"Gurobi stopped on {what}: {error}") from error
        if model.Status == gurobipy.GRB.TIME_LIMIT:
            raise TimeoutError(f"Gurobi found no proven optimum for {what} within {time_limit:g} s; raise time_limit")
        if model.Status != gurobipy.GRB.OPTIMAL:
            raise RuntimeError(f"Gurobi stopped with status {model.Status} on {what}")
        return np.asarray(taken.X)
