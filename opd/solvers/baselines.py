"""The baselines of Sec. VI-A and the expert of Alg. 2: configurations for a load, without learning.

A solver takes a pipeline and a load, normally the forecast maximum of the coming seconds, and returns a
configuration within the limits of Eq. 4, whatever the load. Random and Greedy are below; IPA is in
:mod:`opd.solvers.ipa`, the exact maximiser of Eq. 7 in :mod:`opd.solvers.myopic`.
"""

from __future__ import annotations

import numpy as np

from opd.pipeline import Configuration, Pipeline, as_configuration
from opd.solvers.options import carried_load, forming_time, replicas_needed, selected_rows, stage_options


def random_configuration(pipeline: Pipeline, rng: np.random.Generator) -> Configuration:
    """Random (baseline 1 of Sec. VI-A): variant, then replicas, then batch size, uniform over what is allowed.

    Stages are drawn in random order, each leaving the cores that the smallest variants of the others need, so that
    no stage is favoured and every outcome fits the capacity.

    Args:
        pipeline: the pipeline.
        rng: source of randomness.
    """
    cores = pipeline.tables.cores
    reserved = cores.min(axis=1)
    left = pipeline.capacity - reserved.sum()
    rows = np.empty((len(pipeline.tasks), 3), dtype=np.int64)
    for n in rng.permutation(len(pipeline.tasks)):
        room = left + reserved[n]
        variant = rng.choice(np.flatnonzero(cores[n] <= room))
        most = min(pipeline.max_replicas, int(room // cores[n, variant]))
        replicas = rng.integers(1, most, endpoint=True)
        rows[n] = variant, replicas, rng.choice(pipeline.tables.batch_sizes)
        left = room - replicas * cores[n, variant]
    return as_configuration(rows)


def greedy(pipeline: Pipeline, load: float) -> Configuration:
    """Greedy (baseline 2 of Sec. VI-A): the fewest cores that carry the load.

    Among configurations of equal cost it takes the highest accuracy, then the lowest latency with batch forming; the
    latency target is not its concern. Cost, accuracy and latency are sums over the stages, so the best choice
    of every stage by itself is the best of all. Where nothing carries the load, it carries as much as can be carried.

    Args:
        pipeline: the pipeline.
        load: requests/s to plan for.

    Raises:
        ValueError: if the load is negative, infinite or not a number.
    """
    load = carried_load(pipeline, load)
    options = stage_options(pipeline)
    replicas = replicas_needed(options.throughput, load, pipeline.max_replicas, False)
    cost = np.where(replicas > 0, replicas * options.cores, pipeline.capacity + 1)
    latency = options.service_time + forming_time(options.batch_size, load)
    selected = np.lexsort((latency, -options.accuracy, cost), axis=1)[:, 0]
    return as_configuration(selected_rows(options, selected, replicas[np.arange(len(selected)), selected]))
