"""The value of a configuration: Eqs. 1-4 and 7, one function an equation.

The cost of Eq. 2 is :func:`opd.pipeline.used_cores`. Functions take plain numbers or arrays of one shape: the same line
of code scores one interval of a live cluster and a batch of simulated ones.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np

from opd.pipeline import Configuration, Pipeline

Number = TypeVar("Number", float, np.ndarray)


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
