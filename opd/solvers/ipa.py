"""IPA (Ghafouri et al., "IPA: Inference Pipeline Adaptation", JSys 2024), with the device's capacity added.

IPA maximises alpha V - beta C - gamma sum(b) for a given load: every stage must carry the load, and the stages' service
times plus the time a batch takes to form must stay within the latency target. Sec. VI-A adds the limit on resources,
sum w f <= W_max. The replicas of a stage follow from its variant and batch size, n = ceil(load / throughput), so the
problem is to choose one option for each stage. There are two exact solvers: a mixed-integer programme (MIP) in HiGHS,
standing in for the Gurobi of the original, and dynamic programming by label setting.

There are two deliberate differences from the published implementation: a batch takes (b - 1) / load to form, and ties
are not broken by a gamma below the solver's own optimality gap.

Both solvers degrade alike. A load that nothing within the limits carries is replaced by the largest that can be
carried; a latency target that cannot be met at that load is dropped.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import highspy
import numpy as np

from opd.objective import Objective, Weights, accuracy, check_weights
from opd.pipeline import Configuration, Pipeline, ServiceLevel, as_configuration, used_cores
from opd.profiling.attainable import attainable_load
from opd.solvers.knapsack import best_by_cores, best_within_latency
from opd.solvers.options import forming_time, replicas_needed, stage_options

LATENCY_TOLERANCE = 1e-9
"""Seconds by which rounding may exceed the latency target, the same for all solvers."""

_HIGHS_OPTIONS: dict[str, bool | int | float] = {
    "output_flag": False,
    "threads": 1,
    "mip_rel_gap": 0.0,
    "mip_abs_gap": 0.0,
    "primal_feasibility_tolerance": LATENCY_TOLERANCE,
    "mip_feasibility_tolerance": LATENCY_TOLERANCE,
}

SolveMip = Callable[[highspy.HighsLp], np.ndarray]
"""Solver of a mixed-integer programme; returns the optimal value of each of its columns."""


@dataclass(frozen=True)
class IpaParameters:
    """The weights of IPA's objective, alpha V - beta C - gamma sum(b).

    IPA normalises each task's accuracies to 0..1 and publishes, with its experiments, alpha 2 and beta 1 for the
    video pipeline, alpha 10 and beta 0.5 for the other four, and gamma 1e-6
    (https://github.com/reconfigurable-ml-pipeline/ipa, data/configs/final): a task's whole range of accuracy is worth
    2 cores in the one and 20 in the others. Accuracy is a plain fraction here; the defaults are the rates of
    exchange of Eq. 7, by which a range of 0.1 to 0.3 is worth 7 to 20 cores.

    Attributes:
        alpha: value of a unit of summed accuracy.
        beta: value of a core.
        gamma: value of a request of batch size, summed over the stages.

    Raises:
        ValueError: if a weight is negative or not finite.
    """

    alpha: float = 10.0
    beta: float = 0.15
    gamma: float = 0.02

    def __post_init__(self) -> None:
        check_weights(self)

    @classmethod
    def from_weights(cls, weights: Weights) -> IpaParameters:
        """The parameters that value accuracy, cores and batch sizes as Eqs. 3 and 7 do."""
        return cls(weights.alpha, weights.cost_weight, weights.batch_weight)

    @classmethod
    def from_objective(cls, objective: Objective, tasks: int) -> IpaParameters:
        """The parameters that value accuracy, cores and batch sizes as an objective does.

        Args:
            objective: the weights of Eqs. 3 and 7, or the service level.
            tasks: number of tasks; a service level values their mean accuracy, IPA the sum.
        """
        if isinstance(objective, ServiceLevel):
            return cls(objective.accuracy_weight / tasks, 1.0, 0.0)
        return cls.from_weights(objective)


def ipa_objective(pipeline: Pipeline, configuration: Configuration, parameters: IpaParameters) -> float:
    """IPA's objective, alpha V - beta C - gamma sum(b), of one configuration."""
    worth = parameters.alpha * accuracy(pipeline, configuration)
    cost = parameters.beta * used_cores(pipeline, configuration)
    return float(worth - cost - parameters.gamma * sum(stage.batch_size for stage in configuration))


Choose = Callable[[np.ndarray, np.ndarray, np.ndarray, int, float], np.ndarray]
"""Exact solver of the choice, with arguments and result of :func:`opd.solvers.knapsack.best_within_latency`."""


def _configure(pipeline: Pipeline, load: float, parameters: IpaParameters, choose: Choose) -> Configuration:
    """State the problem for the load that can be carried, and let ``choose`` pick the option (N,) of every stage."""
    load = attainable_load(pipeline, load)
    options = stage_options(pipeline)
    capacity = pipeline.capacity
    replicas = replicas_needed(options.throughput, load, pipeline.max_replicas, False)
    cores = np.where(replicas > 0, np.minimum(replicas * options.cores, capacity + 1), capacity + 1)
    latency = options.service_time + forming_time(options.batch_size, load)
    score = parameters.alpha * options.accuracy - parameters.beta * cores - parameters.gamma * options.batch_size
    target = pipeline.service_level.seconds + LATENCY_TOLERANCE
    shortest = -best_by_cores(cores, -latency, capacity)[0][0, capacity]
    selected = choose(cores, latency, score, capacity, np.inf if shortest > target else target)
    return as_configuration(options.configuration(selected, replicas[np.arange(len(selected)), selected]))


def ipa_dynamic_program(pipeline: Pipeline, load: float, parameters: IpaParameters) -> Configuration:
    """IPA's optimum by label setting over the stages: an exact solver made for this problem.

    Args:
        pipeline: the pipeline.
        load: requests/s to plan for.
        parameters: the weights of the objective.

    Raises:
        ValueError: if the load is negative, infinite or not a number.
    """
    return _configure(pipeline, load, parameters, best_within_latency)


def _mip(
    cores: np.ndarray, latency: np.ndarray, score: np.ndarray, capacity: int, limit: float
) -> tuple[highspy.HighsLp, np.ndarray]:
    """The mixed-integer programme, one binary for every usable option, and the (columns, 2) stage and option of each.

    Rows: one option for each stage, then the capacity, then the latency target.
    """
    columns = np.argwhere((cores <= capacity) & (latency <= limit))
    stage, option = columns.T
    stages, count = len(cores), len(columns)
    programme = highspy.HighsLp()
    programme.num_col_ = count
    programme.num_row_ = stages + 2
    programme.sense_ = highspy.ObjSense.kMaximize
    programme.col_cost_ = score[stage, option]
    programme.col_lower_ = np.zeros(count)
    programme.col_upper_ = np.ones(count)
    programme.integrality_ = [highspy.HighsVarType.kInteger] * count
    programme.row_lower_ = np.concatenate([np.ones(stages), [-np.inf, -np.inf]])
    programme.row_upper_ = np.concatenate([np.ones(stages), [capacity, limit]])
    matrix = programme.a_matrix_
    matrix.format_ = highspy.MatrixFormat.kColwise
    matrix.start_ = 3 * np.arange(count + 1)
    matrix.index_ = np.stack([stage, np.full(count, stages), np.full(count, stages + 1)], axis=1).ravel()
    finite_latency = np.where(np.isinf(latency), 0.0, latency)  # infinite only where nothing limits it
    matrix.value_ = np.stack([np.ones(count), cores[stage, option], finite_latency[stage, option]], axis=1).ravel()
    return programme, columns


def ipa_by_mip(pipeline: Pipeline, load: float, parameters: IpaParameters, solve: SolveMip) -> Configuration:
    """IPA's optimum by any solver of mixed-integer programmes.

    Args:
        pipeline: the pipeline.
        load: requests/s to plan for.
        parameters: the weights of the objective.
        solve: the solver; its exceptions are passed on.

    Raises:
        ValueError: if the load is negative, infinite or not a number.
    """

    def choose(*choice: Any) -> np.ndarray:
        programme, columns = _mip(*choice)
        taken = columns[solve(programme) > 0.5]
        return taken[np.argsort(taken[:, 0]), 1]

    return _configure(pipeline, load, parameters, choose)


def ipa_highs(pipeline: Pipeline, load: float, parameters: IpaParameters, time_limit: float = 10.0) -> Configuration:
    """IPA's optimum by the mixed-integer solver HiGHS, on one thread and to an optimality gap of 0.

    Args:
        pipeline: the pipeline.
        load: requests/s to plan for.
        parameters: the weights of the objective.
        time_limit: seconds that HiGHS may take.

    Raises:
        ValueError: if the load is negative, infinite or not a number.
        TimeoutError: if HiGHS has not proved an optimum within ``time_limit``.
        RuntimeError: if HiGHS stops for any other reason.
    """
    subject = f"pipeline {pipeline.name!r} at {load:g} requests/s"
    return ipa_by_mip(pipeline, load, parameters, lambda programme: _solve_by_highs(programme, time_limit, subject))


@cache
def _print_banner_nowhere() -> None:
    """Construct a first solver without standard output: HiGHS greets once a process, before it takes options."""
    try:
        output = os.dup(1)
    except OSError:  # closed, so that nobody reads the banner
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        highspy.Highs()
    finally:
        os.dup2(output, 1)
        os.close(output)
        os.close(nowhere)


def _solve_by_highs(programme: highspy.HighsLp, time_limit: float, subject: str) -> np.ndarray:
    _print_banner_nowhere()
    solver = highspy.Highs()
    for option, value in (_HIGHS_OPTIONS | {"time_limit": time_limit}).items():
        solver.setOptionValue(option, value)
    solver.passModel(programme)
    solver.run()
    status = solver.getModelStatus()
    if status == highspy.HighsModelStatus.kTimeLimit:
        raise TimeoutError(
            f"HiGHS found no proven optimum for {subject} within {time_limit:g} s; "
            "raise time_limit or use ipa_dynamic_program"
        )
    if status != highspy.HighsModelStatus.kOptimal:
        raise RuntimeError(
            f"HiGHS stopped with {solver.modelStatusToString(status)!r} on {subject}; "
            "use ipa_dynamic_program and report the pipeline"
        )
    return np.array(solver.getSolution().col_value)
