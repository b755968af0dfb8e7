"""Reactive autoscalers: they answer what was measured, with thresholds, and need no forecast.

* :class:`HpaPolicy` is the Horizontal Pod Autoscaler of Kubernetes on utilisation (``autoscaling/v2``), one per stage.
* :class:`QueueThresholdPolicy` is KEDA's queue trigger, one per stage. KEDA itself scales between 0 and 1 only, where
  its activation threshold and cooldown period apply; from 1 on it hands the metric to a Horizontal Pod Autoscaler. A
  stage always has a replica (Eq. 4), so the autoscaler is what is left.
* :class:`LadderPolicy` climbs and descends the configurations of a solver with hysteresis.

An autoscaler changes replicas and nothing else. Variants and batch sizes are its design: those that a solver finds,
with the profiles, for a multiple of the usual load; it does not follow a calibration. The stages share the device by
their largest numbers of replicas, which fit together and are balanced (:func:`largest_replicas`), so that no stage
takes the cores that another needs. Thresholds: :mod:`opd.control.thresholds`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from math import ceil
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from opd.control.policies import Policy, on_available_cores, present_pipeline
from opd.control.thresholds import HpaThresholds, LadderThresholds, QueueThresholds
from opd.measurement import Observation
from opd.objective import profiled_throughput
from opd.pipeline import Configuration, Pipeline, as_array, as_configuration
from opd.solvers.exact import Solve
from opd.solvers.ladder import Ladder, build_ladder, lowest_carrying

TOLERANCE = 0.1
"""Relative distance from its target up to which an autoscaler changes nothing: the default of Kubernetes."""

SCALE_UP_SECONDS = 15.0
SCALE_UP_REPLICAS = 4
"""An autoscaler adds at most so many replicas in so many seconds, or as many as there were: Kubernetes' default."""


def desired_replicas(current: int, ready: float, ratio: float) -> int:
    """Replicas that a Horizontal Pod Autoscaler wants, before stabilisation and limits.

    ceil(ready * ratio), unless the ratio is within the tolerance of 1. If more are wanted, replicas that still start
    count as idle: they may be enough.

    Args:
        current: replicas ordered.
        ready: how many of them serve.
        ratio: of the metric, mean over the ready replicas, to its target; NaN if it was not measured.
    """
    if not ratio >= 0.0:
        return current
    if ratio > 1.0 and ready < current:
        ratio, ready = max(ratio * ready / current, 1.0), current
    if 1.0 - TOLERANCE <= ratio <= 1.0 + TOLERANCE:
        return current
    return ceil(round(ratio * ready, 9))  # rounding errors must not add a replica


def largest_replicas(throughput: np.ndarray, cores: np.ndarray, capacity: int, most: int) -> np.ndarray:
    """Limits that stages can reach together on a device, and with which none limits the others more than it must.

    One replica of every stage; then the stage of the lowest throughput gets one more, again and again, until nothing
    fits.

    Args:
        throughput: (N,) requests/s of one replica of each stage.
        cores: (N,) cores of one replica.
        capacity: cores of the device, at least one replica's of every stage.
        most: F_max.

    Returns:
        (N,) replicas.
    """
    replicas = np.ones(len(cores), dtype=np.int64)
    while True:
        fits = (replicas < most) & (cores <= capacity - cores @ replicas)
        if not fits.any():
            return replicas
        replicas[np.where(fits, replicas * throughput, np.inf).argmin()] += 1


class Stabiliser:
    """The limits in time of a Horizontal Pod Autoscaler, for N stages at once; a decision is a step of its clock.

    Args:
        interval: seconds between two decisions.
        window: seconds; scaling down goes to the largest number of replicas that was wanted in them.
    """

    def __init__(self, interval: float, window: float) -> None:
        self._wanted: deque[np.ndarray] = deque(maxlen=max(ceil(window / interval), 1))
        self._running: deque[np.ndarray] = deque(maxlen=ceil(SCALE_UP_SECONDS / interval))

    def stabilise(self, current: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """(N,) replicas for those that run (N,) and those that are wanted (N,)."""
        if not self._wanted:
            self._wanted.append(current)  # as Kubernetes begins
        self._wanted.append(wanted)
        self._running.append(current)
        before = self._running[0]
        limit = np.maximum(np.maximum(before + SCALE_UP_REPLICAS, 2 * before), current)
        highest = np.max(self._wanted, axis=0)
        return np.where(wanted > current, np.minimum(wanted, limit), np.minimum(highest, current))


class _Design(NamedTuple):
    """What an autoscaler keeps, and within which limits it scales.

    Attributes:
        rows: (N, 3) a configuration.
        largest: (N,) the replicas that the stages may have.
    """

    rows: np.ndarray
    largest: np.ndarray

    def scaled(self, replicas: np.ndarray) -> Configuration:
        """The configuration with other replicas (N,), of which those beyond the limits are cut off."""
        within = np.clip(replicas, 1, self.largest)
        return as_configuration(np.stack([self.rows[:, 0], within, self.rows[:, 2]], axis=1))


_Settings = TypeVar("_Settings", HpaThresholds, QueueThresholds)


class _Autoscaler(Policy, Generic[_Settings]):
    """One autoscaler per stage; variants and batch sizes stay as they were designed.

    Args:
        pipeline: the pipeline to control.
        solve: finds variants and batch sizes for the usual load.
        interval: seconds between two decisions.
        thresholds: its settings.
        usual_load: requests/s in the mean; None for the load in the history of the first decision.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        solve: Solve,
        interval: float,
        thresholds: _Settings,
        usual_load: float | None = None,
    ) -> None:
        self._pipeline, self._solve, self._interval = pipeline, solve, interval
        self._thresholds: _Settings = thresholds
        self._usual_load = usual_load
        self._designs: dict[int, _Design] = {}  # by the cores that there are
        self._stabiliser = Stabiliser(interval, thresholds.window)

    def warm_up(self, observation: Observation) -> None:
        """Solve for some load."""
        self._solve(on_available_cores(self._pipeline, observation), 1.0)

    def decide(self, observation: Observation) -> Configuration:
        """Scale the stages, or begin with the design where another variant or batch size runs."""
        if self._usual_load is None:
            self._usual_load = float(observation.history.mean()) if len(observation.history) else 0.0
        design = self._design(
            on_available_cores(self._pipeline, observation), self._thresholds.headroom * self._usual_load
        )
        running = as_array(observation.configuration)
        if (running[:, [0, 2]] != design.rows[:, [0, 2]]).any():
            self._stabiliser = Stabiliser(self._interval, self._thresholds.window)
            return design.scaled(design.rows[:, 1])
        current = running[:, 1]
        wanted = np.clip(self._wanted(observation, current), 1, design.largest)
        return design.scaled(self._stabiliser.stabilise(current, wanted))

    def _design(self, device: Pipeline, load: float) -> _Design:
        if device.capacity not in self._designs:
            rows = as_array(self._solve(device, load))
            cores = device.tables.cores[np.arange(len(rows)), rows[:, 0]]
            one = profiled_throughput(device, rows) / rows[:, 1]
            limits = largest_replicas(one, cores, device.capacity, device.max_replicas)
            self._designs[device.capacity] = _Design(rows, limits)
        return self._designs[device.capacity]

    @abstractmethod
    def _wanted(self, observation: Observation, current: np.ndarray) -> np.ndarray:
        """(N,) replicas that the stages want, whatever the limits."""


class HpaPolicy(_Autoscaler[HpaThresholds]):
    """The Horizontal Pod Autoscaler of Kubernetes on the utilisation of every stage.

    Its metrics are those of the last interval, which makes it faster than one that reads CPU metrics every 15 s.

    Arguments are those of its base class.
    """

    def _wanted(self, observation: Observation, current: np.ndarray) -> np.ndarray:
        utilisation = observation.utilisation if len(observation.utilisation) else np.full(len(current), np.nan)
        stages = zip(current, _ready(observation, current), utilisation / self._thresholds.target, strict=True)
        return np.array([desired_replicas(*stage) for stage in stages])


def _ready(observation: Observation, current: np.ndarray) -> np.ndarray:
    """(N,) replicas that serve and stay; all that were ordered where the backend cannot tell."""
    if not observation.stages:
        return current
    serving = [(stage.replicas[:, 1] <= 0.0) & np.isinf(stage.replicas[:, 3]) for stage in observation.stages]
    return np.minimum([replicas.sum() for replicas in serving], current)


class QueueThresholdPolicy(_Autoscaler[QueueThresholds]):
    """KEDA's queue trigger: ceil(requests / requests per replica) for every stage.

    Requests are those that wait and those that are served, as KEDA's RabbitMQ trigger counts messages by default: the
    mean of the last interval by Little's law (load times time in the stage), or what waits if that is more.

    Arguments are those of its base class.
    """

    def _wanted(self, observation: Observation, current: np.ndarray) -> np.ndarray:
        requests = np.fmax(observation.incoming_load * observation.task_latency, observation.queue)
        # An average over all ordered replicas: none is ignored while it starts.
        ratios = requests / self._thresholds.requests_per_replica / current
        return np.array([desired_replicas(f, f, ratio) for f, ratio in zip(current, ratios, strict=True)])


class LadderPolicy(Policy):
    """A ladder of configurations with hysteresis: up at once and as far as needed, down after a hold time.

    The demand is the load of the last seconds and what serves the waiting requests in time. The rungs stay those of
    the profiles; what they carry is taken from the calibrated ones.

    Args:
        pipeline: the pipeline to control.
        solve: finds the configurations, see :func:`opd.solvers.ladder.build_ladder`.
        interval: seconds between two decisions.
        thresholds: when it climbs and descends.
    """

    def __init__(self, pipeline: Pipeline, solve: Solve, interval: float, thresholds: LadderThresholds) -> None:
        self._pipeline, self._solve, self._thresholds = pipeline, solve, thresholds
        self._ladders: dict[int, Ladder] = {}  # by the cores that there are
        self._cores = pipeline.capacity
        self._allowed: deque[int] = deque(maxlen=max(ceil(thresholds.hold_seconds / interval), 1))

    def warm_up(self, observation: Observation) -> None:
        """Solve for the rungs."""
        self._ladder(on_available_cores(self._pipeline, observation))

    def decide(self, observation: Observation) -> Configuration:
        """Climb to the rung that carries the demand, descend to the highest that was needed lately, or stay."""
        device = on_available_cores(self._pipeline, observation)
        if device.capacity != self._cores:  # positions are those of another ladder
            self._allowed.clear()
            self._cores = device.capacity
        ladder, limits = self._ladder(device), self._thresholds
        throughput = ladder.throughput(present_pipeline(self._pipeline, observation))
        recent = observation.history[-round(limits.load_seconds) :]
        load = float(recent.mean()) if len(recent) else observation.incoming_load
        demand = load + float(observation.queue.sum()) / limits.drain_seconds
        needed = lowest_carrying(throughput, demand / limits.upper)
        self._allowed.append(lowest_carrying(throughput, demand / (limits.upper * limits.lower)))
        running = ladder.position(observation.configuration)
        if running is None:
            return ladder.rungs[self._allowed[-1]]
        held = len(self._allowed) == self._allowed.maxlen
        allowed = max(self._allowed) if held else running
        return ladder.rungs[needed if needed > running else min(running, allowed)]

    def _ladder(self, device: Pipeline) -> Ladder:
        if device.capacity not in self._ladders:
            self._ladders[device.capacity] = build_ladder(device, self._solve)
        return self._ladders[device.capacity]
