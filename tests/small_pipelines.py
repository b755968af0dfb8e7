"""Pipelines and loads to test with, and the enumeration of everything that a small pipeline can run."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import strategies as st

from opd.measurement import SimulationParameters
from opd.objective import Weights
from opd.pipeline import Configuration, Pipeline, ServiceLevel, StageConfiguration, Task, Variant, as_array
from opd.simulator.simulator import Simulator
from opd.workload.trace import Workload


def stages(*triples: tuple[int, int, int]) -> Configuration:
    """A configuration of (variant, replicas, batch size) per task."""
    return tuple(StageConfiguration(*triple) for triple in triples)


def ocr_pipeline(capacity: int = 8, max_replicas: int = 3) -> Pipeline:
    """Detection with two variants, recognition with three; figures that are easy to calculate with."""
    detection = Task(
        "detection",
        (
            Variant("small", 0.5, 1, {1: 0.1, 2: 0.16}, 1.0),
            Variant("large", 0.75, 2, {1: 0.2, 2: 0.4}, 2.0),
        ),
    )
    recognition = Task(
        "recognition",
        (
            Variant("tiny", 0.625, 1, {1: 0.05, 2: 0.08}, 1.0),
            Variant("small", 0.75, 2, {1: 0.1, 2: 0.125}, 2.0),
            Variant("large", 0.875, 4, {1: 0.25, 2: 0.4}, 4.0),
        ),
    )
    return Pipeline(
        "ocr", (detection, recognition), capacity, max_replicas, max_batch_size=2, service_level=ServiceLevel(1.0)
    )


@st.composite
def pipelines(draw, max_tasks=3, max_replicas=4):
    """Tasks with different numbers of variants, and a capacity from just enough for one configuration upwards."""

    def task(number: int) -> Task:
        sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
        return Task(
            f"task{number}",
            tuple(
                Variant(f"variant{z}", 0.1 + 0.2 * z, cores, {1: 0.03 * cores, 8: 0.11 * cores}, 1.0 * cores)
                for z, cores in enumerate(sizes)
            ),
        )

    tasks = tuple(task(number) for number in range(draw(st.integers(1, max_tasks))))
    smallest = sum(min(variant.cores for variant in task.variants) for task in tasks)
    return Pipeline(
        "random",
        tasks,
        capacity=smallest + draw(st.one_of(st.just(0), st.integers(0, 15))),
        max_replicas=draw(st.integers(1, max_replicas)),
        max_batch_size=draw(st.sampled_from([1, 2, 8])),
        service_level=ServiceLevel(1.0),
    )


def within_limits(pipeline: Pipeline, configuration: Configuration, cores: float) -> bool:
    """Eq. 4 as the paper states it, for ``cores`` available."""
    used = 0
    for task, (variant, replicas, batch_size) in zip(pipeline.tasks, configuration, strict=True):
        if variant not in range(len(task.variants)) or not 1 <= replicas <= pipeline.max_replicas:
            return False
        if batch_size not in [1 << power for power in range(10)] or batch_size > pipeline.max_batch_size:
            return False
        used += replicas * task.variants[variant].cores
    return used <= cores


def everything_selectable(pipeline: Pipeline) -> list[Configuration]:
    """Every combination of a variant, replicas and a batch size at every task, whatever cores it needs."""
    stages = [
        itertools.product(range(len(task.variants)), range(1, pipeline.max_replicas + 1), pipeline.batch_sizes)
        for task in pipeline.tasks
    ]
    return [
        tuple(StageConfiguration(*stage) for stage in chosen)
        for chosen in itertools.product(*(list(stage) for stage in stages))
    ]


def every_configuration(pipeline: Pipeline) -> list[Configuration]:
    """Every configuration within the limits of Eq. 4."""
    return [chosen for chosen in everything_selectable(pipeline) if within_limits(pipeline, chosen, pipeline.capacity)]


def steady_workload(load: int, decisions: int = 200, interval: int = 10) -> Workload:
    """``load`` requests every second, and the forecast that says so."""
    return Workload(np.full(decisions * interval, load), np.full(decisions + 1, float(load)), interval)


def varying_workload(decisions: int = 200, interval: int = 10, seed: int = 5) -> Workload:
    """Poisson counts whose rate swings between 2 and 14 requests/s; the forecast is the rate."""
    rate = 8.0 + 6.0 * np.sin(np.arange(decisions * interval) / 90.0)
    return Workload(np.random.default_rng(seed).poisson(rate), np.append(rate[::interval], 8.0).round(), interval)


def best_steady(pipeline: Pipeline, weights: Weights, simulation: SimulationParameters, load: int) -> tuple:
    """Best configuration for a constant load by trying all of them in the simulator, and its mean reward.

    The reward is written out from Eqs. 3 and 7.
    """
    candidates = every_configuration(pipeline)
    configurations = np.stack([as_array(candidate) for candidate in candidates])
    simulator = Simulator(pipeline, simulation, len(candidates), load, seed=0)
    for number, candidate in enumerate(candidates):
        simulator.reset(candidate, np.array([number]))
    counts = np.full((len(candidates), simulation.interval), load)
    stages = range(len(pipeline.tasks))
    variants = [[pipeline.tasks[n].variants[candidate[n].variant] for n in stages] for candidate in candidates]
    accuracy = np.array([sum(variant.accuracy for variant in chosen) for chosen in variants])
    cores = np.array(
        [
            sum(variant.cores * stage.replicas for variant, stage in zip(chosen, candidate, strict=True))
            for chosen, candidate in zip(variants, candidates, strict=True)
        ]
    )
    reward = np.zeros(len(candidates))
    intervals = 30
    for _ in range(intervals):
        measured = simulator.step(configurations, counts)
        throughput = measured.ready_throughput.min(axis=1)
        excess = load - throughput
        quality = weights.alpha * accuracy + weights.beta * throughput - measured.task_latency.sum(axis=1)
        quality -= np.where(excess >= 0, weights.gamma * excess, weights.delta * -excess)
        batches = configurations[:, :, 2].max(axis=1)
        reward += (quality - weights.cost_weight * cores - weights.batch_weight * batches) / intervals
    return candidates[int(reward.argmax())], float(reward.max())
