"""Data that backends and policies exchange: the observation before a decision, the measured interval, its score.

The state of Eq. 5 is built from an observation here and nowhere else: training, evaluation and the live controller
agree on it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pydantic.dataclasses
from pydantic import Field

from opd import objective as formulas
from opd.objective import Objective, profiled_service_time, profiled_throughput
from opd.pipeline import Configuration, Pipeline, ServiceLevel, as_array, stage_cores, used_cores

_Seconds = Annotated[float, Field(ge=0.0)]


@pydantic.dataclasses.dataclass(frozen=True, config={"extra": "forbid", "allow_inf_nan": False})
class SimulationParameters:
    """Behaviour of the simulated device.

    Attributes:
        interval: seconds between two decisions.
        batch_timeout: seconds the oldest request waits before a partial batch is taken.
        drop_after: age in seconds at which a request that is still waiting reneges and counts as dropped.
        service_noise: sigma of the lognormal factor (of mean 1) on each service time; 0 for none.
        service_distribution: ``lognormal``, or ``exponential`` for the queues of textbooks.
        device_cores: cores that busy replicas share: where they need more, all batches slow down alike. 0 gives every
            replica its own, so that only the limit of Eq. 4 counts.
        added_latency: seconds that serving adds to every request beyond its time in the stages, see
            :func:`opd.live.calibration.measure_overhead`.

    Raises:
        ValueError: if a parameter is out of its range.
    """

    interval: Annotated[int, Field(ge=1)] = 10
    batch_timeout: _Seconds = 0.25
    drop_after: _Seconds = 10.0
    service_noise: Annotated[float, Field(ge=0.0)] = 0.1
    service_distribution: Literal["lognormal", "exponential"] = "lognormal"
    device_cores: Annotated[float, Field(ge=0.0)] = 0.0
    added_latency: _Seconds = 0.0

    def described(self) -> dict[str, Any]:
        """The parameters by name, without those that are off: what was made before they existed stays the same."""
        optional = {"device_cores", "added_latency"}
        return {name: value for name, value in asdict(self).items() if value or name not in optional}


class Span(NamedTuple):
    """A stretch of time in seconds: Unix time in a live pipeline, time since the first decision in the simulator."""

    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.begin


class Interval(NamedTuple):
    """Measurements of one interval; E environments, N tasks.

    Attributes:
        offered: (E,) requests that arrived.
        completed: (E,) requests that left the last task.
        within: (E,) those of them that did within the latency of the pipeline's service level.
        dropped: (E,) requests that came to nothing; in the simulator those dropped because of their age.
        failed: (E,) requests that came to nothing and that the throughput does not account for: in a live pipeline
            all that failed, were rejected or dropped, in the simulator none.
        latency_mean: (E,) seconds from arrival to completion; 0 where nothing completed.
        latency_p99: (E,) the 99th percentile of the same, seconds; 0 where nothing completed.
        task_latency: (E, N) l_n, mean seconds in a stage (waiting and service) of the requests that left its queue; the
            service time of a single request where none did.
        ready_throughput: (E, N) t_n, requests/s of the replicas, each weighted by the share of the interval in which it
            was ready.
        queue: (E, N) requests waiting at the end.
        latencies: (E, M) seconds of the completed requests, the first ``completed`` of every row; M is 0 unless the
            simulator records them.
        busy: (E, N, Z) seconds that replicas of each variant spent serving batches, summed over batches begun in the
            interval, in a live pipeline over those that ended in it; Z is 0 where they were not recorded.
        batches: (E, N, Z, B_max + 1) number of these batches of 0..B_max requests.
    """

    offered: np.ndarray
    completed: np.ndarray
    within: np.ndarray
    dropped: np.ndarray
    failed: np.ndarray
    latency_mean: np.ndarray
    latency_p99: np.ndarray
    task_latency: np.ndarray
    ready_throughput: np.ndarray
    queue: np.ndarray
    latencies: np.ndarray
    busy: np.ndarray
    batches: np.ndarray


def unmeasured(pipeline: Pipeline) -> Interval:
    """Create the interval of a backend that measured nothing: NaN throughout, and no batches."""
    one, tasks = np.full(1, np.nan), np.full((1, len(pipeline.tasks)), np.nan)
    batches = no_batches(1, len(pipeline.tasks))
    return Interval(one, one, one, one, one, one, one, tasks, tasks, tasks, np.zeros((1, 0)), *batches)


def no_batches(environments: int, tasks: int) -> tuple[np.ndarray, np.ndarray]:
    """Create ``busy`` and ``batches`` of an interval in which they were not recorded."""
    return np.zeros((environments, tasks, 0)), np.zeros((environments, tasks, 0, 0), dtype=np.int64)


def utilisation(pipeline: Pipeline, configurations: np.ndarray, interval: Interval, seconds: float) -> np.ndarray:
    """Share of an interval in which the ready replicas of each task served, those of the variant that was configured.

    A batch counts where it begins, in a live pipeline where it ends, so the share can be a little above 1.

    Args:
        pipeline: the pipeline, N tasks.
        configurations: (E, N, 3) what ran in the interval.
        interval: the measurements.
        seconds: length of the interval.

    Returns:
        (E, N) shares; NaN for a task without a ready replica, and where batches were not recorded.
    """
    variant, replicas, _ = np.moveaxis(configurations, -1, 0)
    unknown = np.full(variant.shape, np.nan)
    if not interval.busy.shape[2]:
        return unknown
    busy = np.take_along_axis(interval.busy, variant[..., None], axis=2)[..., 0]
    ready = interval.ready_throughput / profiled_throughput(pipeline, configurations) * replicas
    return np.divide(busy, seconds * ready, out=unknown, where=ready > 0.0)


class Calibration(NamedTuple):
    """What service times were measured to be, relative to the profiles; N tasks of at most Z variants.

    A batch of b requests takes ``factor * b ** slope`` times its profile.

    Attributes:
        factor: (N, Z), that of the device for variants that never ran and those that a task does not have.
        slope: (N, Z).
        deviation: (N, Z) relative standard deviation of ``factor``; 0 for variants that a task does not have.
        device: factor of the device: of a variant that is as profiled in comparison with the others.
    """

    factor: np.ndarray
    slope: np.ndarray
    deviation: np.ndarray
    device: float

    def of_variants(self, configuration: Configuration) -> list[tuple[float, float]]:
        """Factor and its relative deviation of the variant that each task runs."""
        places = [(n, stage.variant) for n, stage in enumerate(configuration)]
        return [(float(self.factor[place]), float(self.deviation[place])) for place in places]


class StageState(NamedTuple):
    """What is under way in one stage when a policy decides; times in seconds from now.

    Attributes:
        waiting: (Q, 2) for each waiting request, first come first: time since it joined the queue, and since it entered
            the pipeline.
        in_service: (S, 2) for each request that is being served: time until it is done, and since it entered the
            pipeline.
        replicas: (R, 4) for each replica: index of its variant, and the times until it is ready, until it is idle and
            until it leaves, infinite if it stays.
    """

    waiting: np.ndarray
    in_service: np.ndarray
    replicas: np.ndarray


@dataclass(frozen=True)
class Observation:
    """Everything a policy may know when it decides.

    Attributes:
        history: (120,) requests in each of the last seconds, the newest last; shorter at the start.
        available_cores: u, cores that the device has for the pipeline.
        configuration: the configuration that is running.
        task_latency: (N,) l, seconds, mean of the last interval.
        ready_throughput: (N,) t, requests/s of the replicas that were ready in the last interval.
        queue: (N,) requests waiting.
        incoming_load: m, requests/s, mean of the last interval.
        predicted_load: p, requests/s, forecast maximum of the next 20 s.
        coming_load: requests/s, the true value of ``predicted_load``; only a simulator knows it.
        calibration: corrections of the profiles, from the intervals so far; None in a run without calibration.
        coming_counts: requests in each of the coming seconds; only a simulator knows them.
        stages: what is under way in each stage; empty where the backend cannot tell.
        utilisation: (N,) share of the last interval in which the ready replicas served, see :func:`utilisation`; empty
            before the first one.
    """

    history: np.ndarray
    available_cores: float
    configuration: Configuration
    task_latency: np.ndarray
    ready_throughput: np.ndarray
    queue: np.ndarray
    incoming_load: float
    predicted_load: float = 0.0
    coming_load: float | None = None
    calibration: Calibration | None = None
    coming_counts: np.ndarray | None = None
    stages: tuple[StageState, ...] = ()
    utilisation: np.ndarray = field(default_factory=lambda: np.zeros(0))


def planned_load(observation: Observation) -> float:
    """Requests/s to plan for: the forecast or the load of the last interval, whichever is larger."""
    return max(observation.predicted_load, observation.incoming_load)


def backlog(observation: Observation, seconds: float) -> float:
    """Requests/s that would clear the queues within so many seconds."""
    return float(observation.queue.sum()) / seconds


def idle_observation(pipeline: Pipeline) -> Observation:
    """Create the observation of a pipeline that runs its smallest configuration and has received no request."""
    configuration = pipeline.smallest_configuration()
    rows = as_array(configuration)
    return Observation(
        history=np.zeros(0, dtype=np.int64),
        available_cores=float(pipeline.capacity),
        configuration=configuration,
        task_latency=profiled_service_time(pipeline, rows),
        ready_throughput=profiled_throughput(pipeline, rows),
        queue=np.zeros(len(rows)),
        incoming_load=0.0,
    )


NODE_FEATURES = ("available_cores", "predicted_load", "incoming_load")
TASK_FEATURES = ("latency", "throughput", "variant", "replicas", "batch_size", "cost", "queue")


def state_names(pipeline: Pipeline) -> list[str]:
    """Names of the entries of the state vector, in order."""
    return [*NODE_FEATURES, *(f"{task.name}.{feature}" for task in pipeline.tasks for feature in TASK_FEATURES)]


def state_vector(
    pipeline: Pipeline,
    available_cores: np.ndarray,
    predicted_load: np.ndarray,
    incoming_load: np.ndarray,
    configurations: np.ndarray,
    task_latency: np.ndarray,
    ready_throughput: np.ndarray,
    queue: np.ndarray,
) -> np.ndarray:
    """Eq. 5: the state of the node, then the state of every task.

    Two departures from the paper: the node state stands once and not with every task, and queue lengths are included.

    Args:
        pipeline: the pipeline, N tasks.
        available_cores: (E,) u, cores of the device, of which the whole ones count.
        predicted_load: (E,) p, requests/s.
        incoming_load: (E,) m, requests/s, mean of the last interval.
        configurations: (E, N, 3) variant z, replicas f, batch size b.
        task_latency: (E, N) l, seconds.
        ready_throughput: (E, N) t, requests/s.
        queue: (E, N) requests waiting.

    Returns:
        (E, 3 + 7 N) float32 in the units above; see :func:`state_names`.
    """
    variant, replicas, batch_size = np.moveaxis(configurations, -1, 0)
    cores = stage_cores(pipeline, configurations)
    tasks = np.stack([task_latency, ready_throughput, variant, replicas, batch_size, cores, queue], axis=-1)
    # Replicas take whole cores; in float32, a little less than a whole core would become one that is not there.
    node = np.stack([np.floor(available_cores), predicted_load, incoming_load], axis=-1)
    return np.concatenate([node, tasks.reshape(len(node), -1)], axis=-1).astype(np.float32)


def running_configurations(pipeline: Pipeline, states: np.ndarray) -> np.ndarray:
    """(E, N, 3) running configurations in states (E, S) of :func:`state_vector`."""
    tasks = states[:, len(NODE_FEATURES) :].reshape(len(states), len(pipeline.tasks), len(TASK_FEATURES))
    first = TASK_FEATURES.index("variant")
    return tasks[..., first : first + 3].astype(np.int64)


def observed_state(pipeline: Pipeline, observation: Observation) -> np.ndarray:
    """Convert an observation to the state of Eq. 5, (1, S)."""
    return state_vector(
        pipeline,
        np.array([observation.available_cores]),
        np.array([observation.predicted_load]),
        np.array([observation.incoming_load]),
        np.array([observation.configuration]),
        observation.task_latency[None],
        observation.ready_throughput[None],
        observation.queue[None],
    )


class Score(NamedTuple):
    """Figures of one interval, each (E,).

    Attributes:
        accuracy: V (Eq. 1).
        cost: C, cores (Eq. 2).
        throughput: T, requests/s.
        latency: L, seconds.
        excess_load: E, requests/s.
        within: share of the requests that ended in the interval which were answered within the latency of the service
            level; 1 where none ended.
        qos: Q (Eq. 3), or the quality of the service level in cores.
        reward: r (Eq. 7), or the reward of the service level in cores.
    """

    accuracy: np.ndarray
    cost: np.ndarray
    throughput: np.ndarray
    latency: np.ndarray
    excess_load: np.ndarray
    within: np.ndarray
    qos: np.ndarray
    reward: np.ndarray


def score(
    pipeline: Pipeline, objective: Objective, configurations: np.ndarray, interval: Interval, seconds: float
) -> Score:
    """Score the measurements of an interval.

    Args:
        pipeline: the pipeline, N tasks.
        objective: weights of Eqs. 3 and 7, or a service level.
        configurations: (E, N, 3) what ran in the interval.
        interval: the measurements.
        seconds: length of the interval.
    """
    accuracy = formulas.accuracy(pipeline, configurations)
    cost = used_cores(pipeline, configurations)
    throughput = interval.ready_throughput.min(axis=-1)
    latency = interval.task_latency.sum(axis=-1)
    excess_load = formulas.excess_load(interval.offered / seconds, throughput, interval.failed / seconds)
    within = formulas.share_within(interval.within, interval.completed + interval.dropped)
    if isinstance(objective, ServiceLevel):
        qos = formulas.service_quality(objective, pipeline.capacity, accuracy / len(pipeline.tasks), within)
        reward = formulas.service_reward(qos, cost)
    else:
        qos = formulas.qos(objective, accuracy, throughput, latency, excess_load)
        reward = formulas.reward(objective, qos, cost, configurations[..., 2].max(axis=-1))
    return Score(accuracy, cost, throughput, latency, excess_load, within, qos, reward)
