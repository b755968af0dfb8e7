"""The compiled simulator against queueing theory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from small_pipelines import stages
from small_queues import make_pipeline, make_task

from opd.measurement import Interval, SimulationParameters
from opd.pipeline import Configuration, Pipeline, as_array
from opd.simulator.simulator import Simulator, service_factors


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
