"""Synthetic pipelines of any size, for tests and for measuring how decision time grows (Fig. 6).

Nothing here was measured. The figures imitate profiles of real model families: accuracy rises ever more slowly with
service time, larger variants have more cores and start more slowly, and a batch takes less time than its requests
one by one.

Sizes are given, and the committed decision times are of these pipelines; :mod:`opd.profiling.generated` draws sizes.
"""

from __future__ import annotations

import numpy as np

from opd.pipeline import Pipeline, ServiceLevel, Task, Variant, batch_sizes_up_to

SLA_FACTOR = 5.0
"""A stage may take this many times the mean batch-1 latency of its variants (Swayam's heuristic, as in IPA)."""

CORES_PER_STAGE = 15
"""Capacity per stage: it carries some 30 requests/s, but not with the best variant everywhere."""

MAX_REPLICAS = MAX_BATCH_SIZE = 8


def synthetic_pipeline(stages: int, variants: int, seed: int) -> Pipeline:
    """Create a synthetic pipeline, the same for the same arguments.

    The batch sizes up to 8 and the latency target, five times the mean time of a single request, are those of IPA's
    experiments.

    Args:
        stages: number of tasks N, at least 1.
        variants: variants of every task Z, at least 1.
        seed: of the random profiles.

    Raises:
        ValueError: if there is no stage or no variant.
    """
    if stages < 1 or variants < 1:
        raise ValueError(f"{stages} stages of {variants} variants make no pipeline; both must be at least 1")
    rng = np.random.default_rng([seed, stages, variants])
    tasks = tuple(_task(f"stage-{n}", variants, rng) for n in range(stages))
    mean_latency = sum(np.mean([variant.service_time(1) for variant in task.variants]) for task in tasks)
    return Pipeline(
        f"synthetic-{stages}x{variants}-{seed}",
        tasks,
        capacity=CORES_PER_STAGE * stages,
        max_replicas=MAX_REPLICAS,
        max_batch_size=MAX_BATCH_SIZE,
        service_level=ServiceLevel(float(SLA_FACTOR * mean_latency)),
    )


def _task(name: str, variants: int, rng: np.random.Generator) -> Task:
    """Draw a family of models, from the fastest to the most accurate."""
    size = np.sort(np.append(0.0, rng.uniform(0.1, 1.0, variants - 1)))
    seconds = rng.lognormal(np.log(0.03), 0.4) * rng.uniform(4.0, 10.0) ** size
    gain = rng.uniform(0.08, 0.25) * (1.0 - np.exp(-2.5 * size))
    accuracy = rng.uniform(0.45, 0.7) + gain + rng.uniform(0.0, 0.01, variants)
    cores = 1 + np.floor(size * rng.uniform(1.0, 4.0)).astype(int)
    startup = rng.uniform(1.0, 2.0) + rng.uniform(2.0, 6.0) * size
    per_request = rng.uniform(0.6, 0.95)  # share of the time of a call that every further request adds
    batch_sizes = batch_sizes_up_to(MAX_BATCH_SIZE)
    return Task(
        name,
        tuple(
            Variant(
                f"synthetic-{z}",
                float(accuracy[z]),
                int(cores[z]),
                {batch: float(seconds[z] * (1.0 - per_request + per_request * batch)) for batch in batch_sizes},
                float(startup[z]),
            )
            for z in range(variants)
        ),
    )
