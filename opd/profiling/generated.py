"""Generated pipelines: the distribution that one agent for every pipeline is trained on and judged by.

Nothing here was measured. The draws imitate the pipelines that ship with the package, in wider ranges: families of
models whose service times are spaced logarithmically and whose accuracy rises ever more slowly with them, batches that
save nothing or much, devices from tight to loose, objectives with other weights or a service level. The service times
are scaled so that the peak of the load is a drawn share of what the device can carry; a load that is far too small or
too large leaves nothing to decide.

``inside`` is what training draws from. ``outside`` has more stages, more variants of a task, or families of another
shape: slower starts, and accuracies that jump or that do not rise with the service time.

How fast the device is in truth and how many of its cores are free are conditions of a run, not of a pipeline:
:func:`draw_speed` and :func:`draw_free_cores`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from opd.objective import Objective, Weights
from opd.pipeline import Pipeline, ServiceLevel, Task, Variant, batch_sizes_up_to
from opd.profiling.attainable import attainable_load

Range = Literal["inside", "outside"]
"""Of what training draws from."""

PEAK_LOADS = (12.0, 120.0)
"""Smallest and largest load of the busiest second, requests/s."""

PEAK_SHARES = (0.2, 1.1)
"""Smallest and largest share that this load is of what the device can carry."""

STUDY_PEAK = 45.0
"""Load of the busiest second in training of the study, requests/s."""

SERVICE_TIMES = (0.0005, 3.0)
"""Shortest and longest seconds of a single request in a stage."""

LONGEST_BATCH = 10.0
"""Seconds that a batch may take at most, the default age limit of a request; the limit of the batch size follows."""

SERVICE_LEVEL_SHARE = 0.3
"""Share of the pipelines whose objective is a service level, where stages and variants are as many as in training."""

FIRST_UNSEEN = 1_000_000
"""Seeds from here on are for evaluation; training leaves them out."""

SPEEDS = (0.6, 1.6)
"""Smallest and largest factor on the profiled service times that a device may have."""


@dataclass(frozen=True)
class Generated:
    """A generated pipeline with what it is run for.

    Attributes:
        pipeline: the pipeline.
        objective: weights of Eqs. 3 and 7, or the service level of the pipeline.
        peak_load: requests/s that the busiest second of a load should have.
        peak_share: the same as a share of the largest load that the device can carry.
    """

    pipeline: Pipeline
    objective: Objective
    peak_load: float
    peak_share: float

    def damping(self, recorded_peak: int) -> int:
        """Divisor of a trace's counts with which its largest count becomes about ``peak_load``, at least 1."""
        return max(1, round(recorded_peak / self.peak_load))


def generate_pipeline(seed: int, range: Range = "inside") -> Generated:
    """Generate a pipeline with its objective and load, the same for the same arguments.

    Args:
        seed: of everything drawn, at least 0.
        range: ``inside`` or ``outside`` of what training draws from.

    Raises:
        ValueError: if there is no such range.
    """
    if range not in get_args(Range):
        raise ValueError(f"range {range!r} is not one of {', '.join(get_args(Range))}")
    rng = np.random.default_rng([seed, get_args(Range).index(range)])
    name = f"generated-{range}-{seed}"
    while True:
        stages, variants, regular = _shape(rng, range)
        slowest_start = 60.0 if regular else 150.0
        startup = _log_uniform(rng, 1.0, slowest_start / 2.0)
        tasks = tuple(
            _task(f"stage-{n}", int(number), startup, slowest_start, regular, rng)
            for n, number in enumerate(rng.integers(*variants, stages, endpoint=True))
        )
        peak_load, peak_share = _log_uniform(rng, *PEAK_LOADS), float(rng.uniform(*PEAK_SHARES))
        pipeline = _scaled(_on_device(name, tasks, rng), peak_load / peak_share)
        times = np.array([variant.service_time(1) for task in pipeline.tasks for variant in task.variants])
        if SERVICE_TIMES[0] <= times.min() and times.max() <= SERVICE_TIMES[1]:
            break
    pipeline = replace(pipeline, service_level=_service_level(pipeline, rng))
    # Exact solvers for a service level take minutes where stages or variants are many.
    level = rng.random() < SERVICE_LEVEL_SHARE and stages <= 6 and variants[1] <= 8
    objective = pipeline.service_level if level else _weights(pipeline, peak_load, rng)
    return Generated(pipeline, objective, peak_load, peak_share)


def draw_speed(rng: np.random.Generator) -> float:
    """Factor on all profiled service times of a device, below 1 for a faster one; ratios are equally likely."""
    return _log_uniform(rng, *SPEEDS)


def draw_free_cores(pipeline: Pipeline, decisions: int, rng: np.random.Generator) -> np.ndarray:
    """Cores that the device has for the pipeline at every decision, while other work comes and goes.

    Half of the time all cores are free, otherwise any number that the smallest configuration fits. A state lasts 20
    decisions in the mean.

    Returns:
        (``decisions``,) whole cores.
    """
    least = pipeline.smallest_cores
    changes = rng.random(decisions) < 1.0 / 20.0
    some = rng.integers(least, pipeline.capacity, decisions, endpoint=True)
    drawn = np.where(rng.random(decisions) < 0.5, pipeline.capacity, some)
    changes[:1] = True
    return drawn[np.maximum.accumulate(np.where(changes, np.arange(decisions), 0))]


# ---------------------------------------------------------------------------------------------------------- the draws


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _shape(rng: np.random.Generator, range: Range) -> tuple[int, tuple[int, int], bool]:
    """Stages, fewest and most variants of a stage, and whether families are as in training."""
    usual = int(rng.integers(2, 6, endpoint=True))
    if range == "inside":
        return usual, (2, 8), True
    deep = int(rng.integers(7, 10, endpoint=True))
    kinds = [(deep, (2, 8), True), (usual, (9, 12), True), (deep, (9, 12), True), (usual, (2, 8), False)]
    return kinds[rng.integers(len(kinds))]


def _task(
    name: str, variants: int, startup: float, slowest_start: float, regular: bool, rng: np.random.Generator
) -> Task:
    """Draw a family of models, from the fastest to the slowest, in an arbitrary unit of time."""
    size = np.sort(np.concatenate([[0.0, 1.0], rng.uniform(0.0, 1.0, variants - 2)]))
    slowest = 1.3 * 350.0 ** (rng.random() ** 1.5)  # times the work of the fastest: 10 in the median, 455 at most
    work = rng.lognormal(0.0, 1.0) * slowest**size * rng.lognormal(0.0, 0.1, variants)
    cores = 2 ** np.floor(rng.choice([0, 0, 0, 1]) + size * rng.choice([0.0, rng.uniform(1.0, 2.99)])).astype(int)
    seconds = work / cores**0.8  # a replica with twice the cores is not quite twice as fast
    further = _log_uniform(rng, 0.1, 1.5) * rng.lognormal(0.0, 0.15, variants)  # time that each further request adds
    batches = np.array(batch_sizes_up_to(32))
    shape = 1.0 + further[:, None] * (batches - 1.0)
    shape[:, 1:] *= rng.lognormal(0.0, 0.03, (variants, len(batches) - 1))
    latency = seconds[:, None] * np.maximum.accumulate(shape, axis=1)
    starts = np.clip(startup * (1.0 + rng.uniform(0.0, 2.0) * size), 1.0, slowest_start)
    accuracy = _accuracies(size, regular, rng)
    return Task(
        name,
        tuple(
            Variant(
                f"generated-{z}",
                float(accuracy[z]),
                int(cores[z]),
                dict(zip(batches.tolist(), latency[z].tolist(), strict=True)),
                float(starts[z]),
            )
            for z in np.arange(variants)
        ),
    )


def _accuracies(size: np.ndarray, regular: bool, rng: np.random.Generator) -> np.ndarray:
    """Accuracies of a family: concave in the logarithm of the work; in another shape with a jump, or in no order."""
    best, gain, bend = rng.uniform(0.33, 0.997), 0.001 + 0.33 * rng.random() ** 2, rng.uniform(0.3, 4.0)
    share = (1.0 - np.exp(-bend * size)) / (1.0 - np.exp(-bend))
    if not regular:
        late = np.where(size < rng.uniform(0.2, 0.9), 0.1 * share, share)
        share = late if rng.random() < 0.5 else rng.uniform(0.0, 1.0, len(size))
    noise = rng.normal(0.0, 0.02 * gain, len(size))
    return np.clip(best - gain * (1.0 - share) + noise, 0.01, 0.999)


def _on_device(name: str, tasks: tuple[Task, ...], rng: np.random.Generator) -> Pipeline:
    """Draw the limits; a loose device has room for twelve times the smallest configuration."""
    least = sum(min(variant.cores for variant in task.variants) for task in tasks)
    return Pipeline(
        name,
        tasks,
        capacity=max(least, round(least * _log_uniform(rng, 1.2, 12.0))),
        max_replicas=int(rng.integers(2, 16, endpoint=True)),
        max_batch_size=int(2 ** rng.integers(0, 5, endpoint=True)),
        service_level=ServiceLevel(1.0),
    )


def _scaled(pipeline: Pipeline, load: float) -> Pipeline:
    """Scale all service times so that the device carries ``load`` requests/s, and no more.

    The largest batch size is halved while a batch of it would take longer than :data:`LONGEST_BATCH`.
    """
    size = pipeline.max_batch_size
    while True:
        limited = replace(pipeline, max_batch_size=size)
        factor = attainable_load(limited, 1e12) / load
        longest = factor * max(variant.service_time(size) for task in limited.tasks for variant in task.variants)
        if longest <= LONGEST_BATCH or size == 1:
            return replace(limited, tasks=tuple(_limited(task, factor, size) for task in limited.tasks))
        size //= 2


def _limited(task: Task, factor: float, size: int) -> Task:
    """``factor`` times the service times of a task, for batches up to ``size``."""
    variants = tuple(
        replace(each, latency={batch: factor * seconds for batch, seconds in each.latency.items() if batch <= size})
        for each in task.variants
    )
    return replace(task, variants=variants)


def _service_level(pipeline: Pipeline, rng: np.random.Generator) -> ServiceLevel:
    """Draw a latency relative to the mean times of a single request, and what accuracy is worth."""
    usual = sum(np.mean([variant.service_time(1) for variant in task.variants]) for task in pipeline.tasks)
    accuracies = [[variant.accuracy for variant in task.variants] for task in pipeline.tasks]
    least, most = (float(np.mean([limit(each) for each in accuracies])) for limit in (min, max))
    floor = least + rng.uniform(0.0, 0.4) * (most - least)
    return ServiceLevel(
        float(rng.uniform(1.5, 6.0) * usual + rng.uniform(0.0, 0.25)),
        float(rng.choice([90.0, 95.0, 99.0])),
        floor if rng.random() < 0.5 else 0.0,
        _log_uniform(rng, 5.0, 200.0) if rng.random() < 0.5 else 0.0,
    )


def _weights(pipeline: Pipeline, peak_load: float, rng: np.random.Generator) -> Weights:
    """Draw weights around the paper's; unmet demand costs more than the cores that would serve it.

    Weights of requests/s are relative to the peak of the load, so that throughput counts for as much beside accuracy
    as in the study. As with the paper's, throughput that nobody asks for is worth less than it costs: else every core
    would be used.
    """
    usual = Weights()
    cost_weight = usual.cost_weight * _log_uniform(rng, 0.2, 5.0)
    tables = pipeline.tables
    busy = tables.cores[:, :, None] * tables.service_time[:, :, tables.batch_sizes] / tables.batch_sizes
    serving = cost_weight * np.nanmin(busy, axis=(1, 2)).sum()
    relative = STUDY_PEAK / peak_load
    beta = relative * usual.beta * _log_uniform(rng, 0.25, 4.0)
    return Weights(
        alpha=usual.alpha * _log_uniform(rng, 0.3, 3.0),
        beta=beta,
        gamma=max(relative * usual.gamma * _log_uniform(rng, 0.5, 4.0), 2.0 * serving),
        delta=beta * _log_uniform(rng, 1.2, 6.0),
        cost_weight=cost_weight,
        batch_weight=usual.batch_weight * _log_uniform(rng, 0.25, 4.0),
    )
