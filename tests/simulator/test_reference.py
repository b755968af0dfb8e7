"""The compiled simulator request for request against an independent one."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pipelines import stages
from small_queues import assert_equal, inside, make_pipeline

from opd.measurement import Interval, SimulationParameters
from opd.pipeline import Configuration, Pipeline, Task, Variant, as_array
from opd.simulator.simulator import Simulator
from opd.study.benchmarks.peer_simpy import IntervalRecord, ReferenceSimulator


@st.composite
def scenarios(draw):
    """A pipeline with unequal numbers of variants, parameters, and a configuration and arrivals for each interval."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    interval = draw(st.integers(2, 6))
    max_batch_size = draw(st.sampled_from([1, 2, 4, 8]))
    max_replicas = draw(st.integers(1, 4))
    sizes = np.array([1 << power for power in range(max_batch_size.bit_length())])
    slowness = draw(st.sampled_from([0.03, 0.1, 0.4]))

    def variant(z: int) -> Variant:
        seconds = slowness * rng.uniform(0.5, 4.0) * sizes ** rng.uniform(0.3, 1.0)
        startup_time = draw(st.sampled_from([0.0, float(interval), rng.uniform(0.1, 2.5 * interval)]))
        return Variant(f"variant{z}", 0.5, 1, dict(zip(sizes.tolist(), seconds.tolist(), strict=True)), startup_time)

    variants = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    tasks = [Task(f"task{n}", tuple(variant(z) for z in range(count))) for n, count in enumerate(variants)]
    pipeline = make_pipeline(*tasks, max_replicas=max_replicas, max_batch_size=max_batch_size)
    parameters = SimulationParameters(
        interval=interval,
        batch_timeout=draw(st.sampled_from([0.0, rng.uniform(0.05, 0.6)])),
        drop_after=rng.uniform(0.5, 5.0),
        service_noise=0.0,
    )
    stage = [
        st.tuples(st.integers(0, count - 1), st.integers(1, max_replicas), st.sampled_from(sizes.tolist()))
        for count in variants
    ]
    configurations = draw(st.lists(st.tuples(*stage), min_size=2, max_size=7))
    rates = draw(st.lists(st.integers(0, 20), min_size=len(configurations), max_size=len(configurations)))
    arrivals = [np.sort(rng.uniform(k * interval, (k + 1) * interval, rate * interval)) for k, rate in enumerate(rates)]
    return pipeline, parameters, [stages(*triples) for triples in configurations], arrivals


def p99(latencies: list[float]) -> float:
    """The smallest latency that at least 99 % of the requests do not exceed; 0 if nothing completed."""
    ordered = sorted(latencies)
    enough = (place for place in range(1, len(ordered) + 1) if 100 * place >= 99 * len(ordered))
    return ordered[next(enough) - 1] if ordered else 0.0


def assert_agreement(measured: Interval, expected: IntervalRecord) -> None:
    """One environment's interval equals the reference's."""
    assert measured.offered[0] == expected.offered
    assert measured.completed[0] == len(expected.latencies)
    assert measured.dropped[0] == expected.dropped
    assert measured.queue[0].tolist() == [stage.queue for stage in expected.stages]
    assert_equal(measured.latency_mean[0], expected.latency_mean)
    assert_equal(measured.latency_p99[0], p99(expected.latencies))
    assert_equal(measured.task_latency[0], [stage.latency for stage in expected.stages])
    assert_equal(measured.ready_throughput[0], [stage.ready_throughput for stage in expected.stages])


def compare(
    pipeline: Pipeline,
    parameters: SimulationParameters,
    configurations: list[Configuration],
    arrivals: list[np.ndarray],
) -> list[IntervalRecord]:
    """Run both simulators, compare every interval, and return what the reference recorded."""
    simulator = Simulator(pipeline, parameters)
    simulator.reset(configurations[0])
    reference = ReferenceSimulator(pipeline, parameters, configurations[0])
    records = []
    unanswered = 0
    for configuration, times in zip(configurations, arrivals, strict=True):
        measured = simulator.step_arrivals(as_array(configuration), times)
        expected = reference.step(configuration, times)
        assert_agreement(measured, expected)
        unanswered += measured.offered[0] - measured.completed[0] - measured.dropped[0]
        expected_inside = sum(stage.queue + stage.in_service for stage in expected.stages)
        assert unanswered == inside(simulator)[0] == expected_inside
        records.append(expected)
    return records


@settings(max_examples=120)
@given(scenarios())
def test_agrees_request_for_request_with_an_independent_simulator(scenario):
    compare(*scenario)


def test_agreement_covers_every_rule():
    """The same comparison for a long random run in which every rule of the simulator applies."""
    rng = np.random.default_rng(11)
    sizes = [1, 2, 4, 8]

    def task(name: str) -> Task:
        variants = []
        for z in range(3):
            profile = {size: rng.uniform(0.1, 0.3) * (z + 1) * size**0.7 for size in sizes}
            variants.append(Variant(f"variant{z}", 0.5, 1, profile, rng.uniform(0.0, 12.0)))
        return Task(name, tuple(variants))

    pipeline = make_pipeline(task("first"), task("second"), max_batch_size=8)
    parameters = SimulationParameters(interval=5, drop_after=3.0, service_noise=0.0)

    def random_stage() -> tuple[int, int, int]:
        return int(rng.integers(3)), int(rng.integers(1, 5)), int(rng.choice(sizes))

    configurations = [stages(random_stage(), random_stage()) for _ in range(80)]
    arrivals = [np.sort(rng.uniform(5 * k, 5 * k + 5, rng.integers(0, 100))) for k in range(80)]
    records = compare(pipeline, parameters, configurations, arrivals)
    done = [stage for record in records for stage in record.stages]
    assert sum(len(record.latencies) for record in records) > 1000
    assert sum(stage.dropped for stage in done[0::2]) > 100
    assert sum(stage.dropped for stage in done[1::2]) > 100
    assert sum(stage.partial_batches for stage in done) > 100
    assert sum(stage.overtaken for stage in done) > 50
    assert sum(stage.served_by_previous_variant for stage in done) > 100
