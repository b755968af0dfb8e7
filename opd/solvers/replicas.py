"""Replicas alone, decided jointly over the stages: for pipelines whose variants and batch sizes something else chose.

The pipeline is restricted to the variant that each stage runs, and every number of replicas of all stages within the
limits of Eq. 4 is compared by the objective, for loads from none to the most that they carry. What remains of a
decision is to look up a load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from opd.measurement import SimulationParameters
from opd.objective import Objective, ServiceLevel, profiled_throughput, qos, reward, service_quality, service_reward
from opd.pipeline import Pipeline, used_cores
from opd.solvers.latency import stage_latencies
from opd.solvers.service_level import planned_share

LOADS = 200
"""Loads above 0 that are planned for: between two of them, the plan for the higher one holds."""

MAX_CHOICES = 1_000_000
"""Combinations of replicas that are compared."""


@dataclass(frozen=True)
class ReplicaPlan:
    """Replicas of every stage by load.

    Attributes:
        tasks: names of the N stages.
        loads: (L,) requests/s, rising from 0.
        replicas: (L, N) for each of them.
    """

    tasks: tuple[str, ...]
    loads: np.ndarray
    replicas: np.ndarray

    def at(self, load: float) -> dict[str, int]:
        """Replicas by task; for a load beyond what the limits carry, those that carry the most."""
        row = self.replicas[min(int(np.searchsorted(self.loads, load)), len(self.loads) - 1)]
        return dict(zip(self.tasks, row.tolist(), strict=True))


def plan_replicas(
    pipeline: Pipeline, running: Mapping[str, tuple[str, int]], objective: Objective, simulation: SimulationParameters
) -> ReplicaPlan:
    """Plan the replicas with the highest predicted reward for every load, exactly; of equal ones the fewest cores.

    Args:
        pipeline: with its limits of cores and replicas.
        running: by task, the name of the variant and the batch size that it runs.
        objective: weights of Eq. 7, whose reward is that of :func:`opd.solvers.myopic.predicted_reward`, or a service
            level, whose reward is that of :func:`opd.solvers.service_level.predicted_service_reward`, for which only
            replicas that carry the load are compared.
        simulation: batch timeout and noise of the service times.

    Raises:
        KeyError: if a task is missing, or has no such variant.
        ValueError: if a batch size is not one of the pipeline's, or there are too many combinations to compare.
    """
    restricted, batches = _restricted(pipeline, running)
    choices = _choices(restricted, batches)
    carried = profiled_throughput(restricted, choices).min(axis=-1)
    loads = np.linspace(0.0, float(carried.max()), LOADS + 1)
    cores = used_cores(restricted, choices)
    found = []
    for load in loads:
        # Unmet demand is part of Eq. 7. A level knows none: it is for requests that are answered.
        known = np.flatnonzero(carried >= (load if isinstance(objective, ServiceLevel) else 0.0))
        value = _value(restricted, choices[known], float(load), objective, simulation)
        best = np.lexsort((-carried[known], cores[known], -value))[0]
        found.append(choices[known[best], :, 1])
    return ReplicaPlan(tuple(task.name for task in pipeline.tasks), loads, np.array(found))


def _restricted(pipeline: Pipeline, running: Mapping[str, tuple[str, int]]) -> tuple[Pipeline, np.ndarray]:
    """The pipeline with only the variants that run, and (N,) their batch sizes."""
    tasks, batches = [], []
    for task in pipeline.tasks:
        if task.name not in running:
            raise KeyError(
                f"say what task {task.name!r} of pipeline {pipeline.name!r} runs: its variant and batch size"
            )
        name, batch_size = running[task.name]
        if batch_size not in pipeline.batch_sizes:
            raise ValueError(
                f"task {task.name!r} cannot run batches of {batch_size}: pipeline {pipeline.name!r} has profiles for "
                f"{', '.join(map(str, pipeline.batch_sizes))}"
            )
        tasks.append(replace(task, variants=(task.variants[task.variant_index(name)],)))
        batches.append(batch_size)
    return replace(pipeline, tasks=tuple(tasks)), np.array(batches)


def _choices(pipeline: Pipeline, batches: np.ndarray) -> np.ndarray:
    """(G, N, 3) configurations with every number of replicas within the limits."""
    most = np.minimum(pipeline.max_replicas, (pipeline.capacity // pipeline.tables.cores[:, 0]).astype(int))
    if np.prod(most.astype(float)) > MAX_CHOICES:
        raise ValueError(
            f"pipeline {pipeline.name!r} has {np.prod(most.astype(float)):g} combinations of replicas, more than "
            f"{MAX_CHOICES} to compare; lower its limits of cores or replicas"
        )
    replicas = np.stack(np.meshgrid(*(np.arange(1, each + 1) for each in most), indexing="ij"), axis=-1)
    replicas = replicas.reshape(-1, len(most))
    choices = np.stack([np.zeros_like(replicas), replicas, np.broadcast_to(batches, replicas.shape)], axis=-1)
    return choices[used_cores(pipeline, choices) <= pipeline.capacity]


def _value(
    pipeline: Pipeline, choices: np.ndarray, load: float, objective: Objective, simulation: SimulationParameters
) -> np.ndarray:
    """(G,) reward of configurations under a steady load, without what is the same for all of them."""
    cores = used_cores(pipeline, choices)
    if not isinstance(objective, ServiceLevel):
        reached = profiled_throughput(pipeline, choices).min(axis=-1)
        same = np.zeros(len(choices))
        return reward(objective, qos(objective, same, reached, same, load - reached), cores, same)
    sizes = np.log2(choices[0, :, 2]).astype(int)
    latencies = stage_latencies(pipeline, load, simulation)[np.arange(len(sizes)), 0, :, sizes]
    mean, variance = np.moveaxis(latencies[np.arange(len(sizes)), choices[..., 1] - 1].sum(axis=1), -1, 0)
    share = planned_share(mean, variance, objective)
    return service_reward(service_quality(objective, pipeline.capacity, np.zeros(len(choices)), share), cores)
