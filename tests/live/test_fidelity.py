"""Predictions for steady load, and calibration of the profiles."""

from __future__ import annotations

import numpy as np
import pytest
from live_runs import LARGE, SMALL, requests
from small_pipelines import ocr_pipeline

from opd.live.calibration import with_served_latencies
from opd.live.fidelity import measured_performance, predict
from opd.measurement import SimulationParameters


def test_predicted_latency_without_queueing_is_the_service_time():
    arrivals = np.array([0.5, 2.0, 9.5])
    parameters = SimulationParameters(service_noise=0.0)
    throughput, mean, p95 = predict(ocr_pipeline(), parameters, SMALL, arrivals)
    assert (throughput, mean, p95) == pytest.approx((0.3, 0.15, 0.15))


def test_served_latencies_replace_profiled_ones_and_nothing_else_changes():
    known = ocr_pipeline()
    served = with_served_latencies(known, LARGE, [{1: 0.3, 2: 0.5}, {1: 0.4}])
    detection, recognition = (variant for variant, _ in served.selected(LARGE))
    assert (detection.service_time(1), detection.service_time(2), recognition.service_time(1)) == (0.3, 0.5, 0.4)
    assert recognition.service_time(2) == known.tasks[1].variants[LARGE[1].variant].service_time(2)
    assert served != known
    assert with_served_latencies(served, LARGE, [variant.latency for variant, _ in known.selected(LARGE)]) == known


def test_throughput_counts_the_answers_during_the_load():
    slow = with_served_latencies(ocr_pipeline(), SMALL, [{1: 0.1}, {1: 0.1}])
    arrivals = np.arange(200) / 20  # twice the throughput of a replica; answers come from 0.2 s on, one every 0.1 s
    parameters = SimulationParameters(service_noise=0.0, drop_after=100.0)
    throughput, mean, p95 = predict(slow, parameters, SMALL, arrivals)
    assert throughput == pytest.approx(9.85, abs=0.06)
    assert (mean, p95) == (pytest.approx(0.2 + 0.05 * 99.5), pytest.approx(0.2 + 0.05 * 0.95 * 199))
    measured = measured_performance(requests(arrivals, 0.2 + 0.05 * np.arange(200)))
    assert measured.throughput == pytest.approx(throughput, abs=0.11)
    assert measured.latency_mean == pytest.approx(mean)
