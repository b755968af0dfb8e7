"""Prometheus as a source of metrics: a running server, or one that is started here."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import requests
import yaml
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from urllib3.util.retry import Retry

from opd.host.archive import written_whole
from opd.host.waiting import wait_until
from opd.serving import supervisor
from opd.serving.monitoring.scraper import Scraper
from opd.serving.monitoring.source import (
    SCRAPE_SECONDS,
    SCRAPE_TIMEOUT,
    UP,
    Monitor,
    MonitoringError,
    NoDataError,
    Series,
)
from opd.serving.processes import direct_session, hold_port, last_words, responds

logger = logging.getLogger(__name__)

PROMETHEUS_URL_VARIABLE = "OPD_PROMETHEUS_URL"
"""Environment variable with the URL of a running Prometheus server."""

QUERY_TIMEOUT = 3.0
"""Seconds one query may take."""

SEEN_SECONDS = 30.0
"""A server without a single scrape of our targets in this time does not know them."""

TARGETS = "targets.json"
"""Name of the file of targets in a monitor's folder."""

READY_SECONDS = 30.0
"""Seconds the server has to start."""

STOP_SECONDS = 5.0
"""Seconds it has to terminate before it is killed."""

SUPERVISOR_SECONDS = 0.5
"""Seconds within which its supervisor ends after the server has died."""


def named_url(option: str | None) -> str:
    """The URL of a Prometheus server that an option names, or the environment.

    Raises:
        ValueError: if neither does.
    """
    if url := option or os.environ.get(PROMETHEUS_URL_VARIABLE):
        return url
    raise ValueError(f"name the Prometheus server with --prometheus, or in {PROMETHEUS_URL_VARIABLE}")


class PrometheusUrl:
    """Reads from a running Prometheus server. Its clock must agree with that of this machine.

    Args:
        url: base URL, for example ``http://prometheus.monitoring:9090``.
        session: HTTP session; if omitted, one that honours the environment's proxies.
        labels: labels that distinguish our series from others on the same server.
        targets: file of targets that the server reads by ``file_sd_configs``; it is written with ``labels`` on every
            target. If omitted, the server finds its targets itself.
    """

    def __init__(
        self,
        url: str,
        session: requests.Session | None = None,
        labels: Mapping[str, str] | None = None,
        targets: Path | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.description = f"Prometheus server at {self.url}"
        self._labels = dict(labels or {})
        self._targets = targets.resolve() if targets else None
        retry = Retry(total=1, backoff_factor=0.1, status_forcelist=(502, 503, 504))
        self._client = PrometheusConnect(self.url, retry=retry, session=session)

    def check(self) -> None:
        """Raise a :class:`MonitoringError` if the server cannot be queried."""
        self._query("vector(1)")

    def set_targets(self, targets: Mapping[str, str]) -> None:
        """Write the file of targets, if there is one."""
        if self._targets:
            write_targets(self._targets, targets, self._labels)

    def samples(self, metric: str, seconds: float, **labels: str) -> list[Series]:
        """Implements :meth:`Monitor.samples`.

        Raises:
            NoDataError: if the server has scraped none of the targets in its file lately.
        """
        found = self._select(metric, seconds, labels)
        if not found and self._targets and not self._select(UP, max(seconds, SEEN_SECONDS), {}):
            raise NoDataError(
                f"{self.description} has not scraped this run's processes in the last {SEEN_SECONDS:g} s; its "
                f"configuration needs a job with scrape_interval: {SCRAPE_SECONDS:g}s and file_sd_configs: "
                f"[{{files: [{self._targets}], refresh_interval: 1s}}], and it must be able to read that file; "
                f"or unset {PROMETHEUS_URL_VARIABLE}"
            )
        return found

    def rates(self, query: str, seconds: int) -> np.ndarray:
        """Values of any query for one rate, at each of the last seconds, the newest last; (S,), shorter without data.

        Raises:
            MonitoringError: if the server cannot be read, or the query has several series.
        """
        found = self._query(f"({query})[{seconds}s:1s]")
        if len(found) > 1:
            raise MonitoringError(
                f"{self.description} has {len(found)} series for {query}; write one sum over them, such as sum({query})"
            )
        values = _series(found[0]).values if found else np.zeros(0)
        return values[np.isfinite(values)]

    def close(self) -> None:
        """Leave no targets behind, and close the connection."""
        try:
            self.set_targets({})
        except OSError as error:  # such as a full disk; what is open must be closed all the same
            logger.warning("%s keeps its targets: %s", self.description, error)
        self._client.close()

    def _select(self, metric: str, seconds: float, labels: Mapping[str, str]) -> list[Series]:
        matchers = ",".join(f"{name}={json.dumps(value)}" for name, value in {**self._labels, **labels}.items())
        found = self._query(f"{metric}{{{matchers}}}[{_duration(seconds)}]")
        return [_series(entry) for entry in found]

    def _query(self, query: str) -> list[dict]:
        try:
            return self._client.custom_query(query, timeout=QUERY_TIMEOUT)
        except PrometheusApiClientException as error:
            raise MonitoringError(f"{self.description} refuses the query {query}: {error}") from error
        except (requests.RequestException, KeyError, TypeError) as error:
            raise MonitoringError(
                f"{self.description} cannot be read: {error}; check that it runs and that the URL "
                f"(argument or environment variable {PROMETHEUS_URL_VARIABLE}) is that of a Prometheus server"
            ) from error


def _series(entry: Mapping) -> Series:
    times, values = np.array(entry["values"], dtype=float).reshape(-1, 2).T
    labels = {name: value for name, value in entry["metric"].items() if name != "__name__"}
    return Series(labels, times, values)


def _duration(seconds: float) -> str:
    return f"{max(round(1000 * seconds), 1)}ms"  # Prometheus reads no fractions


def write_targets(path: Path, targets: Mapping[str, str], labels: Mapping[str, str]) -> None:
    """Write a file for the ``file_sd_configs`` of Prometheus.

    Args:
        path: the file; its folder is created if missing.
        targets: addresses by name, as for :meth:`Monitor.set_targets`.
        labels: labels that all targets get.
    """
    entries = [{"targets": [address], "labels": {"instance": name, **labels}} for name, address in targets.items()]
    with written_whole(path) as unfinished:  # Prometheus may read it at any time
        unfinished.write_text(json.dumps(entries))


class PrometheusServer(PrometheusUrl):
    """Runs a Prometheus server on a free port of the loopback interface; it ends with this process.

    If the server dies, the next call reports it and the one after that restarts it, with all samples it had stored.
    Prometheus checks for changed targets every five seconds, so new ones are first scraped up to seven seconds later.

    Args:
        folder: folder for its configuration, its log and its storage.
        binary: name or path of the program.

    Raises:
        MonitoringError: if it does not start.
    """

    def __init__(self, folder: Path, binary: str = "prometheus") -> None:
        self._address = f"127.0.0.1:{hold_port(self)}"
        super().__init__(f"http://{self._address}", direct_session())
        self.description = f"own Prometheus server ({Path(binary).name})"
        self._folder, self._binary = folder.resolve(), binary
        self._log = self._folder / "prometheus.log"
        self._process: subprocess.Popen[str] | None = None
        self.set_targets({})
        self._start()

    def set_targets(self, targets: Mapping[str, str]) -> None:
        """Implements :meth:`Monitor.set_targets`."""
        write_targets(self._folder / TARGETS, targets, {})

    def samples(self, metric: str, seconds: float, **labels: str) -> list[Series]:
        """Implements :meth:`Monitor.samples`."""
        process = self._process or self._start()
        try:
            if process.poll() is None:
                return super().samples(metric, seconds, **labels)
        except MonitoringError:
            if not wait_until(lambda: process.poll() is not None, SUPERVISOR_SECONDS):
                raise
        self._stop()
        raise MonitoringError(f"{self.description} has died: {last_words(self._log)}; the next call restarts it")

    def close(self) -> None:
        """Stop the server."""
        super().close()
        self._stop()

    def _stop(self) -> None:
        if self._process is not None:
            supervisor.stop(self._process, STOP_SECONDS)
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        try:
            with self._log.open("wb") as log:
                self._process = process = supervisor.start(self._command(), stdout=log, stderr=subprocess.STDOUT)
        except OSError as error:
            raise MonitoringError(f"{self.description} did not start: {error}; its folder is {self._folder}") from error
        try:
            settled = wait_until(lambda: process.poll() is not None or responds(f"{self.url}/-/ready"), READY_SECONDS)
            if not settled or process.poll() is not None:
                reason = f"{last_words(self._log)}; its log is {self._log}"
                raise MonitoringError(f"{self.description} did not start: {reason}")
        except BaseException:
            self._stop()
            raise
        return process

    def _command(self) -> list[str]:
        job = {
            "job_name": "opd",
            "file_sd_configs": [{"files": [str(self._folder / TARGETS)], "refresh_interval": "1s"}],
        }
        times = {"scrape_interval": _duration(SCRAPE_SECONDS), "scrape_timeout": _duration(SCRAPE_TIMEOUT)}
        configuration = self._folder / "prometheus.yml"
        configuration.write_text(yaml.safe_dump({"global": times, "scrape_configs": [job]}))
        return [
            self._binary,
            f"--config.file={configuration}",
            f"--storage.tsdb.path={self._folder / 'storage'}",
            "--storage.tsdb.retention.time=6h",
            f"--web.listen-address={self._address}",
            "--log.level=warn",
        ]


def open_monitor(folder: Path, url: str | None = None) -> Monitor:
    """Open the best source available: a running server, else one of our own, else the embedded scraper.

    Each call labels its targets with an identifier of its own and reads only series that have it: the same server may
    scrape the same pipeline in another run or in a cluster.

    Args:
        folder: folder for the file of targets, and for the files of a server of our own.
        url: URL of a running server that reads that file; by default the value of ``OPD_PROMETHEUS_URL``.

    Raises:
        MonitoringError: if the server at the URL, or one of our own, cannot be used.
    """
    url = url or os.environ.get(PROMETHEUS_URL_VARIABLE)
    if url:
        server = PrometheusUrl(url, labels={"run": uuid.uuid4().hex}, targets=folder / TARGETS)
        server.check()
        return server
    return PrometheusServer(folder) if shutil.which("prometheus") else Scraper()
