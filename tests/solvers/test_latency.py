"""The latency prediction: known answers of queueing theory, then the simulator on the shipped pipelines."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_pipelines import ocr_pipeline, stages

from opd.measurement import SimulationParameters
from opd.pipeline import ServiceLevel, as_array
from opd.profiling.pipelines import load_pipeline
from opd.simulator.simulator import Simulator
from opd.solvers.latency import LEAST_LOAD, erlang_c, predicted_latency, stage_latencies, stage_latency
from opd.solvers.service_level import best_for_level, level_options, shortest_latency
from opd.workload.trace import Workload

ONE_SECOND = np.array([0.0, 1.0])
EXPONENTIAL, CONSTANT = 1.0, 0.0
"""Squared coefficients of variation of the service time."""


@pytest.mark.parametrize(("servers", "offered", "waiting"), [(1, 0.5, 0.5), (2, 1.0, 1 / 3), (3, 2.0, 4 / 9)])
def test_erlang_c_has_the_values_of_the_textbooks(servers, offered, waiting):
    assert erlang_c(servers, offered) == pytest.approx(waiting)


def test_m_m_1():
    # Exponential with rate 1 - 0.5: mean 2, variance 4.
    assert stage_latency(0.5, 1, 1, ONE_SECOND, 0.25, EXPONENTIAL) == pytest.approx((2.0, 4.0))


def test_m_m_2():
    # Waits with 1/3 for an exponential time of rate 2 - 1; service 1 on average, variance 1.
    assert stage_latency(1.0, 1, 2, ONE_SECOND, 0.25, EXPONENTIAL) == pytest.approx((1 / 3 + 1, 2 / 3 - 1 / 9 + 1))


def test_m_d_1_has_the_mean_of_pollaczek_and_khinchine():
    mean, _ = stage_latency(0.8, 1, 1, ONE_SECOND, 0.25, CONSTANT)
    assert mean == pytest.approx(1.0 + 0.8 / (2 * 0.2))


def test_a_batch_forms_for_the_gaps_between_its_requests():
    # Batches of two from an idle device that waits as long as it takes: one waits for a gap of 1 / 2 s, the other not.
    mean, variance = stage_latency(2.0, 2, 50, np.array([0.0, 0.1, 0.1]), 1e3, CONSTANT)
    assert mean == pytest.approx(0.25 + 0.1, rel=1e-6)
    assert variance == pytest.approx(0.5 * (2 * 0.25) - 0.25**2, rel=1e-6)


def test_a_lonely_request_waits_for_the_timeout():
    mean, variance = stage_latency(LEAST_LOAD, 8, 1, np.full(9, 0.1), 0.25, CONSTANT)
    assert mean == pytest.approx(0.35, rel=0.01)
    assert variance < 0.001


def test_a_percentile_by_hand():
    # Two stages of M/M/1: means 2 and 2, variances 4 and 4.
    expected = predicted_latency(ocr_pipeline(), stages((0, 1, 1), (0, 1, 1)), 1.0, SimulationParameters())
    assert expected.percentile(50) == pytest.approx(expected.stage_means.sum())
    tail = 1.6448536 * math.sqrt(expected.stage_variances.sum())
    assert expected.percentile(95) == pytest.approx(expected.stage_means.sum() + tail)


def test_a_load_that_cannot_be_carried_has_no_latency():
    assert stage_latency(1.0, 1, 1, ONE_SECOND, 0.25, CONSTANT) == (np.inf, np.inf)
    tables = stage_latencies(ocr_pipeline(), 1e3, SimulationParameters())
    assert np.isinf(tables).all()


@given(st.floats(0.0, 60.0), st.integers(1, 8), st.sampled_from([1, 2, 8]), st.floats(0.0, 1.0))
def test_predictions_are_finite_or_infinite_but_never_less_than_the_service(load, replicas, batch_size, timeout):
    service = np.concatenate([[0.0], np.linspace(0.05, 0.2, 8)])
    mean, variance = stage_latency(max(load, LEAST_LOAD), batch_size, replicas, service, timeout, 0.01)
    carried = load < replicas * batch_size / service[batch_size] * 0.999
    assert np.isfinite(mean) == np.isfinite(variance)
    assert np.isfinite(mean) or not carried
    assert mean >= 0.05 * (1 - 1e-12) and variance >= 0.0


@given(st.floats(0.1, 9.0), st.integers(1, 7))
def test_another_replica_never_makes_single_requests_slower(load, replicas):
    service = np.array([0.0, 0.1])
    fewer, more = (stage_latency(load, 1, count, service, 0.25, 0.01) for count in (replicas, replicas + 1))
    assert more[0] <= fewer[0] and more[1] <= fewer[1]


def simulated(pipeline, configuration, load) -> np.ndarray:
    """Latencies in half an hour of Poisson arrivals at one rate."""
    copies = 8
    counts = np.random.default_rng(0).poisson(load, (25, copies, 10))
    simulator = Simulator(pipeline, SimulationParameters(), copies, int(counts.max()), 0, record_latencies=True)
    simulator.reset(configuration)
    rows = np.broadcast_to(as_array(configuration), (copies, len(configuration), 3))
    steps = [simulator.step(rows, count) for count in counts][3:]
    return np.concatenate([step.latencies[e, : step.completed[e]] for step in steps for e in range(copies)])


def test_the_95th_percentile_is_that_of_the_simulator_within_a_tenth():
    # Loads of the validation days, from quiet to busy; configurations that just keep a tight and a generous level.
    loads = np.round(np.quantile(Workload.bundled(10).forecasts, [0.05, 0.5, 0.95, 0.99]))
    errors = []
    for name in ("video", "audio-qa", "audio-sentiment", "summarisation-qa", "nlp", "ocr"):
        pipeline = load_pipeline(name)
        options = level_options(pipeline, 10.0, SimulationParameters())
        fastest, _ = shortest_latency(options, pipeline.capacity, 95.0, 1.0)
        for factor in (1.5, 3.0):
            for load in loads:
                configuration = best_for_level(pipeline, load, ServiceLevel(factor * fastest), SimulationParameters())
                expected = predicted_latency(pipeline, configuration, load, SimulationParameters()).percentile(95.0)
                if np.isfinite(expected):
                    errors.append(expected / np.quantile(simulated(pipeline, configuration, load), 0.95) - 1.0)
    assert len(errors) > 40
    assert abs(np.median(errors)) < 0.03 and np.quantile(np.abs(errors), 0.9) < 0.1
    assert min(errors) > -0.12 and max(errors) < 0.3
