"""The live evaluation: what is chosen, counted, predicted and reported, and all of it on the real OCR pipeline."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_pipelines import ocr_pipeline

from opd.examples.ocr.accuracy import text_accuracy
from opd.examples.ocr.pages import load_pages, write_pages
from opd.live import fidelity
from opd.live import page as live_page
from opd.live import plots as plots_live
from opd.live import runs as live
from opd.live.overhead import measure_overhead
from opd.measurement import unmeasured
from opd.objective import Weights
from opd.paths import project_path
from opd.pipeline import StageConfiguration
from opd.profiling.catalogue import load_pipeline
from opd.serving.local import LocalBackend
from opd.simulator.parameters import SimulationParameters

SMALL, LARGE = live.configurations([[[0, 1, 1], [0, 1, 1]], [[1, 2, 2], [2, 1, 1]]])
OCR = load_pipeline("ocr")


def requests(scheduled, latency):
    """Records of the load generator in which every request was answered after ``latency``."""
    scheduled = np.asarray(scheduled, dtype=float)
    table = pd.DataFrame({"scheduled": scheduled, "sent": scheduled, "finished": scheduled + latency})
    table = table.assign(outcome="completed", code="OK", detail="", payload=0, answer="")
    table.attrs = {"started": 1000.0, "seconds": 20.0}
    return table


def run_of(configurations, records=None, begin=1000.0):
    """A run in which these were applied, one after the other, on the small pipeline in the simulator."""
    traffic = live.Traffic(np.full(10 + 10 * len(configurations), 4), 10, None, 0)
    schedule = live.SchedulePolicy(configurations, len(configurations))
    made = live.run_simulated(
        ocr_pipeline(), SimulationParameters(), SMALL, schedule, lambda history: 4.0, Weights(), traffic
    )
    return made._replace(records=records, begin=begin)


# --------------------------------------------------------------------------------------------- what is sent and decided


def test_the_stretch_whose_load_varies_most_within_bounds():
    counts = np.concatenate([np.full(40, 8), np.full(20, 10), np.full(20, 20), np.full(20, 40), np.full(40, 9)])
    start = live.varied_window(counts, 10, 20, 5, 22, 10)
    assert start == 40  # its two intervals are at 10 and 20 requests/s
    with pytest.raises(ValueError, match="no 20 s of the load stay within 41 and 50"):
        live.varied_window(counts, 10, 20, 41, 50, 10)


@given(st.lists(st.integers(0, 30), min_size=60, max_size=200), st.integers(0, 15))
def test_a_varied_stretch_is_within_its_bounds_and_none_varies_more(counts, least):
    load_of = np.array(counts)
    try:
        start = live.varied_window(load_of, 10, 20, least, 25, 10)
    except ValueError:
        start = None
    spreads = {}
    for first in range(0, len(load_of) - 29, 5):
        means = load_of[first + 10 : first + 20].mean(), load_of[first + 20 : first + 30].mean()
        if min(means) >= least and max(means) <= 25:
            spreads[first] = np.std(means)
    assert (start is None) == (not spreads)
    assert start is None or spreads[start] == pytest.approx(max(spreads.values()))


def test_a_schedule_holds_each_configuration_as_long_and_the_last_for_the_rest():
    run = run_of([SMALL, LARGE])
    assert [step.configuration for step in run.steps] == [SMALL, LARGE]
    policy = live.SchedulePolicy([SMALL, LARGE], 5)
    observed = [policy.decide(type("Seen", (), {"configuration": LARGE})) for _ in range(8)]
    assert observed == [SMALL] * 3 + [LARGE] * 5


# -------------------------------------------------------------------------------------------------- what is counted


def test_reconfigurations_are_counted_by_what_changed():
    one_more = (LARGE[0]._replace(replicas=1), LARGE[1])
    counted = live.changes(run_of([SMALL, LARGE, LARGE, one_more]))
    assert counted == {"reconfigurations": 2, "variant": 1, "replicas": 2, "batch_size": 1}


def test_a_summary_has_what_the_generator_saw_and_skips_what_was_not_measured():
    run = run_of([SMALL, SMALL], requests([0.5, 11.0], 0.3))
    blind = run.steps[1].score._replace(**{name: np.full(1, np.nan) for name in ("reward", "qos", "cost", "accuracy")})
    seen = run.steps[0].score
    unseen = type(run.steps[1])(np.nan, "", SMALL, "nothing to decide on", False, 0.0, unmeasured(OCR), blind)
    steps = [run.steps[0], unseen]
    summary = live.summarise(run._replace(steps=steps))
    assert summary["requests"]["completed"] == 2 and summary["requests"]["lost"] == 0
    assert summary["requests"]["latency_mean"] == pytest.approx(0.3)
    assert summary["refused"] == ["nothing to decide on"]
    assert summary["reward"] == pytest.approx(float(seen.reward[0])) and summary["cost"] == 2.0


def test_the_course_names_what_ran():
    table = live.course(ocr_pipeline(), run_of([SMALL, LARGE]), 10)
    assert table["recognition.variant"].tolist() == ["tiny", "large"]
    assert table["detection.replicas"].tolist() == [1, 2] and table["detection.batch_size"].tolist() == [1, 2]
    assert table["load"].tolist() == [4.0, 4.0]


def test_the_replay_simulates_the_arrivals_that_came():
    # Far apart, nothing waits: latency is the service time of both stages, 0.1 + 0.05 s.
    run = run_of([SMALL, SMALL], requests([1.0, 3.0, 12.0], 0.2))
    known = ocr_pipeline()
    slower = fidelity.calibrated(known, SMALL, [{1: 0.3}, {1: 0.05}])
    table = live.replay({"profiled": known, "slower": slower}, SimulationParameters(service_noise=0.0), run, [0, 1])
    assert table["time"].tolist() == [0, 10]
    assert table["profiled"].tolist() == pytest.approx([0.15, 0.15])
    assert table["slower"].tolist() == pytest.approx([0.35, 0.35])
    assert table["measured"].tolist() == pytest.approx([0.2, 0.2])
    with pytest.raises(ValueError, match="no measurements to compare with"):
        live.replay({"profiled": known}, SimulationParameters(), run_of([SMALL]), [0])


def test_an_interval_in_which_nothing_is_answered_has_no_latency():
    run = run_of([SMALL, SMALL, SMALL], requests([1.0, 19.9], 0.2))
    table = live.replay({"profiled": ocr_pipeline()}, SimulationParameters(service_noise=0.0), run, [0])
    assert table["measured"].isna().tolist() == table["profiled"].isna().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (dict(backend="cloud"), "backend 'cloud' is not one of simulated, local, kubernetes"),
        (dict(backend="kubernetes", router_address="127.0.0.1:1"), "needs cluster_settings and router_address"),
    ],
)
def test_a_place_that_cannot_be_is_refused(tmp_path, place, message):
    with pytest.raises(ValueError, match=message):
        live.Place(folder=tmp_path, **place)


# ------------------------------------------------------------------------------------------------------- fidelity


def test_a_prediction_without_waiting_is_the_service_time():
    arrivals = np.array([0.5, 2.0, 9.5])
    parameters = SimulationParameters(service_noise=0.0)
    throughput, mean, p95 = fidelity.predict(ocr_pipeline(), parameters, SMALL, arrivals)
    assert (throughput, mean, p95) == pytest.approx((0.3, 0.15, 0.15))


def test_a_calibrated_pipeline_has_the_served_latencies_and_nothing_else_changes():
    known = ocr_pipeline()
    served = fidelity.calibrated(known, LARGE, [{1: 0.3, 2: 0.5}, {1: 0.4}])
    detection, recognition = (variant for variant, _ in served.selected(LARGE))
    assert (detection.service_time(1), detection.service_time(2), recognition.service_time(1)) == (0.3, 0.5, 0.4)
    assert recognition.service_time(2) == known.tasks[1].variants[LARGE[1].variant].service_time(2)
    assert served != known
    assert fidelity.calibrated(served, LARGE, [variant.latency for variant, _ in known.selected(LARGE)]) == known


def test_few_configurations_cover_every_variant():
    run = live.configurations([[[0, 1, 1], [0, 2, 1]], [[0, 3, 4], [0, 1, 2]], [[1, 1, 1], [0, 1, 1]]])
    run += live.configurations([[[1, 2, 1], [1, 1, 1]], [[0, 1, 1], [1, 1, 1]]])
    assert fidelity.covering(run) == live.configurations(
        [[[0, 1, 4], [0, 1, 4]], [[1, 1, 4], [0, 1, 4]], [[1, 1, 4], [1, 1, 4]]]
    )


def test_throughput_is_what_is_answered_while_load_comes():
    slow = fidelity.calibrated(ocr_pipeline(), SMALL, [{1: 0.1}, {1: 0.1}])
    arrivals = np.arange(200) / 20  # twice what a replica can do; they leave from 0.2 s on, one every 0.1 s
    parameters = SimulationParameters(service_noise=0.0, drop_after=100.0)
    throughput, mean, p95 = fidelity.predict(slow, parameters, SMALL, arrivals)
    assert throughput == pytest.approx(9.85, abs=0.06)
    assert (mean, p95) == (pytest.approx(0.2 + 0.05 * 99.5), pytest.approx(0.2 + 0.05 * 0.95 * 199))
    measured = fidelity._measured(requests(arrivals, 0.2 + 0.05 * np.arange(200)))
    assert (measured["completed"], measured["throughput_measured"]) == (200, pytest.approx(throughput, abs=0.11))
    assert measured["latency_mean_measured"] == pytest.approx(mean)


def fidelity_table():
    row = {"configuration": "a x1 b1 + b x1 b1", "load": 5.0, "offered": 50, "completed": 50}
    figures = {"throughput": 5.0, "latency_mean": 0.1, "latency_p95": 0.2}
    for kind, factor in (("profiled", 0.8), ("predicted", 1.0), ("measured", 1.1)):
        row |= {f"{name}_{kind}": factor * value for name, value in figures.items()}
    return pd.DataFrame([row, row | {"load": 12.0, "latency_mean_measured": 0.05}])


def replay_table(**figures):
    figures = {"measured": [0.1, 0.2], "profiled": [0.2, 0.2]} | figures
    return pd.DataFrame({"time": [0, 10], "policy": "agent", **figures})


def test_errors_are_relative_to_the_prediction():
    off = fidelity.errors(fidelity_table())
    assert off["latency_mean"].tolist() == pytest.approx([0.1, -0.5])
    assert off["throughput"].tolist() == pytest.approx([0.1, 0.1])


def test_the_page_names_the_worst_and_says_when_a_bound_is_missed(tmp_path):
    summary = {"pipeline": "ocr", "backend": "local", "monitoring": "x", "traffic": "y"}
    summary |= {"hardware": {"processor": "p", "cores": 2}}
    summary["policies"] = {"agent": live.summarise(run_of([SMALL], requests([0.5], 0.3)))}
    spread = {"mean": 4.0, "p50": 3.0, "p95": 6.0}
    overhead = {"requests": 9, "cpu_ms": 2.5, "direct_ms": spread, "routed_ms": spread, "added_ms": spread}
    page = live_page.write_page(
        tmp_path / "page.md", summary, overhead, fidelity_table(), replay_table(calibrated=[0.08, 0.16])
    )
    where = "(a x1 b1 + b x1 b1 at {} requests/s)"
    assert f"mean latency -50% {where.format(12)}, p95 latency +10% {where.format(5)}" in page
    assert "| 12.00 | 0.10 | -0.50 | 0.10 |" in page
    assert "the medians without sign are 37.5%, 37.5% and 37.5%" in page
    assert "NOT within the 5% and 15%" in page
    assert live_page.NOTEBOOK in page and "Command" not in page
    assert (project_path() / live_page.NOTEBOOK).is_file()
    assert "2.5 ms of CPU time a request" in page
    assert "| policy | calibrated, median | calibrated, worst | profiled, median | profiled, worst |" in page
    assert "| agent | 0.25 | 0.25 | 0.25 | 0.50 |" in page
    assert (tmp_path / "page.md").read_text() == page


def test_the_page_shows_a_run_in_which_nothing_was_completed(tmp_path):
    records = requests([0.5], 0.3).assign(outcome="dropped")
    records.attrs = {"started": 1000.0, "seconds": 20.0}
    summary = {"pipeline": "ocr", "backend": "local", "monitoring": "x", "traffic": "y"}
    summary |= {"hardware": {"processor": "p", "cores": 2}}
    summary["policies"] = {"agent": live.summarise(run_of([SMALL], records))}
    assert summary["policies"]["agent"]["requests"]["latency_p99"] is None
    page = live_page.write_page(
        tmp_path / "page.md", summary, {}, pd.DataFrame(), replay_table(measured=[np.nan, np.nan])
    )
    assert "| agent | 1 | 0 | 0 | 1 | 0 | 0 | nan | nan | nan | nan |" in page
    assert "| policy | profiled, median | profiled, worst |" in page


def test_figures_show_every_run_and_configuration(tmp_path):
    run = run_of([SMALL, LARGE], requests([1.0, 12.0], 0.2))
    course = live.course(ocr_pipeline(), run, 10).assign(policy="agent")
    drawn = [
        plots_live.plot_course(course, ["detection", "recognition"], "a title", tmp_path / "course.png"),
        plots_live.plot_replay(replay_table(calibrated=[0.1, 0.2]), tmp_path / "replay.png"),
        plots_live.plot_fidelity(fidelity_table(), tmp_path / "fidelity.png"),
    ]
    words = ["\n".join(a.get_text() for a in f.findobj(lambda a: hasattr(a, "get_text"))) for f in drawn]
    assert all(word in words[0] for word in ("agent", "tiny", "b2", "cost (CPU cores)", "load\n(requests/s)"))
    assert all(
        word in words[1] for word in ("measured", "simulated, calibrated", "simulated, profiled", "latency (ms)")
    )
    assert "a x1 b1 + b x1 b1" in words[2] and "12 requests/s" in words[2]
    for name in ("course", "replay", "fidelity"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.width > 400


# ------------------------------------------------------------------------------------- the real thing, on this machine

FIRST = live.configurations([[[0, 1, 1], [0, 1, 1]]])[0]
CHANGES = live.configurations([[[1, 1, 1], [0, 2, 1]], [[1, 1, 2], [1, 1, 2]], [[0, 1, 1], [0, 1, 1]]])


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


def test_the_ocr_pipeline_is_reconfigured_live_and_loses_nothing(backend, pages, tmp_path):
    traffic = live.Traffic(np.full(24, 5), 6, pages, seed=1)
    policy, seen = live.SchedulePolicy(CHANGES, 3), []

    def forecast(history):
        seen.append(history)
        return history.max()

    run = live.run_live(backend, policy, forecast, Weights(), 6, traffic, tmp_path)
    assert 1 <= len(seen[0]) <= 6 and seen[0][0] > 0, "of this run alone, from its first request on"
    assert [step.configuration for step in run.steps] == CHANGES
    assert live.changes(run) == {"reconfigurations": 3, "variant": 3, "replicas": 2, "batch_size": 2}
    summary = live.summarise(run)
    assert summary["refused"] == []
    assert {name: summary["requests"][name] for name in ("offered", "completed", "failed", "lost")} == {
        "offered": 120,
        "completed": 120,
        "failed": 0,
        "lost": 0,
    }
    truth = [page.text for page in load_pages(pages)]
    read = run.records["answer"].tolist()
    assert text_accuracy(read, [truth[page] for page in run.records["payload"]]) > 0.5
    table = live.replay({"profiled": OCR}, SimulationParameters(interval=6), run, [0])
    assert np.isfinite(table[["profiled", "measured"]]).all(axis=None)


def test_overhead_and_served_latencies_are_measured(backend, pages):
    backend.apply(FIRST)
    payloads = [page.payload for page in load_pages(pages)]
    overhead = measure_overhead(backend, payloads[:12], warm_up=4, idle_seconds=1.0)
    assert overhead["requests"] == 8 and overhead["direct_ms"]["p50"] > 1.0
    direct, routed, added = (overhead[way]["mean"] for way in ("direct_ms", "routed_ms", "added_ms"))
    assert added == pytest.approx(routed - direct)
    begin = time.perf_counter()
    served = fidelity.served_latency(backend, payloads, calls=8)
    elapsed = time.perf_counter() - begin
    assert [list(latency) for latency in served] == [[1], [1]]
    assert all(latency[1] > 0.001 for latency in served)
    # One call after the other, in seconds: those that count took less than all of them together.
    assert (8 - fidelity.WARM_UP_CALLS) * sum(latency[1] for latency in served) < elapsed


def test_the_variants_that_ran_are_calibrated(backend, pages):
    served = fidelity.calibrate(backend, [FIRST], pages)
    assert backend.configuration == FIRST
    for task, known, stage in zip(served.tasks, OCR.tasks, FIRST, strict=True):
        for index, (variant, profiled) in enumerate(zip(task.variants, known.variants, strict=True)):
            assert (variant.latency == profiled.latency) == (index != stage.variant)
        assert task.variants[stage.variant].latency[1] > 0.001


def test_fidelity_compares_what_was_sent(backend, pages, tmp_path):
    table = fidelity.measure_fidelity(backend, SimulationParameters(), [FIRST], [4.0], 5, pages, 0.005, tmp_path)
    row = table.iloc[0]
    assert row["offered"] == row["completed"] > 5
    assert row["throughput_predicted"] == pytest.approx(row["throughput_measured"])
    assert row["latency_mean_predicted"] > 0.005


def test_what_ran_is_what_the_stages_say(backend):
    backend.apply(CHANGES[1])
    for stage, wanted in zip(backend.stages, CHANGES[1], strict=True):
        status = stage.queue.http("GET", "/stage")
        serving = [replica for replica in status["replicas"] if not replica["retired"]]
        assert (status["batch_size"], len(serving)) == (wanted.batch_size, wanted.replicas)
        assert {replica["variant"] for replica in serving} == {stage.task.variants[wanted.variant].name}
    assert backend.configuration == CHANGES[1] == tuple(StageConfiguration(*stage) for stage in CHANGES[1])
