"""The simulators that are compared agree, and what is measured of them has the shape that readers rely on."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from opd.measurement import SimulationParameters
from opd.pipeline import Pipeline, ServiceLevel, StageConfiguration, Task, Variant, as_array
from opd.simulator.simulator import Simulator
from opd.study.benchmarks import DisagreementError, criteria, environment_steps, simulated_requests
from opd.study.benchmarks.budgets import SMOKE, SimulatorBudget
from opd.study.benchmarks.peer_queues import ciw_latencies, ciw_simulation, simulate_queues
from opd.study.benchmarks.peer_simpy import ReferenceSimulator
from opd.study.benchmarks.plots import plot_simulator
from opd.study.benchmarks.simulated_requests import BATCHED, QUEUES, REFERENCE, WHOLE_MODEL, Answer

TINY = SimulatorBudget(intervals=5, copies=3, batches=(1, 4), steps=32, single_steps=8, repetitions=2)


def two_stages(max_batch_size: int = 1) -> Pipeline:
    """Half a second, then a quarter of a second, whatever the batch."""
    profiles = ({1: seconds, max_batch_size: seconds} for seconds in (0.5, 0.25))
    tasks = tuple(Task(f"task{n}", (Variant("only", 0.5, 1, profile, 1.0),)) for n, profile in enumerate(profiles))
    return Pipeline("tiny", tasks, 4, 2, max_batch_size, ServiceLevel(1.0))


ONE_EACH = (StageConfiguration(0, 1, 1), StageConfiguration(0, 1, 1))
TIMES = np.array([1.0, 1.2, 4.0, 9.9])
LATENCIES = np.array([0.75, 1.05, 0.75])
"""The second request waits for the first, the last is not through at 10 s."""


def test_a_tiny_case_by_hand_in_every_simulator():
    pipeline, parameters = two_stages(), SimulationParameters(service_noise=0.0)
    simulated = Simulator(pipeline, parameters, record_latencies=True)
    simulated.reset(ONE_EACH)
    interval = simulated.step_arrivals(as_array(ONE_EACH), TIMES)
    np.testing.assert_allclose(interval.latencies[0, :3], LATENCIES)
    assert interval.completed[0] == 3

    record = ReferenceSimulator(pipeline, parameters, ONE_EACH).step(ONE_EACH, TIMES)
    np.testing.assert_allclose(record.latencies, LATENCIES)

    np.testing.assert_allclose(simulate_queues(pipeline, ONE_EACH, TIMES, 10.0), [*LATENCIES, np.nan])

    exits, latencies = ciw_latencies(ciw_simulation(pipeline, ONE_EACH, TIMES), 2, 10.0)
    np.testing.assert_allclose(latencies, LATENCIES)
    np.testing.assert_allclose(exits, TIMES[:3] + LATENCIES)


def test_a_batch_and_the_age_limit_by_hand_in_simpy():
    parameters = SimulationParameters(service_noise=0.0, batch_timeout=0.3, drop_after=0.9)
    choice = (StageConfiguration(0, 1, 2), StageConfiguration(0, 1, 2))
    times = np.array([1.0, 1.1, 1.15, 1.16, 1.17])
    record = ReferenceSimulator(two_stages(2), parameters, choice).step(choice, times)
    # Pairs are served from 1.1 to 1.6 and from 1.6 to 2.1; the fifth gives up at 2.07. The second stage serves the
    # first pair until 1.85; the second pair is too old when it gets there.
    np.testing.assert_allclose(record.latencies, [0.85, 0.75])
    assert [stage.dropped for stage in record.stages] == [1, 2]
    assert [stage.left for stage in record.stages] == [5, 4]
    np.testing.assert_allclose(record.stages[0].seconds, 0.6 + 0.5 + 0.95 + 0.94 + 0.9)


def test_ciw_refuses_batches():
    choice = (StageConfiguration(0, 1, 4), StageConfiguration(0, 1, 1))
    with pytest.raises(ValueError, match="ciw cannot form batches"):
        ciw_simulation(two_stages(4), choice, TIMES)


def test_peers_get_the_arrivals_that_the_simulator_draws():
    """Uniform within each second, by count, and such that the answers agree request for request."""
    work = simulated_requests.scenario("video", QUEUES, TINY, seed=4)
    for number, (times, counts) in enumerate(zip(work.arrivals, work.counts[:, 0], strict=True)):
        seconds = np.floor(times - number * work.parameters.interval).astype(int)
        np.testing.assert_array_equal(np.bincount(seconds, minlength=10), counts)


def test_the_whole_model_has_batches_changes_and_drops():
    work = simulated_requests.scenario("video", WHOLE_MODEL, SMOKE.simulator, seed=0)
    assert max(stage.batch_size for choice in work.configurations for stage in choice) > 1
    assert all(one != two for one, two in zip(work.configurations, work.configurations[1:], strict=False))
    answer = next(c for c in simulated_requests.CONTENDERS if c.name == REFERENCE).prepare(work)()
    assert answer.dropped.sum() > 0


@pytest.fixture(scope="module")
def requests() -> pd.DataFrame:
    return simulated_requests.measure_requests(SMOKE.simulator)


@pytest.fixture(scope="module")
def steps() -> pd.DataFrame:
    return environment_steps.measure_steps(TINY)


@pytest.fixture(scope="module")
def parts() -> pd.DataFrame:
    return environment_steps.profile(TINY, environments=4)


def test_requests_are_compared_where_a_simulator_can_express_the_case(requests):
    named = requests.groupby(["pipeline", "case"])["simulator"].agg(set)
    whole = {"opd, batched", "opd, one episode", "simpy"}
    assert named[("video", WHOLE_MODEL)] == named[("nlp", WHOLE_MODEL)] == whole
    assert named[("video", QUEUES)] == named[("nlp", QUEUES)] == whole | {"simpy, Resource", "ciw"}
    assert requests.groupby("pipeline")["stages"].first().to_dict() == {"nlp": 3, "video": 2}


def test_compared_simulators_gave_the_same_answers(requests):
    assert (requests["difference"] <= simulated_requests.TOLERANCE).all()
    for _, rows in requests.groupby(["pipeline", "case"]):
        assert rows["completed"].nunique() == rows["dropped"].nunique() == 1
        assert np.ptp(rows["latency_mean"]) <= simulated_requests.TOLERANCE
        assert rows["completed"].iloc[0] > 0
    assert (requests.loc[requests["case"] == QUEUES, "dropped"] == 0).all()


def test_ratios_follow_from_the_rates(requests):
    rates = requests["requests"] / requests["cpu_seconds"]
    np.testing.assert_allclose(requests["requests_per_cpu_second"], rates)
    for _, rows in requests.groupby(["pipeline", "case"]):
        reference = rows.loc[rows["simulator"] == "simpy", "requests_per_cpu_second"].item()
        np.testing.assert_allclose(rows["ratio"], rows["requests_per_cpu_second"] / reference)
    assert (requests["ratio"] > 0).all()
    batched = requests["simulator"] == "opd, batched"
    assert (requests.loc[batched, "requests"].to_numpy() > requests.loc[~batched, "requests"].max()).all()


ANSWER = Answer(np.array([10, 12]), np.array([0, 1]), np.array([0.5, 0.75]))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(ANSWER, completed=np.array([10, 11])), "12 and 11 requests completed in interval 1"),
        (replace(ANSWER, dropped=np.array([2, 1])), "0 and 2 requests dropped in interval 0"),
        (replace(ANSWER, latency_mean=np.array([0.5, 0.751])), "a mean latency differs by 0.001 s"),
        (replace(ANSWER, latency_mean=np.array([np.nan, 0.75])), "a mean latency differs by nan s"),
    ],
)
def test_answers_that_differ_are_an_error(other, message):
    assert simulated_requests.largest_difference(ANSWER, ANSWER, "one", "two") == 0.0
    with pytest.raises(DisagreementError, match=f"one and two disagree: {message}"):
        simulated_requests.largest_difference(ANSWER, other, "one", "two")


def test_steps_are_measured_single_and_batched(steps):
    batched = (environment_steps.EPISODES, environment_steps.SIMULATOR)
    layers = [(environment_steps.GYMNASIUM, 1), *((layer, batch) for batch in (1, 4) for layer in batched)]
    assert list(zip(steps["layer"], steps["environments"], strict=True)) == layers
    assert steps["steps"].tolist() == [8, 8, 8, 32, 32]
    np.testing.assert_allclose(steps["microseconds"] * steps["steps_per_cpu_second"], 1e6)
    assert steps["ratio"].iloc[0] == 1.0
    assert (steps["ratio"] > 0).all()


def test_the_parts_of_a_step_add_up(parts):
    assert parts["share"].sum() == pytest.approx(1.0)
    named = " ".join(parts["part"])
    for part in ("queues", "noise", "replicas", "arrivals", "reward", "state vector", "counts", "checks"):
        assert part in named
    assert parts["microseconds"].is_monotonic_decreasing


def test_settings_take_turns_and_the_kernel_is_split_by_what_they_leave_out(monkeypatch):
    """A machine that gets slower from round to round slows all settings alike; the first round only warms up."""
    order = []

    def profiled(pipeline, environments, size, seed, settings):
        which = "silent" if "load" in settings else "no noise" if settings else "usual"
        order.append(which)
        if len(order) <= 3:
            return {"kernel": 1e6, "reward": 1e6}
        slowness = 1 + (len(order) - 1) // 3
        return {"kernel": slowness * {"usual": 7.0, "no noise": 3.0, "silent": 1.0}[which], "reward": slowness * 2.0}

    monkeypatch.setattr(environment_steps, "_profiled_step", profiled)
    table = environment_steps.profile(replace(TINY, repetitions=3), environments=4).set_index("part")["microseconds"]
    assert order == 4 * ["usual", "no noise", "silent"]
    assert table.to_dict() == {
        "kernel: noise of service times": 3 * 4.0,
        "kernel: queues, batches and latencies of requests": 3 * 2.0,
        "reward": 3 * 2.0,
        "kernel: replicas, and the interval without requests": 3 * 1.0,
    }


def test_profiling_leaves_no_timer_behind():
    before = [getattr(owner, name) for _, owner, name in environment_steps._PARTS]
    environment_steps.profile(replace(TINY, steps=4, repetitions=1), environments=2)
    assert [getattr(owner, name) for _, owner, name in environment_steps._PARTS] == before


def two_cases(ratio: float) -> pd.DataFrame:
    """Requests in which ours is ``ratio`` times as fast as simpy in one case and 120 times in the other."""
    cases = {"one": {BATCHED: ratio, REFERENCE: 1.0, "ciw": 500.0}, "two": {BATCHED: 240.0, REFERENCE: 1.0}}
    cases["two"] |= {f"{REFERENCE}, Resource": 2.0}
    rows = [("video", case, name, value) for case, ratios in cases.items() for name, value in ratios.items()]
    return pd.DataFrame(rows, columns=["pipeline", "case", "simulator", "ratio"])


@pytest.mark.parametrize(("ratio", "speed"), [(100.0, 50_000.0), (99.9, 49_999.0)])
def test_the_criteria_compare_with_the_faster_model_in_simpy_and_with_whole_steps(ratio, speed):
    layers = [environment_steps.GYMNASIUM, environment_steps.EPISODES, environment_steps.EPISODES]
    steps = pd.DataFrame({"layer": [*layers, "simulator"], "steps_per_cpu_second": [6e4, 3e3, speed, 9e4]})
    table = criteria.simulator_criteria(two_cases(ratio), steps)
    assert table["measured"].tolist() == [ratio, 120.0, speed]
    met = ratio >= 100.0
    assert table["met"].tolist() == [met, True, met]
    assert "video, one" in table["bar"][0] and "50,000" in table["bar"][2]


def test_the_figure_shows_every_simulator_and_both_criteria(requests, steps, parts):
    figure = plot_simulator(requests, steps, parts)
    bars, lines, profile = figure.axes
    labels = bars.get_legend_handles_labels()[1]
    assert labels == ["100 × simpy", *(contender.name for contender in simulated_requests.CONTENDERS)]
    assert "per CPU-second" in bars.get_ylabel() and bars.get_yscale() == "log"
    heights = sorted(patch.get_height() for patch in bars.patches)
    np.testing.assert_allclose(heights, sorted(requests["requests_per_cpu_second"]))
    assert "environments" in lines.get_xlabel()
    assert len(profile.patches) == len(parts)
    plt.close(figure)
