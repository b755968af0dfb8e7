"""A scraper inside this process, for machines without Prometheus."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import requests
from prometheus_client.parser import text_string_to_metric_families

from opd.serving.monitoring.source import SCRAPE_SECONDS, SCRAPE_TIMEOUT, UP, MonitoringError, Series
from opd.serving.processes import direct_session

KEEP_SAMPLES = 300
"""Newest samples of a series that are kept."""

KEEP_SECONDS = 300.0
"""A series without new samples is forgotten after this time."""

PREFIX = "opd_"
"""Prefix of the metrics that are kept."""

Labels = frozenset[tuple[str, str]]


class Scraper:
    """Scrapes every target once a second; a target that hangs delays only itself."""

    description = "embedded scraper (no Prometheus server found)"

    def __init__(self) -> None:
        self._targets: dict[str, str] = {}
        self._samples: defaultdict[str, dict[Labels, deque[tuple[float, float]]]] = defaultdict(dict)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="scrape")
        self._session = direct_session()
        self._thread = threading.Thread(target=self._run, daemon=True, name="scraper")
        self._thread.start()

    def set_targets(self, targets: Mapping[str, str]) -> None:
        """Implements :meth:`Monitor.set_targets`."""
        self._targets = dict(targets)

    def samples(self, metric: str, seconds: float, **labels: str) -> list[Series]:
        """Implements :meth:`Monitor.samples` for ``up`` and for metrics that begin with :data:`PREFIX`."""
        if self._closed.is_set():
            raise MonitoringError("the scraper was closed; open another")
        now = time.time()
        with self._lock:
            found = {
                key: [sample for sample in samples if now - seconds <= sample[0] <= now]
                for key, samples in self._samples[metric].items()
                if labels.items() <= key
            }
        return [Series(dict(key), *np.array(samples).T) for key, samples in found.items() if samples]

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
            self._forget_old()
            # Scrapes missed while the machine was suspended are not made up for.
            due = max(due + SCRAPE_SECONDS, time.monotonic())

    def _scrape(self, name: str, address: str) -> None:
        now = time.time()
        scraped: list[tuple[str, Mapping[str, str], float]] = []
        try:
            answer = self._session.get(f"http://{address}/metrics", timeout=SCRAPE_TIMEOUT)
            answer.raise_for_status()
            scraped = _parse(answer.text)
            up = 1.0
        except (requests.RequestException, ValueError):
            up = 0.0
        with self._lock:
            for metric, labels, value in [*scraped, (UP, {}, up)]:
                key = frozenset({**labels, "instance": name}.items())
                samples = self._samples[metric].setdefault(key, deque(maxlen=KEEP_SAMPLES))
                while samples and samples[-1][0] >= now:  # the clock was set back: times must ascend
                    samples.pop()
                samples.append((now, value))

    def _forget_old(self) -> None:
        """Drop the series of targets that have been gone for long."""
        oldest = time.time() - KEEP_SECONDS
        with self._lock:
            for series in self._samples.values():
                for key in [key for key, samples in series.items() if samples[-1][0] < oldest]:
                    del series[key]


def _parse(text: str) -> list[tuple[str, Mapping[str, str], float]]:
    """Return name, labels and value of the metrics that begin with :data:`PREFIX`; the parser is slow on the rest."""
    prefixes = (PREFIX, f"# TYPE {PREFIX}")
    ours = "\n".join(line for line in text.splitlines() if line.startswith(prefixes))
    families = text_string_to_metric_families(ours)
    return [(sample.name, sample.labels, float(sample.value)) for family in families for sample in family.samples]
