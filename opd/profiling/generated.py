"""Synthetic pipelines of any size, for tests and for measuring how decision time grows (Fig. 6).

Nothing here was measured. The shape follows what profiles of real model families look like: accuracy rises ever more
slowly with service time, larger variants get more cores and take longer to start, and a batch costs less
than its requests one by one.
"""

from __future__ import annotations

import numpy as np

from opd.pipeline import Pipeline, Task, Variant

CORES_PER_STAGE = 15
"""Capacity per stage: a load of some 30 requests/s fits, but not with the best variant everywhere."""


def _synthetic_task(name: str, variants: int, max_batch_size: int, rng: np.random.Generator) -> Task:
    """A family of ``variants`` models, from the fastest to the most accurate."""
    size = np.sort(np.append(0.0, rng.uniform(0.1, 1.0, variants - 1)))
    seconds = rng.lognormal(np.log(0.03), 0.4) * rng.uniform(4.0, 10.0) ** size
    gain = rng.uniform(0.08, 0.25) * (1.0 - np.exp(-2.5 * size))
    accuracy = rng.uniform(0.45, 0.7) + gain + rng.uniform(0.0, 0.01, variants)
    cores = 1 + np.floor(size * rng.uniform(1.0, 4.0)).astype(int)
    startup = rng.uniform(1.0, 2.0) + rng.uniform(2.0, 6.0) * size
    request_share = rng.uniform(0.6, 0.95)
    return Task(
        name,
        tuple(
            Variant(
                f"synthetic-{z}",
                float(accuracy[z]),
                int(cores[z]),
                {
                    1 << power: float(seconds[z] * (1.0 - request_share + request_share * (1 << power)))
                    for power in range(max_batch_size.bit_length())
                },
                float(startup[z]),
            )
            for z in range(variants)
        ),
    )


def synthetic_pipeline(stages: int, variants: int, seed: int) -> Pipeline:
    """A made-up pipeline, the same for the same arguments.

    Batch sizes go up to 8 and the latency target is five times the mean time of a single request, both as in IPA's
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
    tasks = tuple(_synthetic_task(f"stage-{n}", variants, 8, rng) for n in range(stages))
    mean_latency = sum(np.mean([variant.service_time(1) for variant in task.variants]) for task in tasks)
    return Pipeline(
        f"synthetic-{stages}x{variants}-{seed}",
        tasks,
        capacity=CORES_PER_STAGE * stages,
        max_replicas=8,
        max_batch_size=8,
        latency_sla=float(5.0 * mean_latency),
    )
