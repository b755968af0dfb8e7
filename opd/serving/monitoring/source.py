"""The interface of all sources of metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

SCRAPE_SECONDS = 1.0
"""Interval between two scrapes of a target."""

SCRAPE_TIMEOUT = 0.9
"""Seconds a target has to answer a scrape."""

UP = "up"
"""Metric that every scrape adds: 1 if the target answered, 0 if not."""


class MonitoringError(RuntimeError):
    """The metrics cannot be read; the message gives the reason and the remedy."""


class NoDataError(MonitoringError):
    """The source answers but has no recent samples, which says nothing about the load."""


class Series(NamedTuple):
    """Samples of one metric with one set of labels.

    Attributes:
        labels: values of the labels by name, ``instance`` among them.
        times: (S,) times of the scrapes, Unix seconds, ascending.
        values: (S,) scraped values.
    """

    labels: Mapping[str, str]
    times: np.ndarray
    values: np.ndarray


class Monitor(Protocol):
    """A source of samples.

    Attributes:
        description: name of the source, for people.
    """

    description: str

    def set_targets(self, targets: Mapping[str, str]) -> None:
        """Replace the targets that are scraped.

        Args:
            targets: ``host:port`` of ``/metrics`` by name. A process that replaces another should keep its name:
                counters are then followed across the restart.
        """
        ...

    def samples(self, metric: str, seconds: float, **labels: str) -> list[Series]:
        """Return the samples of the last ``seconds``; empty if there are none.

        Args:
            metric: name of the sample as exported, with ``_total``, ``_bucket``, ``_sum`` or ``_count``.
            seconds: how far to look back.
            labels: labels that a series must have.

        Raises:
            MonitoringError: if the source cannot be read.
        """
        ...

    def close(self) -> None:
        """Stop scraping and end everything that was started."""
        ...
