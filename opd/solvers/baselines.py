"""Random and Greedy, the first two baselines of Sec. VI-A."""

from __future__ import annotations

import numpy as np

from opd.pipeline import Configuration, Pipeline, as_configuration
from opd.profiling.attainable import attainable_load
from opd.solvers.options import forming_time, replicas_needed, stage_options


def random_configuration(pipeline: Pipeline, rng: np.random.Generator) -> Configuration:
    """Random: variant, then replicas, then batch size, each uniform over the values that fit.

    Stages are drawn in random order, each leaving the cores that the smallest variants of the others need. So no stage
    is favoured and every outcome fits the capacity.

    Args:
        pipeline: the pipeline.
        rng: source of randomness.
    """
    cores = pipeline.tables.cores
    reserved = cores.min(axis=1)
    free = pipeline.capacity - reserved.sum()
    rows = np.empty((len(pipeline.tasks), 3), dtype=np.int64)
    for n in rng.permutation(len(pipeline.tasks)):
        available = free + reserved[n]
        variant = rng.choice(np.flatnonzero(cores[n] <= available))
        most = min(pipeline.max_replicas, int(available // cores[n, variant]))
        replicas = rng.integers(1, most, endpoint=True)
        rows[n] = variant, replicas, rng.choice(pipeline.tables.batch_sizes)
        free = available - replicas * cores[n, variant]
    return as_configuration(rows)


def greedy(pipeline: Pipeline, load: float) -> Configuration:
    """Greedy: the fewest cores that carry the load.

    Configurations of equal cost are compared by accuracy, then by latency with batch forming; the latency target plays
    no part. Cost, accuracy and latency are sums over the stages, so the best choice of every stage by itself is the
    best of all. A load that nothing within the limits carries is replaced by the largest that can be carried.

    Args:
        pipeline: the pipeline.
        load: requests/s to plan for.

    Raises:
        ValueError: if the load is negative, infinite or not a number.
    """
    load = attainable_load(pipeline, load)
    options = stage_options(pipeline)
    replicas = replicas_needed(options.throughput, load, pipeline.max_replicas, False)
    cost = np.where(replicas > 0, replicas * options.cores, pipeline.capacity + 1)
    latency = options.service_time + forming_time(options.batch_size, load)
    selected = np.lexsort((latency, -options.accuracy, cost), axis=1)[:, 0]
    return as_configuration(options.configuration(selected, replicas[np.arange(len(selected)), selected]))
