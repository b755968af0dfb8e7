"""The bound on the reward of a cycle: known answers, all sequences of a small pipeline, random pipelines."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pipelines import every_configuration, ocr_pipeline, stages

from opd.control.factory import build_policy
from opd.control.loop import run
from opd.measurement import SimulationParameters, score
from opd.objective import Weights
from opd.pipeline import Configuration, Pipeline, ServiceLevel, Task, Variant, as_array
from opd.profiling.generated import generate_pipeline
from opd.simulator.backend import SimulatedBackend
from opd.simulator.simulator import Simulator
from opd.solvers import IpaParameters, random_configuration
from opd.study.evaluation.bound import reward_bound
from opd.workload.forecast import RecentMaximum

EXACT = SimulationParameters(service_noise=0.0)
WEIGHTS = Weights()


def one_choice(replicas: int = 1) -> Pipeline:
    """One task, one variant of 2 requests/s and one core, batch size 1."""
    task = Task("only", (Variant("only", 0.8, 1, {1: 0.5}, 2.0),))
    return Pipeline("one", (task,), replicas, replicas, 1, ServiceLevel(1.0))


def rewards(
    pipeline: Pipeline,
    weights: Weights,
    simulation: SimulationParameters,
    start: Configuration,
    sequences,
    counts,
    seed=0,
) -> np.ndarray:
    """(E,) mean rewards of sequences (E, T, N, 3) of configurations on the same counts."""
    simulator = Simulator(pipeline, simulation, len(sequences), int(max(counts.max(), 1)), seed)
    simulator.reset(start)
    total = np.zeros(len(sequences))
    per_interval = counts.reshape(-1, simulation.interval)
    for t, window in enumerate(per_interval):
        chosen = np.ascontiguousarray(sequences[:, t])
        interval = simulator.step(chosen, np.tile(window, (len(sequences), 1)))
        total += score(pipeline, weights, chosen, interval, simulation.interval).reward
    return total / len(per_interval)


def bound(pipeline, weights, simulation, start, counts) -> float:
    return reward_bound(pipeline, weights, simulation, start, counts)


class TestKnownAnswers:
    def test_a_pipeline_without_a_choice_earns_its_bound(self):
        # One request an interval is served at once: V = 0.8, L = 0.5 s, T = 2, m = 0.1, C = 1, B = 1.
        counts = np.tile([0, 0, 1, 0, 0, 0, 0, 0, 0, 0], 4)
        start = one_choice().smallest_configuration()
        expected = 10 * 0.8 - 0.5 + 0.02 * 0.1 - 0.15 - 0.02  # what is spare is not charged
        found = bound(one_choice(), WEIGHTS, EXACT, start, counts)
        assert found == pytest.approx(expected)
        cheap = replace(WEIGHTS, beta=0.0, delta=0.0)
        stays = np.tile(as_array(start), (1, 4, 1, 1))
        assert rewards(one_choice(), cheap, EXACT, start, stays, counts)[0] == pytest.approx(
            bound(one_choice(), cheap, EXACT, start, counts)
        )

    def test_unmet_demand(self):
        # 5 requests/s, 3 replicas of 2 requests/s: one serves at once, each other only after 2 of 10 s.
        pipeline, start = one_choice(3), one_choice(3).smallest_configuration()
        loaded = np.full(10, 5)
        by_replicas = [2.0, 2.0 + 2.0 * 0.8, 2.0 + 4.0 * 0.8]
        gained = [0.02 * min(t, 5) - 0.3 * max(5 - t, 0) - 0.15 * f for f, t in enumerate(by_replicas, 1)]
        assert bound(pipeline, WEIGHTS, EXACT, start, loaded) == pytest.approx(8.0 - 0.5 - 0.02 + max(gained))

    def test_throughput_that_is_worth_more_than_it_costs_is_counted_above_the_load(self):
        weights = replace(WEIGHTS, beta=1.0)
        start = one_choice(2).smallest_configuration()
        counts = np.tile([1] + [0] * 9, 2)
        # The second replica serves 8 s of the first interval.
        spare = [2.0 + 1.6 - 0.1, 4.0 - 0.1]
        expected = 8.0 - 0.5 + 0.1 + 0.95 * np.mean(spare) - 0.3 - 0.02
        assert bound(one_choice(2), weights, EXACT, start, counts) == pytest.approx(expected)

    def test_a_partial_batch_waits_for_the_timeout(self):
        task = Task("only", (Variant("only", 0.8, 1, {1: 0.5, 2: 0.9}, 2.0),))
        pipeline = Pipeline("batches", (task,), 1, 1, 2, ServiceLevel(1.0))
        start = pipeline.smallest_configuration()
        no_batches = replace(WEIGHTS, gamma=0.0, delta=0.0, beta=0.0, batch_weight=-0.0)
        counts = np.full(10, 1)
        assert bound(pipeline, no_batches, EXACT, start, counts) == pytest.approx(8.0 - 0.5 - 0.15)
        # Where throughput pays, batches of two do: 20/9 requests/s, in 0.5 + 0.25 s at least.
        throughput = replace(no_batches, beta=10.0)
        assert bound(pipeline, throughput, EXACT, start, counts) == pytest.approx(8.0 - 0.75 - 0.15 + 10 * 20 / 9)
        # 30 requests need more than the 10.9 s in which the replica can serve: at a price of 4, of 0.9 + 4 x 0.9 / 2 s
        # each, a second of it is worth 4 / 30 s.
        stay = 0.9 + 4 * 0.45 - 4 * 10.9 / 30
        assert bound(pipeline, throughput, EXACT, start, 3 * counts) == pytest.approx(8.0 - stay - 0.15 + 10 * 20 / 9)

    def test_the_previous_variant_serves_what_comes_while_a_slower_one_starts(self):
        fast, slow = Variant("fast", 0.5, 1, {1: 0.1}, 2.0), Variant("slow", 0.9, 1, {1: 0.5}, 2.0)
        pipeline = Pipeline("two", (Task("only", (fast, slow)),), 1, 1, 1, ServiceLevel(1.0))
        counts = np.full(10, 1)
        expected = 10 * 0.9 - (0.5 - 0.2 * 0.4) + 0.02 - 0.15 - 0.02  # 2 of 10 requests come within 2 s
        assert bound(pipeline, WEIGHTS, EXACT, stages((0, 1, 1)), counts) == pytest.approx(expected)
        late = np.repeat([0, 2], 5)
        expected = 10 * 0.9 - 0.5 + 0.02 - 0.15 - 0.02
        assert bound(pipeline, WEIGHTS, EXACT, stages((0, 1, 1)), late) == pytest.approx(expected)


class TestEverySequence:
    """A pipeline so small that all sequences of three configurations can be simulated."""

    pipeline = replace(ocr_pipeline(capacity=4, max_replicas=2), max_batch_size=1)

    @pytest.mark.parametrize("load", [0, 1, 6, 14])
    @pytest.mark.parametrize("noise", [0.0, 0.1])
    def test_none_is_above_the_bound_and_the_best_is_near(self, load, noise):
        simulation = replace(EXACT, service_noise=noise)
        options = np.array(every_configuration(self.pipeline))
        sequences = np.array([options[list(each)] for each in itertools.product(range(len(options)), repeat=3)])
        counts = np.full(30, load)
        start = self.pipeline.smallest_configuration()
        best = rewards(self.pipeline, WEIGHTS, simulation, start, sequences, counts).max()
        found = bound(self.pipeline, WEIGHTS, simulation, start, counts)
        assert best <= found
        # Where the load is high, requests wait, which the bound does not see.
        assert found - best < (0.02 if load <= 1 else 0.15) * found


def replayed(pipeline, weights, simulation, counts, seed) -> dict[str, float]:
    """Mean rewards of solvers, with the largest load of the last 20 s as forecast or with the true one."""
    found = {}
    for name in ("myopic", "myopic-backlog", "clairvoyant", "greedy"):
        policy = build_policy(name, pipeline, weights, simulation, IpaParameters(), simulated=True)
        start = pipeline.smallest_configuration()
        backend = SimulatedBackend(pipeline, simulation, counts[:0], counts, start, seed)
        decisions = len(counts) // simulation.interval
        steps = list(run(backend, pipeline, policy, RecentMaximum().predict, weights, decisions))
        found[name] = float(np.mean([step.score.reward[0] for step in steps]))
    return found


def random_sequences(pipeline: Pipeline, number: int, intervals: int, seed: int) -> np.ndarray:
    """(number, intervals, N, 3): a third changes at random, a third sometimes, a third goes to and fro between two."""
    rng = np.random.default_rng(seed)
    sequences = []
    for each in range(number):
        drawn = [as_array(random_configuration(pipeline, rng)) for _ in range(intervals)]
        if each % 3 == 1:
            drawn = [drawn[t // 4] for t in range(intervals)]
        if each % 3 == 2:
            drawn = [drawn[t % 2] for t in range(intervals)]
        sequences.append(drawn)
    return np.array(sequences)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    level=st.sampled_from([0.02, 0.2, 0.6, 1.0, 1.5]),
    noise=st.sampled_from([0.0, 0.1, 0.3]),
    outside=st.sampled_from(["inside", "inside", "outside"]),
)
def test_no_sequence_of_configurations_is_above_the_bound(seed, level, noise, outside):
    generated = generate_pipeline(seed, outside)
    pipeline = generated.pipeline
    weights = generated.objective if isinstance(generated.objective, Weights) else WEIGHTS
    simulation = replace(EXACT, service_noise=noise)
    rng = np.random.default_rng(seed)
    rate = level * generated.peak_load * rng.uniform(0.3, 1.0, 12).repeat(10)
    counts = rng.poisson(rate)
    start = random_configuration(pipeline, rng)
    found = bound(pipeline, weights, simulation, start, counts)
    assert (
        rewards(pipeline, weights, simulation, start, random_sequences(pipeline, 30, 12, seed), counts).max() <= found
    )


@pytest.mark.parametrize("seed", range(6))
def test_no_policy_is_above_the_bound(seed):
    generated = generate_pipeline(seed)
    weights = generated.objective if isinstance(generated.objective, Weights) else WEIGHTS
    counts = np.random.default_rng(seed).poisson(0.5 * generated.peak_load, 200)
    found = bound(generated.pipeline, weights, EXACT, generated.pipeline.smallest_configuration(), counts)
    assert max(replayed(generated.pipeline, weights, EXACT, counts, seed).values()) <= found


def test_what_served_before_a_slow_start_serves_for_as_long_as_variants_change():
    """With start-ups beyond an interval, a dear configuration can go on at the price of a cheap one."""
    variants = tuple(
        Variant(name, accuracy, 1, {1: 0.5}, 60.0) for name, accuracy in (("a", 0.7), ("b", 0.8), ("c", 0.8))
    )
    pipeline = Pipeline("slow", (Task("only", variants),), 8, 8, 1, ServiceLevel(1.0))
    start = stages((0, 8, 1))
    to_and_fro = np.array([[[[1 + t % 2, 1, 1]] for t in range(12)]])
    counts = np.full(120, 12)
    reached = rewards(pipeline, WEIGHTS, EXACT, start, to_and_fro, counts)[0]
    assert reached > 7.0  # 16 requests/s are ready throughout, at the cost of one core
    assert reached <= bound(pipeline, WEIGHTS, EXACT, start, counts)


def test_more_steps_do_not_raise_it():
    pipeline = ocr_pipeline()
    counts = np.full(60, 12)
    start = pipeline.smallest_configuration()
    found = [reward_bound(pipeline, WEIGHTS, EXACT, start, counts, number) for number in (1, 5, 20)]
    assert found == sorted(found, reverse=True)


def test_a_service_level_has_no_bound():
    start = one_choice().smallest_configuration()
    with pytest.raises(ValueError, match="no bound for a service level"):
        bound(one_choice(), ServiceLevel(1.0), EXACT, start, np.ones(10))


def test_less_than_an_interval_has_no_bound():
    start = one_choice().smallest_configuration()
    with pytest.raises(ValueError, match="9 s of counts are no whole interval of 10 s"):
        bound(one_choice(), WEIGHTS, EXACT, start, np.ones(9))
