"""Traffic, sites, and summaries and replays of runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_runs import LARGE, SMALL, requests, run_of
from small_pipelines import ocr_pipeline

from opd.live.calibration import with_served_latencies
from opd.live.fidelity import replay
from opd.live.runs import LiveSite, SchedulePolicy, count_changes, live_timeline, most_varied_window, summarise_run
from opd.measurement import SimulationParameters, unmeasured

# Traffic and decisions


def test_the_most_varied_stretch_within_the_bounds_is_found():
    counts = np.concatenate([np.full(40, 8), np.full(20, 10), np.full(20, 20), np.full(20, 40), np.full(40, 9)])
    start = most_varied_window(counts, 10, 20, 5, 22, 10)
    assert start == 40  # its two intervals are at 10 and 20 requests/s
    with pytest.raises(ValueError, match="no 20 s of the load stay within 41 and 50"):
        most_varied_window(counts, 10, 20, 41, 50, 10)


@given(st.lists(st.integers(0, 30), min_size=60, max_size=200), st.integers(0, 15))
def test_no_stretch_within_the_bounds_varies_more(counts, least):
    load_of = np.array(counts)
    try:
        start = most_varied_window(load_of, 10, 20, least, 25, 10)
    except ValueError:
        start = None
    spreads = {}
    for first in range(0, len(load_of) - 29, 5):
        means = load_of[first + 10 : first + 20].mean(), load_of[first + 20 : first + 30].mean()
        if min(means) >= least and max(means) <= 25:
            spreads[first] = np.std(means)
    assert (start is None) == (not spreads)
    assert start is None or spreads[start] == pytest.approx(max(spreads.values()))


def test_a_schedule_holds_every_configuration_equally_long_and_then_the_last():
    run = run_of([SMALL, LARGE])
    assert [step.configuration for step in run.steps] == [SMALL, LARGE]
    policy = SchedulePolicy([SMALL, LARGE], 5)
    observed = [policy.decide(type("Seen", (), {"configuration": LARGE})) for _ in range(8)]
    assert observed == [SMALL] * 3 + [LARGE] * 5


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (dict(backend="cloud"), "backend 'cloud' is not one of simulated, local, kubernetes"),
        (dict(backend="kubernetes", router_address="127.0.0.1:1"), "needs cluster_settings and router_address"),
    ],
)
def test_an_impossible_site_is_refused(tmp_path, site, message):
    with pytest.raises(ValueError, match=message):
        LiveSite(folder=tmp_path, **site)


# Summaries


def test_reconfigurations_are_counted_by_kind():
    one_more = (LARGE[0]._replace(replicas=1), LARGE[1])
    counted = count_changes(run_of([SMALL, LARGE, LARGE, one_more]))
    assert counted == {"reconfigurations": 2, "variant": 1, "replicas": 2, "batch_size": 1}


def test_a_summary_counts_requests_and_skips_intervals_without_measurements():
    run = run_of([SMALL, SMALL], requests([0.5, 11.0], 0.3))
    unmeasured_score = run.steps[1].score._replace(
        **{name: np.full(1, np.nan) for name in ("reward", "qos", "cost", "accuracy")}
    )
    seen = run.steps[0].score
    unseen = replace(
        run.steps[1],
        predicted_load=np.nan,
        refused="nothing to decide on",
        interval=unmeasured(ocr_pipeline()),
        score=unmeasured_score,
    )
    steps = [run.steps[0], unseen]
    summary = summarise_run(run._replace(steps=steps))
    assert summary["requests"]["completed"] == 2 and summary["requests"]["lost"] == 0
    assert summary["requests"]["latency_mean"] == pytest.approx(0.3)
    assert summary["refused"] == ["nothing to decide on"]
    assert summary["reward"] == pytest.approx(float(seen.reward[0])) and summary["cost"] == 2.0


def test_a_timeline_names_the_configurations():
    table = live_timeline(ocr_pipeline(), run_of([SMALL, LARGE]), 10)
    assert table["recognition.variant"].tolist() == ["tiny", "large"]
    assert table["detection.replicas"].tolist() == [1, 2] and table["detection.batch_size"].tolist() == [1, 2]
    assert table["load"].tolist() == [4.0, 4.0]


# Replay


def test_a_replay_simulates_the_recorded_arrivals():
    # The arrivals are too far apart to queue: latency is the service time of both stages, 0.1 s + 0.05 s.
    run = run_of([SMALL, SMALL], requests([1.0, 3.0, 12.0], 0.2))
    known = ocr_pipeline()
    slower = with_served_latencies(known, SMALL, [{1: 0.3}, {1: 0.05}])
    table = replay({"profiled": known, "slower": slower}, SimulationParameters(service_noise=0.0), run, [0, 1])
    assert table["time"].tolist() == [0, 10]
    assert table["profiled"].tolist() == pytest.approx([0.15, 0.15])
    assert table["slower"].tolist() == pytest.approx([0.35, 0.35])
    assert table["measured"].tolist() == pytest.approx([0.2, 0.2])
    with pytest.raises(ValueError, match="no measurements to compare with"):
        replay({"profiled": known}, SimulationParameters(), run_of([SMALL]), [0])


def test_an_interval_without_answers_has_no_latency():
    run = run_of([SMALL, SMALL, SMALL], requests([1.0, 19.9], 0.2))
    table = replay({"profiled": ocr_pipeline()}, SimulationParameters(service_noise=0.0), run, [0])
    assert table["measured"].isna().tolist() == table["profiled"].isna().tolist() == [False, True, False]
