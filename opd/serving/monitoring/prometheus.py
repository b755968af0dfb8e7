"""A Prometheus server that is already running."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import requests
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from urllib3.util.retry import Retry

from opd.serving.monitoring.source import SCRAPE_SECONDS, UP, MonitoringError, NoDataError, Series

PROMETHEUS_URL_VARIABLE = "OPD_PROMETHEUS_URL"
"""Environment variable with the URL of a running Prometheus server."""

QUERY_TIMEOUT = 3.0
"""Seconds one query may take."""

SEEN_SECONDS = 30.0
"""A server without a single scrape of our targets in this time does not know them."""


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

    def close(self) -> None:
        """Leave no targets behind, and close the connection."""
        self.set_targets({})
        self._client.close()

    def _select(self, metric: str, seconds: float, labels: Mapping[str, str]) -> list[Series]:
        matchers = ",".join(f"{name}={json.dumps(value)}" for name, value in {**self._labels, **labels}.items())
        found = self._query(f"{metric}{{{matchers}}}[{max(round(1000 * seconds), 1)}ms]")
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


def write_targets(path: Path, targets: Mapping[str, str], labels: Mapping[str, str]) -> None:
    """Write a file for the ``file_sd_configs`` of Prometheus.

    Args:
        path: the file; its folder is created if missing.
        targets: addresses by name, as for :meth:`Monitor.set_targets`.
        labels: labels that all targets get.
    """
    entries = [{"targets": [address], "labels": {"instance": name, **labels}} for name, address in targets.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed into place, because Prometheus may read it at any time.
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(entries))
    draft.replace(path)
