"""Batches of copies, seeds, conservation of requests, and refused input."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from small_pipelines import stages
from small_queues import assert_equal, inside, make_pipeline, make_task

from opd.measurement import Interval, SimulationParameters
from opd.pipeline import InfeasibleError, Pipeline, as_array
from opd.simulator.simulator import Simulator

INERT = SimulationParameters(batch_timeout=100.0, drop_after=100.0)
"""With batches larger than the number of arrivals, nothing is ever taken from the first queue."""


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


def test_an_environment_among_idle_ones_is_the_same_alone_with_noise():
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


def test_a_reset_of_some_environments_does_not_affect_the_others():
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
        # Nothing is taken in the last interval, so the queue ends with all its arrivals.
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


def test_given_arrivals_need_a_single_copy(simulator):
    with pytest.raises(ValueError, match=r"pass shape \(2, 2, 3\)"):
        simulator.step_arrivals(USUAL[0], np.array([1.0]))


@pytest.mark.parametrize("time", [-0.1, 10.0, np.nan])
def test_given_arrivals_must_be_within_the_interval(time):
    configuration = stages((0, 1, 1))
    simulator = Simulator(make_pipeline(make_task(0.1)), SimulationParameters())
    simulator.reset(configuration)
    with pytest.raises(ValueError, match=f"arrival at {time} s is outside the interval 0.0 s to 10.0 s"):
        simulator.step_arrivals(as_array(configuration), np.array([1.0, time]))


def test_the_error_for_a_full_queue_names_the_remedy():
    configuration = stages((0, 1, 1))
    simulator = Simulator(make_pipeline(make_task(0.1)), SimulationParameters(), max_rate=1)
    simulator.reset(configuration)
    with pytest.raises(
        RuntimeError, match="queue of pipeline 'test' is full .* create the simulator with max_rate above 1"
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
    with pytest.raises(ValueError, match=rf"{parameter}\n.*input_value={value!r}"):
        SimulationParameters(**{parameter: value})


def test_replicas_are_counted_by_hand():
    """10 s after a change: a third replica took 3 s to start, the one of another variant has 2 of 12 s to go."""
    simulator = Simulator(two_stage_pipeline(), SimulationParameters(service_noise=0.0))
    simulator.reset(stages((0, 2, 1), (0, 2, 1)))
    simulator.step(np.array([[[0, 3, 1], [2, 1, 1]]]), np.zeros((1, 10), dtype=np.int64))
    serving, starting, wait = simulator.replica_counts()
    assert serving.tolist() == [[[3.0, 0.0, 0.0], [2.0, 0.0, 0.0]]]
    assert starting.tolist() == [[[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]
    np.testing.assert_allclose(wait, [[[0.0, 0.0, 0.0], [0.0, 0.0, 2.0]]])


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(0, 5))
def test_replicas_are_counted_as_the_stages_of_each_copy_show_them(seed, steps):
    rng = np.random.default_rng(seed)
    simulator = Simulator(two_stage_pipeline(), SimulationParameters(), environments=4, max_rate=60, seed=seed)
    simulator.reset(stages((0, 1, 1), (0, 1, 1)))
    for configurations in random_configurations(rng, steps, 4):
        simulator.step(configurations, rng.poisson(8.0, (4, 10)))
    counted = simulator.replica_counts()
    for e in range(4):
        expected = np.zeros((3, 2, 3))
        for n, stage in enumerate(simulator.stage_states(e)):
            for variant, ready, *_ in stage.replicas:
                expected[int(ready > 0.0), n, int(variant)] += 1
                expected[2, n, int(variant)] = max(expected[2, n, int(variant)], ready)
        for found, wanted in zip(counted, expected, strict=True):
            np.testing.assert_allclose(found[e], wanted, atol=1e-9)
