"""The value of a configuration: Eqs. 1-4 and 7 of the paper and the reward of a service level, one function a formula.

An :data:`Objective` is either: the weights of Eq. 7, or a service level, whose reward is in cores. The cost of Eq. 2 is
:func:`opd.pipeline.used_cores`. Functions take plain numbers or arrays of one shape: the same line of code scores one
interval of a live cluster and a batch of simulated ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import numpy as np

from opd.pipeline import Configuration, Pipeline, ServiceLevel

Number = TypeVar("Number", float, np.ndarray)

SHORTFALL_PENALTY = 100.0
"""Devices, counted in all their cores, that a shortfall of 1.00 costs. So one percentage point costs one whole device:
no saving of cores is worth a missed point, and the reward tells by how many points a level was missed."""


def check_weights(weights: Any) -> None:
    """Check that every field of a dataclass of weights is finite and not negative.

    Raises:
        ValueError: naming the field and its value.
    """
    for field in fields(weights):
        value = getattr(weights, field.name)
        if not (np.isfinite(value) and value >= 0.0):
            raise ValueError(f"weight {field.name} is {value}, but must be a finite number of at least 0")


@dataclass(frozen=True)
class Weights:
    """Weights of Eqs. 3 and 7; the paper gives no values, and these reproduce its ordering of the policies.

    Attributes:
        alpha: QoS per unit of summed accuracy.
        beta: QoS per request/s of throughput.
        gamma: QoS lost per request/s of unmet demand.
        delta: QoS lost per request/s of spare capacity.
        cost_weight: reward lost per core (lambda of Eq. 4, beta of Eq. 7).
        batch_weight: reward lost per request of the largest batch size (gamma of Eq. 7).

    Raises:
        ValueError: if a weight is negative or not finite.
    """

    alpha: float = 10.0
    beta: float = 0.02
    gamma: float = 0.3
    delta: float = 0.05
    cost_weight: float = 0.15
    batch_weight: float = 0.02

    def __post_init__(self) -> None:
        check_weights(self)


Objective = Weights | ServiceLevel
"""What a reward is computed from: the paper's weights (Eq. 7), or a service level."""


def objective_fields(objective: Objective) -> dict[str, dict[str, float]]:
    """An objective as plain data: its fields under the key ``weights`` or ``service_level``."""
    return {"weights" if isinstance(objective, Weights) else "service_level": asdict(objective)}


def objective_from(document: Mapping[str, Any]) -> Objective:
    """The objective in a document that holds :func:`objective_fields` among other things.

    Raises:
        KeyError: if it holds neither ``weights`` nor ``service_level``.
        ValueError: if a value is out of its range.
    """
    if "service_level" in document:
        return ServiceLevel(**document["service_level"])
    return Weights(**document["weights"])


def check_objective(pipeline: Pipeline, objective: Objective) -> None:
    """Check that a service level asks for the latency by which the pipeline's requests are counted.

    Raises:
        ValueError: naming both latencies.
    """
    if isinstance(objective, ServiceLevel) and objective.seconds != pipeline.service_level.seconds:
        raise ValueError(
            f"the objective's latency is {objective.seconds:g} s, that of pipeline {pipeline.name!r} "
            f"{pipeline.service_level.seconds:g} s; requests are counted by the pipeline's, so they must be the same"
        )


def accuracy(pipeline: Pipeline, configurations: Configuration | np.ndarray) -> np.ndarray:
    """Eq. 1: V, the sum of the selected variants' accuracies.

    Args:
        pipeline: the pipeline.
        configurations: one configuration, or an integer array (..., N, 3) of them.

    Returns:
        (...) fractions summed over the tasks; a scalar for one configuration.
    """
    variants = np.asarray(configurations)[..., 0]
    return np.sum(pipeline.tables.accuracy[np.arange(len(pipeline.tasks)), variants], axis=-1)


def profiled_service_time(pipeline: Pipeline, configurations: np.ndarray) -> np.ndarray:
    """Seconds of one full batch at every task, as profiled.

    Args:
        pipeline: the pipeline.
        configurations: (..., N, 3) variant, replicas and batch size.

    Returns:
        (..., N) seconds.
    """
    variant, _, batch_size = np.moveaxis(configurations, -1, 0)
    return pipeline.tables.service_time[np.arange(len(pipeline.tasks)), variant, batch_size]


def profiled_throughput(pipeline: Pipeline, configurations: np.ndarray) -> np.ndarray:
    """t_n = f b / service_time(z, b): requests/s of every task when all its replicas are ready, as profiled.

    Args:
        pipeline: the pipeline.
        configurations: (..., N, 3) variant, replicas and batch size.

    Returns:
        (..., N) requests/s.
    """
    replicas, batch_size = configurations[..., 1], configurations[..., 2]
    return replicas * (batch_size / profiled_service_time(pipeline, configurations))


def throughput(pipeline: Pipeline, configuration: Configuration) -> float:
    """T, the smallest throughput of any task in requests/s when all its replicas are ready (text below Eq. 3)."""
    return float(profiled_throughput(pipeline, np.asarray(configuration)).min())


def excess_load(offered: Number, throughput: Number, failed: Number) -> Number:
    """E, requests/s: offered load minus T, or what failed if that is more; positive is unmet demand.

    Args:
        offered: requests/s that arrived.
        throughput: T, requests/s.
        failed: requests/s that came to nothing although the throughput says otherwise; 0 in the simulator.
    """
    excess = offered - throughput
    return np.where(failed > 0.0, np.maximum(excess, failed), excess)  # type: ignore[return-value]


def qos(weights: Weights, accuracy: Number, throughput: Number, latency: Number, excess_load: Number) -> Number:
    """Eq. 3: Q, the quality of service.

    Args:
        weights: alpha, beta, gamma and delta.
        accuracy: V, the summed accuracy (Eq. 1).
        throughput: T, requests/s.
        latency: L, seconds.
        excess_load: E, offered load minus T in requests/s; positive is unmet demand, negative spare capacity.
    """
    unmet, spare = np.maximum(excess_load, 0.0), np.maximum(-excess_load, 0.0)
    return (
        weights.alpha * accuracy + weights.beta * throughput - latency - weights.gamma * unmet - weights.delta * spare
    )


def objective(weights: Weights, qos: Number, cost: Number) -> Number:
    """Eq. 4: Q - lambda C, the trade-off to maximise within the limits."""
    return qos - weights.cost_weight * cost


def reward(weights: Weights, qos: Number, cost: Number, max_batch: Number) -> Number:
    """Eq. 7: the reward of one interval, where ``max_batch`` is the largest batch size of any task."""
    return objective(weights, qos, cost) - weights.batch_weight * max_batch


def share_within(within: Number, ended: Number) -> Number:
    """Share of the requests that ended which were answered in time; 1 where none ended.

    Args:
        within: requests completed within the latency of the service level.
        ended: requests that were completed or came to nothing.
    """
    # Counts of a live pipeline are interpolated between scrapes, so a part can come out larger than the whole.
    share = np.minimum(within / np.where(ended > 0.0, ended, 1.0), 1.0)
    return np.where(ended == 0.0, 1.0, share)  # type: ignore[return-value]


def shortfall_cost(capacity: float, shortfall: Number) -> Number:
    """Cores that a shortfall (a fraction; negative where there is none) costs on a device of ``capacity`` cores."""
    return capacity * SHORTFALL_PENALTY * np.maximum(shortfall, 0.0)


def service_quality(level: ServiceLevel, capacity: float, mean_accuracy: Number, within: Number) -> Number:
    """Quality of service in cores: what the accuracy is worth, less the cost of what falls short of the level.

    Args:
        level: the service level.
        capacity: W_max, cores of the device.
        mean_accuracy: mean accuracy of the tasks, V / N.
        within: share of the requests answered within ``level.seconds``.
    """
    late = shortfall_cost(capacity, level.percentile / 100.0 - within)
    inaccurate = shortfall_cost(capacity, level.accuracy_floor - mean_accuracy)
    return level.accuracy_weight * mean_accuracy - late - inaccurate


def service_reward(quality: Number, cost: Number) -> Number:
    """Reward of one interval under a service level, in cores: its quality less the cores it takes."""
    return quality - cost
