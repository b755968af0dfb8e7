"""The compiled simulator against queueing theory, by hand, and against an independent simulator."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from small_pipelines import stages

from opd.measurement import Interval
from opd.pipeline import Configuration, InfeasibleError, Pipeline, Task, Variant, as_array
from opd.simulator.parameters import SimulationParameters, service_factors
from opd.simulator.simulator import Simulator
from opd.study.benchmarks.peer_simpy import IntervalRecord, ReferenceSimulator


def make_task(*service_times: float, name: str = "task", startup_time: float = 0.0, max_batch_size: int = 1) -> Task:
    """A task with one variant for each service time, which is that of every batch size."""
    profile = (1, max_batch_size)
    variants = (
        Variant(f"variant{z}", 0.5, 1, dict.fromkeys(profile, seconds), startup_time)
        for z, seconds in enumerate(service_times)
    )
    return Task(name, tuple(variants))


def make_pipeline(*tasks: Task, max_replicas: int = 4, max_batch_size: int = 1) -> Pipeline:
    capacity = len(tasks) * max_replicas
    return Pipeline("test", tasks, capacity, max_replicas, max_batch_size, latency_sla=1.0)


def assert_equal(actual: npt.ArrayLike, expected: npt.ArrayLike, tolerance: float = 1e-9, message: str = "") -> None:
    """Equal but for rounding, in absolute terms."""
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=0.0, atol=tolerance, err_msg=message)


def inside(simulator: Simulator) -> np.ndarray:
    """(E,) requests that are neither completed nor dropped: waiting or in service anywhere."""
    return simulator._state.queue_length.sum(axis=1)


# --- queueing theory -------------------------------------------------------------------------------------------------


def steady_state(
    pipeline: Pipeline,
    configuration: Configuration,
    rate: float,
    interval: int = 100,
    environments: int = 160,
    **parameters: Any,
) -> dict[str, Any]:
    """Means over about 100 simulated hours of Poisson arrivals, without the first intervals."""
    settings = SimulationParameters(interval=interval, drop_after=60.0, **parameters)
    intervals, settling = 24, 3
    simulator = Simulator(pipeline, settings, environments, max_rate=100, seed=3)
    simulator.reset(configuration)
    rng = np.random.default_rng(4)
    configurations = np.repeat(as_array(configuration)[None], environments, axis=0)
    steps = [simulator.step(configurations, rng.poisson(rate, (environments, interval))) for _ in range(intervals)]
    settled = Interval(*(np.stack(values) for values in zip(*steps[settling:], strict=True)))
    assert settled.dropped.sum() == 0
    weight = settled.completed / settled.completed.sum()
    return {
        "latency": (settled.latency_mean * weight).sum(),
        "p99": (settled.latency_p99 * weight).sum(),
        "task_latency": (settled.task_latency * weight[..., None]).sum(axis=(0, 1)),
        "throughput": settled.completed.mean() / interval,
    }


def erlang_c(servers: int, load: float) -> float:
    """Probability of waiting in M/M/c, ``load`` in erlangs."""
    blocked = stats.poisson.pmf(servers, load) / stats.poisson.cdf(servers, load)
    return blocked / (1 - load / servers * (1 - blocked))


def crommelin_wait(servers: int, utilisation: float) -> float:
    """Mean wait in M/D/c as a multiple of the service time, by Crommelin's series."""
    m = np.arange(1, 4000)
    load = m * servers * utilisation
    terms = stats.poisson.sf(m * servers - 1, load) - stats.poisson.sf(m * servers, load) / utilisation
    return float(terms.sum())


def test_m_m_1():
    pipeline = make_pipeline(make_task(0.1))
    result = steady_state(pipeline, stages((0, 1, 1)), 7.0, service_distribution="exponential")
    assert result["latency"] == pytest.approx(1 / (10 - 7), rel=0.015)
    assert result["task_latency"] == pytest.approx([1 / (10 - 7)], rel=0.015)
    assert result["throughput"] == pytest.approx(7.0, rel=0.005)


def test_m_m_1_percentile():
    # The time in an M/M/1 system is exponential; an interval must hold enough requests for its tail.
    pipeline = make_pipeline(make_task(0.1))
    result = steady_state(
        pipeline, stages((0, 1, 1)), 5.0, interval=4000, environments=10, service_distribution="exponential"
    )
    assert result["p99"] == pytest.approx(np.log(100) / (10 - 5), rel=0.015)


@pytest.mark.parametrize("servers", [2, 4])
def test_m_m_c(servers):
    rate = 0.8 * servers / 0.1
    pipeline = make_pipeline(make_task(0.1))
    result = steady_state(pipeline, stages((0, servers, 1)), rate, service_distribution="exponential")
    expected = 0.1 + erlang_c(servers, 0.8 * servers) * 0.1 / (servers * (1 - 0.8))
    assert result["latency"] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("utilisation", [0.3, 0.6, 0.9])
def test_crommelin_for_one_server_is_pollaczek_khinchine(utilisation):
    assert crommelin_wait(1, utilisation) == pytest.approx(utilisation / (2 * (1 - utilisation)), rel=1e-9)


@pytest.mark.parametrize("servers", [1, 2, 4])
def test_m_d_c(servers):
    pipeline = make_pipeline(make_task(0.1))
    result = steady_state(pipeline, stages((0, servers, 1)), 0.8 * servers / 0.1, service_noise=0.0)
    assert result["latency"] - 0.1 == pytest.approx(0.1 * crommelin_wait(servers, 0.8), rel=0.015)


def test_lognormal_noise_keeps_the_mean_and_has_the_variance_of_m_g_1():
    pipeline = make_pipeline(make_task(0.1))
    result = steady_state(pipeline, stages((0, 1, 1)), 7.0, service_noise=0.6)
    second_moment = 0.1**2 * np.exp(0.6**2)
    expected = 0.1 + 7.0 * second_moment / (2 * (1 - 0.7))
    assert result["latency"] == pytest.approx(expected, rel=0.015)


@pytest.mark.parametrize(
    ("parameters", "distribution"),
    [
        (SimulationParameters(service_noise=0.3), stats.lognorm(0.3, scale=np.exp(-(0.3**2) / 2))),
        (SimulationParameters(service_distribution="exponential"), stats.expon()),
    ],
)
def test_service_factors_follow_their_distribution(parameters, distribution):
    factors = service_factors(parameters)
    assert factors.mean() == pytest.approx(1.0)
    assert factors.std() == pytest.approx(distribution.std(), rel=0.01)
    assert stats.kstest(factors, distribution.cdf).statistic < 1e-3


def test_without_noise_every_service_takes_its_mean_time():
    assert service_factors(SimulationParameters(service_noise=0.0)).tolist() == [1.0]


def test_exponential_tandem():
    # Burke: the departures of M/M/1 are Poisson again, so each stage is an M/M/1 queue.
    pipeline = make_pipeline(make_task(0.1, name="first"), make_task(0.08, name="second"))
    result = steady_state(pipeline, stages((0, 1, 1), (0, 1, 1)), 6.0, service_distribution="exponential")
    expected = [1 / (1 / 0.1 - 6), 1 / (1 / 0.08 - 6)]
    assert result["task_latency"] == pytest.approx(expected, rel=0.015)
    assert result["latency"] == pytest.approx(sum(expected), rel=0.015)


def test_deterministic_tandem_never_waits_behind_a_slower_stage():
    pipeline = make_pipeline(make_task(0.1, name="first"), make_task(0.08, name="second"))
    result = steady_state(pipeline, stages((0, 1, 1), (0, 1, 1)), 6.0, service_noise=0.0)
    assert result["task_latency"][1] == pytest.approx(0.08, abs=1e-9)
    assert result["task_latency"][0] == pytest.approx(0.1 + 0.1 * crommelin_wait(1, 0.6), rel=0.015)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_overload_completes_what_the_replicas_can_and_drops_the_rest(batch_size):
    pipeline = make_pipeline(make_task(0.1 * batch_size, max_batch_size=4), max_batch_size=4)
    parameters = SimulationParameters(drop_after=5.0, service_noise=0.0)
    simulator = Simulator(pipeline, parameters, environments=2)
    configuration = stages((0, 2, batch_size))
    simulator.reset(configuration)
    configurations = np.repeat(as_array(configuration)[None], 2, axis=0)
    steps = [simulator.step(configurations, np.full((2, 10), 30)) for _ in range(12)]
    for interval in steps[2:]:
        assert interval.ready_throughput == pytest.approx(np.full((2, 1), 20.0))
        assert np.all(np.abs(interval.completed - 200) <= 2 * batch_size)
        assert np.all(np.abs(interval.dropped - 100) <= 10)
        assert np.all(interval.latency_p99 <= 5.0 + 0.1 * batch_size)
        assert np.all(interval.latency_mean >= 4.5)


# --- by hand ---------------------------------------------------------------------------------------------------------


def one(pipeline: Pipeline, configuration: Configuration, **parameters: Any) -> Simulator:
    """A single copy without noise, started on ``configuration``."""
    simulator = Simulator(pipeline, SimulationParameters(service_noise=0.0, **parameters))
    simulator.reset(configuration)
    return simulator


def test_a_batch_is_taken_when_full_or_when_the_oldest_has_waited():
    task = Task("task", (Variant("variant", 0.5, 1, {1: 1.0, 2: 1.5, 4: 2.0}, 0.0),))
    configuration = stages((0, 2, 2))
    simulator = one(make_pipeline(task, max_batch_size=4), configuration, batch_timeout=0.5)
    # 1.0 and 1.2 fill a batch at 1.2; 1.3 waits alone until 1.8; 2.0 and 2.1 wait for the replica free at 2.7.
    interval = simulator.step_arrivals(as_array(configuration), np.array([1.0, 1.2, 1.3, 2.0, 2.1]))
    latencies = [1.7, 1.5, 1.5, 2.2, 2.1]
    assert interval.completed.tolist() == [5]
    assert_equal(interval.latency_mean, np.mean(latencies))
    assert_equal(interval.latency_p99, 2.2)
    assert_equal(interval.task_latency, [[np.mean(latencies)]])
    assert_equal(interval.ready_throughput, [[2 * 2 / 1.5]])


def test_a_silent_interval_reports_the_service_time_and_no_latency():
    configuration = stages((0, 1, 1))
    simulator = one(make_pipeline(make_task(0.3)), configuration)
    interval = simulator.step_arrivals(as_array(configuration), np.array([]))
    assert interval.offered[0] == interval.completed[0] == interval.latency_mean[0] == interval.latency_p99[0] == 0
    assert interval.task_latency.tolist() == [[0.3]]


def test_late_departures_wait_behind_earlier_ones_of_the_next_interval():
    # The slow variant's request of 9.0 leaves the first task at 15.0, the fast one's of 11.0 at 11.1.
    pipeline = make_pipeline(make_task(6.0, 0.1, name="first"), make_task(1.0, name="second"))
    slow, fast = stages((0, 1, 1), (0, 1, 1)), stages((1, 1, 1), (0, 1, 1))
    simulator = one(pipeline, slow)
    assert simulator.step_arrivals(as_array(slow), np.array([9.0])).completed[0] == 0
    interval = simulator.step_arrivals(as_array(fast), np.array([11.0]))
    assert interval.completed[0] == 2
    assert_equal(interval.latency_p99, 7.0)
    assert_equal(interval.latency_mean, (7.0 + 1.1) / 2)


def test_a_request_too_old_is_dropped_even_behind_a_younger_one():
    # In the second task's queue a request of 12.8 (joined 12.9) stands before one of 5.0 (joined 13.0), which is
    # 8.1 s old at 13.1, before the replica is idle at 13.25. The younger one then waits alone until 13.9.
    pipeline = make_pipeline(
        make_task(8.0, 0.1, name="first", max_batch_size=2),
        make_task(3.0, name="second", max_batch_size=2),
        max_batch_size=2,
    )
    slow, fast = stages((0, 2, 1), (0, 1, 2)), stages((1, 2, 1), (0, 1, 2))
    simulator = one(pipeline, slow, batch_timeout=1.0, drop_after=8.1)
    simulator.step_arrivals(as_array(slow), np.array([5.0]))
    interval = simulator.step_arrivals(as_array(fast), np.array([10.1, 10.15, 12.8]))
    assert interval.dropped[0] == 1
    assert interval.completed[0] == 3
    latencies = [3.15, 3.1, 4.1]
    assert_equal(interval.latency_mean, np.mean(latencies))
    assert_equal(interval.task_latency[0, 1], np.mean([3.05, 3.0, 4.0, 0.1]))


def test_the_previous_variant_serves_until_every_new_replica_has_started():
    pipeline = make_pipeline(make_task(2.0, 1.0, startup_time=4.0))
    simulator = one(pipeline, stages((0, 2, 1)))
    interval = simulator.step_arrivals(as_array(stages((1, 3, 1))), np.array([3.5, 4.5]))
    assert_equal(interval.ready_throughput, [[0.4 * 2 / 2.0 + 0.6 * 3 / 1.0]])
    assert_equal(interval.latency_mean, (2.0 + 1.0) / 2)


def test_a_scale_down_is_immediate_and_finishes_what_has_begun():
    pipeline = make_pipeline(make_task(2.0))
    simulator = one(pipeline, stages((0, 2, 1)))
    simulator.step_arrivals(as_array(stages((0, 2, 1))), np.array([9.0, 9.5]))
    interval = simulator.step_arrivals(as_array(stages((0, 1, 1))), np.array([10.5]))
    # The oldest replica stays: free at 11.0, it serves the request of 10.5 until 13.0.
    assert_equal(interval.ready_throughput, [[0.5]])
    assert interval.completed[0] == 3
    assert_equal(interval.latency_mean, (2.0 + 2.0 + 2.5) / 3)


def test_start_up_times_longer_than_intervals_keep_replicas_of_every_variant():
    # Each variant gets one replica and 10 s later a second, which a further change cancels as it has not started.
    # The second task, unchanged, shows that the first keeps to its own places.
    pipeline = make_pipeline(
        make_task(*[1.0] * 5, startup_time=15.0), make_task(*[0.5] * 5, name="second", startup_time=5.0), max_replicas=2
    )
    simulator = one(pipeline, stages((0, 2, 1), (0, 1, 1)))
    changes = [stages((variant, replicas, 1), (0, 1, 1)) for variant in range(1, 5) for replicas in (1, 2)]
    ready = [simulator.step_arrivals(as_array(change), np.array([])).ready_throughput[0] for change in changes]
    assert_equal(ready, [[first, 2.0] for first in np.arange(2.0, 6.0, 0.5)])


# --- request for request against the independent simulator -----------------------------------------------------------


@st.composite
def scenarios(draw):
    """A pipeline with uneven numbers of variants, parameters, a configuration and arrivals for each interval."""
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


def assert_agreement(measured: Interval, expected: IntervalRecord) -> None:
    """One environment's interval equals the reference's."""
    assert measured.offered[0] == expected.offered
    assert measured.completed[0] == len(expected.latencies)
    assert measured.dropped[0] == expected.dropped
    assert measured.queue[0].tolist() == expected.queue
    assert_equal(measured.latency_mean[0], expected.latency_mean)
    assert_equal(measured.latency_p99[0], expected.latency_p99)
    assert_equal(measured.task_latency[0], expected.task_latency)
    assert_equal(measured.ready_throughput[0], expected.ready_throughput)


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
        assert unanswered == inside(simulator)[0] == expected.inside
        records.append(expected)
    return records


@settings(max_examples=120)
@given(scenarios())
def test_agrees_request_for_request_with_an_independent_simulator(scenario):
    compare(*scenario)


def test_agreement_covers_every_rule():
    """A long random run, the same comparison, in which everything that can happen does."""
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


# --- batches of environments, seeds and conservation -----------------------------------------------------------------

INERT = SimulationParameters(batch_timeout=100.0, drop_after=100.0)
"""With batches larger than what arrives, nothing is ever taken from the first queue."""


def inert_simulator(environments: int, seed: int) -> Simulator:
    """A simulator that only collects arrivals."""
    pipeline = make_pipeline(make_task(0.1, max_batch_size=1024), max_batch_size=1024)
    return Simulator(pipeline, INERT, environments, max_rate=60, seed=seed)


def collect_arrivals(simulator: Simulator, counts: np.ndarray) -> list[np.ndarray]:
    """The arrivals an inert simulator draws for one interval, in seconds from its start, by environment."""
    simulator.reset(stages((0, 1, 1024)))
    simulator.step(np.tile([0, 1, 1024], (len(counts), 1, 1)), counts)
    return [simulator._state.queue_birth[e, 0, : counts[e].sum()].copy() for e in range(len(counts))]


def two_stage_pipeline() -> Pipeline:
    return make_pipeline(
        make_task(0.11, 0.23, 0.37, name="first", startup_time=3.0, max_batch_size=4),
        make_task(0.17, 0.29, 0.41, name="second", startup_time=12.0, max_batch_size=4),
        max_batch_size=4,
    )


def random_configurations(rng: np.random.Generator, steps: int, environments: int) -> np.ndarray:
    """(steps, E, 2, 3) configurations of the two-stage pipeline."""
    shape = (steps, environments, 2)
    return np.stack([rng.integers(3, size=shape), rng.integers(1, 5, shape), rng.choice([1, 2, 4], shape)], axis=-1)


def assert_same(left: Interval, right: Interval, tolerance: float = 0.0) -> None:
    for name, one_value, other_value in zip(Interval._fields, left, right, strict=True):
        assert_equal(one_value, other_value, tolerance, name)


def test_a_batch_of_environments_is_the_same_environments_alone():
    rng = np.random.default_rng(5)
    environments, steps = 6, 12
    pipeline, parameters = two_stage_pipeline(), SimulationParameters(service_noise=0.0)
    configurations = random_configurations(rng, steps, environments)
    counts = rng.poisson(np.linspace(1, 30, environments)[:, None], (steps, environments, 10))
    together = Simulator(pipeline, parameters, environments, max_rate=60, seed=8)
    alone = [Simulator(pipeline, parameters, max_rate=60) for _ in range(environments)]
    for simulator in (together, *alone):
        simulator.reset(stages((0, 1, 1), (0, 1, 1)))
    # An inert twin of the same seed shows the arrivals that the batch draws.
    twin = inert_simulator(environments, seed=8)
    for step in range(steps):
        births = collect_arrivals(twin, counts[step])
        batch = together.step(configurations[step], counts[step])
        for e, simulator in enumerate(alone):
            single = simulator.step_arrivals(configurations[step, e], births[e] + 10.0 * step)
            assert_same(Interval(*(values[e : e + 1] for values in batch)), single, tolerance=1e-9)


def test_an_environment_among_silent_ones_is_the_same_alone_with_noise():
    rng = np.random.default_rng(6)
    pipeline, parameters = two_stage_pipeline(), SimulationParameters()
    alone = Simulator(pipeline, parameters, seed=2)
    together = Simulator(pipeline, parameters, environments=3, seed=2)
    for simulator in (alone, together):
        simulator.reset(stages((0, 2, 2), (0, 2, 2)))
    for configurations in random_configurations(rng, 8, 3):
        counts = np.zeros((3, 10), dtype=np.int64)
        counts[1] = rng.poisson(12, 10)
        batch = together.step(configurations, counts)
        assert_same(
            Interval(*(values[1:2] for values in batch)), alone.step(configurations[1:2], counts[1:2]), tolerance=1e-9
        )


def test_resetting_some_environments_leaves_the_others_and_forgets_the_past():
    rng = np.random.default_rng(7)
    pipeline, parameters = two_stage_pipeline(), SimulationParameters(service_noise=0.0)
    start = stages((0, 2, 1), (0, 2, 1))
    simulator, untouched = (Simulator(pipeline, parameters, environments=2, seed=1) for _ in range(2))
    for each in (simulator, untouched):
        each.reset(start)
    for configurations, counts in zip(random_configurations(rng, 4, 2), rng.poisson(20, (4, 2, 10)), strict=True):
        for each in (simulator, untouched):
            each.step(configurations, counts)
    simulator.reset(start, np.array([1]))
    assert inside(simulator)[1] == 0 < inside(simulator)[0]
    counts = rng.poisson(9, (2, 10))
    fresh = Simulator(pipeline, parameters, environments=1)
    fresh.reset(start)
    twin = inert_simulator(2, seed=1)
    rng = np.random.default_rng(7)
    random_configurations(rng, 4, 2)
    for earlier in rng.poisson(20, (4, 2, 10)):
        collect_arrivals(twin, earlier)
    births = collect_arrivals(twin, counts)
    configurations = np.repeat(as_array(start)[None], 2, axis=0)
    after, before = simulator.step(configurations, counts), untouched.step(configurations, counts)
    assert_same(Interval(*(values[:1] for values in after)), Interval(*(values[:1] for values in before)))
    assert_same(
        Interval(*(values[1:] for values in after)), fresh.step_arrivals(configurations[1], births[1]), tolerance=1e-9
    )


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    rate=st.integers(0, 60),
    noise=st.sampled_from([0.0, 0.1, 1.0]),
    drop_after=st.floats(0.0, 15.0),
)
def test_every_request_is_completed_dropped_or_still_inside(seed, rate, noise, drop_after):
    rng = np.random.default_rng(seed)
    simulator = Simulator(
        two_stage_pipeline(),
        SimulationParameters(service_noise=noise, drop_after=drop_after),
        environments=4,
        max_rate=60,
        seed=seed,
    )
    simulator.reset(stages((0, 1, 1), (0, 1, 1)))
    unanswered = np.zeros(4, dtype=np.int64)
    for configurations in random_configurations(rng, 8, 4):
        counts = np.minimum(rng.poisson(rate, (4, 10)), 60)
        interval = simulator.step(configurations, counts)
        np.testing.assert_array_equal(interval.offered, counts.sum(axis=1))
        unanswered += interval.offered - interval.completed - interval.dropped
        np.testing.assert_array_equal(unanswered, inside(simulator))
        assert np.all(interval.queue.sum(axis=1) <= unanswered)
        assert all(np.all(np.isfinite(values)) and np.all(values >= 0) for values in interval)
        assert np.all(interval.latency_p99 >= interval.latency_mean * (1 - 1e-12))


def run(seed: int, configurations: np.ndarray, counts: np.ndarray) -> list[Interval]:
    simulator = Simulator(two_stage_pipeline(), SimulationParameters(), counts.shape[1], seed=seed)
    simulator.reset(stages((0, 1, 1), (0, 1, 1)))
    return [simulator.step(*each) for each in zip(configurations, counts, strict=True)]


def test_a_seed_decides_everything():
    rng = np.random.default_rng(9)
    configurations, counts = random_configurations(rng, 5, 3), rng.poisson(10, (5, 3, 10))
    first, again, other = (run(seed, configurations, counts) for seed in (1, 1, 2))
    for left, right in zip(first, again, strict=True):
        assert_same(left, right)
    assert not np.array_equal(first[0].latency_mean, other[0].latency_mean)


def test_arrivals_do_not_depend_on_the_configuration():
    rng = np.random.default_rng(10)
    pipeline = make_pipeline(make_task(0.05, 0.3, max_batch_size=1024), max_batch_size=1024)
    counts = rng.poisson(5, (6, 2, 10))
    births = []
    for variant, replicas, batch_size in ((0, 4, 1), (1, 1, 2)):
        simulator = Simulator(pipeline, INERT, environments=2, seed=3)
        simulator.reset(stages((variant, replicas, batch_size)))
        for each in counts[:-1]:
            simulator.step(np.tile([variant, replicas, batch_size], (2, 1, 1)), each)
        # In the last interval nothing is taken, so that the queue ends with all its arrivals.
        simulator.step(np.tile([variant, replicas, 1024], (2, 1, 1)), counts[-1])
        state, arrived = simulator._state, counts[-1].sum(axis=1)
        ends = state.queue_length[:, 0]
        births.append([state.queue_birth[e, 0, ends[e] - arrived[e] : ends[e]].copy() for e in range(2)])
    for left, right in zip(*births, strict=True):
        assert np.all((left >= 50.0) & (left < 60.0))
        np.testing.assert_array_equal(left, right)


def test_arrivals_are_uniform_within_their_second():
    counts = np.tile([3, 0, 1, 40, 2, 7, 0, 0, 5, 30], (500, 1))
    births = np.stack(collect_arrivals(inert_simulator(500, seed=1), counts))
    assert np.all(np.diff(births, axis=1) > 0)
    np.testing.assert_array_equal(np.floor(births), np.tile(np.repeat(np.arange(10), counts[0]), (500, 1)))
    fractions = births % 1.0
    edges = np.concatenate([[0], np.cumsum(counts[0])])
    for first, last in itertools.pairwise(edges):
        if last > first:
            within = fractions[:, first:last]
            assert stats.kstest(within.ravel(), "uniform").pvalue > 1e-3
            # The place of the i-th of k uniforms is Beta(i, k + 1 - i): neither bunched nor too even.
            place = stats.beta(1, last - first)
            assert stats.kstest(within[:, 0], place.cdf).pvalue > 1e-3


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.fixture
def simulator() -> Simulator:
    """Two copies of a pipeline whose second task has fewer variants than the first."""
    pipeline = make_pipeline(make_task(0.1, 0.2, 0.3, name="first"), make_task(0.1, name="second"))
    simulator = Simulator(pipeline, SimulationParameters(), environments=2, max_rate=10)
    simulator.reset(stages((0, 1, 1), (0, 1, 1)))
    return simulator


USUAL = np.tile([0, 1, 1], (2, 2, 1))
FEW = np.ones((2, 10), dtype=np.int64)


def test_a_negative_count_is_refused(simulator):
    counts = FEW.copy()
    counts[1, 4] = -3
    with pytest.raises(ValueError, match="-3.*must not be negative"):
        simulator.step(USUAL, counts)


def test_a_count_above_the_largest_rate_is_refused(simulator):
    counts = FEW.copy()
    counts[0, 9] = 11
    with pytest.raises(ValueError, match="11 requests in one second exceed max_rate 10"):
        simulator.step(USUAL, counts)


def test_the_largest_rate_fits_however_slow_the_pipeline():
    simulator = Simulator(two_stage_pipeline(), SimulationParameters(drop_after=0.25, interval=1), 20, max_rate=50)
    simulator.reset(stages((2, 1, 1), (2, 1, 1)))
    for _ in range(30):
        interval = simulator.step(np.tile([2, 1, 4], (20, 2, 1)), np.full((20, 1), 50))
    assert np.all(interval.dropped > 30)


def test_missing_counts_are_refused(simulator):
    with pytest.raises(ValueError, match="float64; they must be integers"):
        simulator.step(USUAL, np.full((2, 10), np.nan))


@pytest.mark.parametrize("shape", [(1, 10), (3, 10), (2, 9), (2, 11)])
def test_counts_of_a_wrong_shape_are_refused(simulator, shape):
    with pytest.raises(ValueError, match=r"counts of shape .* pass shape \(2, 10\)"):
        simulator.step(USUAL, np.ones(shape, dtype=np.int64))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ((1, 1, 1), "'second': variant index 1"),
        ((-1, 1, 1), "'second': variant index -1"),
        ((0, 0, 1), "'second': 0 replicas"),
        ((0, 5, 1), "'second': 5 replicas"),
        ((0, 1, 0), "'second': batch size 0"),
        ((0, 1, 2), "'second': batch size 2"),
    ],
)
def test_padded_variants_and_other_bounds_are_refused_before_anything_happens(simulator, stage, message):
    bad = USUAL.copy()
    bad[1, 1] = stage
    with pytest.raises(InfeasibleError, match=message):
        simulator.step(bad, FEW)
    with pytest.raises(InfeasibleError, match=message):
        simulator.reset(stages((0, 1, 1), stage))
    assert inside(simulator).tolist() == [0, 0]


def test_configurations_of_a_wrong_shape_are_refused(simulator):
    with pytest.raises(ValueError, match=r"pass shape \(2, 2, 3\)"):
        simulator.step(USUAL[:1], FEW)
    with pytest.raises(ValueError, match=r"pass shape \(1, 2, 3\)"):
        simulator.reset(stages((0, 1, 1)))


def test_given_arrivals_are_for_a_single_copy(simulator):
    with pytest.raises(ValueError, match=r"pass shape \(2, 2, 3\)"):
        simulator.step_arrivals(USUAL[0], np.array([1.0]))


@pytest.mark.parametrize("time", [-0.1, 10.0, np.nan])
def test_given_arrivals_lie_within_the_interval(time):
    configuration = stages((0, 1, 1))
    simulator = one(make_pipeline(make_task(0.1)), configuration)
    with pytest.raises(ValueError, match=f"arrival at {time} s is outside the interval 0.0 s to 10.0 s"):
        simulator.step_arrivals(as_array(configuration), np.array([1.0, time]))


def test_a_full_queue_is_an_error_that_names_the_remedy():
    configuration = stages((0, 1, 1))
    simulator = Simulator(make_pipeline(make_task(0.1)), SimulationParameters(), max_rate=1)
    simulator.reset(configuration)
    with pytest.raises(
        RuntimeError, match="queue of pipeline 'test' is full .* build the simulator with max_rate above 1"
    ):
        simulator.step_arrivals(as_array(configuration), np.linspace(0, 9, 100))


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("interval", 0),
        ("batch_timeout", -0.1),
        ("drop_after", np.nan),
        ("drop_after", np.inf),
        ("service_noise", -1.0),
        ("service_distribution", "normal"),
    ],
)
def test_parameters_out_of_range_are_refused(parameter, value):
    with pytest.raises(ValueError, match=f"{parameter} {value!r}"):
        SimulationParameters(**{parameter: value})
