"""Telemetry from samples that were written down beforehand: history, queues and intervals."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sampled import series
from small_pipelines import ocr_pipeline

from opd.control.loop import NoRequestsError, ObservationError
from opd.measurement import unmeasured
from opd.pipeline import StageConfiguration
from opd.serving import telemetry
from opd.serving.monitoring.source import MonitoringError, NoDataError, Series
from opd.serving.telemetry import Telemetry, TelemetryBackend


class Given:
    """A monitor of samples written down beforehand: lists of series by metric."""

    description = "samples of the test"

    def __init__(self, **samples):
        self.known = samples

    def set_targets(self, targets):
        raise AssertionError("telemetry has no say in what is scraped")

    def samples(self, metric, seconds, **labels):
        oldest = time.time() - seconds
        return [
            Series(each.labels, each.times[each.times >= oldest], each.values[each.times >= oldest])
            for each in self.known.get(metric, [])
            if labels.items() <= each.labels.items()
        ]

    def close(self):
        pass


# History


def requests(times, values, **labels):
    return series(times, values, pipeline="ocr", instance="gateway", **labels)


def observed_history(now, counter, **samples):
    monitor = Given(opd_requests_total=counter, **samples)
    return Telemetry(monitor, ocr_pipeline()).history(now)


def test_the_history_is_the_counts_between_scrapes_newest_last():
    now = time.time()
    times = now - 0.7 - np.arange(4, -1, -1)
    history = observed_history(now, [requests(times, [100, 103, 103, 110, 111])])
    np.testing.assert_allclose(history, [3, 0, 7, 1], atol=1e-6)


def test_the_history_spans_two_minutes_at_most():
    now = time.time()
    times = now - 0.3 - np.arange(200, -1, -1)
    rate = np.arange(201) % 7
    history = observed_history(now, [requests(times, np.cumsum(rate))])
    np.testing.assert_allclose(history, rate[-120:], atol=1e-5)


def test_the_history_covers_a_missed_scrape_a_restart_and_nan():
    now = time.time()
    times = now - np.array([6, 5, 3, 2, 1, 0.0])
    history = observed_history(now, [requests(times, [10, 12, 20, np.nan, 3, 4])])
    np.testing.assert_allclose(history, [2, 4, 4, 1.5, 1.5, 1], atol=1e-6)


def test_the_history_counts_no_requests_before_the_first():
    now = time.time()
    times = now - np.arange(5, -1, -1.0)
    up = series(times, np.ones(6), instance="gateway")
    np.testing.assert_allclose(
        observed_history(now, [requests(times[3:], [4, 6, 6])], up=[up]), [0, 0, 4, 2, 0], atol=1e-6
    )


def test_a_single_sample_makes_no_history():
    now = time.time()
    assert observed_history(now, [requests([now - 0.5], [1000])]).shape == (0,)


def test_missing_samples_do_not_mean_zero_load():
    with pytest.raises(NoDataError, match="opd_requests_total of pipeline 'ocr' has no samples.*does not mean"):
        observed_history(time.time(), [])
    assert issubclass(NoDataError, MonitoringError)


def test_the_history_of_a_run_starts_with_its_first_request():
    now = time.time()
    times = now - 0.5 - np.arange(60, -1, -1)
    rate = np.concatenate([np.full(30, 50), np.zeros(10), [2, 3, 0, 4], np.full(17, 5)])
    reader = Telemetry(Given(opd_requests_total=[requests(times, np.cumsum(rate))]), ocr_pipeline())
    np.testing.assert_allclose(reader.history(now, now - 28), [2, 3, 0, 4, *[5] * 17], atol=1e-6)
    idle = Telemetry(Given(opd_requests_total=[requests(times, np.full(61, 7))]), ocr_pipeline())
    assert idle.history(now, now - 28).tolist() == [0] * 27


def test_old_samples_do_not_mean_zero_load():
    now = time.time()
    times = now - 6 - np.arange(5, -1, -1.0)
    with pytest.raises(NoDataError, match=r"6\.0 s ago \(limit 5 s\)"):
        observed_history(now, [requests(times, np.arange(6))])
    with pytest.raises(NoDataError, match="has no samples"):
        observed_history(now, [requests([now], [np.nan])])


# Intervals


def ramp(times, begin, per_second, **labels):
    """A counter that rises steadily from ``begin`` on."""
    return series(times, np.clip(times - begin, 0, None) * per_second, pipeline="ocr", instance="x", **labels)


def scraped(end):
    """Samples of every second around the 10 s up to ``end``, at 20 requests/s, with round figures."""
    begin = end - 10
    times = begin - 3.4 + np.arange(15)
    constant = np.ones(len(times))

    def gauge(value, **labels):
        return series(times, value * constant, pipeline="ocr", instance="x", **labels)

    def steady(rate, **labels):
        return ramp(times, begin - 3.4, rate, **labels)

    # The small detector gives way to two replicas of the large one at the sample 6.6 s after the beginning.
    changed = times >= begin + 6.5
    return Given(
        up=[series(times, constant, instance="x")],
        opd_requests_total=[steady(20)],
        opd_answers_total=[
            *(steady(15, outcome="completed"), steady(2, outcome="rejected"), steady(1, outcome="failed")),
            # A label that appears in the middle, five seconds before the end, one second after the last scrape.
            ramp(times, end - 4.4, 1, outcome="dropped"),
        ],
        opd_answers_within_objective_total=[steady(12)],
        opd_latency_seconds_sum=[steady(6)],
        opd_latency_seconds_count=[steady(15)],
        opd_latency_seconds_bucket=[steady(12, le="0.5"), steady(15, le="1.0"), steady(15, le="+Inf")],
        opd_stage_latency_seconds_sum=[steady(4, task="detection")],
        opd_stage_latency_seconds_count=[steady(16, task="detection")],
        opd_stage_service_seconds_sum=[
            steady(0.5, task="detection", variant="small"),
            ramp(times, end - 4.4, 0.25, task="detection", variant="large"),
            steady(3, task="detection", variant="removed"),
        ],
        opd_stage_batches_total=[
            steady(4, task="detection", variant="small", size="1"),
            steady(2, task="detection", variant="small", size="2"),
            ramp(times, end - 4.4, 1, task="detection", variant="large", size="2"),
            steady(7, task="detection", variant="large", size="64"),
        ],
        opd_stage_queue_length=[
            series(times, np.arange(15), pipeline="ocr", instance="x", task="detection"),
            gauge(2, task="recognition"),
        ],
        opd_stage_replicas=[
            series(times, ~changed, pipeline="ocr", instance="x", task="detection", variant="small"),
            series(times[changed], 2 * constant[changed], pipeline="ocr", task="detection", variant="large"),
            gauge(3, task="recognition", variant="tiny"),
        ],
    )


CONFIGURATION = (StageConfiguration(1, 2, 2), StageConfiguration(0, 3, 1))


def test_an_interval_contains_all_measurements():
    end = time.time() - 1.0
    measured = Telemetry(scraped(end), ocr_pipeline()).interval(end - 10, end, CONFIGURATION)
    assert measured.offered == pytest.approx([200])
    assert measured.completed == pytest.approx([150])
    assert measured.within == pytest.approx([120])
    assert measured.dropped == pytest.approx([20 + 10 + 4.4])
    assert measured.failed == measured.dropped
    assert measured.latency_mean == pytest.approx([0.4])
    assert measured.latency_p99 == pytest.approx([0.5 + 0.5 * (14.85 - 12) / 3])
    # Recognition has measured nothing: one request takes its tiny variant 50 ms.
    assert measured.task_latency == pytest.approx(np.array([[0.25, 0.05]]))
    # One small detector carries 2 / 0.16 requests/s for 6.6 s, two large ones 2 * 2 / 0.4 for the rest.
    detection = 0.66 * 12.5 + 0.34 * 10.0
    assert measured.ready_throughput == pytest.approx(np.array([[detection, 3 / 0.05]]), rel=1e-4)
    assert measured.queue == pytest.approx(np.array([[13, 2]]))
    assert measured.latencies.shape == (1, 0)


def test_an_interval_tells_the_calls_of_each_variant_apart():
    end = time.time() - 1.0
    measured = Telemetry(scraped(end), ocr_pipeline()).interval(end - 10, end, CONFIGURATION)
    small, large = 0, 1
    assert measured.busy[0, 0, [small, large]] == pytest.approx([5.0, 1.1])
    assert measured.batches[0, 0, small, 1:3] == pytest.approx([40, 20])
    # Batches beyond the pipeline's limit and variants it does not have are left out.
    assert measured.batches[0, 0, large].sum() == measured.batches[0, 0, large, 2] == pytest.approx(4.4)
    assert measured.busy[0].sum() == pytest.approx(6.1)


def test_an_interval_without_completions_has_no_latency():
    end = time.time() - 1.0
    monitor = scraped(end)
    for name in list(monitor.known):
        if name.startswith(("opd_latency", "opd_answers")):
            del monitor.known[name]
    measured = Telemetry(monitor, ocr_pipeline()).interval(end - 10, end, CONFIGURATION)
    assert (measured.completed, measured.latency_mean, measured.latency_p99) == ([0], [0], [0])
    assert (measured.within, measured.failed) == ([0], [0])
    assert measured.offered == pytest.approx([200])


def test_an_interval_waits_for_a_scrape_of_its_end_for_a_limited_time(monkeypatch):
    monkeypatch.setattr(telemetry, "SCRAPE_WAIT_SECONDS", 0.5)
    end = time.time()
    monitor = scraped(end)
    late = monitor.known["opd_requests_total"][0]
    monitor.known["opd_requests_total"] = [Series(late.labels, late.times[:-2], late.values[:-2])]
    asked, samples = [], monitor.samples

    def with_a_scrape_after_a_while(metric, seconds, **labels):
        asked.append(metric)
        if asked.count("opd_requests_total") == 3:
            monitor.known["opd_requests_total"] = [late]
        return samples(metric, seconds, **labels)

    reader = Telemetry(monitor, ocr_pipeline())
    begin = time.monotonic()
    short = reader.interval(end - 10, end, CONFIGURATION)
    assert time.monotonic() - begin >= 0.5
    assert 160 < short.offered[0] < 199
    monkeypatch.setattr(telemetry, "SCRAPE_WAIT_SECONDS", 60.0)
    monkeypatch.setattr(monitor, "samples", with_a_scrape_after_a_while)
    assert reader.interval(end - 10, end, CONFIGURATION).offered == pytest.approx([200])


def test_a_run_sees_no_measurements_of_the_previous_one():
    # The last two samples are yet to come when the run begins.
    backend = TelemetryBackend(ocr_pipeline(), CONFIGURATION, scraped(time.time() + 1.0), 0.5)
    expected = backend.observe()
    backend.wait()
    measured = backend.observe()
    assert measured.task_latency == pytest.approx([0.25, 0.05]) and len(measured.history) > 10
    assert len(expected.utilisation) == 0 and measured.utilisation[0] > 0.0 == measured.utilisation[1]
    backend.begin_run()
    first = backend.observe()
    assert first.history == pytest.approx([20])
    np.testing.assert_array_equal(first.task_latency, expected.task_latency)
    np.testing.assert_array_equal(first.ready_throughput, expected.ready_throughput)
    assert len(first.utilisation) == 0


def scraped_requests(counts):
    """Samples around the present, where these are the requests that had been counted, a scrape a second, until now."""
    now = time.time()
    monitor = scraped(now)
    times = now - np.arange(len(counts) - 1, -1, -1.0)
    monitor.known["opd_requests_total"] = [requests(times, np.asarray(counts, dtype=float))]
    return monitor


def backend_of_a_run(monitor, seconds_ago):
    """A backend with a run that began so many seconds ago."""
    backend = TelemetryBackend(ocr_pipeline(), CONFIGURATION, monitor, 10.0)
    backend.begin_run()
    backend._begin -= seconds_ago
    return backend


@pytest.mark.parametrize("seconds_ago", [0.0, 0.5, 3.5, 300.0])
def test_a_run_that_waits_for_its_first_request_is_no_failure(seconds_ago):
    with pytest.raises(NoRequestsError):
        backend_of_a_run(scraped_requests([7] * 130), seconds_ago).observe()


def test_an_outage_before_the_first_request_is_a_failure():
    for monitor in (scraped_requests([]), scraped_requests([np.nan] * 9)):
        with pytest.raises(ObservationError, match="has no samples.*does not mean that the load is zero") as error:
            backend_of_a_run(monitor, 3.5).observe()
        assert error.type is ObservationError


def test_a_run_is_observed_from_its_first_request_on_also_when_no_more_come():
    backend = backend_of_a_run(scraped_requests([7] * 9), 4.5)
    with pytest.raises(NoRequestsError):
        backend.observe()
    backend.monitor.known |= scraped_requests([7] * 6 + [9, 9, 10]).known
    assert backend.observe().history == pytest.approx([2, 0, 1], abs=1e-3)
    backend.monitor.known |= scraped_requests([10] * 9).known
    assert backend.observe().history == pytest.approx([0] * 4, abs=1e-3)


@pytest.mark.parametrize("hours", [-1.0, 1.0])
def test_a_run_is_observed_as_before_when_the_clock_is_set(monkeypatch, hours):
    backend, clock = backend_of_a_run(scraped_requests([7] * 9), 4.5), time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 3600.0 * hours)
    backend.monitor.known |= scraped_requests([7] * 6 + [9, 9, 10]).known
    assert backend.observe().history == pytest.approx([2, 0, 1], abs=1e-3)


class Clock:
    """Stands still but for waits and what a test adds; doubles as the backend's event of closing."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    def time(self):
        return 1000.0 + self.now

    def wait(self, seconds):
        self.now += max(seconds, 0.0)
        return False


@pytest.fixture
def paced(monkeypatch):
    """A backend with intervals of 10 s whose clock and measurements are those of the test."""
    clock = Clock()
    monkeypatch.setattr(telemetry, "time", clock)
    backend = TelemetryBackend(ocr_pipeline(), CONFIGURATION, Given(), 10.0)
    backend._closing = clock
    monkeypatch.setattr(backend._telemetry, "interval", lambda *_: unmeasured(ocr_pipeline()))
    backend._tick = 100.0
    return clock, backend


def spans(clock, backend, *changes):
    """Relative begin and end of intervals, each after a change of so many seconds, or after none."""
    found = []
    for seconds in changes:
        if seconds:
            clock.now += seconds
            backend.note_change()
        span, _ = backend.wait()
        found.append((span.begin - 1100.0, span.end - 1100.0))
    return found


def test_intervals_without_changes_are_adjacent(paced):
    assert spans(*paced, 0, 0, 0) == [(0, 10), (10, 20), (20, 30)]


def test_an_interval_is_measured_from_the_end_of_the_change_and_decisions_keep_their_pace(paced):
    assert spans(*paced, 3, 0, 5) == [(3, 10), (10, 20), (25, 30)]


def test_after_a_long_change_half_an_interval_is_measured(paced):
    assert spans(*paced, 8, 0, 45, 0) == [(8, 13), (13, 23), (68, 73), (73, 83)]


def test_a_long_decision_without_a_change_is_measured_as_long_as_it_took(paced):
    clock, backend = paced
    clock.now += 45.0
    assert spans(clock, backend, 0, 0) == [(0, 45), (45, 55)]


@pytest.mark.parametrize("metric", ["opd_stage_replicas", "opd_stage_queue_length"])
def test_the_error_for_a_task_that_is_not_monitored_names_it(metric):
    end = time.time() - 1.0
    monitor = scraped(end)
    monitor.known[metric] = [each for each in monitor.known[metric] if each.labels["task"] == "detection"]
    with pytest.raises(NoDataError, match=f"{metric} of task 'recognition' has no samples"):
        Telemetry(monitor, ocr_pipeline()).interval(end - 10, end, CONFIGURATION)


def test_replicas_of_a_removed_variant_count_as_zero_throughput():
    """A queue goes on to show a variant that was taken out of the pipeline; nothing says how fast it was."""
    end = time.time() - 1.0
    monitor = scraped(end)
    before = Telemetry(monitor, ocr_pipeline()).interval(end - 10, end, CONFIGURATION)
    former = monitor.known["opd_stage_replicas"][0]
    monitor.known["opd_stage_replicas"].append(
        Series({**former.labels, "variant": "huge"}, former.times, former.values)
    )
    after = Telemetry(monitor, ocr_pipeline()).interval(end - 10, end, CONFIGURATION)
    assert (after.ready_throughput == before.ready_throughput).all() and before.ready_throughput.all()


def test_the_queue_is_the_newest_sample_of_each_task():
    now = time.time()
    lengths = [
        series(now - np.array([2.0, 1.0]), [9, 4], pipeline="ocr", task="recognition"),
        series(now - np.array([2.0, 1.0]), [0, 7], pipeline="ocr", task="detection"),
        series(now - np.array([2.0, 1.0]), [0, 99], pipeline="other", task="detection"),
    ]
    reader = Telemetry(Given(opd_stage_queue_length=lengths), ocr_pipeline())
    np.testing.assert_array_equal(reader.queue(now), [7, 4])


def test_waiting_for_the_first_samples_ends_with_them_or_names_what_is_missing():
    reader = Telemetry(Given(), ocr_pipeline())
    with pytest.raises(NoDataError, match="opd_requests_total"):
        reader.wait(0.2)
    monitor = scraped(time.time())
    Telemetry(monitor, ocr_pipeline()).wait(0.2)
    del monitor.known["opd_stage_replicas"]
    with pytest.raises(NoDataError, match="opd_stage_replicas of task 'detection'"):
        Telemetry(monitor, ocr_pipeline()).wait(0.2)
