"""Expected reward in closed form: what a configuration is worth in the coming intervals, without simulating it.

Throughput, unmet and spare load, accuracy, cost and batch size of Eqs. 3 and 7 follow from the loads that may come and
from when replicas serve. Only waiting times are estimated, and no request is ever dropped. A planner can so tell in a
fraction of a millisecond which of its candidates are worth a rollout.
"""

from __future__ import annotations

import numpy as np

from opd.measurement import SimulationParameters, StageState
from opd.objective import Weights, accuracy, profiled_service_time, qos, reward
from opd.pipeline import Pipeline, used_cores
from opd.planner.present import replica_counts

BUSIEST = 0.95
"""Share of the time for which replicas count as busy at most: the formula of a queue that runs forever is infinite at
1, and an interval is far too short for such a queue to build up."""

WAITING_SHARE = 0.2
"""Waiting time in terms of that formula: queues are younger and arrivals more regular than it assumes. Chosen, as
:data:`BUSIEST`, by the reward of the best configurations on validation days of the Twitter trace."""


def ready_rates(
    pipeline: Pipeline, stages: tuple[StageState, ...], candidates: np.ndarray, interval: float, intervals: int
) -> np.ndarray:
    """Throughput of every stage in the mean of each coming interval.

    Until all replicas of a candidate serve, those of the variant that runs go on.

    Args:
        pipeline: the pipeline, N tasks.
        stages: what is under way in each of them.
        candidates: (C, N, 3) configurations that would run from now on.
        interval: seconds of an interval.
        intervals: how many, H.

    Returns:
        (C, H, N) requests/s.
    """
    variant, replicas, batch_size = np.moveaxis(candidates, -1, 0)
    n = np.arange(len(pipeline.tasks))
    counts = replica_counts(stages, pipeline.tables.cores.shape[1], interval)
    serving_now, starting_now, until_started = (each[n, variant] for each in counts)
    serving = np.minimum(serving_now, replicas)
    starting = np.minimum(starting_now, replicas - serving)
    new = replicas - serving - starting
    startup = pipeline.tables.startup_time[n, variant] / interval
    complete = np.where(new > 0, startup, np.where(starting > 0, until_started, 0.0))
    h = np.arange(intervals)[:, None] + 1.0
    by_start, by_new, by_all = (np.clip(h - each[:, None], 0.0, 1.0) for each in (until_started, startup, complete))
    rate = batch_size / profiled_service_time(pipeline, candidates)
    own = rate[:, None] * (serving[:, None] + starting[:, None] * by_start + new[:, None] * by_new)
    others = counts[0].copy()[None] * (np.arange(counts[0].shape[1]) != variant[..., None])
    times = pipeline.tables.service_time[n[:, None], np.arange(counts[0].shape[1]), batch_size[..., None]]
    going = np.nansum(others * batch_size[..., None] / times, axis=-1)
    return own + (1.0 - by_all) * going[:, None]


def waiting_times(loads: np.ndarray, rates: np.ndarray, service: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Mean seconds in the queue of a stage whose batches come at random: the approximation of Sakasegawa (1977).

    Args:
        loads: (...) requests/s.
        rates: (...) requests/s that the stage can serve.
        service: (...) seconds of a batch.
        candidates: (..., 3) of the stage.
    """
    replicas, batch_size = candidates[..., 1], candidates[..., 2]
    busy = np.minimum(loads / np.maximum(rates, 1e-9), BUSIEST)
    power = np.sqrt(2.0 * (replicas + 1.0)) - 1.0
    return 0.5 * service / (batch_size * replicas) * busy**power / (1.0 - busy)


def expected_rewards(
    pipeline: Pipeline,
    weights: Weights,
    simulation: SimulationParameters,
    stages: tuple[StageState, ...],
    candidates: np.ndarray,
    loads: np.ndarray,
) -> np.ndarray:
    """Eq. 7 in the mean over loads and intervals, in closed form.

    Requests that wait count as demand of the first interval: otherwise nothing would tell that they have to be served.

    Args:
        pipeline: the pipeline, N tasks.
        weights: of the reward.
        simulation: interval and batch timeout.
        stages: what is under way in each task.
        candidates: (C, N, 3) configurations.
        loads: (F, H) requests/s in the mean of H coming intervals, F equally likely courses.

    Returns:
        (C,) mean reward of an interval.
    """
    rates = ready_rates(pipeline, stages, candidates, simulation.interval, loads.shape[1])
    throughput = rates.min(axis=-1)[:, None]
    waiting = sum(len(stage.waiting) for stage in stages) / simulation.interval
    present = (loads + waiting * (np.arange(loads.shape[1]) == 0))[..., None]
    service, batch_size = profiled_service_time(pipeline, candidates)[:, None, None], candidates[:, None, None, :, 2]
    queueing = waiting_times(present, rates[:, None], service, candidates[:, None, None])
    forming = 0.5 * np.minimum(simulation.batch_timeout, (batch_size - 1.0) / np.maximum(present, 0.1))
    seconds = (service + WAITING_SHARE * (queueing + forming)).sum(axis=-1)
    value = accuracy(pipeline, candidates)[:, None, None]
    quality = qos(weights, value, throughput, seconds, present[..., 0] - throughput).mean(axis=(1, 2))
    return np.asarray(reward(weights, quality, used_cores(pipeline, candidates), candidates[..., 2].max(axis=-1)))
