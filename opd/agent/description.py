"""What the agent is told, as arrays: the pipeline and its objective, and the situation at a decision.

The description of a pipeline holds its profiles, limits and objective, and the configurations that the exact solver
finds for a ladder of loads. It changes only with the device. A situation is what an observation says at one decision:
loads that may come, what runs and what serves. Configurations are indices here: variant, replicas - 1, log2 of the
batch size. N tasks, Z variants, K batch sizes, E situations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from opd.measurement import Observation, SimulationParameters, backlog, planned_load
from opd.objective import Objective
from opd.pipeline import Pipeline, ServiceLevel, as_array, to_choices
from opd.planner.present import replica_counts
from opd.profiling.attainable import attainable_load
from opd.solvers.exact import Solve
from opd.solvers.latency import service_variation
from opd.workload.forecast_network import INTERVALS

INCOMING, PLANNED, WAITING = range(3)
"""Places of the loads of a situation."""

OBJECTIVE = 8
"""Figures that describe an objective."""

SHORTEST_HORIZON = 2
"""Coming intervals of a plan at least. It looks as far ahead as replicas take to start, at most as far as forecasts."""

SOLVED_LOADS = 96
"""Loads for which the solver's configurations are kept."""


class Description(NamedTuple):
    """A pipeline on its device, with its objective.

    Attributes:
        worth: (N, Z) what a variant's accuracy is worth, less that of the most accurate one of its task, in cores.
        cores: (N, Z) of one replica; infinite where a task has no such variant.
        startup: (N, Z) start-up time, in intervals.
        service: (N, Z, K) seconds of a full batch.
        reserve: (N,) cores that one replica of the smallest variant of every later task needs.
        variants: (N,) number of variants.
        accuracy: (N, Z) what a variant adds to the mean accuracy; 0 where a task has no such variant.
        horizon: (H,) weights of the coming intervals, of sum 1.
        floor: lowest mean accuracy of a service level.
        capacity: W_max, cores of the device that are free.
        replicas: F_max.
        interval: seconds between two decisions.
        timeout: seconds after which a partial batch is taken.
        patience: seconds after which a request that waits is dropped.
        seconds: latency of the service level.
        variation: squared coefficient of variation of service times.
        objective: (8,) see :func:`objective_figures`.
        loads: (L,) requests/s, ascending.
        solved: (L, N, 3) the solver's choices for these loads.
    """

    worth: np.ndarray
    cores: np.ndarray
    startup: np.ndarray
    service: np.ndarray
    reserve: np.ndarray
    variants: np.ndarray
    accuracy: np.ndarray
    horizon: np.ndarray
    floor: float
    capacity: float
    replicas: int
    interval: float
    timeout: float
    patience: float
    seconds: float
    variation: float
    objective: np.ndarray
    loads: np.ndarray
    solved: np.ndarray


class Situations(NamedTuple):
    """E decisions of one pipeline.

    Attributes:
        loads: (E, 3) requests/s: mean of the last interval, the larger of that and the forecast maximum of the next
            20 s, and what would clear the queues within an interval.
        coming: (E, 6, 7) quantiles of the mean load in the coming intervals, requests/s.
        running: (E, N, 3) choices.
        serving: (E, N, Z) replicas that serve.
        starting: (E, N, Z) replicas that are starting.
        wait: (E, N, Z) intervals until the last of these serves.
        latency: (E, N) l, seconds.
        throughput: (E, N) t, requests/s.
        queue: (E, N) requests waiting.
    """

    loads: np.ndarray
    coming: np.ndarray
    running: np.ndarray
    serving: np.ndarray
    starting: np.ndarray
    wait: np.ndarray
    latency: np.ndarray
    throughput: np.ndarray
    queue: np.ndarray

    def part(self, rows: np.ndarray | slice) -> Situations:
        """Some of the situations."""
        return Situations(*(each[rows] for each in self))


def core_price(objective: Objective) -> float:
    """Reward of a core, the unit in which rewards of all objectives can be compared."""
    return 1.0 if isinstance(objective, ServiceLevel) else max(objective.cost_weight, 1e-3)


def objective_figures(objective: Objective) -> np.ndarray:
    """(8,) an objective in cores: kind, accuracy, throughput, unmet and spare load, batch, latency, percentile."""
    if isinstance(objective, ServiceLevel):
        tail = -np.log1p(-objective.percentile / 100.0)
        return np.array([1.0, objective.accuracy_weight, 0.0, 0.0, 0.0, 0.0, 0.0, tail])
    o, price = objective, core_price(objective)
    parts = [o.alpha, o.beta, o.gamma, o.delta, o.batch_weight, 1.0]
    return np.array([0.0, *(part / price for part in parts), 0.0])


def describe(
    pipeline: Pipeline,
    objective: Objective,
    simulation: SimulationParameters,
    solve: Solve,
    solved_loads: int = SOLVED_LOADS,
) -> Description:
    """Describe a pipeline as its device is now.

    Args:
        pipeline: with the capacity that is free and the latencies that are known.
        objective: of the reward.
        simulation: interval, batch timeout and noise of the device.
        solve: the exact solver of the objective.
        solved_loads: number of loads to solve for, up to the largest that the device carries.
    """
    tables = pipeline.tables
    accuracy_worth = (
        objective.accuracy_weight / len(pipeline.tasks) if isinstance(objective, ServiceLevel) else objective.alpha
    )
    worth = accuracy_worth / core_price(objective) * tables.accuracy
    present = np.isfinite(tables.cores)
    smallest = tables.cores.min(axis=1)
    highest = max(attainable_load(pipeline, np.finfo(float).max), 1.0)
    loads = np.append(0.0, np.geomspace(min(1.0, highest / 2.0), highest, solved_loads))
    startup = np.where(present, tables.startup_time / simulation.interval, 0.0)
    ahead = min(max(1 + int(np.ceil(startup.max())), SHORTEST_HORIZON), INTERVALS)
    return Description(
        worth=worth - np.where(present, worth, -np.inf).max(axis=1, keepdims=True),
        cores=tables.cores,
        startup=startup,
        # In one layout for all pipelines: compiled code is compiled for each layout that it meets.
        service=np.ascontiguousarray(np.where(present[..., None], tables.service_time[:, :, tables.batch_sizes], 1.0)),
        reserve=smallest.sum() - np.cumsum(smallest),
        variants=tables.variant_counts,
        accuracy=np.where(present, tables.accuracy, 0.0) / len(pipeline.tasks),
        horizon=np.full(ahead, 1.0 / ahead),
        floor=float(objective.accuracy_floor) if isinstance(objective, ServiceLevel) else 0.0,
        capacity=float(pipeline.capacity),
        replicas=pipeline.max_replicas,
        interval=float(simulation.interval),
        timeout=float(simulation.batch_timeout),
        patience=float(simulation.drop_after),
        seconds=float(pipeline.service_level.seconds),
        variation=service_variation(simulation),
        objective=objective_figures(objective),
        loads=loads,
        solved=to_choices(np.array([as_array(solve(pipeline, float(load))) for load in loads])),
    )


def situation_of(description: Description, observation: Observation, quantiles: np.ndarray) -> Situations:
    """The one situation of an observation; without ``stages``, all replicas of what runs are taken to serve.

    Args:
        description: of the pipeline.
        observation: at the decision.
        quantiles: (6, 7) of the mean load in the coming intervals, requests/s.
    """
    running = to_choices(as_array(observation.configuration))
    shape = description.cores.shape
    if observation.stages:
        serving, starting, wait = replica_counts(observation.stages, shape[1], description.interval)
    else:
        serving, starting, wait = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        serving[np.arange(shape[0]), running[:, 0]] = running[:, 1] + 1.0
    waiting = backlog(observation, description.interval)
    loads = np.array([observation.incoming_load, planned_load(observation), waiting])
    # Remembered quantiles cannot be written to: as they are, compiled code would be compiled for them once more.
    rest = (loads, quantiles.copy(), running, serving, starting, wait)
    measured = (observation.task_latency, observation.ready_throughput, observation.queue)
    return Situations(*(each[None] for each in rest), *(each[None].astype(np.float64) for each in measured))
