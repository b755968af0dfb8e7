"""Traffic, sites, and summaries and replays of runs."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from live_runs import LARGE, SMALL, requests, run_of
from small_pipelines import ocr_pipeline

from opd.live.calibration import with_served_latencies
from opd.live.configurations import SchedulePolicy
from opd.live.fidelity import calibrated_in, replay
from opd.live.load import arrival_times
from opd.live.run_log import collected_warnings
from opd.live.runs import LiveSite, count_changes, live_timeline, run_simulated, summarise_run
from opd.live.traffic import Traffic
from opd.measurement import Calibration, SimulationParameters, Span, unmeasured
from opd.objective import Weights

# Traffic and decisions


def test_a_schedule_holds_every_configuration_equally_long_and_then_the_last():
    run = run_of([SMALL, LARGE])
    assert [step.configuration for step in run.steps] == [SMALL, LARGE]
    policy = SchedulePolicy([SMALL, LARGE], 5)
    observed = [policy.decide(type("Seen", (), {"configuration": LARGE})) for _ in range(8)]
    assert observed == [SMALL] * 3 + [LARGE] * 5


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (dict(backend="cloud"), "backend 'cloud' is not one of simulated, local, emulated, kubernetes"),
        (dict(backend="kubernetes", gateway_address="127.0.0.1:1"), "needs cluster_settings and gateway_address"),
    ],
)
def test_an_impossible_site_is_refused(tmp_path, site, message):
    with pytest.raises(ValueError, match=message):
        LiveSite(folder=tmp_path, **site)


def test_a_simulated_run_meets_requests_at_the_times_at_which_they_are_sent():
    """The second of two waits for the first: stages take 0.1 s and 0.05 s, and they arrive ``gap`` apart."""
    counts = np.zeros(20, dtype=int)
    counts[12] = 2
    gaps = ((seed, float(np.diff(arrival_times(counts, seed))[0])) for seed in range(100))
    seed, gap = next((seed, gap) for seed, gap in gaps if 0.02 < gap < 0.08)
    traffic, quiet = Traffic(counts, 10, None, seed), SimulationParameters(service_noise=0.0)
    still = SchedulePolicy([SMALL], 1)
    run = run_simulated(ocr_pipeline(), quiet, SMALL, still, lambda history: 4.0, Weights(), traffic)
    (step,) = run.steps
    assert step.interval.offered[0] == 2
    assert step.interval.latencies[0, :2] == pytest.approx([0.15, 0.25 - gap])


# Summaries


def test_reconfigurations_are_counted_by_kind():
    one_more = (LARGE[0]._replace(replicas=1), LARGE[1])
    counted = count_changes(run_of([SMALL, LARGE, LARGE, one_more]))
    assert counted == {"reconfigurations": 2, "variant": 1, "replicas": 2, "batch_size": 1}


def test_a_summary_counts_requests_and_skips_intervals_without_measurements():
    run = run_of([SMALL, SMALL], requests([0.5, 11.0], 0.3))
    unmeasured_score = run.steps[1].score._replace(
        **{name: np.full(1, np.nan) for name in ("reward", "qos", "within", "cost", "accuracy")}
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
    table = live_timeline(ocr_pipeline(), run_of([SMALL, LARGE]))
    assert table["recognition.variant"].tolist() == ["tiny", "large"]
    assert table["detection.replicas"].tolist() == [1, 2] and table["detection.batch_size"].tolist() == [1, 2]
    assert table["load"].tolist() == [4.0, 4.0]


def with_spans(run, *spans):
    """The run, with measured intervals at these seconds since the first decision."""
    steps = [
        replace(step, span=Span(*(run.begin + np.array(span)))) for step, span in zip(run.steps, spans, strict=True)
    ]
    return run._replace(steps=steps)


def test_times_and_rates_of_a_live_run_are_real():
    """A change of 3 s shortens the first interval; the second is 2 s longer than the load, of which there are 20 s."""
    run = with_spans(run_of([SMALL, LARGE], requests([0.5], 0.3)), (3, 10), (14, 22))
    table = live_timeline(ocr_pipeline(), run)
    assert table["time"].tolist() == [3.0, 14.0]
    assert table["seconds"].tolist() == [7.0, 8.0] and table["seconds_under_load"].tolist() == [7.0, 6.0]
    assert table["load"].tolist() == pytest.approx([40 / 7, 40 / 8])


def test_mean_scores_are_weighted_by_the_time_under_load():
    run = with_spans(run_of([SMALL, LARGE, SMALL], requests([0.5], 0.3)), (0, 5), (5, 20), (20, 40))
    small, large, _ = (float(step.score.cost[0]) for step in run.steps)
    summary = summarise_run(run)
    assert small != large and summary["cost"] == pytest.approx((5 * small + 15 * large) / 20)
    assert summary["seconds_under_load"] == 20.0
    assert summarise_run(with_spans(run, (30, 31), (31, 32), (32, 33)))["cost"] is None


def test_warnings_during_a_run_are_shown_and_kept(capsys):
    with collected_warnings() as found:
        logging.getLogger("opd.serving.local_stage").warning("replica %s died", "first-1")
        logging.getLogger("elsewhere").warning("not ours")
    logging.getLogger("opd").warning("too late")
    assert found == ["replica first-1 died"]
    assert "replica first-1 died" in capsys.readouterr().err


# Replay


def test_a_replay_simulates_the_recorded_arrivals():
    # The arrivals are too far apart to queue: latency is the service time of both stages, 0.1 s + 0.05 s.
    run = run_of([SMALL, SMALL], requests([1.0, 3.0, 12.0], 0.2))
    known = ocr_pipeline()
    slower = with_served_latencies(known, SMALL, [{1: 0.3}, {1: 0.05}])
    table = replay({"profiled": known, "slower": slower}, SimulationParameters(service_noise=0.0), run, [0, 1])
    assert table["time"].tolist() == [0, 10] and table["seconds"].tolist() == [10, 10]
    assert table["profiled"].tolist() == pytest.approx([0.15, 0.15])
    assert table["slower"].tolist() == pytest.approx([0.35, 0.35])
    assert table["measured"].tolist() == pytest.approx([0.2, 0.2])
    with pytest.raises(ValueError, match="no measurements to compare with"):
        replay({"profiled": known}, SimulationParameters(), run_of([SMALL]), [0])


def test_a_run_shows_the_latencies_of_its_device():
    known, run = ocr_pipeline(), run_of([SMALL])
    assert calibrated_in(known, run) is known
    shape = known.tables.cores.shape
    found = Calibration(np.full(shape, 1.5), np.zeros(shape), np.zeros(shape), 1.5)
    last = replace(run.steps[-1], observation=replace(run.steps[-1].observation, calibration=found))
    blind = replace(last, observation=None)
    slower = calibrated_in(known, run._replace(steps=[*run.steps, last, blind]))
    assert slower.tables.service_time[0, 0, 1] == pytest.approx(1.5 * 0.1, rel=0.01)
    assert calibrated_in(known, run._replace(steps=[blind])) is known


def test_a_replay_changes_and_measures_when_the_live_run_did():
    """The change to larger variants took from 10 s to 14 s; what was answered meanwhile counts in no interval."""
    run = run_of([SMALL, LARGE], requests([1.0, 11.0, 16.0], 0.2))
    run = with_spans(run, (0, 10), (14, 20))
    table = replay({"profiled": ocr_pipeline()}, SimulationParameters(service_noise=0.0, batch_timeout=0.0), run, [0])
    assert table["measured"].tolist() == pytest.approx([0.2, 0.2])
    large = sum(variant.service_time(1) for variant, _ in ocr_pipeline().selected(LARGE))
    assert table["profiled"].tolist() == pytest.approx([0.15, large])


def test_an_interval_without_answers_has_no_latency():
    run = run_of([SMALL, SMALL, SMALL], requests([1.0, 19.9], 0.2))
    table = replay({"profiled": ocr_pipeline()}, SimulationParameters(service_noise=0.0), run, [0])
    assert table["measured"].isna().tolist() == table["profiled"].isna().tolist() == [False, True, False]
