"""IPA (Ghafouri et al., "IPA: Inference Pipeline Adaptation", JSys 2024), with the device's capacity added.

IPA maximises alpha V - beta C - gamma sum(b) for a given load: every stage must carry the load, and the stages'
service times plus the time a batch takes to form must stay within the latency target. Sec. VI-A adds the limit on
resources, sum w f <= W_max. The replicas of a stage follow from its variant and batch size,
n = ceil(load / throughput), so the problem is to choose one option a stage. Two exact solvers: a mixed-integer
programme in HiGHS, standing in for the Gurobi of the original, and dynamic programming by label setting.

Two things differ from the published implementation on purpose: a batch takes (b - 1) / load to form, and ties are not
broken by a gamma below the solver's own optimality gap.

Both degrade alike. A load that nothing within the limits carries is replaced by the largest that can be
carried; a latency target that cannot be met at that load is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import highspy
import numpy as np
from numba import njit

from opd.objective import Weights, accuracy, check_weights
from opd.pipeline import Configuration, Pipeline, as_configuration, used_cores
from opd.solvers.options import (
    best_by_cores,
    carried_load,
    follow_choice,
    forming_time,
    replicas_needed,
    selected_rows,
    stage_options,
)

LATENCY_TOLERANCE = 1e-9
"""Seconds by which rounding may exceed the latency target, the same for both solvers."""

_HIGHS_OPTIONS: dict[str, bool | int | float] = {
    "output_flag": False,
    "threads": 1,
    "mip_rel_gap": 0.0,
    "mip_abs_gap": 0.0,
    "primal_feasibility_tolerance": LATENCY_TOLERANCE,
    "mip_feasibility_tolerance": LATENCY_TOLERANCE,
}

_SCORE_TOLERANCE = 1e-10
"""By how much a bound may undercut a known score through rounding alone."""

_PRICES = 16
"""Prices of latency tried before label setting; more make its bound tighter and cost a knapsack each."""


_Choose = Callable[[np.ndarray, np.ndarray, np.ndarray, int, float], np.ndarray]
"""Cores, latency and score of every option (N, M), capacity and latency target in; the option of each stage out."""

Solve = Callable[[highspy.HighsLp], np.ndarray]
"""A mixed-integer programme in, the optimal value of each of its columns out."""


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


def ipa_objective(pipeline: Pipeline, configuration: Configuration, parameters: IpaParameters) -> float:
    """What IPA maximises, alpha V - beta C - gamma sum(b), of one configuration."""
    batches = sum(stage.batch_size for stage in configuration)
    return float(
        parameters.alpha * accuracy(pipeline, configuration)
        - parameters.beta * used_cores(pipeline, configuration)
        - parameters.gamma * batches
    )


def _configure(pipeline: Pipeline, load: float, parameters: IpaParameters, choose: _Choose) -> Configuration:
    """State the problem for a load, cut to what can be carried, and let ``choose`` pick an option for every stage.

    Whether the latency target can be met at all is found by the knapsack over cores, with latency as the score.
    """
    load = carried_load(pipeline, load)
    options = stage_options(pipeline)
    capacity = pipeline.capacity
    replicas = replicas_needed(options.throughput, load, pipeline.max_replicas, False)
    cores = np.where(replicas > 0, np.minimum(replicas * options.cores, capacity + 1), capacity + 1)
    latency = options.service_time + forming_time(options.batch_size, load)
    score = parameters.alpha * options.accuracy - parameters.beta * cores - parameters.gamma * options.batch_size
    target = pipeline.latency_sla + LATENCY_TOLERANCE
    shortest = -best_by_cores(cores, -latency, capacity)[0][0, capacity]
    if shortest > target:
        target = np.inf
    selected = choose(cores, latency, score, capacity, target)
    return as_configuration(selected_rows(options, selected, replicas[np.arange(len(selected)), selected]))


@njit(cache=True)
def _at_least(figures):
    """(N + 1,) smallest possible total of ``figures`` (N, M) over the stages from each on."""
    rest = np.zeros(figures.shape[0] + 1)
    for n in range(figures.shape[0] - 1, -1, -1):
        rest[n] = rest[n + 1] + figures[n].min()
    return rest


@njit(cache=True)
def _undominated(cores, latency, score, capacity):
    """Indices, by ascending latency, of the entries that no other beats in cores, latency and score at once."""
    kept = np.empty(len(cores), dtype=np.int64)
    count = 0
    # Highest score among the entries so far, all with no more latency, for every number of cores.
    highest = np.full(capacity + 1, -np.inf)
    for entry in np.argsort(latency):
        used = cores[entry]
        if used > capacity or score[entry] <= highest[used]:
            continue
        kept[count] = entry
        count += 1
        for total in range(used, capacity + 1):
            if highest[total] >= score[entry]:
                break
            highest[total] = score[entry]
    return kept[:count]


@njit(cache=True)
def _total(figures, selected):
    """Sum over the stages of the selected options' ``figures`` (N, M)."""
    total = 0.0
    for n in range(len(selected)):
        total += figures[n, selected[n]]
    return total


@njit(cache=True)
def _priced(cores, latency, score, capacity, latency_sla):
    """A good choice within the latency target, and a bound on all: the Lagrangian relaxation of the target.

    A second of latency gets a price, and bisection finds about the lowest at which the best choice by
    score minus price times latency keeps the target.

    Returns:
        The choice (N,), whether it keeps the target, the price, and ``best_by_cores``'s values (N + 1, W + 1) at it.
    """
    low, price, high = 0.0, 0.0, np.inf
    bound, choice = best_by_cores(cores, score, capacity)
    selected = follow_choice(cores, choice)
    kept = _total(latency, selected) <= latency_sla
    if kept:
        return selected, kept, price, bound
    for _ in range(_PRICES):
        price = max(1.0, 4.0 * low) if high == np.inf else 0.5 * (low + high)
        tried_bound, choice = best_by_cores(cores, score - price * latency, capacity)
        tried = follow_choice(cores, choice)
        if _total(latency, tried) <= latency_sla:
            selected, kept, bound, high = tried, True, tried_bound, price
        else:
            low = price
    return selected, kept, high if kept else 0.0, bound


@njit(cache=True)
def _extend(labels, option_figures, rest, capacity, latency_sla, price, goal):
    """Every label continued by every option of a stage, without those that cannot keep the limits or reach ``goal``.

    Args:
        labels: cores, latency and score (L,) of the choices so far.
        option_figures: cores, latency and score (M,) of the stage's options.
        rest: least cores and latency of the later stages, and (W + 1,) their best priced score by cores.
        capacity: W_max, cores.
        latency_sla: seconds.
        price: score per second at which ``rest`` is priced.
        goal: score of a choice already known.

    Returns:
        Cores, latency, score, label and option of each continuation.
    """
    label_cores, label_latency, label_score = labels
    option_cores, option_latency, option_score = option_figures
    rest_cores, rest_latency, rest_score = rest
    size = len(label_cores) * len(option_cores)
    cores = np.empty(size, dtype=np.int64)
    latency = np.empty(size)
    score = np.empty(size)
    parent = np.empty(size, dtype=np.int64)
    taken = np.empty(size, dtype=np.int64)
    count = 0
    for label in range(len(label_cores)):
        for option in range(len(option_cores)):
            used = label_cores[label] + option_cores[option]
            spent = label_latency[label] + option_latency[option]
            reached = label_score[label] + option_score[option]
            if used + rest_cores > capacity or spent + rest_latency > latency_sla:
                continue
            if reached + rest_score[capacity - used] + price * (latency_sla - spent) < goal:
                continue
            cores[count], latency[count], score[count] = used, spent, reached
            parent[count], taken[count] = label, option
            count += 1
    return cores[:count], latency[:count], score[:count], parent[:count], taken[:count]


@njit(cache=True)
def _label_setting(cores, latency, score, capacity, latency_sla):
    """Exact dynamic programme: stage by stage, keep every partial choice that no other beats in all three respects.

    Args:
        cores: (N, M) cores of each option; one above ``capacity`` is unusable.
        latency: (N, M) seconds.
        score: (N, M) share of the objective.
        capacity: W_max, cores.
        latency_sla: seconds that the stages' latencies may add up to, infinite for no limit; some choice must keep it.

    Returns:
        (N,) option of each stage.
    """
    selected, kept, price, bound = _priced(cores, latency, score, capacity, latency_sla)
    if kept and price == 0.0:
        return selected
    # A choice worth as much as the known one must survive rounding.
    goal = _total(score, selected) - _SCORE_TOLERANCE if kept else -np.inf
    rest_cores = _at_least(cores)
    rest_latency = _at_least(latency)
    labels = (np.zeros(1, dtype=np.int64), np.zeros(1), np.zeros(1))
    parents = []
    taken = []
    for n in range(cores.shape[0]):
        useful = _undominated(cores[n], latency[n], score[n], capacity)
        stage = (cores[n][useful], latency[n][useful], score[n][useful])
        rest = (rest_cores[n + 1], rest_latency[n + 1], bound[n + 1])
        used, spent, reached, parent, option = _extend(labels, stage, rest, capacity, latency_sla, price, goal)
        best = _undominated(used, spent, reached, capacity)
        labels = (used[best], spent[best], reached[best])
        parents.append(parent[best])
        taken.append(useful[option[best]])
    label = np.argmax(labels[2])
    for n in range(cores.shape[0] - 1, -1, -1):
        selected[n] = taken[n][label]
        label = parents[n][label]
    return selected


def ipa_dynamic_program(pipeline: Pipeline, load: float, parameters: IpaParameters) -> Configuration:
    """IPA's optimum by label setting over the stages: an exact solver made for this problem.

    Args:
        pipeline: the pipeline.
        load: requests/s to plan for.
        parameters: the weights of the objective.

    Raises:
        ValueError: if the load is negative, infinite or not a number.
    """
    return _configure(pipeline, load, parameters, _label_setting)


def ipa_table(pipeline: Pipeline, parameters: IpaParameters, max_load: int) -> np.ndarray:
    """(max_load + 1, N, 3) IPA's configurations for the loads 0..max_load, to look up by the rounded load."""
    return np.array([ipa_dynamic_program(pipeline, float(load), parameters) for load in range(max_load + 1)])


def _programme(
    cores: np.ndarray, latency: np.ndarray, score: np.ndarray, capacity: int, latency_sla: float
) -> tuple[highspy.HighsLp, np.ndarray]:
    """The mixed-integer programme, one binary for every usable option, and the (columns, 2) stage and option of each.

    Rows: one option for each stage, then the capacity, then the latency target.
    """
    columns = np.argwhere((cores <= capacity) & (latency <= latency_sla))
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
    programme.row_upper_ = np.concatenate([np.ones(stages), [capacity, latency_sla]])
    matrix = programme.a_matrix_
    matrix.format_ = highspy.MatrixFormat.kColwise
    matrix.start_ = 3 * np.arange(count + 1)
    matrix.index_ = np.stack([stage, np.full(count, stages), np.full(count, stages + 1)], axis=1).ravel()
    finite_latency = np.where(np.isinf(latency), 0.0, latency)  # infinite only where nothing limits it
    matrix.value_ = np.stack([np.ones(count), cores[stage, option], finite_latency[stage, option]], axis=1).ravel()
    return programme, columns


def ipa_by_programme(pipeline: Pipeline, load: float, parameters: IpaParameters, solve: Solve) -> Configuration:
    """IPA's optimum by any solver of mixed-integer programmes.

    Args:
        pipeline: the pipeline.
        load: requests/s to plan for.
        parameters: the weights of the objective.
        solve: the solver; what it raises is passed on.

    Raises:
        ValueError: if the load is negative, infinite or not a number.
    """

    def choose(
        cores: np.ndarray, latency: np.ndarray, score: np.ndarray, capacity: int, latency_sla: float
    ) -> np.ndarray:
        programme, columns = _programme(cores, latency, score, capacity, latency_sla)
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
    what = f"pipeline {pipeline.name!r} at {load:g} requests/s"
    return ipa_by_programme(pipeline, load, parameters, lambda programme: _solve(programme, time_limit, what))


def _solve(programme: highspy.HighsLp, time_limit: float, what: str) -> np.ndarray:
    solver = highspy.Highs()
    for option, value in _HIGHS_OPTIONS.items():
        solver.setOptionValue(option, value)
    solver.setOptionValue("time_limit", time_limit)
    solver.passModel(programme)
    solver.run()
    status = solver.getModelStatus()
    if status == highspy.HighsModelStatus.kTimeLimit:
        raise TimeoutError(
            f"HiGHS found no proven optimum for {what} within {time_limit:g} s; "
            "raise time_limit or use ipa_dynamic_program"
        )
    if status != highspy.HighsModelStatus.kOptimal:
        raise RuntimeError(
            f"HiGHS stopped with {solver.modelStatusToString(status)!r} on {what}; "
            "use ipa_dynamic_program and report the pipeline"
        )
    return np.array(solver.getSolution().col_value)
