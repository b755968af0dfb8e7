"""Sources of metrics: a running Prometheus, one of our own, and the embedded scraper."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
from deadlines import PATIENCE, eventually
from full_disk import full_disk
from process_family import ended, family
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from opd.serving import supervisor
from opd.serving.monitoring import scraper as scraping
from opd.serving.monitoring.prometheus import PROMETHEUS_URL_VARIABLE, PrometheusServer, PrometheusUrl, open_monitor
from opd.serving.monitoring.scraper import Scraper
from opd.serving.monitoring.source import MonitoringError, NoDataError
from opd.serving.monitoring.statistics import increase
from opd.serving.processes import hold_port, responds

without_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="no prometheus on the path: install Debian's package of that name"
)


def needs_prometheus(test):
    return pytest.mark.processes(without_prometheus(test))


class Target:
    """A process's metrics as it would serve them."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.requests = Counter("opd_requests", "requests", ["pipeline"], registry=registry)
        self.latency = Histogram("opd_latency_seconds", "seconds", buckets=(1, 2, float("inf")), registry=registry)
        self.broken = Gauge("opd_broken", "no number", registry=registry)
        self.broken.set(float("nan"))
        Counter("other", "not ours", registry=registry)
        self.requests.labels('a "quoted" one').inc(3)
        self._server, self._thread = start_http_server(0, "127.0.0.1", registry)
        self.address = f"127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)


@pytest.fixture(scope="module")
def targets():
    both = Target(), Target()
    yield both
    for target in both:
        target.close()


@pytest.fixture(scope="module")
def scraper(targets):
    opened = Scraper()
    opened.set_targets({"gateway": targets[0].address})
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def prometheus(targets, tmp_path_factory):
    opened = PrometheusServer(tmp_path_factory.mktemp("prometheus"))
    opened.set_targets({"gateway": targets[0].address})
    yield opened
    opened.close()


MONITORS = ["scraper", pytest.param("prometheus", marks=[pytest.mark.processes, without_prometheus])]


@pytest.fixture(params=MONITORS)
def monitor(request):
    return request.getfixturevalue(request.param)


def scrapes(monitor, metric, count=1, seconds=60.0, **labels):
    """The only series of ``metric`` once it has ``count`` samples."""

    def enough():
        try:
            found = monitor.samples(metric, seconds, **labels)
        except NoDataError:
            return None
        return found if found and len(found[0].times) >= count else None

    (series,) = eventually(enough)
    return series


# Samples


def test_samples_have_the_names_labels_and_times_of_their_scrapes(monitor, targets):
    series = scrapes(monitor, "opd_requests_total", 3, pipeline='a "quoted" one')
    assert series.labels["instance"] == "gateway" and series.labels["pipeline"] == 'a "quoted" one'
    assert (series.values >= 3).all() and (np.diff(series.values) >= 0).all()
    assert (np.diff(series.times) > 0).all() and abs(series.times[-1] - time.time()) < 5.0
    assert monitor.samples("opd_requests_total", 60.0, pipeline="another") == []
    assert monitor.samples("opd_unheard_of", 60.0) == []
    up = scrapes(monitor, "up", 3)
    assert up.labels["instance"] == "gateway" and (up.values == 1).all()
    assert set(series.times) <= set(up.times) | {series.times[-1]}, "a scrape and its samples share one time"
    assert np.isnan(scrapes(monitor, "opd_broken").values).all()


def test_histograms_have_buckets_sum_and_count(monitor, targets):
    bounds = {
        float(series.labels["le"]) for series in eventually(lambda: monitor.samples("opd_latency_seconds_bucket", 9.0))
    }
    assert bounds == {1.0, 2.0, np.inf}
    scrapes(monitor, "opd_latency_seconds_sum")
    scrapes(monitor, "opd_latency_seconds_count")


@needs_prometheus
def test_both_count_the_same_increase(scraper, prometheus, targets):
    counter = targets[0].requests.labels('a "quoted" one')
    for monitor in (scraper, prometheus):
        scrapes(monitor, "opd_requests_total")
    begin = time.time()
    before = counter._value.get()
    for _ in range(12):
        counter.inc(2)
        time.sleep(0.1)
    end = time.time()
    sent = counter._value.get() - before
    for monitor in (scraper, prometheus):
        eventually(lambda monitor=monitor: monitor.samples("up", 60.0)[0].times[-1] > end + 0.5)
        (series,) = monitor.samples("opd_requests_total", 60.0)
        # The load was even, but interpolation at either end may be off by what a part of a second brings.
        assert increase(series, begin - 1.0, end + 1.0) == pytest.approx(sent, abs=10)
        assert series.values[-1] == before + sent


# Targets and servers that come and go


def test_targets_come_go_and_fail(monitor, targets):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        silent = f"127.0.0.1:{unused.getsockname()[1]}"
        monitor.set_targets({"queue": targets[1].address, "silent": silent})
        assert scrapes(monitor, "opd_requests_total", instance="queue").values[0] == 3
        assert scrapes(monitor, "up", instance="silent").values[-1] == 0
    eventually(lambda: not monitor.samples("up", 2.0, instance="gateway"))
    assert monitor.samples("opd_requests_total", 60.0, instance="silent") == []


@needs_prometheus
def test_a_killed_prometheus_is_reported_and_restarted(prometheus, targets):
    prometheus.set_targets({"queue": targets[1].address})
    known = scrapes(prometheus, "up", instance="queue")
    (child,) = psutil.Process(prometheus._process.pid).children()
    child.kill()
    with pytest.raises(MonitoringError, match="own Prometheus server.* has died: .*the next call restarts it"):
        eventually(lambda: prometheus.samples("up", 60.0) is None)
    kept = prometheus.samples("up", 60.0, instance="queue")
    assert kept[0].times[0] <= known.times[-1], "its stored samples are still there"
    (again,) = psutil.Process(prometheus._process.pid).children()
    assert again.pid != child.pid
    eventually(lambda: prometheus.samples("up", 60.0, instance="queue")[0].times[-1] > kept[0].times[-1])


@pytest.fixture
def foreign(tmp_path, request):
    """URL of a Prometheus that somebody else has configured to read the targets of two runs in ``tmp_path``."""
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(
        "scrape_configs:\n- job_name: pipelines\n  scrape_interval: 1s\n"
        f"  file_sd_configs: [{{files: [{tmp_path}/ours/targets.json, {tmp_path}/other/targets.json], "
        "refresh_interval: 1s}]\n"
    )
    options = [f"--config.file={configuration}", f"--storage.tsdb.path={tmp_path / 'storage'}"]
    address = f"127.0.0.1:{hold_port(request)}"
    process = supervisor.start(["prometheus", *options, f"--web.listen-address={address}", "--log.level=warn"])
    try:
        eventually(lambda: responds(f"http://{address}/-/ready"))
        yield f"http://{address}"
    finally:
        supervisor.stop(process, 5.0)


@needs_prometheus
def test_each_run_reads_only_its_own_targets_from_a_server_named_by_its_url(foreign, targets, monkeypatch, tmp_path):
    monkeypatch.setenv(PROMETHEUS_URL_VARIABLE, foreign + "/")
    ours, other = open_monitor(tmp_path / "ours"), open_monitor(tmp_path / "other")
    assert ours.description == f"Prometheus server at {foreign}"
    ours.set_targets({"gateway": targets[0].address})
    other.set_targets({"gateway": targets[0].address, "queue": targets[1].address})
    assert scrapes(ours, "opd_requests_total", 2, pipeline='a "quoted" one').labels["instance"] == "gateway"
    scrapes(other, "up", instance="queue")
    assert len(other.samples("up", 60.0)) == 2
    assert len(ours.samples("up", 60.0)) == 1
    assert ours.samples("opd_unheard_of", 60.0) == []
    with pytest.raises(MonitoringError, match="refuses the query"):
        ours.samples("no name", 1.0)
    ours.close()
    other.close()
    assert json.loads((tmp_path / "ours" / "targets.json").read_text()) == []


@needs_prometheus
def test_the_error_for_a_server_that_does_not_read_our_targets_shows_how_to_configure_it(prometheus, targets, tmp_path):
    prometheus.set_targets({"gateway": targets[0].address})
    scrapes(prometheus, "up", instance="gateway")
    opened = open_monitor(tmp_path, prometheus.url)
    opened.set_targets({"gateway": targets[0].address})
    with pytest.raises(
        NoDataError, match=rf"file_sd_configs: \[{{files: \[{tmp_path}/targets.json\], refresh_interval: 1s}}\]"
    ):
        opened.samples("up", 5.0)
    opened.close()


@needs_prometheus
def test_only_series_with_our_labels_are_read_from_a_server_that_others_use(prometheus, targets):
    prometheus.set_targets({"queue": targets[0].address, "other": targets[1].address})
    scrapes(prometheus, "up", instance="queue")
    scrapes(prometheus, "up", instance="other")
    ours = PrometheusUrl(prometheus.url, labels={"instance": "queue"})
    assert [series.labels["instance"] for series in ours.samples("up", 60.0)] == ["queue"]
    ours.close()


# Errors


def test_the_error_for_a_url_where_nothing_listens_names_the_remedy(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(
            MonitoringError, match=f"{url} cannot be read.*check that it runs.*{PROMETHEUS_URL_VARIABLE}"
        ):
            open_monitor(tmp_path, url)


def test_a_url_of_something_else_is_an_error(targets, tmp_path):
    with pytest.raises(MonitoringError, match="cannot be read"):
        open_monitor(tmp_path, f"http://{targets[0].address}")


SERVER = """#!{python}
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Empty(BaseHTTPRequestHandler):
    def do_GET(self):
        text = b'{{"status": "success", "data": {{"resultType": "matrix", "result": []}}}}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
address = next(each for each in sys.argv if each.startswith("--web.listen-address=")).partition("=")[2]
HTTPServer(("127.0.0.1", int(address.partition(":")[2])), Empty).serve_forever()
"""
"""A program that answers like a Prometheus without samples."""


@pytest.mark.processes
def test_a_server_that_ends_on_a_full_disk_is_an_error_until_there_is_room(tmp_path, caplog):
    program = tmp_path / "prometheus"
    program.write_text(SERVER.format(python=sys.executable))
    program.chmod(0o755)
    opened = PrometheusServer(tmp_path / "monitor", str(program))
    assert opened.samples("up", 1.0) == []
    with full_disk():
        psutil.Process(opened._process.pid).children()[0].kill()
        with pytest.raises(MonitoringError, match="has died"):
            eventually(lambda: opened.samples("up", 1.0) is None)
        with pytest.raises(MonitoringError, match=rf"did not start: .*too large.*its folder is {tmp_path}/monitor"):
            opened.samples("up", 1.0)
    assert opened.samples("up", 1.0) == []
    with full_disk():
        opened.close()
    assert "keeps its targets" in caplog.text and opened._process is None


@pytest.mark.processes
def test_the_error_for_a_program_that_does_not_serve_contains_its_output(tmp_path):
    with pytest.raises(MonitoringError, match="did not start.*cannot run no-such-program"):
        PrometheusServer(tmp_path, "no-such-program")


def test_without_prometheus_the_scraper_is_used(tmp_path, monkeypatch):
    monkeypatch.delenv(PROMETHEUS_URL_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    opened = open_monitor(tmp_path)
    assert isinstance(opened, Scraper) and "embedded scraper" in opened.description
    opened.close()
    with pytest.raises(MonitoringError, match="closed"):
        opened.samples("up", 1.0)


def test_the_scraper_forgets_what_is_old(targets, monkeypatch):
    monkeypatch.setattr(scraping, "KEEP_SECONDS", 0.5)
    opened = Scraper()
    opened.set_targets({"gateway": targets[0].address})
    scrapes(opened, "up")
    opened.set_targets({})
    eventually(lambda: not opened.samples("up", 60.0))
    opened.close()


@pytest.mark.parametrize("hours", [-1.0, 1.0])
def test_times_ascend_up_to_the_present_also_when_the_clock_is_set(targets, monkeypatch, hours):
    opened = Scraper()
    opened.set_targets({"gateway": targets[0].address})
    scrapes(opened, "up", 2)
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 3600.0 * hours)
    for metric in ("up", "opd_requests_total"):
        times = scrapes(opened, metric, 2).times
        assert (np.diff(times) > 0.0).all() and time.time() - 60.0 <= times[0] and times[-1] <= time.time()
    opened.close()


def test_a_target_that_hangs_delays_only_itself(targets):
    opened = Scraper()
    with socket.socket() as hanging:
        hanging.bind(("127.0.0.1", 0))
        hanging.listen()
        opened.set_targets({"hanging": f"127.0.0.1:{hanging.getsockname()[1]}", "gateway": targets[0].address})
        assert (scrapes(opened, "up", 3, instance="gateway").values == 1).all()
        assert (scrapes(opened, "up", 1, instance="hanging").values == 0).all()
        opened.close()


# Processes


@needs_prometheus
def test_nothing_is_left_when_the_parent_is_killed(tmp_path):
    code = (
        "import pathlib, sys, time; from opd.serving.monitoring.prometheus import PrometheusServer; "
        "server = PrometheusServer(pathlib.Path(sys.argv[1])); print('started', flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "started\n"
    everyone = family(parent.pid)
    assert [process.name() for process in everyone][-1] == "prometheus"
    parent.kill()
    parent.wait(PATIENCE)
    parent.stdout.close()
    eventually(lambda: all(ended(process) for process in everyone))


@needs_prometheus
def test_closing_ends_the_server(tmp_path):
    opened = PrometheusServer(tmp_path)
    everyone = family(opened._process.pid)
    assert len(everyone) == 2
    opened.close()
    opened.close()
    assert all(ended(process) for process in everyone)


@pytest.fixture
def interruptible():
    """Ctrl-C as in a program of its own: workers that share out the tests ignore it."""
    ignoring = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, ignoring)


@pytest.mark.processes
def test_an_interrupted_start_leaves_nothing_behind(tmp_path, interruptible, no_new_processes):
    program = tmp_path / "slow-prometheus"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    interrupt = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        PrometheusServer(tmp_path / "monitor", str(program))
