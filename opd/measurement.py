"""What backends and policies exchange: an observation at a decision, a measured interval, its score.

The state of Eq. 5 is made from an observation here, so that training, evaluation and a live controller build it
the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from opd import objective
from opd.objective import Weights, profiled_service_time, profiled_throughput
from opd.pipeline import Configuration, Pipeline, as_array


class Interval(NamedTuple):
    """What one interval measured; E environments, N tasks.

    Attributes:
        offered: (E,) requests that arrived.
        completed: (E,) requests that left the last task.
        dropped: (E,) requests given up for their age.
        latency_mean: (E,) seconds from arrival to completion; 0 where nothing completed.
        latency_p99: (E,) seconds, likewise.
        task_latency: (E, N) l_n, mean seconds in a stage (waiting and service) of the requests that
            left its queue; the service time of a single request where none did.
        ready_throughput: (E, N) t_n, requests/s of the replicas weighted by the time they were ready.
        queue: (E, N) requests waiting at the end.
        latencies: (E, M) seconds of the completed requests, the first ``completed`` of every row; M is 0
            unless the simulator records them.
    """

    offered: np.ndarray
    completed: np.ndarray
    dropped: np.ndarray
    latency_mean: np.ndarray
    latency_p99: np.ndarray
    task_latency: np.ndarray
    ready_throughput: np.ndarray
    queue: np.ndarray
    latencies: np.ndarray


def unmeasured(pipeline: Pipeline) -> Interval:
    """An interval of which nothing is known: NaN throughout."""
    one, tasks = np.full(1, np.nan), np.full((1, len(pipeline.tasks)), np.nan)
    return Interval(one, one, one, one, one, tasks, tasks, tasks, np.zeros((1, 0)))


@dataclass(frozen=True)
class Observation:
    """What a policy may know when it decides.

    Attributes:
        history: (120,) requests of each of the last seconds, the newest last; shorter at the start.
        available_cores: u, cores the device has for the pipeline.
        configuration: what runs now.
        task_latency: (N,) l, seconds, mean of the last interval.
        ready_throughput: (N,) t, requests/s of the replicas that were ready in it.
        queue: (N,) requests waiting.
        incoming_load: m, requests/s, mean of the last interval.
        predicted_load: p, requests/s, forecast maximum of the next 20 s.
        coming_load: the load that the forecast tries to predict; only a simulator knows it.
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


def idle_observation(pipeline: Pipeline) -> Observation:
    """The observation of a pipeline that runs its smallest configuration and has had no request."""
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
    """Name of every entry of the state vector, in order."""
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
    """Eq. 5: node state, then the state of every task; the queue lengths go beyond the paper.

    Eq. 5 repeats the node state for every task; here it stands once.

    Args:
        pipeline: the pipeline, N tasks.
        available_cores: (E,) u, cores of the device.
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
    cores = replicas * pipeline.tables.cores[np.arange(len(pipeline.tasks)), variant]
    tasks = np.stack([task_latency, ready_throughput, variant, replicas, batch_size, cores, queue], axis=-1)
    node = np.stack([available_cores, predicted_load, incoming_load], axis=-1)
    return np.concatenate([node, tasks.reshape(len(node), -1)], axis=-1).astype(np.float32)


def running_configurations(pipeline: Pipeline, states: np.ndarray) -> np.ndarray:
    """(E, N, 3) running configurations in states (E, S) of :func:`state_vector`."""
    tasks = states[:, len(NODE_FEATURES) :].reshape(len(states), len(pipeline.tasks), len(TASK_FEATURES))
    first = TASK_FEATURES.index("variant")
    return tasks[..., first : first + 3].astype(np.int64)


def observed_state(pipeline: Pipeline, observation: Observation) -> np.ndarray:
    """(1, S) the state of Eq. 5 that an observation stands for."""
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
    """One interval in the terms of the paper, each (E,): Eqs. 1, 2, T, L, E, Eq. 3 and Eq. 7."""

    accuracy: np.ndarray
    cost: np.ndarray
    throughput: np.ndarray
    latency: np.ndarray
    excess_load: np.ndarray
    qos: np.ndarray
    reward: np.ndarray


def score(
    pipeline: Pipeline, weights: Weights, configurations: np.ndarray, interval: Interval, seconds: float
) -> Score:
    """Score what an interval of ``seconds`` measured under ``configurations`` (E, N, 3)."""
    accuracy = objective.accuracy(pipeline, configurations)
    cost = objective.cost(pipeline, configurations)
    throughput = interval.ready_throughput.min(axis=-1)
    latency = interval.task_latency.sum(axis=-1)
    excess_load = interval.offered / seconds - throughput
    qos = objective.qos(weights, accuracy, throughput, latency, excess_load)
    reward = objective.reward(weights, qos, cost, configurations[..., 2].max(axis=-1))
    return Score(accuracy, cost, throughput, latency, excess_load, qos, reward)
