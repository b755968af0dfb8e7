"""Live evaluation of the OCR pipeline with real processes on this machine."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest

from opd.examples.ocr.accuracy import text_accuracy
from opd.examples.ocr.pages import write_pages
from opd.live import calibration
from opd.live.calibration import measure_overhead, measure_served_latencies
from opd.live.configurations import SchedulePolicy, configurations_from
from opd.live.fidelity import measure_fidelity, replay
from opd.live.runs import count_changes, run_live, summarise_run
from opd.live.traffic import Traffic
from opd.measurement import SimulationParameters
from opd.objective import Weights
from opd.pipeline import StageConfiguration
from opd.profiling.pipelines import load_pipeline
from opd.serving.local import LocalBackend
from opd.serving.samples import read_samples

pytestmark = [pytest.mark.processes, pytest.mark.slow]

OCR = load_pipeline("ocr")
FIRST = configurations_from([[[0, 1, 1], [0, 1, 1]]])[0]
CHANGES = configurations_from([[[1, 1, 1], [0, 2, 1]], [[1, 1, 2], [1, 1, 2]], [[0, 1, 1], [0, 1, 1]]])


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / "pages.parquet"
    write_pages(path, 20, seed=3)
    return path


@pytest.fixture(scope="module")
def backend(tmp_path_factory, ocr_store):
    parameters = SimulationParameters(interval=6)
    with LocalBackend(OCR, parameters, FIRST, tmp_path_factory.mktemp("live"), ocr_store.url) as running:
        yield running


@pytest.fixture(autouse=True)
def few_calls(monkeypatch):
    """Three calls are enough to see that they are measured."""
    monkeypatch.setattr(calibration, "CALLS", 3)


def test_reconfiguration_under_load_loses_no_request(backend, pages, tmp_path):
    traffic = Traffic(np.full(24, 5), 6, pages, seed=1)
    policy, seen = SchedulePolicy(CHANGES, 3), []

    def forecast(history):
        seen.append(history)
        return history.max()

    run = run_live(backend, policy, forecast, Weights(), 6, traffic, tmp_path)
    first = seen[1]  # the one before warms up
    assert 1 <= len(first) <= 6 and first[0] > 0, "history starts with the first request of this run"
    assert [step.configuration for step in run.steps] == CHANGES
    assert count_changes(run) == {"reconfigurations": 3, "variant": 3, "replicas": 2, "batch_size": 2}
    summary = summarise_run(run)
    assert summary["refused"] == []
    assert {name: summary["requests"][name] for name in ("offered", "completed", "failed", "lost")} == {
        "offered": 120,
        "completed": 120,
        "failed": 0,
        "lost": 0,
    }
    truth = pd.read_parquet(pages)["truth"]
    read = run.records["answer"].tolist()
    assert text_accuracy([truth[page] for page in run.records["payload"]], read) > 0.5
    table = replay({"profiled": OCR}, SimulationParameters(interval=6), run, [0])
    assert np.isfinite(table[["profiled", "measured"]]).all(axis=1).any()


def test_overhead_and_served_latencies_are_measured(backend, pages):
    backend.apply(FIRST)
    samples = read_samples(pages)
    overhead = measure_overhead(backend, samples, 12, warm_up=4, idle_seconds=1.0)
    assert overhead["requests"] == 8 and overhead["direct_ms"]["p50"] > 1.0
    direct, routed, added = (overhead[way]["mean"] for way in ("direct_ms", "routed_ms", "added_ms"))
    assert added == pytest.approx(routed - direct)
    begin = time.perf_counter()
    served = measure_served_latencies(backend, samples)
    elapsed = time.perf_counter() - begin
    assert [list(latency) for latency in served] == [[1], [1]]
    assert all(latency[1] > 0.001 for latency in served)
    # Calls are sequential, so the counted ones took less than all of them together.
    assert calibration.CALLS * sum(latency[1] for latency in served) < elapsed


def test_fidelity_predicts_the_arrivals_that_are_sent(backend, pages, tmp_path):
    table = measure_fidelity(backend, SimulationParameters(), [FIRST], [0.1], 5, pages, 0.005, tmp_path)
    row = table.iloc[0]
    assert row["offered"] == row["completed"] > 5
    records = pd.read_parquet(tmp_path / "fidelity.parquet")
    seconds = np.ceil(records["scheduled"].iloc[-1])
    # Requests that are answered after the load do not count: in the simulation one or two, on a busy machine more.
    assert seconds * row["throughput_measured"] == pytest.approx((records["finished"] < seconds).sum())
    assert seconds * row["throughput_predicted"] == pytest.approx(row["offered"], abs=2)
    assert row["latency_mean_predicted"] > 0.005


def test_the_stages_report_the_applied_configuration(backend):
    backend.apply(CHANGES[1])
    for stage, wanted in zip(backend.stages, CHANGES[1], strict=True):
        status = backend.gateways.servers[0].http("GET", f"/stages/{stage.task.name}")
        serving = [replica for replica in status["replicas"] if not replica["retired"]]
        assert (status["batch_size"], len(serving)) == (wanted.batch_size, wanted.replicas)
        assert {replica["variant"] for replica in serving} == {stage.task.variants[wanted.variant].name}
    assert backend.configuration == CHANGES[1] == tuple(StageConfiguration(*stage) for stage in CHANGES[1])
