"""Starting servers that may not come up: how long one is waited for, how often it is tried, and what to say of it."""

from __future__ import annotations

import time

from opd.serving.processes import ServerProcess

START_SECONDS = 30.0
"""A server that is not ready after this long counts as failed."""

START_ATTEMPTS = 2
"""So many failed starts in a row are a failure of what is started."""

LONGEST_PAUSE = 30.0
"""Seconds between two attempts to start what does not, at most."""


def is_late(process: ServerProcess, was_ready: bool) -> bool:
    """Whether a server has had its time to become ready."""
    return not was_ready and time.monotonic() - process.started > START_SECONDS


def why_it_ended(process: ServerProcess, was_ready: bool) -> str:
    """For people: what a server that has just ended said last, and that it was killed if it was late."""
    words = process.last_words()
    return f"not ready after {START_SECONDS:g} s; {words}" if is_late(process, was_ready) else words


class StartBackoff:
    """The failed starts of one thing in a row: each makes the next attempt wait longer.

    Attributes:
        last_failure: what went wrong last, for people; empty since it started.
        error: the same once there is no more hope.
    """

    def __init__(self) -> None:
        self.last_failure = self.error = ""
        self._failures = 0
        self._next = 0.0

    def failed(self, what: str, reason: str) -> None:
        """Note that ``what`` did not start."""
        self._failures += 1
        self._next = time.monotonic() + min(2.0**self._failures, LONGEST_PAUSE)
        times = f" {self._failures} times in a row" if self._failures > 1 else ""
        self.last_failure = f"{what} did not start{times}: {reason}"
        if self._failures >= START_ATTEMPTS:
            self.error = self.last_failure

    def succeeded(self) -> None:
        """Note that it started."""
        self.last_failure = self.error = ""
        self._failures = 0

    @property
    def due(self) -> bool:
        """Whether the next attempt need not wait any more."""
        return time.monotonic() >= self._next
