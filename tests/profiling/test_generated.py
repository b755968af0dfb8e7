"""Generated pipelines: within the ranges they promise, wide enough for the pipelines that ship, the same for a seed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd.host.paths import package_path
from opd.objective import Weights, check_objective
from opd.pipeline import ServiceLevel, used_cores
from opd.profiling.attainable import attainable_load
from opd.profiling.generated import Generated, draw_free_cores, draw_speed, generate_pipeline
from opd.profiling.pipeline_file import shipped_pipelines
from opd.profiling.pipelines import load_pipeline
from opd.profiling.profiles import FILE_NAME


@cache
def inside() -> list[Generated]:
    return [generate_pipeline(seed) for seed in range(200)]


@cache
def outside() -> list[Generated]:
    return [generate_pipeline(seed, "outside") for seed in range(100)]


def figures(pipeline) -> dict[str, list[float]]:
    """What a pipeline is like, by name; several values where it differs between tasks or variants."""
    families = [task.variants for task in pipeline.tasks]
    variants = [variant for family in families for variant in family]
    size = pipeline.max_batch_size
    return {
        "stages": [len(families)],
        "variants": [len(family) for family in families],
        "capacity per stage": [pipeline.capacity / len(families)],
        "replicas": [pipeline.max_replicas],
        "batch size": [size],
        "cores": [variant.cores for variant in variants],
        "accuracy": [variant.accuracy for variant in variants],
        "gain": [np.ptp([variant.accuracy for variant in family]) for family in families],
        "seconds": [variant.service_time(1) for variant in variants],
        "slowest": [family[-1].service_time(1) / family[0].service_time(1) for family in families],
        "saved by batches": [size * variant.service_time(1) / variant.service_time(size) for variant in variants],
        "start-up": [variant.startup_time for variant in variants],
        "latency": [pipeline.service_level.seconds],
        "peak share": [45.0 / attainable_load(pipeline, 1e9)],  # the peak of the study's loads
    }


@given(st.integers(0, 10**9), st.sampled_from(["inside", "outside"]))
def test_the_same_for_the_same_seed_and_never_invalid(seed, where):
    generated = generate_pipeline(seed, where)
    assert generated == generate_pipeline(seed, where)
    assert generated.pipeline.name == f"generated-{where}-{seed}"
    check_objective(generated.pipeline, generated.objective)
    for task in generated.pipeline.tasks:
        for variant in task.variants:
            times = [variant.service_time(size) for size in generated.pipeline.batch_sizes]
            assert times == sorted(times)
            assert 0.0005 <= times[0] <= 3.0


def test_seeds_and_ranges_differ():
    every = inside() + outside()
    assert len({str(generated.pipeline.tasks) for generated in every}) == len(every)


@pytest.mark.parametrize("generate", [inside, outside])
@pytest.mark.parametrize("seed", range(50))
def test_the_peak_is_the_stated_share_of_what_the_device_carries(seed: int, generate: Callable[[], list[Generated]]):
    generated = generate()[seed]
    attainable = attainable_load(generated.pipeline, 1e9)
    assert generated.peak_load / attainable == pytest.approx(generated.peak_share)
    assert 0.2 <= generated.peak_share <= 1.1
    assert 12.0 <= generated.peak_load <= 120.0
    assert 365 / generated.damping(365) == pytest.approx(generated.peak_load, rel=0.2)


def test_inside_and_outside_are_apart():
    for generated in inside():
        counts = [len(task.variants) for task in generated.pipeline.tasks]
        assert 2 <= len(counts) <= 6
        assert all(2 <= count <= 8 for count in counts)
    shapes = [(len(each.pipeline.tasks), {len(task.variants) for task in each.pipeline.tasks}) for each in outside()]
    deep, wide = [stages > 6 for stages, _ in shapes], [min(counts) > 8 for _, counts in shapes]
    assert all(7 <= stages <= 10 or 2 <= stages <= 6 for stages, _ in shapes)
    assert all(max(counts) <= 12 for _, counts in shapes)
    assert {(True, True), (True, False), (False, True), (False, False)} == set(zip(deep, wide, strict=True))


def test_the_shipped_pipelines_lie_within_the_distribution():
    seen: dict[str, list[float]] = {}
    for generated in inside():
        for name, values in figures(generated.pipeline).items():
            seen.setdefault(name, []).extend(values)
    seen["peak share"] = [generated.peak_share for generated in inside()]
    for source in shipped_pipelines():
        if not package_path("examples", source, FILE_NAME).is_file():
            continue  # its profile is measured by its user
        for name, values in figures(load_pipeline(source)).items():
            assert min(seen[name]) <= min(values) <= max(values) <= max(seen[name]), (source, name)


def test_objectives_vary_and_unmet_demand_costs_more_than_the_cores_that_serve_it():
    levels = [generated for generated in inside() if isinstance(generated.objective, ServiceLevel)]
    assert 0.2 < len(levels) / len(inside()) < 0.4
    assert {generated.objective.percentile for generated in levels} == {90.0, 95.0, 99.0}
    for pipeline, weights in ((generated.pipeline, generated.objective) for generated in inside()):
        if isinstance(weights, Weights):
            cheapest = [
                min(
                    variant.cores / variant.throughput(size)
                    for variant in task.variants
                    for size in pipeline.batch_sizes
                )
                for task in pipeline.tasks
            ]
            assert weights.gamma > weights.cost_weight * sum(cheapest)
            assert weights.delta > weights.beta


def test_an_unknown_range_is_refused():
    with pytest.raises(ValueError, match="range 'middle' is not one of inside, outside"):
        generate_pipeline(0, "middle")


def test_speeds_are_spread_over_their_range():
    speeds = [draw_speed(np.random.default_rng(seed)) for seed in range(200)]
    assert 0.6 <= min(speeds) < 0.7 < 1.4 < max(speeds) <= 1.6


def test_free_cores_vary_between_the_smallest_configuration_and_the_device():
    pipeline = inside()[0].pipeline
    cores = draw_free_cores(pipeline, 10_000, np.random.default_rng(0))
    assert cores.shape == (10_000,)
    assert cores.max() == pipeline.capacity
    assert cores.min() == used_cores(pipeline, pipeline.smallest_configuration())
    assert 10 < len(cores) / (1 + np.count_nonzero(np.diff(cores))) < 40
