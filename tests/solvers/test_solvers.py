import dataclasses
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from opd.objective import Weights, accuracy, qos, reward, throughput
from opd.pipeline import Pipeline, ServiceLevel, StageConfiguration, Task, Variant, check_feasible, used_cores
from opd.profiling.attainable import attainable_load
from opd.profiling.synthetic import synthetic_pipeline
from opd.solvers import (
    IpaParameters,
    greedy,
    ipa_dynamic_program,
    ipa_highs,
    ipa_objective,
    myopic,
    predicted_reward,
    random_configuration,
)
from opd.solvers.options import forming_time, replicas_needed

PARAMETERS = IpaParameters()
WEIGHTS = Weights()
TIMEOUT = 0.25


def planned(solver, pipeline, load):
    """The solver's configuration under one signature."""
    return {
        greedy: lambda: greedy(pipeline, load),
        ipa_highs: lambda: ipa_highs(pipeline, load, PARAMETERS),
        ipa_dynamic_program: lambda: ipa_dynamic_program(pipeline, load, PARAMETERS),
        myopic: lambda: myopic(pipeline, load, WEIGHTS, TIMEOUT),
    }[solver]()


SOLVERS = pytest.mark.parametrize("solver", [greedy, ipa_highs, ipa_dynamic_program, myopic])


@pytest.fixture
def one_task():
    """Fast: 10 requests/s a core, or 16 in batches of two; good: 4 requests/s from two cores."""
    fast = Variant("fast", 0.5, 1, {1: 0.1, 2: 0.125}, 1.0)
    good = Variant("good", 0.9, 2, {1: 0.25, 2: 0.5}, 2.0)
    return Pipeline("one", (Task("only", (fast, good)),), 8, 3, 2, ServiceLevel(1.0))


class Enumeration:
    """Every configuration within the limits of Eq. 4, and what the equations say of each."""

    def __init__(self, pipeline):
        self.pipeline = pipeline
        stages = [
            itertools.product(range(len(task.variants)), range(1, pipeline.max_replicas + 1), pipeline.batch_sizes)
            for task in pipeline.tasks
        ]
        rows = np.array(list(itertools.product(*map(list, stages))))
        self.rows = rows[used_cores(pipeline, rows) <= pipeline.capacity]
        self.batches = self.rows[..., 2]
        stage = np.arange(len(pipeline.tasks))
        self.service_time = pipeline.tables.service_time[stage, self.rows[..., 0], self.batches]
        self.accuracy = accuracy(pipeline, self.rows)
        self.cost = used_cores(pipeline, self.rows)
        self.throughput = (self.rows[..., 1] * (self.batches / self.service_time)).min(axis=1)

    def reward(self, load, weights, batch_timeout):
        """Eq. 7 of every configuration."""
        forming = [[0.0 if b == 1 else (b - 1) / (2 * load) if load else math.inf for b in row] for row in self.batches]
        latency = (self.service_time + np.minimum(forming, batch_timeout)).sum(axis=1)
        quality = qos(weights, self.accuracy, self.throughput, latency, load - self.throughput)
        return reward(weights, quality, self.cost, self.batches.max(axis=1))

    def ipa(self, load, parameters):
        """IPA's optimum: the load cut to what can be carried, the latency target dropped if none keeps it."""
        score = parameters.alpha * self.accuracy - parameters.beta * self.cost
        score -= parameters.gamma * self.batches.sum(axis=1)
        load = min(load, self.throughput.max())
        forming = [[0.0 if b == 1 else (b - 1) / load if load else math.inf for b in row] for row in self.batches]
        latency = (self.service_time + forming).sum(axis=1)
        carrying = self.throughput >= load
        in_time = carrying & (latency <= self.pipeline.service_level.seconds)
        return score[in_time if in_time.any() else carrying].max()


@st.composite
def small_pipelines(draw):
    """Synthetic pipelines small enough to enumerate, from roomy to tight in capacity and latency."""
    stages, variants, max_replicas, max_batch_size = draw(
        st.sampled_from([(1, 4, 6, 8), (2, 2, 4, 4), (2, 3, 3, 4), (3, 2, 2, 2), (3, 2, 3, 2)])
    )
    pipeline = synthetic_pipeline(stages, variants, draw(st.integers(0, 10_000)))
    smallest = int(used_cores(pipeline, pipeline.smallest_configuration()))
    return dataclasses.replace(
        pipeline,
        capacity=smallest + draw(st.integers(0, 4 * stages)),
        max_replicas=max_replicas,
        max_batch_size=max_batch_size,
        service_level=ServiceLevel(
            pipeline.service_level.seconds * draw(st.sampled_from([0.01, 0.1, 0.15, 0.2, 0.3, 1.0]))
        ),
    )


def loads():
    return st.one_of(st.just(0.0), st.floats(0.1, 60.0), st.integers(1, 60).map(float), st.floats(60.0, 1e5))


def weight():
    return st.one_of(st.just(0.0), st.floats(0.001, 2.0))


class TestKnownAnswers:
    def test_greedy_takes_the_cheapest(self, one_task):
        assert greedy(one_task, 10.0) == (StageConfiguration(0, 1, 1),)
        # 11 requests/s: batches of two carry them on one core, single requests need two.
        assert greedy(one_task, 11.0) == (StageConfiguration(0, 1, 2),)

    def test_greedy_breaks_ties_by_accuracy(self):
        low, high = (Variant(name, value, 1, {1: 0.1}, 1.0) for name, value in (("low", 0.4), ("high", 0.6)))
        pipeline = Pipeline("tie", (Task("only", (low, high)),), 4, 4, 1, ServiceLevel(1.0))
        assert greedy(pipeline, 5.0) == (StageConfiguration(1, 1, 1),)

    def test_greedy_breaks_ties_by_latency(self, one_task):
        # One core either way at 5 requests/s; 0.1 s alone, 0.125 s and 0.2 s of waiting in a pair.
        assert greedy(one_task, 5.0) == (StageConfiguration(0, 1, 1),)

    @pytest.mark.parametrize("solve", [ipa_highs, ipa_dynamic_program])
    def test_ipa_pays_for_accuracy_within_the_latency_target(self, one_task, solve):
        # Accuracy .9 for 4 cores beats .5 for 1: 9 - .6 - .02 = 8.38 against 5 - .15 - .02 = 4.83.
        assert solve(one_task, 8.0, PARAMETERS) == (StageConfiguration(1, 2, 1),)
        # With a target of 0.2 s only single requests to the fast variant are in time.
        hurried = dataclasses.replace(one_task, service_level=ServiceLevel(0.2))
        assert solve(hurried, 8.0, PARAMETERS) == (StageConfiguration(0, 1, 1),)

    @pytest.mark.parametrize("solve", [ipa_highs, ipa_dynamic_program])
    def test_ipa_drops_a_target_nothing_meets(self, one_task, solve):
        assert solve(dataclasses.replace(one_task, service_level=ServiceLevel(0.01)), 8.0, PARAMETERS) == (
            StageConfiguration(1, 2, 1),
        )

    def test_predicted_reward_by_hand(self, one_task):
        # V .5, T 2 x 16 = 32, L .125 + 1/(2 x 10) = .175, E -22, C 2, B 2.
        expected = 10 * 0.5 + 0.02 * 32 - 0.175 - 0.05 * 22 - 0.15 * 2 - 0.02 * 2
        found = predicted_reward(one_task, (StageConfiguration(0, 2, 2),), 10.0, WEIGHTS, TIMEOUT)
        assert found == pytest.approx(expected, abs=1e-12)
        # The batch is sent off after 0.01 s instead of 0.05 s.
        hurried = predicted_reward(one_task, (StageConfiguration(0, 2, 2),), 10.0, WEIGHTS, 0.01)
        assert hurried == pytest.approx(expected + 0.04, abs=1e-12)

    def test_myopic_prefers_a_little_unmet_demand_to_a_replica(self, one_task):
        # At 12.5 requests/s the good variant serves 12 from 6 cores; 0.5 unmet requests/s cost less than its accuracy.
        assert myopic(one_task, 12.5, WEIGHTS, TIMEOUT) == (StageConfiguration(1, 3, 1),)

    def test_myopic_below_the_peak_when_more_is_too_much(self):
        # Spare capacity costs 2 per request/s: 9.9 of 10 requests/s is better than 100, though more accurate.
        slow, quick = Variant("slow", 0.5, 1, {1: 1 / 9.9}, 1.0), Variant("quick", 0.6, 1, {1: 0.01}, 1.0)
        pipeline = Pipeline("spare", (Task("only", (slow, quick)),), 1, 1, 1, ServiceLevel(1.0))
        for delta, expected in ((2.0, StageConfiguration(0, 1, 1)), (0.0, StageConfiguration(1, 1, 1))):
            assert myopic(pipeline, 10.0, dataclasses.replace(WEIGHTS, delta=delta), TIMEOUT) == (expected,)

    def test_attainable_load_is_the_best_bottleneck(self, one_task):
        # Three replicas of the fast variant in batches of two.
        assert attainable_load(one_task, 1000.0) == 48.0
        assert attainable_load(one_task, 47.0) == 47.0

    @pytest.mark.parametrize(("load", "exceed", "expected"), [(0.3, False, 3), (0.3, True, 3), (0.2, True, 3)])
    def test_replicas_needed_agrees_with_the_product(self, load, exceed, expected):
        # 3 x 0.1 is a little more than 0.3 in floating point, 2 x 0.1 is exactly 0.2.
        assert replicas_needed(np.array([[0.1]]), load, 8, exceed)[0, 0] == expected


class TestAgainstEnumeration:
    @settings(max_examples=80, deadline=None)
    @given(small_pipelines(), loads(), weight(), weight(), weight())
    @pytest.mark.parametrize("solve", [ipa_highs, ipa_dynamic_program])
    def test_ipa_is_optimal(self, solve, pipeline, load, alpha, beta, gamma):
        parameters = IpaParameters(10 * alpha, beta, gamma)
        configuration = solve(pipeline, load, parameters)
        check_feasible(pipeline, configuration)
        enumeration = Enumeration(pipeline)
        assert ipa_objective(pipeline, configuration, parameters) == pytest.approx(
            enumeration.ipa(load, parameters), abs=1e-9
        )
        assert throughput(pipeline, configuration) >= min(load, enumeration.throughput.max())

    @settings(max_examples=200, deadline=None)
    @given(small_pipelines(), loads(), st.tuples(*[weight()] * 6), st.sampled_from([0.0, 0.05, 0.25, 2.0]))
    @example(synthetic_pipeline(1, 2, 0), 0.0, (1.0, 0.5, 0.1, 0.0, 0.1, 0.1), 0.25)
    def test_myopic_is_optimal(self, pipeline, load, values, batch_timeout):
        weights = Weights(*values)
        configuration = myopic(pipeline, load, weights, batch_timeout)
        check_feasible(pipeline, configuration)
        best = Enumeration(pipeline).reward(load, weights, batch_timeout).max()
        found = predicted_reward(pipeline, configuration, load, weights, batch_timeout)
        assert found == pytest.approx(best, abs=1e-9, rel=1e-12)

    @settings(max_examples=100, deadline=None)
    @given(small_pipelines(), loads())
    def test_greedy_is_cheapest_then_most_accurate(self, pipeline, load):
        configuration = greedy(pipeline, load)
        check_feasible(pipeline, configuration)
        enumeration = Enumeration(pipeline)
        carrying = enumeration.throughput >= min(load, enumeration.throughput.max())
        cheapest = carrying & (enumeration.cost == enumeration.cost[carrying].min())
        assert attainable_load(pipeline, load) == min(load, enumeration.throughput.max())
        assert used_cores(pipeline, configuration) == enumeration.cost[cheapest].min()
        assert accuracy(pipeline, configuration) == pytest.approx(enumeration.accuracy[cheapest].max(), abs=1e-12)

    @settings(max_examples=50, deadline=None)
    @given(small_pipelines(), st.floats(0.1, 60.0))
    def test_predicted_reward_is_the_enumerated(self, pipeline, load):
        enumeration = Enumeration(pipeline)
        chosen = len(enumeration.rows) // 2
        configuration = tuple(StageConfiguration(*map(int, row)) for row in enumeration.rows[chosen])
        assert predicted_reward(pipeline, configuration, load, WEIGHTS, 0.25) == pytest.approx(
            enumeration.reward(load, WEIGHTS, 0.25)[chosen], abs=1e-9
        )


class TestLargerPipelines:
    @pytest.mark.parametrize("parameters", [PARAMETERS, IpaParameters(10.0, 0.0, 0.0)], ids=["default", "free-cores"])
    @pytest.mark.parametrize("tightness", [0.12, 0.2, 1.0])
    @pytest.mark.parametrize("cores_per_stage", [4, 15])
    @pytest.mark.parametrize("shape", [(3, 5), (6, 8)])
    def test_both_ipa_solvers_agree(self, shape, cores_per_stage, tightness, parameters):
        stages, variants = shape
        for seed in range(3):
            pipeline = synthetic_pipeline(stages, variants, seed)
            pipeline = dataclasses.replace(
                pipeline,
                capacity=cores_per_stage * stages,
                service_level=ServiceLevel(pipeline.service_level.seconds * tightness),
            )
            for load in (1.0, 7.0, 19.5, 90.0):
                exact, mixed = (solve(pipeline, load, parameters) for solve in (ipa_dynamic_program, ipa_highs))
                assert ipa_objective(pipeline, exact, parameters) == pytest.approx(
                    ipa_objective(pipeline, mixed, parameters), abs=1e-9
                )

    def test_the_order_of_the_paper(self):
        # Sec. VI-B: greedy is the cheapest and poorest, IPA dearer and better; myopic is the best of what it maximises.
        pipeline = synthetic_pipeline(3, 5, 1)
        configurations = [planned(solver, pipeline, 12.0) for solver in (greedy, ipa_highs, myopic)]
        rewards = [predicted_reward(pipeline, chosen, 12.0, WEIGHTS, TIMEOUT) for chosen in configurations]
        assert used_cores(pipeline, configurations[0]) < used_cores(pipeline, configurations[1])
        assert rewards[0] < rewards[1] <= rewards[2]


class TestRandom:
    @settings(max_examples=100, deadline=None)
    @given(small_pipelines(), st.integers(0, 1000))
    def test_always_feasible(self, pipeline, seed):
        check_feasible(pipeline, random_configuration(pipeline, np.random.default_rng(seed)))

    def test_reaches_every_configuration(self, one_task):
        rng = np.random.default_rng(0)
        seen = {random_configuration(one_task, rng) for _ in range(500)}
        assert len(seen) == len(Enumeration(one_task).rows) == 12

    def test_seeded(self):
        pipeline = synthetic_pipeline(4, 6, 0)
        first, second = (random_configuration(pipeline, np.random.default_rng(3)) for _ in range(2))
        assert first == second

    def test_varies_the_cost_of_every_stage_alike(self):
        # Stages are drawn in random order: the first does not take all.
        variants = tuple(Variant(f"v{cores}", 0.5, cores, {1: 0.1}, 1.0) for cores in (1, 2))
        pipeline = Pipeline("alike", tuple(Task(f"t{n}", variants) for n in range(3)), 12, 8, 1, ServiceLevel(1.0))
        rng = np.random.default_rng(0)
        replicas = np.array([random_configuration(pipeline, rng) for _ in range(3000)])[..., 1].mean(axis=0)
        assert replicas.max() - replicas.min() < 0.25


class TestDegradeAndRefuse:
    @SOLVERS
    @pytest.mark.parametrize("load", [0, 0.0, 1e4, 1e18])
    def test_any_finite_load_gets_a_feasible_configuration(self, solver, load):
        pipeline = synthetic_pipeline(3, 4, 5)
        check_feasible(pipeline, planned(solver, pipeline, load))

    @SOLVERS
    def test_overload_is_carried_as_far_as_possible(self, solver):
        pipeline = dataclasses.replace(synthetic_pipeline(2, 4, 3), capacity=6)
        most = attainable_load(pipeline, 1e6)
        assert throughput(pipeline, planned(solver, pipeline, 1e6)) == most

    @SOLVERS
    def test_only_one_configuration_fits(self, solver):
        tight = Variant("tight", 0.5, 2, {1: 0.1}, 1.0)
        pipeline = Pipeline("tight", (Task("a", (tight,)), Task("b", (tight,))), 4, 8, 1, ServiceLevel(0.01))
        assert planned(solver, pipeline, 500.0) == (StageConfiguration(0, 1, 1),) * 2

    @SOLVERS
    @pytest.mark.parametrize("load", [-1.0, math.nan, math.inf])
    def test_no_load(self, solver, load, one_task):
        with pytest.raises(ValueError, match=f"load {load} requests/s.*check the forecast"):
            planned(solver, one_task, load)

    @pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
    def test_bad_ipa_weight(self, value):
        with pytest.raises(ValueError, match=f"beta is {value}"):
            IpaParameters(beta=value)

    @pytest.mark.parametrize("value", [-0.1, math.nan])
    def test_bad_batch_timeout(self, value, one_task):
        with pytest.raises(ValueError, match=f"batch_timeout {value} s"):
            myopic(one_task, 1.0, WEIGHTS, value)

    def test_highs_out_of_time_says_what_to_do(self):
        with pytest.raises(TimeoutError, match="raise time_limit or use ipa_dynamic_program"):
            ipa_highs(synthetic_pipeline(10, 10, 0), 20.0, PARAMETERS, time_limit=0.0)

    def test_bad_synthetic_size(self):
        with pytest.raises(ValueError, match="0 stages of 3 variants"):
            synthetic_pipeline(0, 3, 0)

    def test_synthetic_pipeline_is_repeatable(self):
        assert synthetic_pipeline(3, 4, 7) == synthetic_pipeline(3, 4, 7)
        assert synthetic_pipeline(3, 4, 7) != synthetic_pipeline(3, 4, 8)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("load", [0.0, 1e-320])
def test_a_batch_that_never_fills_takes_for_ever_to_form(load):
    assert forming_time(np.array([1, 8]), load).tolist() == [0.0, np.inf]
    assert forming_time(np.array([1, 8]), 2.0).tolist() == [0.0, 3.5]


@pytest.mark.processes
def test_the_solver_of_ipa_prints_nothing_not_even_its_name():
    code = """
from opd.profiling.synthetic import synthetic_pipeline
from opd.solvers import IpaParameters, ipa_highs
print(len(ipa_highs(synthetic_pipeline(2, 3, 0), 5.0, IpaParameters())))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("2\n", "")
