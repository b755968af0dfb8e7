"""A Prometheus server that is started here and ends with this process."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import yaml

from opd.host.waiting import wait_until
from opd.serving import supervisor
from opd.serving.loopback import direct_session, hold_port, port_of, responds
from opd.serving.monitoring.prometheus import PrometheusUrl, write_targets
from opd.serving.monitoring.source import SCRAPE_SECONDS, SCRAPE_TIMEOUT, MonitoringError, Series

TARGETS = "targets.json"
"""Name of the file of targets in a monitor's folder."""

READY_SECONDS = 30.0
"""Seconds the server has to start."""

STOP_SECONDS = 5.0
"""Seconds it has to terminate before it is killed."""

SUPERVISOR_SECONDS = 0.5
"""Seconds within which its supervisor ends after the server has died."""


class PrometheusServer:
    """Runs a Prometheus server on a free port of the loopback interface.

    If the server dies, the next call reports it and the one after that restarts it, with all samples it had stored.
    Prometheus checks for changed targets every five seconds, so new ones are first scraped up to seven seconds later.

    Args:
        folder: folder for its configuration, its log and its storage.
        binary: name or path of the program.

    Raises:
        MonitoringError: if it does not start.
    """

    def __init__(self, folder: Path, binary: str = "prometheus") -> None:
        self.description = f"own Prometheus server ({Path(binary).name})"
        self._folder, self._binary = folder.resolve(), binary
        self._targets, self._log = self._folder / TARGETS, self._folder / "prometheus.log"
        self._process: subprocess.Popen[str] | None = None
        self.set_targets({})
        self._start()

    def set_targets(self, targets: Mapping[str, str]) -> None:
        """Implements :meth:`Monitor.set_targets`."""
        write_targets(self._targets, targets, {})

    def samples(self, metric: str, seconds: float, **labels: str) -> list[Series]:
        """Implements :meth:`Monitor.samples`."""
        process = self._process or self._start()
        try:
            if process.poll() is None:
                return self._reader.samples(metric, seconds, **labels)
        except MonitoringError:
            if not wait_until(lambda: process.poll() is not None, SUPERVISOR_SECONDS):
                raise
        self.close()
        raise MonitoringError(f"{self.description} has died: {self._last_words()}; the next call restarts it")

    def close(self) -> None:
        """Stop the server."""
        if self._process is not None:
            self._reader.close()
            supervisor.stop(self._process, STOP_SECONDS)
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        with hold_port() as holder, self._log.open("wb") as log:
            address = f"127.0.0.1:{port_of(holder)}"
            process = supervisor.start(self._command(address), stdout=log, stderr=subprocess.STDOUT)
            try:
                url = f"http://{address}/-/ready"
                settled = wait_until(lambda: process.poll() is not None or responds(url), READY_SECONDS)
                if not settled or process.poll() is not None:
                    reason = self._last_words()
                    raise MonitoringError(f"{self.description} did not start: {reason}; its log is {self._log}")
            except BaseException:
                supervisor.stop(process, STOP_SECONDS)
                raise
        self._process = process
        self._reader = PrometheusUrl(f"http://{address}", direct_session())
        return process

    def _command(self, address: str) -> list[str]:
        job = {"job_name": "opd", "file_sd_configs": [{"files": [str(self._targets)], "refresh_interval": "1s"}]}
        times = {"scrape_interval": SCRAPE_SECONDS, "scrape_timeout": SCRAPE_TIMEOUT}
        durations = {name: f"{1000 * seconds:.0f}ms" for name, seconds in times.items()}
        configuration = self._folder / "prometheus.yml"
        configuration.write_text(yaml.safe_dump({"global": durations, "scrape_configs": [job]}))
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
