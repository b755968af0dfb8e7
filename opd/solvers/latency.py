"""Latency of a stage and of a pipeline under a steady load, predicted from the profiles by queueing formulas.

A request waits until its batch is due, then until a replica is idle, then for the service of its batch. For each stage
the mean and the variance of the three are added, and those of the stages are added in turn, as if all were independent.
A percentile of the whole is the mean plus z standard deviations, z the quantile of the standard normal distribution:
the stages' deviations add up as the root of the sum of their squares.

* Forming: requests arrive as a Poisson process, and a batch is due when it is full or its oldest request has waited for
  the timeout. The moments are exact.
* Queueing: batches arrive at f replicas. The probability of waiting is Erlang's C formula; the mean is that of M/M/f
  times half the sum of the squared coefficients of variation of arrivals and services (Allen and Cunneen; Allen,
  "Probability, Statistics, and Queueing Theory", 2nd ed. 1990, sec. 5.3.5); a wait above 0 is taken as exponential.
* Service: the profiled time of the batch, whose size varies, with the noise of the device.

While a batch waits for a replica, more requests join it. The size of the batches is therefore a fixed point: they form
for the timeout plus the mean wait for a replica.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numba import njit

from opd.measurement import SimulationParameters
from opd.pipeline import Configuration, Pipeline

LEAST_LOAD = 0.01
"""Requests/s below which no other latency is predicted; without any request there is none."""

_FULL_UTILISATION = 0.9999
"""Share of the replicas' time above which a queue has no steady state."""

_ROUNDS = 12
"""Steps towards the fixed point of the batch size, each of which halves the distance to it."""


@njit(cache=True)
def erlang_c(servers, offered):
    """Probability that a customer of M/M/c waits, for an offered load in erlangs below the number of servers."""
    blocked = 1.0  # Erlang's B formula by its recursion
    for count in range(1, servers + 1):
        blocked = offered * blocked / (count + offered * blocked)
    return blocked / (1.0 - offered / servers * (1.0 - blocked))


@njit(cache=True)
def _poisson_tails(mean, places):
    """(places,) probabilities of at least 0, 1, 2 .. events where ``mean`` are expected."""
    tails = np.ones(places)
    probability = np.exp(-mean)
    for count in range(1, places):
        tails[count] = max(tails[count - 1] - probability, 0.0)
        probability *= mean / count
    return tails


@njit(cache=True)
def _forming(load, batch_size, window):
    """Batches that are due when full, or ``window`` seconds after their first request.

    Returns:
        (b + 1,) probability of each size; mean and second moment of the seconds a batch forms, and of those that a
        request waits for its batch.
    """
    tails = _poisson_tails(load * window, batch_size + 1) if np.isfinite(window) else np.ones(batch_size + 1)
    sizes = np.zeros(batch_size + 1)
    duration = duration_2 = wait = wait_2 = 0.0
    # By integrals of Poisson probabilities: i more requests are there for tails[i + 1] / load seconds on average.
    for more in range(batch_size - 1):
        sizes[more + 1] = tails[more] - tails[more + 1]
        seconds = tails[more + 1] / load
        seconds_2 = (more + 1) * tails[more + 2] / load**2
        duration += seconds
        duration_2 += 2.0 * seconds_2
        wait += (1 + more) * seconds
        wait_2 += (2 + more) * seconds_2
    sizes[batch_size] = tails[batch_size - 1]
    mean_size = 1.0 + load * duration
    return sizes, duration, duration_2, wait / mean_size, wait_2 / mean_size


@njit(cache=True)
def _service(sizes, service_time, weight_by_size, noise):
    """Mean and second moment of a batch's service time: of a random batch, or of that of a random request."""
    total = mean = second = 0.0
    for size in range(1, len(sizes)):
        share = sizes[size] * size if weight_by_size else sizes[size]
        total += share
        mean += share * service_time[size]
        second += share * service_time[size] ** 2 * (1.0 + noise)
    return mean / total, second / total


@njit(cache=True)
def _queueing(load, batch_size, replicas, service_time, window, noise):
    """Utilisation, probability of waiting and mean seconds of waiting of batches that form for ``window`` seconds."""
    sizes, duration, duration_2, _, _ = _forming(load, batch_size, window)
    mean, second = _service(sizes, service_time, False, noise)
    # The next batch begins with the next request.
    between = 1.0 / load + duration
    offered = mean / between
    if offered >= _FULL_UTILISATION * replicas:
        return offered / replicas, 1.0, np.inf
    arrival_variation = (1.0 / load**2 + duration_2 - duration**2) / between**2
    service_variation = second / mean**2 - 1.0
    waits = erlang_c(replicas, offered)
    return (
        offered / replicas,
        waits,
        waits * mean / (replicas - offered) * (arrival_variation + service_variation) / 2.0,
    )


@njit(cache=True)
def stage_latency(load, batch_size, replicas, service_time, timeout, noise):
    """Mean (seconds) and variance of a request's time in a stage; infinite for a load that it cannot carry.

    Args:
        load: requests/s, above 0.
        batch_size: b, largest number of requests in a call.
        replicas: f.
        service_time: (B + 1,) seconds of a call with 0..B requests.
        timeout: seconds after which a partial batch is due.
        noise: squared coefficient of variation of the service time of a given batch.
    """
    if load * service_time[batch_size] >= _FULL_UTILISATION * replicas * batch_size:
        return np.inf, np.inf
    _, waits, queueing = _queueing(load, batch_size, replicas, service_time, np.inf, noise)
    window = timeout + queueing  # the window of the fixed point is shorter: full batches are the most efficient
    settled = np.inf
    for _ in range(_ROUNDS):
        _, probability, seconds = _queueing(load, batch_size, replicas, service_time, window, noise)
        if np.isfinite(seconds):
            waits, queueing, settled = probability, seconds, window
            window = 0.5 * (window + timeout + queueing)
        else:
            window = 1.5 * window + 1e-3
    sizes, _, _, _, _ = _forming(load, batch_size, settled)
    service, service_2 = _service(sizes, service_time, True, noise)
    _, _, _, forming, forming_2 = _forming(load, batch_size, timeout)
    variance = forming_2 - forming**2 + service_2 - service**2
    if queueing > 0.0:
        variance += 2.0 * queueing**2 / waits - queueing**2
    return forming + queueing + service, variance


@njit(cache=True)
def _latencies(load, batch_sizes, max_replicas, service_time, timeout, noise):
    """(N, Z, F, K, 2) mean and variance for every variant, number of replicas and batch size of every stage."""
    stages, variants = service_time.shape[:2]
    found = np.full((stages, variants, max_replicas, len(batch_sizes), 2), np.inf)
    for n in range(stages):
        for variant in range(variants):
            if np.isfinite(service_time[n, variant, 1]):
                for replicas in range(1, max_replicas + 1):
                    for k, batch_size in enumerate(batch_sizes):
                        found[n, variant, replicas - 1, k] = stage_latency(
                            load, batch_size, replicas, service_time[n, variant], timeout, noise
                        )
    return found


def service_variation(simulation: SimulationParameters) -> float:
    """Squared coefficient of variation of the service time of a given batch on the simulated device."""
    return 1.0 if simulation.service_distribution == "exponential" else float(np.expm1(simulation.service_noise**2))


def stage_latencies(pipeline: Pipeline, load: float, simulation: SimulationParameters) -> np.ndarray:
    """(N, Z, F, K, 2) mean (seconds) and variance of the time in every stage.

    Args:
        pipeline: N tasks, Z variants, F replicas, K batch sizes.
        load: requests/s; :data:`LEAST_LOAD` is predicted for less.
        simulation: batch timeout and noise of the service times.
    """
    tables = pipeline.tables
    return _latencies(  # type: ignore[no-any-return]
        max(float(load), LEAST_LOAD),
        tables.batch_sizes,
        pipeline.max_replicas,
        tables.service_time,
        float(simulation.batch_timeout),
        service_variation(simulation),
    )


class PredictedLatency(NamedTuple):
    """Latency of a configuration under a steady load; infinite where a stage cannot carry it.

    Attributes:
        stage_means: (N,) seconds.
        stage_variances: (N,) squared seconds.
    """

    stage_means: np.ndarray
    stage_variances: np.ndarray

    def percentile(self, percent: float) -> float:
        """Seconds within which ``percent`` of the requests are answered."""
        return float(self.stage_means.sum() + deviations(percent) * np.sqrt(self.stage_variances.sum()))


def deviations(percent: float) -> float:
    """z, standard deviations above the mean at which a percentile is predicted; 0 for the lower half."""
    return max(NormalDist().inv_cdf(percent / 100.0), 0.0)


def predicted_latency(
    pipeline: Pipeline, configuration: Configuration, load: float, simulation: SimulationParameters
) -> PredictedLatency:
    """Predict the latency of a configuration, end to end and stage by stage.

    Args:
        pipeline: the pipeline.
        configuration: its configuration.
        load: requests/s.
        simulation: batch timeout and noise of the service times.
    """
    noise, load = service_variation(simulation), max(float(load), LEAST_LOAD)
    moments = [
        stage_latency(load, b, f, pipeline.tables.service_time[n, z], float(simulation.batch_timeout), noise)
        for n, (z, f, b) in enumerate(configuration)
    ]
    means, variances = np.array(moments).T
    return PredictedLatency(means, variances)
