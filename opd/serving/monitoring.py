"""Raw samples of the live pipeline's metrics, from Prometheus or an embedded scraper, behind one interface.

Each source scrapes every second and keeps what it read with the time of reading, so that the same code makes rates and
quantiles of it wherever it comes from (:mod:`opd.serving.telemetry`). Every sample carries the label ``instance``, the
name of its target, and every scrape, failed or not, is itself a sample of the metric ``up``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import requests
import yaml
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from prometheus_client.parser import text_string_to_metric_families
from urllib3.util.retry import Retry

from opd.serving import supervisor
from opd.serving.processes import direct_session, hold_port, port_of
from opd.waiting import wait_until

URL_VARIABLE = "OPD_PROMETHEUS_URL"
"""Environment variable with the URL of a Prometheus server that runs already."""

SCRAPE_SECONDS = 1.0
SCRAPE_TIMEOUT = 0.9
QUERY_TIMEOUT = 3.0
READY_SECONDS = 30.0
STOP_SECONDS = 5.0
GUARD_SECONDS = 0.5
SEEN_SECONDS = 30.0
"""Without any scrape for this long a server does not know its targets."""

KEEP_SECONDS = 300.0
"""Age at which the embedded scraper forgets a sample."""

PREFIX = "opd_"
"""The embedded scraper keeps metrics whose names begin like this."""

TARGETS = "targets.json"
"""The file with its targets in a monitor's folder."""

RUN = "run"
"""Label that sets the targets of one run apart from those of others on the same server."""

UP = "up"
"""1 for a scrape that was answered, 0 for one that was not."""


class MonitoringError(RuntimeError):
    """What the pipeline does cannot be seen; the message says why and what to do."""


class NoDataError(MonitoringError):
    """The source answers, but has no samples, or none that are recent; this says nothing about the load."""


class Series(NamedTuple):
    """One metric with one set of labels.

    Attributes:
        labels: by name, ``instance`` among them.
        times: (S,) of scraping, Unix seconds, ascending.
        values: (S,) what was read.
    """

    labels: Mapping[str, str]
    times: np.ndarray
    values: np.ndarray


class Monitor(Protocol):
    """A source of samples.

    Attributes:
        description: which one is in use, for people.
    """

    description: str

    def set_targets(self, targets: Mapping[str, str]) -> None:
        """Scrape these from now on.

        Args:
            targets: ``host:port`` of ``/metrics`` by name. Keep the name of a process that takes another's place: its
                counters are then followed across the restart.
        """
        ...

    def samples(self, metric: str, seconds: float, **labels: str) -> list[Series]:
        """What was scraped in the last ``seconds``; empty if nothing was.

        Args:
            metric: name of the sample as exported, with ``_total``, ``_bucket``, ``_sum`` or ``_count``.
            seconds: how far to look back.
            labels: that a series must have.

        Raises:
            MonitoringError: if the source cannot be read.
        """
        ...

    def close(self) -> None:
        """Stop scraping and end what was started."""
        ...


class PrometheusUrl:
    """A Prometheus server that runs already and finds its targets by itself; its clock must agree with ours.

    Args:
        url: for example ``http://prometheus.monitoring:9090``.
        session: for its requests; one that heeds the environment's proxies if not given.
        labels: that our series have and those of others on the same server lack.
    """

    def __init__(
        self, url: str, session: requests.Session | None = None, labels: Mapping[str, str] | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self._labels = dict(labels or {})
        self.description = f"Prometheus server at {self.url}"
        retry = Retry(total=1, backoff_factor=0.1, status_forcelist=(502, 503, 504))
        self._client = PrometheusConnect(self.url, retry=retry, session=session or requests.Session())

    def check(self) -> None:
        """Raise a :class:`MonitoringError` unless it can be reached."""
        self._query("vector(1)")

    def set_targets(self, targets: Mapping[str, str]) -> None:
        """Does nothing: the server is configured elsewhere."""

    def samples(self, metric: str, seconds: float, **labels: str) -> list[Series]:
        """As :meth:`Monitor.samples`."""
        matchers = ",".join(f"{name}={json.dumps(value)}" for name, value in {**self._labels, **labels}.items())
        found = self._query(f"{metric}{{{matchers}}}[{max(round(1000 * seconds), 1)}ms]")
        return [_series(entry) for entry in found]

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _query(self, query: str) -> list[dict]:
        try:
            return self._client.custom_query(query, timeout=QUERY_TIMEOUT)
        except PrometheusApiClientException as error:
            raise MonitoringError(f"{self.description} refuses the query {query}: {error}") from error
        except (requests.RequestException, KeyError, TypeError) as error:
            raise MonitoringError(
                f"{self.description} cannot be read: {error}; check that it runs and that the URL "
                f"(argument or environment variable {URL_VARIABLE}) is that of a Prometheus server"
            ) from error


def _series(entry: Mapping) -> Series:
    times, values = np.array(entry["values"], dtype=float).reshape(-1, 2).T
    labels = {name: value for name, value in entry["metric"].items() if name != "__name__"}
    return Series(labels, times, values)


class PrometheusByFile(PrometheusUrl):
    """A Prometheus server that runs already and reads from a file what it is to scrape.

    Each opening labels its targets with a name of its own and reads only what has it: the same pipeline may be scraped
    by the same server in another run, or in a cluster.

    Args:
        url: for example ``http://localhost:9090``.
        targets: the file, which ``file_sd_configs`` of the server's configuration must name.
    """

    def __init__(self, url: str, targets: Path) -> None:
        super().__init__(url, labels={RUN: uuid.uuid4().hex})
        self._targets = targets.resolve()

    def set_targets(self, targets: Mapping[str, str]) -> None:
        """As :meth:`Monitor.set_targets`."""
        self._targets.parent.mkdir(parents=True, exist_ok=True)
        write_targets(self._targets, targets, self._labels)

    def samples(self, metric: str, seconds: float, **labels: str) -> list[Series]:
        """As :meth:`Monitor.samples`.

        Raises:
            NoDataError: if the server scrapes none of the targets.
        """
        found = super().samples(metric, seconds, **labels)
        if not found and not super().samples(UP, max(seconds, SEEN_SECONDS)):
            raise NoDataError(
                f"{self.description} has not scraped this run's processes lately; its configuration needs a job with "
                f"scrape_interval: {SCRAPE_SECONDS:g}s and file_sd_configs: [{{files: [{self._targets}], "
                f"refresh_interval: 1s}}], and it must be able to read that file; or unset {URL_VARIABLE}"
            )
        return found

    def close(self) -> None:
        """Leave nothing to scrape, and close the connection."""
        self.set_targets({})
        super().close()


def write_targets(path: Path, targets: Mapping[str, str], labels: Mapping[str, str]) -> None:
    """Write a file for Prometheus' ``file_sd_configs``.

    Args:
        path: of the file.
        targets: as :meth:`Monitor.set_targets`.
        labels: of all of them.
    """
    entries = [{"targets": [address], "labels": {"instance": name, **labels}} for name, address in targets.items()]
    # Renamed into place, for Prometheus may read it at any time.
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(entries))
    draft.replace(path)


class PrometheusServer:
    """A Prometheus server of our own, on a free port of the loopback interface; it ends when this process does.

    Should it die, the next call says so and the one after that starts it again, with the samples it had stored.
    Prometheus looks for changed targets every five seconds, so that new ones are first scraped up to seven later.

    Args:
        folder: for its configuration, its log and its storage.
        binary: name or path of the program.

    Raises:
        MonitoringError: if it does not start.
    """

    def __init__(self, folder: Path, binary: str = "prometheus") -> None:
        self._folder = folder.resolve()
        self._binary = binary
        self.description = f"own Prometheus server ({Path(binary).name})"
        self._process: subprocess.Popen[str] | None = None
        self._folder.mkdir(parents=True, exist_ok=True)
        self._targets, self._log = self._folder / TARGETS, self._folder / "prometheus.log"
        self.set_targets({})
        self._start()

    def set_targets(self, targets: Mapping[str, str]) -> None:
        """As :meth:`Monitor.set_targets`."""
        write_targets(self._targets, targets, {})

    def samples(self, metric: str, seconds: float, **labels: str) -> list[Series]:
        """As :meth:`Monitor.samples`."""
        process = self._process or self._start()
        try:
            if process.poll() is None:
                return self._reader.samples(metric, seconds, **labels)
        except MonitoringError:
            # Its supervisor ends a moment after it.
            if not wait_until(lambda: process.poll() is not None, GUARD_SECONDS):
                raise
        self.close()
        raise MonitoringError(f"{self.description} has died: {self._last_words()}; the next call starts it again")

    def close(self) -> None:
        """End the server."""
        if self._process is not None:
            self._reader.close()
            supervisor.stop(self._process, STOP_SECONDS)
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        with hold_port() as holder:
            return self._start_at(f"127.0.0.1:{port_of(holder)}")

    def _start_at(self, address: str) -> subprocess.Popen[str]:
        with self._log.open("wb") as log:
            process = supervisor.start(self._command(address), stdout=log, stderr=subprocess.STDOUT)
        session = direct_session()

        def settled() -> bool:
            return process.poll() is not None or _answers(session, f"http://{address}/-/ready")

        try:
            if not wait_until(settled, READY_SECONDS) or process.poll() is not None:
                raise MonitoringError(f"{self.description} did not start: {self._last_words()}; its log is {self._log}")
        except BaseException:
            supervisor.stop(process, STOP_SECONDS)
            raise
        self._process = process
        self._reader = PrometheusUrl(f"http://{address}", session)
        return process

    def _command(self, address: str) -> list[str]:
        scrape = {"job_name": "opd", "file_sd_configs": [{"files": [str(self._targets)], "refresh_interval": "1s"}]}
        times = {
            "scrape_interval": f"{SCRAPE_SECONDS * 1000:.0f}ms",
            "scrape_timeout": f"{SCRAPE_TIMEOUT * 1000:.0f}ms",
        }
        configuration = self._folder / "prometheus.yml"
        configuration.write_text(yaml.safe_dump({"global": times, "scrape_configs": [scrape]}))
        return [
            self._binary,
            f"--config.file={configuration}",
            f"--storage.tsdb.path={self._folder / 'storage'}",
            "--storage.tsdb.retention.time=6h",
            f"--web.listen-address={address}",
            "--log.level=warn",
        ]

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it wrote nothing to its log"


def _answers(session: requests.Session, url: str) -> bool:
    try:
        return session.get(url, timeout=SCRAPE_TIMEOUT).ok
    except requests.RequestException:
        return False


class Scraper:
    """A scraper inside this process, for where there is no Prometheus.

    One thread begins a scrape of every target each second; a target that hangs delays only itself.
    """

    description = "embedded scraper (no Prometheus server found)"

    def __init__(self) -> None:
        self._targets: dict[str, str] = {}
        self._samples: dict[str, dict[frozenset, deque]] = defaultdict(dict)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="scrape")
        self._session = direct_session()
        self._thread = threading.Thread(target=self._run, daemon=True, name="scraper")
        self._thread.start()

    def set_targets(self, targets: Mapping[str, str]) -> None:
        """As :meth:`Monitor.set_targets`."""
        self._targets = dict(targets)

    def samples(self, metric: str, seconds: float, **labels: str) -> list[Series]:
        """As :meth:`Monitor.samples`, of metrics that begin with :data:`PREFIX`, and of ``up``."""
        if self._closed.is_set():
            raise MonitoringError("the scraper was closed; open another")
        oldest = time.time() - seconds
        with self._lock:
            found = {
                key: [sample for sample in kept if sample[0] >= oldest]
                for key, kept in self._samples.get(metric, {}).items()
                if labels.items() <= key
            }
        return [Series(dict(key), *np.array(kept, dtype=float).T) for key, kept in found.items() if kept]

    def close(self) -> None:
        """Stop scraping."""
        self._closed.set()
        self._thread.join(2 * SCRAPE_SECONDS)
        self._pool.shutdown(cancel_futures=True)
        self._session.close()

    def _run(self) -> None:
        running: dict[str, Future] = {}
        due = time.monotonic()
        while not self._closed.wait(max(due - time.monotonic(), 0.0)):
            for name, address in self._targets.items():
                if name not in running or running[name].done():
                    running[name] = self._pool.submit(self._scrape, name, address)
            self._forget()
            # A scrape that is late, as after a suspension, is left out rather than made up for.
            due = max(due + SCRAPE_SECONDS, time.monotonic())

    def _scrape(self, name: str, address: str) -> None:
        now = time.time()
        samples: list[tuple[str, Mapping[str, str], float]] = []
        try:
            answer = self._session.get(f"http://{address}/metrics", timeout=SCRAPE_TIMEOUT)
            answer.raise_for_status()
            samples = _parse(answer.text)
        except (requests.RequestException, ValueError):
            up = 0.0
        else:
            up = 1.0
        with self._lock:
            for metric, labels, value in [*samples, (UP, {}, up)]:
                key = frozenset({**labels, "instance": name}.items())
                self._samples[metric].setdefault(key, deque()).append((now, value))

    def _forget(self) -> None:
        oldest = time.time() - KEEP_SECONDS
        with self._lock:
            for series in self._samples.values():
                for key, kept in list(series.items()):
                    while kept and kept[0][0] < oldest:
                        kept.popleft()
                    if not kept:
                        del series[key]


def _parse(text: str) -> list[tuple[str, Mapping[str, str], float]]:
    """Name, labels and value of the samples whose names begin with :data:`PREFIX`; the parser is slow on the rest."""
    starts = (PREFIX, f"# TYPE {PREFIX}")
    wanted = "\n".join(line for line in text.splitlines() if line.startswith(starts))
    families = text_string_to_metric_families(wanted)
    return [(sample.name, sample.labels, float(sample.value)) for family in families for sample in family.samples]


def open_monitor(folder: Path, url: str | None = None, binary: str | None = None) -> Monitor:
    """The best source there is: a running server, else one of our own, else the embedded scraper.

    Args:
        folder: for the file of targets, and for those of a server of our own.
        url: of a server that runs and reads that file; the environment variable ``OPD_PROMETHEUS_URL`` if not given.
        binary: name or path of the program; ``prometheus`` if that is on the path.

    Raises:
        MonitoringError: if the server or the program that was asked for cannot be used.
    """
    url = url or os.environ.get(URL_VARIABLE)
    if url:
        server = PrometheusByFile(url, folder / TARGETS)
        server.check()
        return server
    found = shutil.which(binary or "prometheus")
    if found:
        return PrometheusServer(folder, found)
    if binary:
        raise MonitoringError(f"there is no program {binary!r}; install Prometheus, or leave its name out")
    return Scraper()
