"""A server that is restarted when it ends or stops responding.

Stage queues and routers are supervised: clients know their addresses. A replica is not; another one replaces it.
"""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

from opd.serving.backoff import StartBackoff, failure_reason, is_late
from opd.serving.processes import ServerProcess
from opd.serving.settings import ServerSettings

logger = logging.getLogger(__name__)

PROBE_SECONDS = 1.0
"""Interval between two probes of a server that was ready."""

FAILED_PROBES = 4
"""Failed probes in a row after which a server that was ready is killed."""


class SupervisedServer(ServerProcess):
    """A server and its successors on the same ports.

    Args:
        name: name of its files in ``folder``.
        settings: what it runs; its ports are chosen here.
        folder: folder for its settings and its log.

    Attributes:
        answers: whether it answered the last probe.
        backoff: its failed starts.
    """

    def __init__(self, name: str, settings: ServerSettings, folder: Path) -> None:
        self.answers, self.backoff = False, StartBackoff()
        super().__init__(name, settings, folder)

    def _start(self) -> None:
        self._was_ready, self._is_down = False, False
        self._failed_probes, self._next_probe = 0, 0.0
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
        self._start()
        return True

    def _probe(self) -> None:
        if time.monotonic() < self._next_probe:
            return
        self.answers = self.ready()
        if self.answers:
            self._was_ready, self._failed_probes = True, 0
            self.backoff.succeeded()
        else:
            self._failed_probes += 1
        if self._was_ready:
            self._next_probe = time.monotonic() + PROBE_SECONDS
        limit = FAILED_PROBES if self._was_ready else math.inf
        if self._failed_probes >= limit or is_late(self, self._was_ready):
            self.kill()

    def _record_end(self) -> None:
        self._is_down, self.answers = True, False
        reason = failure_reason(self, self._was_ready)
        logger.warning("%s died: %s; restarting it", self.name, reason)
        if not self._was_ready:
            self.backoff.failed(self.name, reason)
