"""Simulation of a batch of independent copies of one pipeline, request by request."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numba import njit
from scipy.special import ndtri

from opd.measurement import Interval, SimulationParameters, StageState
from opd.pipeline import Configuration, Pipeline, StageConfiguration, as_array, check_feasible
from opd.simulator import kernel
from opd.simulator.arrivals import draw_arrivals

QUANTILES = 1 << 14
"""Number of quantiles that represent the distribution of service times."""


class SimulatorState(NamedTuple):
    """All that survives an interval; E environments, N tasks, Q queue places, R replica places.

    Stage N of the queues holds the requests that have left the last task.

    Attributes:
        now: (E,) seconds.
        queue_length: (E, N + 1) entries in each queue, including those that arrive after ``now``.
        queue_time: (E, N + 1, Q) time each entry joins the queue, ascending.
        queue_birth: (E, N + 1, Q) time the same request entered the pipeline.
        replicas: (E, N) replica places in use.
        replica_variant: (E, N, R) index of the variant a replica runs.
        replica_ready: (E, N, R) time from which it serves.
        replica_free: (E, N, R) time from which it is idle.
        replica_retire: (E, N, R) time at which it stops taking work.
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


class Device(NamedTuple):
    """Parameters of the device as compiled code takes them.

    Attributes:
        interval: seconds.
        batch_timeout: seconds.
        drop_after: seconds.
        objective: seconds of the service level.
        factors: of :func:`service_factors`.
        added_latency: seconds.
        cores: that busy replicas share; 0 where each has its own.
    """

    interval: float
    batch_timeout: float
    drop_after: float
    objective: float
    factors: np.ndarray
    added_latency: float
    cores: float


def device_of(pipeline: Pipeline, parameters: SimulationParameters) -> Device:
    """The device of a pipeline."""
    p, objective = parameters, pipeline.service_level.seconds
    seconds = float(p.interval), float(p.batch_timeout), float(p.drop_after), float(objective)
    return Device(*seconds, service_factors(p), float(p.added_latency), float(p.device_cores))


def empty_state(environments: int, tasks: int, queue_places: int, replica_places: int) -> SimulatorState:
    """A state without requests or replicas."""
    queues = (environments, tasks + 1, queue_places)
    replicas = (environments, tasks, replica_places)
    return SimulatorState(
        now=np.zeros(environments),
        queue_length=np.zeros(queues[:2], dtype=np.int64),
        queue_time=np.zeros(queues),
        queue_birth=np.zeros(queues),
        replicas=np.zeros(replicas[:2], dtype=np.int64),
        replica_variant=np.zeros(replicas, dtype=np.int64),
        replica_ready=np.zeros(replicas),
        replica_free=np.zeros(replicas),
        replica_retire=np.zeros(replicas),
    )


def roomy_state(
    pipeline: Pipeline, parameters: SimulationParameters, environments: int, max_rate: int
) -> SimulatorState:
    """A state without requests or replicas, with room for up to ``max_rate`` requests/s in every second."""
    service_time = pipeline.tables.service_time
    slowest = float(np.max(service_time[np.isfinite(service_time)]))
    # A queue holds at most the requests that are young enough to be served, those on their way, and one interval
    # to come. Rates hold for whole seconds; such a span can touch one more at each end. Where cores are shared, a batch
    # can be on its way for longer.
    places = (int(np.ceil(parameters.drop_after + parameters.interval + 3 * slowest)) + 2) * max_rate
    places += most_replicas(pipeline) * pipeline.max_batch_size if parameters.device_cores else 0
    return empty_state(environments, len(pipeline.tasks), places, most_replicas(pipeline))


def most_replicas(pipeline: Pipeline) -> int:
    """Replicas that can serve in a stage at once: with slow start-ups, those of every variant."""
    return int(pipeline.tables.variant_counts.max()) * pipeline.max_replicas


def blank_interval(shape: tuple[int, ...], tasks: int, latencies: int = 0) -> Interval:
    """Measurements to be written, with the leading axes of ``shape`` and room for so many latencies each."""
    counts = {name: np.zeros(shape, dtype=np.int64) for name in ("offered", "completed", "within", "dropped", "failed")}
    return Interval(
        **counts,
        latency_mean=np.zeros(shape),
        latency_p99=np.zeros(shape),
        task_latency=np.zeros((*shape, tasks)),
        ready_throughput=np.zeros((*shape, tasks)),
        queue=np.zeros((*shape, tasks), dtype=np.int64),
        latencies=np.zeros((*shape, latencies)),
        busy=np.zeros((*shape, tasks, 0)),
        batches=np.zeros((*shape, tasks, 0, 0), dtype=np.int64),
    )


@njit(cache=True)
def under_way(state, e, n):
    """The arrays of :class:`~opd.measurement.StageState` for one stage of one environment."""
    now = state.now[e]
    times, births = state.queue_time[e, n], state.queue_birth[e, n]
    waiting = np.empty((np.searchsorted(times[: state.queue_length[e, n]], now, "right"), 2))
    waiting[:, 0] = now - times[: len(waiting)]
    waiting[:, 1] = now - births[: len(waiting)]
    times, births = state.queue_time[e, n + 1], state.queue_birth[e, n + 1]
    length = state.queue_length[e, n + 1]
    first = np.searchsorted(times[:length], now, "right")
    in_service = np.empty((length - first, 2))
    in_service[:, 0] = times[first:length] - now
    in_service[:, 1] = now - births[first:length]
    replicas = np.empty((state.replicas[e, n], 4))
    for r in range(len(replicas)):
        replicas[r, 0] = state.replica_variant[e, n, r]
        replicas[r, 1] = max(state.replica_ready[e, n, r] - now, 0.0)
        replicas[r, 2] = max(state.replica_free[e, n, r] - now, 0.0)
        replicas[r, 3] = max(state.replica_retire[e, n, r] - now, 0.0)
    return waiting, in_service, replicas


def stage_states(state: SimulatorState, e: int) -> tuple[StageState, ...]:
    """What is under way in the stages of one environment."""
    return tuple(StageState(*under_way(state, e, n)) for n in range(state.replicas.shape[1]))


def place_stages(state: SimulatorState, stages: tuple[StageState, ...]) -> None:
    """Put what is under way into the one environment of a state, at time 0: the inverse of :func:`stage_states`.

    Raises:
        ValueError: if the state has too few places.
    """
    _, tasks, replica_places = state.replica_variant.shape
    nothing = np.zeros((0, 2))
    joining = [nothing, *(stage.in_service for stage in stages)]
    queued = [*(stage.waiting for stage in stages), nothing]
    state.now[0] = 0.0
    for n, (here, coming) in enumerate(zip(queued, joining, strict=True)):
        times, ages = np.concatenate([-here[:, 0], coming[:, 0]]), np.concatenate([here[:, 1], coming[:, 1]])
        if len(times) > state.queue_time.shape[2]:
            raise ValueError(f"{len(times)} requests in a queue exceed its {state.queue_time.shape[2]} places")
        order = np.argsort(times, kind="stable")
        state.queue_length[0, n] = len(times)
        state.queue_time[0, n, : len(times)] = times[order]
        state.queue_birth[0, n, : len(times)] = -ages[order]
    for n, stage in enumerate(stages):
        number = len(stage.replicas)
        if number > replica_places:
            raise ValueError(f"{number} replicas of a stage exceed its {replica_places} places")
        state.replicas[0, n] = number
        state.replica_variant[0, n, :number] = stage.replicas[:, 0]
        for place, column in ((state.replica_ready, 1), (state.replica_free, 2), (state.replica_retire, 3)):
            place[0, n, :number] = stage.replicas[:, column]


@cache
def service_factors(parameters: SimulationParameters) -> np.ndarray:
    """(K,) equally likely factors on service times, of mean 1: the midpoints of K quantiles of their distribution.

    Drawing one of them is cheaper than drawing a normal and taking its exponential.
    """
    shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
    if parameters.service_distribution == "exponential":
        factors = -np.log1p(-shares)
    elif parameters.service_noise > 0.0:
        factors = np.exp(parameters.service_noise * ndtri(shares))
    else:
        return np.ones(1)
    return factors / factors.mean()


class Simulator:
    """A batch of independent copies of one pipeline, stepped together.

    Arrivals and service noise have separate random generators: with the same seed, every policy meets the same
    requests.

    Args:
        pipeline: the pipeline to simulate.
        parameters: behaviour of the device.
        environments: number of copies, E.
        max_rate: largest number of requests in any one second of the workload; determines the size of the queues.
        seed: of both generators.
        record_latencies: include the latency of every completed request in the result of a step.
        record_batches: include time and number of batches by variant and size in the result of a step.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        parameters: SimulationParameters,
        environments: int = 1,
        max_rate: int = 100,
        seed: int = 0,
        record_latencies: bool = False,
        record_batches: bool = False,
    ) -> None:
        self.pipeline = pipeline
        self.record_latencies = record_latencies
        self.record_batches = record_batches
        self.parameters = parameters
        self.max_rate = max_rate
        self._device = device_of(pipeline, parameters)
        self.reseed(seed)
        self._state = roomy_state(pipeline, parameters, environments, max_rate)

    @property
    def environments(self) -> int:
        """Number of copies, E."""
        return self._state.now.shape[0]

    def reseed(self, seed: int) -> None:
        """Restart the generators of arrivals and service noise; queues and replicas stay as they are."""
        self._arrivals, self._service = np.random.default_rng(seed).spawn(2)

    def reset(self, configuration: Configuration, environments: np.ndarray | None = None) -> None:
        """Empty the queues of the given copies (all by default) and run ``configuration``, all replicas ready.

        Raises:
            InfeasibleError: if a variant, a number of replicas or a batch size is out of its bounds.
            ValueError: if the number of stages is not the number of tasks.
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

    def stage_states(self, environment: int = 0) -> tuple[StageState, ...]:
        """What is under way in the stages of one copy."""
        return stage_states(self._state, environment)

    def replica_counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Replicas of every variant in every copy, each (E, N, Z).

        Returns:
            how many serve, how many are starting, and the seconds until the last of these serves.
        """
        state, variants = self._state, int(self.pipeline.tables.variant_counts.max())
        used = np.arange(state.replica_ready.shape[2]) < state.replicas[..., None]
        until = np.where(used, state.replica_ready - state.now[:, None, None], 0.0)
        own = used[..., None] & (state.replica_variant[..., None] == np.arange(variants))
        starting = own & (until > 0.0)[..., None]
        waits = np.where(starting, until[..., None], 0.0).max(axis=2)
        return (own.sum(axis=2) - starting.sum(axis=2)).astype(float), starting.sum(axis=2).astype(float), waits

    def step(self, configurations: np.ndarray, counts: np.ndarray) -> Interval:
        """Apply a configuration to every copy and simulate one interval.

        Args:
            configurations: (E, N, 3) integers: variant, replicas, batch size; ``capacity`` is not checked.
            counts: (E, interval) requests of each second, integers.

        Raises:
            InfeasibleError: if a variant, a number of replicas or a batch size is out of its bounds.
            RuntimeError: if a queue is full.
            ValueError: if a shape is wrong, or a count is not an integer, negative or above ``max_rate``.
        """
        self._require_configurations(configurations, self.environments)
        self._require_shape("counts", counts, (self.environments, self.parameters.interval))
        if counts.dtype.kind not in "iu":
            raise ValueError(f"request counts are of type {counts.dtype}; they must be integers, none missing")
        if counts.min(initial=0) < 0:
            raise ValueError(f"a request count is {counts.min()}; counts must not be negative")
        if counts.max(initial=0) > self.max_rate:
            raise ValueError(
                f"{counts.max()} requests in one second exceed max_rate {self.max_rate}; create the simulator with a "
                "higher one"
            )
        interval = self._blank_interval()
        self._require_room(draw_arrivals(self._state, counts, interval, self._arrivals))
        return self._simulate(configurations, interval)

    def step_arrivals(self, configuration: np.ndarray, times: np.ndarray) -> Interval:
        """Simulate one interval of a single copy with given arrivals.

        Args:
            configuration: (N, 3) integers: variant, replicas, batch size; ``capacity`` is not checked.
            times: arrivals in seconds since the reset, ascending and within the coming interval.

        Raises:
            InfeasibleError: if a variant, a number of replicas or a batch size is out of its bounds.
            RuntimeError: if a queue is full.
            ValueError: if there are several copies, or an arrival is outside the interval.
        """
        self._require_configurations(configuration[None], self.environments)
        start = float(self._state.now[0])
        end = start + self.parameters.interval
        outside = times[~((times >= start) & (times < end))]
        if outside.size:
            raise ValueError(f"arrival at {outside[0]} s is outside the interval {start} s to {end} s")
        interval = self._blank_interval()
        self._require_room(kernel.add_arrivals(self._state, times, interval))
        return self._simulate(configuration[None], interval)

    def _blank_interval(self) -> Interval:
        environments, tasks = self._state.replicas.shape
        measured = blank_interval(
            (environments,), tasks, self._state.queue_time.shape[2] if self.record_latencies else 0
        )
        if not self.record_batches:
            return measured
        places = environments, *self.pipeline.tables.service_time.shape
        return measured._replace(busy=np.zeros(places[:-1]), batches=np.zeros(places, dtype=np.int64))

    def _simulate(self, configurations: np.ndarray, interval: Interval) -> Interval:
        tables = self.pipeline.tables
        room = kernel.simulate(self._state, configurations, tables, self._device, interval, self._service)
        self._require_room(room)
        return interval

    def _require_configurations(self, configurations: np.ndarray, environments: int) -> None:
        """Raise unless ``configurations`` are valid indices for the compiled code, which does no checks."""
        self._require_shape("configurations", configurations, (environments, len(self.pipeline.tasks), 3))
        limits = self.pipeline.max_replicas, self.pipeline.max_batch_size
        e = _first_out_of_bounds(configurations, self.pipeline.tables.variant_counts, *limits)
        if e >= 0:
            check_feasible(self.pipeline, tuple(StageConfiguration(*stage) for stage in configurations[e].tolist()))

    def _require_shape(self, name: str, array: np.ndarray, expected: tuple[int, ...]) -> None:
        if array.shape != expected:
            raise ValueError(
                f"{name} of shape {array.shape} do not fit {self.environments} copies of pipeline "
                f"{self.pipeline.name!r} and an interval of {self.parameters.interval} s; pass shape {expected}"
            )

    def _require_room(self, room: bool) -> None:
        if not room:
            raise RuntimeError(
                f"a queue of pipeline {self.pipeline.name!r} is full ({self._state.queue_time.shape[2]} requests); "
                f"create the simulator with max_rate above {self.max_rate}"
            )


@njit(cache=True)
def _first_out_of_bounds(configurations, variants, max_replicas, max_batch_size):
    """First environment with a configuration that would index outside the arrays of the kernel, or -1."""
    for e in range(configurations.shape[0]):
        for n in range(configurations.shape[1]):
            variant, replicas, batch_size = configurations[e, n]
            if not (0 <= variant < variants[n] and 1 <= replicas <= max_replicas and 1 <= batch_size <= max_batch_size):
                return e
    return -1
