"""Failed starts of servers: how long a start may take, how often it is tried, and with which pauses."""

from __future__ import annotations

import time

from opd.serving.processes import ServerProcess

START_SECONDS = 30.0
"""A server that is not ready after this time has failed to start."""

START_ATTEMPTS = 2
"""Failed starts in a row after which what is started counts as failed."""

LONGEST_PAUSE = 30.0
"""Limit of the pause between two attempts, in seconds."""


def is_late(process: ServerProcess, was_ready: bool) -> bool:
    """Check whether a server has used up its time to become ready."""
    return not was_ready and time.monotonic() - process.started > START_SECONDS


def failure_reason(process: ServerProcess, was_ready: bool) -> str:
    """Describe why a server ended: its last words, and the limit if it was late."""
    words = process.last_words()
    return f"not ready after {START_SECONDS:g} s; {words}" if is_late(process, was_ready) else words


class StartBackoff:
    """Counts failed starts in a row; each of them doubles the pause before the next attempt.

    Attributes:
        last_failure: description of the last failed start; empty after a successful one.
        error: the same after :data:`START_ATTEMPTS` failures in a row; empty before.
    """

    def __init__(self) -> None:
        self.last_failure = self.error = ""
        self._failures = 0
        self._next_attempt = 0.0

    def failed(self, subject: str, reason: str) -> None:
        """Record a failed start of ``subject``."""
        self._failures += 1
        self._next_attempt = time.monotonic() + min(2.0**self._failures, LONGEST_PAUSE)
        times = f" {self._failures} times in a row" if self._failures > 1 else ""
        self.last_failure = f"{subject} did not start{times}: {reason}"
        if self._failures >= START_ATTEMPTS:
            self.error = self.last_failure

    def succeeded(self) -> None:
        """Record a successful start."""
        self.last_failure = self.error = ""
        self._failures = 0

    @property
    def due(self) -> bool:
        """True once the pause before the next attempt is over."""
        return time.monotonic() >= self._next_attempt
