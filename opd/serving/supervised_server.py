"""A server that is restarted when it ends or stops responding.

Gateways are supervised: clients know their addresses. A replica is not; another one replaces it.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from opd.serving.processes import ServerProcess
from opd.serving.settings import ProcessSettings

logger = logging.getLogger(__name__)

START_ATTEMPTS = 2
"""Failed starts in a row after which what is started counts as failed."""

LONGEST_PAUSE = 30.0
"""Limit of the pause between two attempts, in seconds."""

PROBE_SECONDS = 1.0
"""Interval between two probes of a server that was ready."""

FAILED_PROBES = 4
"""Failed probes in a row after which a server that was ready is killed."""


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


class SupervisedServer(ServerProcess):
    """A server and its successors on the same ports.

    Args:
        name: name of its files in ``folder``.
        settings: what it runs; its ports are chosen here.
        folder: folder for its settings and its log.
        project: see :class:`ServerProcess`.

    Attributes:
        answers: whether it answered the last probe.
        backoff: its failed starts.
    """

    def __init__(self, name: str, settings: ProcessSettings, folder: Path, project: Path | None = None) -> None:
        self.answers, self.backoff = False, StartBackoff()
        super().__init__(name, settings, folder, project=project)

    def _start(self) -> None:
        self._is_down, self._failed_probes, self._next_probe = False, 0, 0.0
        super()._start()

    def reconcile(self) -> bool:
        """Probe the server, or restart it if it has ended; return whether it was restarted. Does not wait."""
        if not self.ended():
            self._probe()
            return False
        if not self._is_down:
            self._record_end()
        if not self.backoff.due:
            return False
        try:
            self._start()
        except OSError as error:  # such as a full disk; must not keep the stages from being reconciled
            self._is_down = True
            self.backoff.failed(self.name, str(error))
            logger.warning("%s", self.backoff.last_failure)
            return False
        return True

    def _probe(self) -> None:
        if time.monotonic() < self._next_probe:
            return
        self.answers = self.ready()
        self._failed_probes = 0 if self.answers else self._failed_probes + 1
        if self.answers:
            self.was_ready = True
            self.backoff.succeeded()
        if self.was_ready:
            self._next_probe = time.monotonic() + PROBE_SECONDS
        if self.late or (self.was_ready and self._failed_probes >= FAILED_PROBES):
            self.kill()

    def _record_end(self) -> None:
        self._is_down, self.answers = True, False
        reason = self.failure_reason()
        logger.warning("%s died: %s; restarting it", self.name, reason)
        if not self.was_ready:
            self.backoff.failed(self.name, reason)
