"""The simulator against the real plane with emulated replicas: the comparison runs for pipelines of any size."""

from __future__ import annotations

import pytest
from small_pipelines import stages

from opd.live.calibration import calibrated_by_calls, measure_overhead
from opd.live.emulation_error import emulation_error, summarise
from opd.live.fidelity import Performance, measure_fidelity, relative_errors
from opd.live.runs import EMULATED, LiveSite
from opd.measurement import SimulationParameters
from opd.pipeline import Pipeline, ServiceLevel, Task, Variant
from opd.serving.samples import read_samples

pytestmark = pytest.mark.processes

MANY = stages((0, 12, 1), (0, 10, 1))


def pipeline_of_many() -> Pipeline:
    task = (Variant("quick", 0.5, 1, {1: 0.1, 2: 0.15}, 0.1), Variant("never", 0.5, 1, {1: 9.0, 2: 9.0}, 0.1))
    return Pipeline("many", (Task("first", task), Task("second", task)), 64, 16, 2, ServiceLevel(1.0))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return LiveSite(EMULATED, tmp_path_factory.mktemp("fidelity"))


def test_more_than_twenty_replicas_are_compared_with_the_simulator(site):
    parameters, samples = SimulationParameters(batch_timeout=0.05), site.samples("many")
    with site.open_backend(pipeline_of_many(), parameters, MANY) as backend:
        assert backend.pipeline.name == "many-emulated"
        assert sum(len(stage.replicas) for stage in backend.stages) == 22
        calibrated = calibrated_by_calls(backend, read_samples(samples)[:1])
        table = measure_fidelity(backend, parameters, [MANY], [0.15], 3, samples, 0.5, site.folder)
    for (known, _), (found, _) in zip(backend.pipeline.selected(MANY), calibrated.selected(MANY), strict=True):
        more = found.latency[1] - known.latency[1]
        assert more > 0.0 and found.latency[2] - known.latency[2] == pytest.approx(more)
    assert calibrated.tasks[0].variants[1] == backend.pipeline.tasks[0].variants[1]  # it does not run
    (row,) = table.to_dict("records")
    assert row["completed"] == row["offered"] > 0
    # The simulator knows calls to take longer than the profile, and the 0.5 s that were said to be added.
    assert row["latency_mean_predicted"] > row["latency_mean_profiled"] + 0.5
    assert row["latency_mean_measured"] > 0.9 * 0.2
    assert list(relative_errors(table)) == ["configuration", "load", "utilisation", *Performance._fields]


def test_what_the_plane_adds_is_measured_without_noise(site):
    quiet = SimulationParameters(service_noise=0.0, batch_timeout=0.05)
    with site.open_backend(pipeline_of_many(), quiet, stages((0, 1, 2), (0, 1, 1))) as backend:
        found = measure_overhead(backend, read_samples(site.samples("many")), 6, 2, 0.5)
        assert backend.configuration == stages((0, 1, 1), (0, 1, 1))  # no request waited for a batch to fill
    assert found["requests"] == 4 and found["direct_ms"]["p50"] >= 200.0


def test_errors_of_emulated_service_times_are_shown_for_many_replicas_in_one_process():
    (task, *_) = pipeline_of_many().tasks
    pairs = [(task, task.variants[0])]
    table, cores = emulation_error(pairs, replicas=40, calls=2, utilisation=0.5)
    assert len(table) == 80 and cores >= 0.0
    assert (table["measured"] >= table["predicted"]).all() and (table["called"] >= table["measured"]).all()
    shown = summarise(table)
    assert shown.loc["measured", "predicted_ms"] == pytest.approx(1e3 * table["predicted"].mean())
    assert shown.loc["measured", "error"] == pytest.approx(table["measured"].mean() / table["predicted"].mean() - 1)
    assert 70.0 < shown.loc["measured", "predicted_ms"] < 220.0  # profiles of 100 and 150 ms with noise
