"""Request-level simulation of a pipeline, compiled: one kernel for training and evaluation.

Every request is followed through every stage. A stage has one central first-in-first-out queue; an
idle replica takes a batch when ``batch_size`` requests wait or the oldest has waited
``batch_timeout``; a batch of k takes the profiled time of k; its requests then join the next queue.
Because the chain has no feedback, the stages of one interval can be simulated one after the other,
each on the complete list of its arrivals: requests that reach a stage after the end of the interval
stay in its queue, in order of time, until the next one.

A reconfiguration never loses work. New replicas serve after the variant's start-up time; until all
of them do, replicas of the previous variant go on; replicas that are too many leave at once, and a
batch they have begun is finished.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import njit
from scipy.special import ndtri

from opd.measurement import Interval
from opd.pipeline import Configuration, Pipeline, StageConfiguration, as_array, check_feasible

DISTRIBUTIONS = ("lognormal", "exponential")

QUANTILES = 1 << 14
"""Number of quantiles that stand for the distribution of service times."""


@dataclass(frozen=True)
class SimulationParameters:
    """How the simulated device behaves.

    Attributes:
        interval: seconds between two decisions.
        batch_timeout: seconds the oldest request waits before a partial batch is taken.
        drop_after: age in seconds beyond which a request still waiting is dropped.
        service_noise: sigma of the lognormal factor (of mean 1) on each service time; 0 for none.
        service_distribution: ``lognormal``, or ``exponential`` for the queues of textbooks.

    Raises:
        ValueError: if a figure is out of its range.
    """

    interval: int = 10
    batch_timeout: float = 0.25
    drop_after: float = 10.0
    service_noise: float = 0.1
    service_distribution: str = "lognormal"

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise ValueError(f"interval {self.interval} s must be at least 1")
        for name in ("batch_timeout", "drop_after", "service_noise"):
            if not 0.0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} {getattr(self, name)} must be finite and not negative")
        if self.service_distribution not in DISTRIBUTIONS:
            raise ValueError(f"service_distribution {self.service_distribution!r} is not one of {DISTRIBUTIONS}")


class State(NamedTuple):
    """Everything that survives an interval; E environments, N tasks, Q queue places, R replica places.

    Stage N of the queues holds the requests that have left the last task.

    Attributes:
        now: (E,) seconds.
        queue_length: (E, N + 1) entries in each queue, those still to arrive included.
        queue_time: (E, N + 1, Q) time each entry joins the queue, ascending.
        queue_birth: (E, N + 1, Q) time the same request entered the pipeline.
        replicas: (E, N) replica places in use.
        replica_variant: (E, N, R) index of the variant a replica runs.
        replica_ready: (E, N, R) time from which it serves.
        replica_free: (E, N, R) time from which it is idle.
        replica_retire: (E, N, R) time at which it takes no more work.
    """

    now: np.ndarray
    queue_length: np.ndarray
    queue_time: np.ndarray
    queue_birth: np.ndarray
    replicas: np.ndarray
    replica_variant: np.ndarray
    replica_ready: np.ndarray
    replica_free: np.ndarray
    replica_retire: np.ndarray


@njit(cache=True)
def _reconfigure(state, e, n, variant, replicas, startup_time):
    """Move the replicas of one stage to ``replicas`` of ``variant``, keeping what serves until new ones do.

    Places are in order of age: where some of a variant's replicas must leave, the oldest stay.
    """
    now = state.now[e]
    kind, ready = state.replica_variant[e, n], state.replica_ready[e, n]
    free, retire = state.replica_free[e, n], state.replica_retire[e, n]
    places = state.replicas[e, n]
    kept = 0
    serving = 0
    # Replicas of the wanted variant stay, those that already serve first; the rest of them leave.
    for still_starting in range(2):
        for r in range(places):
            if kind[r] != variant or (ready[r] > now) != (still_starting == 1):
                continue
            if kept < replicas and retire[r] > now:
                retire[r] = np.inf
                kept += 1
                serving += 1 - still_starting
            else:
                retire[r] = -np.inf
    all_ready = now
    for r in range(places):
        if kind[r] == variant and retire[r] == np.inf:
            all_ready = max(all_ready, ready[r])
    if kept < replicas:
        all_ready = max(all_ready, now + startup_time)
    # Another variant goes on until every new replica serves; what has not started is not needed.
    for r in range(places):
        if kind[r] != variant:
            if ready[r] > now or retire[r] <= now or serving == replicas:
                retire[r] = -np.inf
            else:
                retire[r] = all_ready
    used = 0
    for r in range(places):
        if retire[r] > now:
            kind[used], ready[used], free[used], retire[used] = kind[r], ready[r], free[r], retire[r]
            used += 1
    for _ in range(replicas - kept):
        kind[used] = variant
        ready[used] = now + startup_time
        free[used] = now + startup_time
        retire[used] = np.inf
        used += 1
    state.replicas[e, n] = used


@njit(cache=True)
def _join(times, births, length, time, birth):
    """Put a request into a queue of ``length`` entries that has room, in order of time, after its equals."""
    place = length
    while place > 0 and times[place - 1] > time:
        times[place] = times[place - 1]
        births[place] = births[place - 1]
        place -= 1
    times[place] = time
    births[place] = birth


@njit(cache=True)
def _batch(times, births, head, length, batch_size, begin, drop_after):
    """Size of the batch taken at ``begin``, and the place of its first request that is too old, or -1."""
    size = 0
    while size < batch_size and head + size < length and times[head + size] <= begin:
        if begin - births[head + size] > drop_after:
            return size, head + size
        size += 1
    return size, -1


@njit(cache=True)
def _seconds_before_drop(time, birth, drop_after):
    """Seconds from joining a queue to the age limit; 0 for a request that joins it too old."""
    return max(birth + drop_after - time, 0.0)


@njit(cache=True)
def _first_idle(free, retire, places):
    """The replica that is idle first, or -1 if all have retired."""
    best = -1
    for r in range(places):
        if free[r] < retire[r] and (best < 0 or free[r] < free[best]):
            best = r
    return best


@cache
def service_factors(parameters: SimulationParameters) -> np.ndarray:
    """(Q,) equally likely factors on service times, of mean 1: the middles of as many quantiles of their distribution.

    Drawing one of them costs less than a normal and its exponential.
    """
    shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
    if parameters.service_distribution == "exponential":
        factors = -np.log1p(-shares)
    elif parameters.service_noise > 0.0:
        factors = np.exp(parameters.service_noise * ndtri(shares))
    else:
        return np.ones(1)
    return factors / factors.mean()


@njit(cache=True)
def _service_factor(generator, factors):
    return factors[int(len(factors) * generator.random())] if len(factors) > 1 else factors[0]


@njit(cache=True)
def _serve(state, e, n, batch_size, service_time, end, timeout, drop_after, generator, factors):
    """Serve one stage until ``end``.

    Returns:
        requests that left the queue, their summed seconds in the stage, requests dropped, and whether
        the next queue had room.
    """
    start = state.now[e]
    times, births, length = state.queue_time[e, n], state.queue_birth[e, n], state.queue_length[e, n]
    next_times, next_births = state.queue_time[e, n + 1], state.queue_birth[e, n + 1]
    next_length = state.queue_length[e, n + 1]
    free, retire, places = state.replica_free[e, n], state.replica_retire[e, n], state.replicas[e, n]
    kind = state.replica_variant[e, n]
    head = 0
    left = 0
    dropped = 0
    seconds = 0.0
    room = True
    while head < length:
        r = _first_idle(free, retire, places)
        if r < 0:
            break
        due = times[head] + timeout
        if head + batch_size <= length:
            due = min(due, times[head + batch_size - 1])
        begin = max(free[r], due, start)
        if begin >= end:
            break
        if begin >= retire[r]:
            free[r] = np.inf
            continue
        size, expired = _batch(times, births, head, length, batch_size, begin, drop_after)
        if expired >= 0:
            # It left at its age limit, so the batch forms anew without it; those before it close the gap.
            seconds += _seconds_before_drop(times[expired], births[expired], drop_after)
            dropped += 1
            for request in range(expired, head, -1):
                times[request] = times[request - 1]
                births[request] = births[request - 1]
            head += 1
            continue
        room = next_length + size <= next_times.shape[0]
        if not room:
            break
        done = begin + service_time[n, kind[r], size] * _service_factor(generator, factors)
        free[r] = done
        for request in range(head, head + size):
            seconds += done - times[request]
            _join(next_times, next_births, next_length, done, births[request])
            next_length += 1
        left += size
        head += size
    # What is left moves to the front; requests that waited too long without an idle replica are dropped.
    used = 0
    for request in range(head, length):
        if times[request] < end and end - births[request] > drop_after:
            seconds += _seconds_before_drop(times[request], births[request], drop_after)
            dropped += 1
        else:
            times[used] = times[request]
            births[used] = births[request]
            used += 1
    state.queue_length[e, n] = used
    state.queue_length[e, n + 1] = next_length
    return left + dropped, seconds, dropped, room


@njit(cache=True)
def _arrive(state, e, counts, generator):
    """Spread each second's count uniformly over that second; the gaps of k uniforms are k + 1 exponentials."""
    times, births, length = state.queue_time[e, 0], state.queue_birth[e, 0], state.queue_length[e, 0]
    for second in range(counts.shape[0]):
        k = counts[second]
        if k == 0:
            continue
        if length + k > times.shape[0]:
            return False
        total = 0.0
        for request in range(length, length + k):
            total += generator.standard_exponential()
            times[request] = total
        total += generator.standard_exponential()
        for request in range(length, length + k):
            times[request] = state.now[e] + second + times[request] / total
            births[request] = times[request]
        length += k
    state.queue_length[e, 0] = length
    return True


@njit(cache=True)
def _percentile_99(values):
    """Nearest-rank 99th percentile, keeping only the largest hundredth in order."""
    largest = np.full(values.shape[0] - (99 * values.shape[0] + 99) // 100 + 1, -np.inf)
    for value in values:
        if value > largest[0]:
            place = 0
            while place + 1 < largest.shape[0] and largest[place + 1] < value:
                largest[place] = largest[place + 1]
                place += 1
            largest[place] = value
    return largest[0]


@njit(cache=True)
def _complete(state, e, end, interval):
    """Take the requests that have left the last task by ``end``; record their number and latencies."""
    last = state.queue_time.shape[1] - 1
    times, births, length = state.queue_time[e, last], state.queue_birth[e, last], state.queue_length[e, last]
    done = 0
    while done < length and times[done] < end:
        done += 1
    interval.completed[e] = done
    if done > 0:
        latencies = times[:done] - births[:done]
        if interval.latencies.shape[1] > 0:
            interval.latencies[e, :done] = latencies
        interval.latency_mean[e] = latencies.mean()
        interval.latency_p99[e] = _percentile_99(latencies)
    else:
        interval.latency_mean[e] = 0.0
        interval.latency_p99[e] = 0.0
    for request in range(done, length):
        times[request - done] = times[request]
        births[request - done] = births[request]
    state.queue_length[e, last] = length - done


@njit(cache=True)
def _ready_throughput(state, e, n, end, batch_size, service_time):
    """t_n: f b / service time, every replica weighted by the share of the interval in which it was ready."""
    start = state.now[e]
    total = 0.0
    for r in range(state.replicas[e, n]):
        ready = min(state.replica_retire[e, n, r], end) - max(state.replica_ready[e, n, r], start)
        if ready > 0.0:
            total += ready / (end - start) * batch_size / service_time[n, state.replica_variant[e, n, r], batch_size]
    return total


@njit(cache=True)
def _waiting(state, e, n, end):
    waiting = 0
    while waiting < state.queue_length[e, n] and state.queue_time[e, n, waiting] < end:
        waiting += 1
    return waiting


@njit(cache=True)
def _step(state, configurations, tables, length, timeout, drop_after, factors, interval, service):
    """Simulate one interval of every environment whose first-stage queue already holds its arrivals."""
    room = True
    tasks = state.replicas.shape[1]
    for e in range(state.now.shape[0]):
        end = state.now[e] + length
        interval.dropped[e] = 0
        for n in range(tasks):
            variant, replicas, batch_size = configurations[e, n]
            _reconfigure(state, e, n, variant, replicas, tables.startup_time[n, variant])
            left, seconds, dropped, fits = _serve(
                state, e, n, batch_size, tables.service_time, end, timeout, drop_after, service, factors
            )
            room = room and fits
            interval.dropped[e] += dropped
            interval.task_latency[e, n] = seconds / left if left > 0 else tables.service_time[n, variant, 1]
            interval.ready_throughput[e, n] = _ready_throughput(state, e, n, end, batch_size, tables.service_time)
            interval.queue[e, n] = _waiting(state, e, n, end)
        _complete(state, e, end, interval)
        state.now[e] = end
    return room


@njit(cache=True)
def _admit(state, counts, interval, generator):
    """Draw the arrivals of one interval for every environment."""
    room = True
    for e in range(counts.shape[0]):
        interval.offered[e] = counts[e].sum()
        room = _arrive(state, e, counts[e], generator) and room
    return room


@njit(cache=True)
def _admit_times(state, times, interval):
    """Let requests arrive in the first environment at given times, ascending."""
    interval.offered[0] = times.shape[0]
    length = state.queue_length[0, 0]
    if length + times.shape[0] > state.queue_time.shape[2]:
        return False
    for time in times:
        _join(state.queue_time[0, 0], state.queue_birth[0, 0], length, time, time)
        length += 1
    state.queue_length[0, 0] = length
    return True


@njit(cache=True)
def _first_out_of_bounds(configurations, variants, max_replicas, max_batch_size):
    """First environment whose configuration would reach outside the arrays of the kernel, or -1."""
    for e in range(configurations.shape[0]):
        for n in range(configurations.shape[1]):
            variant, replicas, batch_size = configurations[e, n]
            if not (0 <= variant < variants[n] and 1 <= replicas <= max_replicas and 1 <= batch_size <= max_batch_size):
                return e
    return -1


class Simulator:
    """A batch of independent copies of one pipeline, stepped together.

    Arrivals and service noise have generators of their own, so that for the same seed every policy
    meets the same requests.

    Args:
        pipeline: the pipeline to simulate.
        parameters: how the device behaves.
        environments: number of copies, E.
        max_rate: largest number of requests in any one second of the workload; sizes the queues.
        seed: of both generators.
        record_latencies: keep the latency of every completed request in what a step returns.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        parameters: SimulationParameters,
        environments: int = 1,
        max_rate: int = 100,
        seed: int = 0,
        record_latencies: bool = False,
    ) -> None:
        self.pipeline = pipeline
        self.record_latencies = record_latencies
        self.parameters = parameters
        self.max_rate = max_rate
        self._arrivals, self._service = np.random.default_rng(seed).spawn(2)
        self._factors = service_factors(parameters)
        tasks = len(pipeline.tasks)
        tables = pipeline.tables
        slowest = float(np.max(tables.service_time[np.isfinite(tables.service_time)]))
        # A queue holds at most what is young enough to be served, what is on its way and one interval to come.
        # Rates hold for whole seconds, of which such a span can touch one more at each end.
        places = (int(np.ceil(parameters.drop_after + parameters.interval + 3 * slowest)) + 2) * max_rate
        # Start-up times longer than the interval can leave replicas of every variant serving at once.
        replicas = int(tables.variants.max()) * pipeline.max_replicas
        self._state = State(
            now=np.zeros(environments),
            queue_length=np.zeros((environments, tasks + 1), dtype=np.int64),
            queue_time=np.zeros((environments, tasks + 1, places)),
            queue_birth=np.zeros((environments, tasks + 1, places)),
            replicas=np.zeros((environments, tasks), dtype=np.int64),
            replica_variant=np.zeros((environments, tasks, replicas), dtype=np.int64),
            replica_ready=np.zeros((environments, tasks, replicas)),
            replica_free=np.zeros((environments, tasks, replicas)),
            replica_retire=np.zeros((environments, tasks, replicas)),
        )

    @property
    def environments(self) -> int:
        """Number of copies, E."""
        return self._state.now.shape[0]

    def reset(self, configuration: Configuration, environments: np.ndarray | None = None) -> None:
        """Empty the queues of the given copies (all by default) and start ``configuration``, all replicas ready.

        Raises:
            InfeasibleError: if a variant, a number of replicas or a batch size is out of its bounds.
            ValueError: if it has not one entry for every task.
        """
        self._require_configurations(as_array(configuration)[None], 1)
        chosen = np.arange(self.environments) if environments is None else environments
        state = self._state
        state.now[chosen] = 0.0
        state.queue_length[chosen] = 0
        for n, stage in enumerate(configuration):
            state.replicas[chosen, n] = stage.replicas
            state.replica_variant[chosen, n, : stage.replicas] = stage.variant
            state.replica_ready[chosen, n, : stage.replicas] = 0.0
            state.replica_free[chosen, n, : stage.replicas] = 0.0
            state.replica_retire[chosen, n, : stage.replicas] = np.inf

    def step(self, configurations: np.ndarray, counts: np.ndarray) -> Interval:
        """Apply a configuration to every copy and simulate one interval.

        Args:
            configurations: (E, N, 3) integers: variant, replicas, batch size; ``capacity`` is not checked.
            counts: (E, interval) requests of each second, integers.

        Raises:
            InfeasibleError: if a variant, a number of replicas or a batch size is out of its bounds.
            RuntimeError: if a queue is full.
            ValueError: if a shape is wrong, or a count is no integer, negative or above ``max_rate``.
        """
        self._require_configurations(configurations, self.environments)
        self._require_shape("counts", counts, (self.environments, self.parameters.interval))
        if counts.dtype.kind not in "iu":
            raise ValueError(f"request counts are of type {counts.dtype}; they must be integers, none missing")
        if counts.min(initial=0) < 0:
            raise ValueError(f"a request count is {counts.min()}; counts must not be negative")
        if counts.max(initial=0) > self.max_rate:
            raise ValueError(
                f"{counts.max()} requests in one second exceed max_rate {self.max_rate}; build the simulator with more"
            )
        interval = self._blank()
        self._require(_admit(self._state, counts, interval, self._arrivals))
        return self._run(configurations, interval)

    def step_arrivals(self, configuration: np.ndarray, times: np.ndarray) -> Interval:
        """As :meth:`step` for a single copy, with the arrivals given.

        Args:
            configuration: (N, 3) integers: variant, replicas, batch size.
            times: arrivals in seconds since the reset, ascending and within the interval to come.

        Raises:
            InfeasibleError: as :meth:`step`.
            RuntimeError: if a queue is full.
            ValueError: if there are several copies, or an arrival is not within the interval.
        """
        self._require_configurations(configuration[None], self.environments)
        start = float(self._state.now[0])
        end = start + self.parameters.interval
        outside = times[~((times >= start) & (times < end))]
        if outside.size:
            raise ValueError(f"arrival at {outside[0]} s is outside the interval {start} s to {end} s")
        interval = self._blank()
        self._require(_admit_times(self._state, times, interval))
        return self._run(configuration[None], interval)

    def _blank(self) -> Interval:
        environments, tasks = self._state.replicas.shape
        return Interval(
            offered=np.zeros(environments, dtype=np.int64),
            completed=np.zeros(environments, dtype=np.int64),
            dropped=np.zeros(environments, dtype=np.int64),
            latency_mean=np.zeros(environments),
            latency_p99=np.zeros(environments),
            task_latency=np.zeros((environments, tasks)),
            ready_throughput=np.zeros((environments, tasks)),
            queue=np.zeros((environments, tasks), dtype=np.int64),
            latencies=np.zeros((environments, self._state.queue_time.shape[2] if self.record_latencies else 0)),
        )

    def _run(self, configurations: np.ndarray, interval: Interval) -> Interval:
        p = self.parameters
        self._require(
            _step(
                self._state,
                configurations,
                self.pipeline.tables,
                float(p.interval),
                p.batch_timeout,
                p.drop_after,
                self._factors,
                interval,
                self._service,
            )
        )
        return interval

    def _require_configurations(self, configurations: np.ndarray, environments: int) -> None:
        """Raise unless the compiled code, which checks nothing, can index its arrays with ``configurations``."""
        self._require_shape("configurations", configurations, (environments, len(self.pipeline.tasks), 3))
        limits = self.pipeline.max_replicas, self.pipeline.max_batch_size
        e = _first_out_of_bounds(configurations, self.pipeline.tables.variants, *limits)
        if e >= 0:
            check_feasible(self.pipeline, tuple(StageConfiguration(*stage) for stage in configurations[e].tolist()))

    def _require_shape(self, name: str, array: np.ndarray, expected: tuple[int, ...]) -> None:
        if array.shape != expected:
            raise ValueError(
                f"{name} of shape {array.shape} do not fit {self.environments} copies of pipeline "
                f"{self.pipeline.name!r} and an interval of {self.parameters.interval} s; pass shape {expected}"
            )

    def _require(self, room: bool) -> None:
        if not room:
            raise RuntimeError(
                f"a queue of pipeline {self.pipeline.name!r} is full ({self._state.queue_time.shape[2]} requests); "
                f"build the simulator with max_rate above {self.max_rate}"
            )
