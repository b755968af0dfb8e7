"""The compiled policy: options by hand, limits, probabilities, and what the simulator says of replicas that start."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pipelines import every_configuration, ocr_pipeline, pipelines
from small_situations import QUIET, calm_situations, departing, described, random_situations, untrained

from opd.agent import scoring
from opd.agent.description import Description, Situations
from opd.agent.network import AgentNetwork, batch_of
from opd.agent.scoring import Expanded, choose, expand
from opd.pipeline import Pipeline, ServiceLevel, Task, Variant, as_array, as_configuration, check_feasible, from_choices
from opd.pipeline import to_choices as indices
from opd.profiling.generated import generate_pipeline
from opd.simulator.simulator import Simulator

SEEDS = st.integers(0, 10_000)


def to_choices(*configurations) -> np.ndarray:
    """(M, N, 3) indices of configurations."""
    return indices(np.stack([as_array(each) for each in configurations]))


def option(d: Description, s: Situations, planned: list[int], z: int, f: int, k: int, n: int = 0) -> np.ndarray:
    """How an option of a stage is described beside a plan, with as much expected reward as that."""
    out = np.zeros(scoring.OPTION_INPUTS, dtype=np.float32)
    scoring._describe_option(
        d, s, 0, scoring.prospects(d, s, 0), np.array(planned), 8.0, np.inf, 0, 0.0, 0.0, n, z, f, k, out
    )
    return out


# --- options by hand -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["running", "planned"])
def test_an_option_equal_to_a_reference_differs_from_it_by_nothing(reference):
    """Inputs that change with what runs, or with the plan, are differences, which are 0, and signs of equality, 1."""
    d = described(ocr_pipeline())
    there = np.full((1, *d.cores.shape), 3.0)  # replicas that serve already, which count for the rates to come
    described_options = []
    for same in ([1, 1, 1], [0, 2, 0]):
        running = [same if reference == "running" else [0, 0, 0], [0, 0, 0]]
        planned = same if reference == "planned" else [0, 0, 0]
        described_options.append(option(d, calm_situations(d, running)._replace(serving=there), planned, 1, 1, 1))
    of_same, of_other = described_options
    compared = of_same != of_other
    assert compared.sum() >= 5
    assert set(of_same[compared].tolist()) == {0.0, 1.0}


LOADS_OF_OPTIONS = [("coming", (0, 1)), ("coming", (0, 3)), ("coming", (0, 5)), ("coming", (1, 5)), ("coming", (5, 3))]


@pytest.mark.parametrize(("loads", "place"), [*LOADS_OF_OPTIONS, ("loads", (1,))])
def test_a_rate_equal_to_a_load_is_a_ratio_of_zero(loads, place):
    """Two replicas of 0.16 s for two requests carry 25 requests/s; double the load is a logarithm of 2 below it."""
    d = described(ocr_pipeline())
    calm, found = calm_situations(d, [[0, 0, 0], [0, 0, 0]], load=7.0), []
    for load in (25.0, 50.0):
        changed = getattr(calm, loads).copy()
        changed[(0, *place)] = load
        found.append(option(d, calm._replace(**{loads: changed}), [0, 0, 0], 0, 1, 1))
    equal, double = found
    ratios = np.flatnonzero(np.abs(double - equal + np.log(2.0)) < 1e-3)
    assert np.abs(equal[ratios]).min() < 1e-6


def test_ratios_are_limited():
    assert scoring._ratio(5.0, 5.0) == 0.0
    assert scoring._ratio(1.0, np.e) == pytest.approx(-1.0, abs=1e-3)
    assert (scoring._ratio(1e9, 0.0), scoring._ratio(0.0, 1e9)) == (3.0, -3.0)


# --- replicas that start ---------------------------------------------------------------------------------------------


def rate_in(d: Description, s: Situations, n: int, z: int, f: int, k: int, interval: int) -> float:
    """Requests/s of stage n in the first situation."""
    all_serving = (s.serving[0, n] * (1 << k) / d.service[n, :, k]).sum()
    state = s.serving[0, n], s.starting[0, n], s.wait[0, n], all_serving
    return scoring._rate_in(d.service[n], d.startup[n], *state, z, f, k, interval)


def test_rates_while_replicas_start_by_hand():
    """Each replica carries 10 requests/s. One serves, one has 3 s to go of 10 s, a third needs its start-up of 1 s."""
    d = described(ocr_pipeline())
    calm = calm_situations(d, [[0, 1, 0], [0, 0, 0]])
    calm.serving[0, 0, 0], calm.starting[0, 0, 0], calm.wait[0, 0, 0] = 1.0, 1.0, 0.3
    rates = [[rate_in(d, calm, 0, 0, f, 0, interval) for f in range(3)] for interval in (0, 1)]
    np.testing.assert_allclose(rates, [[10.0, 17.0, 26.0], [10.0, 20.0, 30.0]])


def test_the_old_variant_serves_until_the_new_one_does():
    """Two small replicas (20 requests/s) run; the large one (5 requests/s) starts in 2 of 10 s."""
    d = described(ocr_pipeline())
    calm = calm_situations(d, [[0, 1, 0], [0, 0, 0]])
    assert rate_in(d, calm, 0, 1, 0, 0, 0) == pytest.approx(0.8 * 5.0 + 0.2 * 20.0)
    assert rate_in(d, calm, 0, 1, 0, 0, 1) == pytest.approx(5.0)


def test_the_old_variant_also_goes_on_where_the_change_was_decided_before():
    """The large variant is what runs and starts in 3 of 10 s; two small replicas serve until then."""
    d = described(ocr_pipeline())
    calm = calm_situations(d, [[1, 0, 0], [0, 0, 0]])
    calm.serving[0, 0], calm.starting[0, 0], calm.wait[0, 0] = [2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.3, 0.0]
    assert rate_in(d, calm, 0, 1, 0, 0, 0) == pytest.approx(0.7 * 5.0 + 0.3 * 20.0)
    assert rate_in(d, calm, 0, 1, 0, 0, 1) == pytest.approx(5.0)
    assert rate_in(d, calm, 0, 0, 1, 0, 0) == pytest.approx(20.0)


def test_a_slow_start_takes_several_intervals():
    """A start-up of 25 s: nothing new in two intervals, half of the third."""
    d = described(ocr_pipeline())
    d = d._replace(startup=np.full_like(d.startup, 2.5))
    calm = calm_situations(d, [[0, 0, 0], [0, 0, 0]])
    assert [rate_in(d, calm, 0, 0, 2, 0, n) for n in range(4)] == pytest.approx([10.0, 10.0, 20.0, 30.0])


@settings(max_examples=30)
@given(SEEDS)
def test_rates_are_those_of_the_simulator(seed):
    """From any steady state to any configuration: the throughput of the replicas that were ready in the interval."""
    pipeline, rng = ocr_pipeline(capacity=100), np.random.default_rng(seed)
    d = described(pipeline)
    running, then = ([[rng.integers(m), rng.integers(3), rng.integers(2)] for m in (2, 3)] for _ in range(2))
    simulator = Simulator(pipeline, QUIET)
    simulator.reset(as_configuration(from_choices(np.array(running))))
    calm, measured = calm_situations(d, running), []
    for _ in range(2):
        interval = simulator.step(from_choices(np.array([then])), np.zeros((1, 10), dtype=np.int64))
        measured.append(interval.ready_throughput[0])
    predicted = [[rate_in(d, calm, n, *then[n], interval) for n in range(2)] for interval in range(2)]
    np.testing.assert_allclose(predicted, measured, rtol=1e-9)


# --- limits ----------------------------------------------------------------------------------------------------------


def option_counts(d: Description, choices: list) -> list[int]:
    s = calm_situations(d, choices)
    return np.bincount(Expanded(*expand(d, s, np.array(choices)[None, None])).step).tolist()


def test_masks_by_hand():
    """Of 5 cores detection may take 4, as recognition needs one: both variants, two replicas of the large one."""
    d = described(ocr_pipeline(capacity=5))
    assert d.reserve.tolist() == [1.0, 0.0]
    assert option_counts(d, [[1, 1, 0], [0, 0, 0]]) == [2, 2, 2, 1, 1, 2]
    # One small replica leaves 4 cores: any recognition; four tiny replicas would fit, but three are allowed.
    assert option_counts(d, [[0, 0, 1], [0, 2, 1]]) == [2, 3, 2, 3, 3, 2]
    assert option_counts(d, [[0, 0, 1], [2, 0, 0]]) == [2, 3, 2, 3, 1, 2]


@settings(max_examples=40)
@given(pipelines(max_tasks=2, max_replicas=3), st.data())
def test_the_options_are_exactly_those_that_the_limits_allow(pipeline: Pipeline, data):
    """By enumeration: an option is allowed if some feasible configuration goes on with it."""
    every = to_choices(*every_configuration(pipeline))
    d = described(pipeline, solved_loads=2)
    chosen = every[data.draw(st.integers(0, len(every) - 1))]
    expanded = Expanded(*expand(d, random_situations(d, 1, 0), chosen[None, None]))
    first = np.searchsorted(expanded.step, np.arange(chosen.size))
    left = every.reshape(len(every), -1)
    for step, choice in enumerate(chosen.ravel()):
        allowed = np.unique(left[:, step])
        assert (expanded.step == step).sum() == len(allowed)
        assert allowed[expanded.chosen[step] - first[step]] == choice
        left = left[left[:, step] == choice]


@settings(max_examples=60)
@given(pipelines(), SEEDS, st.booleans(), st.data())
def test_every_choice_keeps_every_limit(pipeline: Pipeline, seed: int, sampled: bool, data):
    """For any weights, any situation, and any number of free cores that something fits."""
    d = described(pipeline, solved_loads=2)
    least = int(pipeline.tables.cores.min(axis=1).sum())
    free = data.draw(st.integers(least, pipeline.capacity))
    rng = np.random.default_rng(seed)
    uniform = rng.random((32, 3 * len(pipeline.tasks))) if sampled else np.full((32, 3 * len(pipeline.tasks)), -1.0)
    weights = untrained(seed).weights()
    chosen, log_prob = choose(weights, d._replace(capacity=float(free)), random_situations(d, 32, seed), uniform)
    for rows in from_choices(chosen):
        check_feasible(replace(pipeline, capacity=free), as_configuration(rows))
    assert np.isfinite(log_prob).all() and (log_prob <= 1e-6).all()


@pytest.mark.parametrize("range", ["inside", "outside"])
@pytest.mark.parametrize("seed", [1, 10])
def test_choices_for_generated_pipelines_are_feasible(range, seed):
    pipeline = generate_pipeline(seed, range).pipeline
    d = described(pipeline, solved_loads=2)
    uniform = np.random.default_rng(seed).random((64, 3 * len(pipeline.tasks)))
    for rows in choose(untrained(seed).weights(), d, random_situations(d, 64, seed), uniform)[0]:
        check_feasible(pipeline, as_configuration(from_choices(rows)))


def test_where_nothing_fits_nothing_is_chosen():
    d = described(ocr_pipeline())._replace(capacity=1.0)
    calm = calm_situations(d, [[0, 0, 0], [0, 0, 0]], many=3)
    chosen, _ = choose(untrained(0).weights(), d, calm, np.full((3, 6), -1.0))
    assert (chosen == -1).all()


def test_a_configuration_that_does_not_fit_is_none_of_the_options():
    d = described(ocr_pipeline(capacity=3))
    assert (
        Expanded(*expand(d, calm_situations(d, [[0, 0, 0]] * 2), np.array([[[[1, 2, 0], [0, 0, 0]]]]))).chosen < 0
    ).any()


def test_a_pipeline_that_leaves_no_choice():
    """One variant, one replica, one batch size: the only action is certain."""
    task = Task("only", (Variant("one", 0.9, 1, {1: 0.1}, 1.0),))
    pipeline = Pipeline("fixed", (task,), 1, 1, 1, ServiceLevel(1.0))
    d = described(pipeline)
    for uniform in (np.full((4, 3), -1.0), np.random.default_rng(0).random((4, 3))):
        chosen, log_prob = choose(untrained(0).weights(), d, random_situations(d, 4, 0), uniform)
        assert not chosen.any() and not log_prob.any()


# --- probabilities ---------------------------------------------------------------------------------------------------


def probabilities(network, d: Description, s: Situations, every: np.ndarray) -> np.ndarray:
    """(M,) of all actions ``every`` (M, N, 3) in one situation."""
    return network(batch_of([Expanded(*expand(d, s, every[None]))])).log_prob.detach().double().exp().numpy()


def test_actions_are_sampled_as_often_as_their_probability_says():
    pipeline = ocr_pipeline(capacity=4, max_replicas=2)
    d, network, number = described(pipeline), untrained(3), 20_000
    s = random_situations(d, 1, 3)
    every = to_choices(*every_configuration(pipeline))
    expected = number * probabilities(network, d, s, every)
    uniform = np.random.default_rng(2).random((number, 6))
    drawn, _ = choose(network.weights(), d, s.part(np.zeros(number, dtype=np.int64)), uniform)
    counts = (drawn[:, None] == every[None]).all(axis=(2, 3)).sum(axis=0)
    assert counts.sum() == number
    assert (counts > 0).sum() > 10
    deviation = (counts - expected) / np.sqrt(expected * (1.0 - expected / number) + 1.0)
    assert np.abs(deviation).max() < 4.5


@settings(max_examples=25)
@given(pipelines(max_tasks=2, max_replicas=3), SEEDS)
def test_probabilities_sum_to_one_over_the_feasible_actions(pipeline: Pipeline, seed: int):
    every = to_choices(*every_configuration(pipeline))
    d = described(pipeline, solved_loads=2)
    assert probabilities(untrained(seed), d, random_situations(d, 1, seed), every).sum() == pytest.approx(1.0, abs=1e-4)


def most_probable(network: AgentNetwork, d: Description, s: Situations, every: np.ndarray) -> np.ndarray:
    """(N, 3) action that consists of the most probable choice at every step, of all that are feasible."""
    probability, left = probabilities(network, d, s, every), every.reshape(len(every), -1)
    for step in range(left.shape[1]):
        mass = {option: probability[left[:, step] == option].sum() for option in np.unique(left[:, step])}
        kept = left[:, step] == max(mass, key=lambda option: mass[option])
        probability, left = probability[kept], left[kept]
    return left.reshape(-1, 3)


def test_without_sampling_every_choice_is_the_most_probable_one_unless_that_is_clearly_worse_than_planned():
    pipeline = ocr_pipeline(capacity=6)
    d, every = described(pipeline), to_choices(*every_configuration(pipeline))
    departures = set()
    for seed in range(20):
        network, s = departing(seed, strength=2.0), random_situations(d, 1, seed)
        planned, p = scoring.plan(d, s, 0)
        likely = most_probable(network, d, s, every)
        value, other = scoring.expected_rewards(d, s, 0, p, np.stack([planned, likely]))
        worse = bool(value - other > scoring.UNIT * scoring._used(d, planned))
        departures.add("worse" if worse else "as good" if (likely != planned).any() else "none")
        chosen, _ = choose(network.weights(), d, s, np.full((1, 6), -1.0))
        np.testing.assert_array_equal(chosen[0], planned if worse else likely)
    assert departures == {"worse", "as good", "none"}


def test_uniform_numbers_at_the_ends_choose_the_first_and_the_last_option():
    pipeline = ocr_pipeline()
    d = described(pipeline)
    s = random_situations(d, 1, 0)
    ends = [choose(untrained(0).weights(), d, s, np.full((1, 6), end))[0][0] for end in (0.0, np.nextafter(1.0, 0.0))]
    assert ends[0].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert ends[1].tolist()[0] == [1, 2, 1]  # the last variant, three replicas, the largest batch


def test_situations_do_not_disturb_one_another():
    d = described(ocr_pipeline())
    s, uniform = random_situations(d, 6, 1), np.random.default_rng(1).random((6, 6))
    weights = untrained(1).weights()
    together = choose(weights, d, s, uniform)
    for e in range(6):
        alone = choose(weights, d, s.part(slice(e, e + 1)), uniform[e : e + 1])
        np.testing.assert_array_equal(alone[0][0], together[0][e])
        assert alone[1][0] == pytest.approx(together[1][e])


def test_one_compilation_serves_every_pipeline():
    """Compiling takes longer than an interval, so no array may come in another type or layout."""
    for pipeline in (ocr_pipeline(), generate_pipeline(4).pipeline):
        d = described(pipeline, solved_loads=2)
        s = random_situations(d, 3, 0)
        uniform = np.full((3, 3 * len(pipeline.tasks)), -1.0)
        chosen, _ = choose(untrained(0).weights(), d, s.part(np.array([2, 0, 1])), uniform)
        expand(d, s, chosen[:, None])
    assert len(choose.signatures) == len(expand.signatures) == 1
