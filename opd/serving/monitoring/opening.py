"""Choice of the source of metrics."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from opd.serving.monitoring.prometheus import PROMETHEUS_URL_VARIABLE, PrometheusUrl
from opd.serving.monitoring.prometheus_server import TARGETS, PrometheusServer
from opd.serving.monitoring.scraper import Scraper
from opd.serving.monitoring.source import Monitor, MonitoringError


def open_monitor(folder: Path, url: str | None = None, binary: str | None = None) -> Monitor:
    """Open the best source available: a running server, else one of our own, else the embedded scraper.

    Each call labels its targets with an identifier of its own and reads only series that have it: the same server may
    scrape the same pipeline in another run or in a cluster.

    Args:
        folder: folder for the file of targets, and for the files of a server of our own.
        url: URL of a running server that reads that file; by default the value of ``OPD_PROMETHEUS_URL``.
        binary: name or path of the program; by default ``prometheus`` if it is on the path.

    Raises:
        MonitoringError: if a server or program that was asked for cannot be used.
    """
    url = url or os.environ.get(PROMETHEUS_URL_VARIABLE)
    if url:
        server = PrometheusUrl(url, labels={"run": uuid.uuid4().hex}, targets=folder / TARGETS)
        server.check()
        return server
    found = shutil.which(binary or "prometheus")
    if found:
        return PrometheusServer(folder, found)
    if binary:
        raise MonitoringError(f"there is no program {binary!r}; install Prometheus, or do not name a program")
    return Scraper()
