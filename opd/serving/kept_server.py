"""A server that must always be there at the same address: started again when it ends or falls silent.

The queue of a stage and the router are such servers; replicas are not, for another one takes their place.
"""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

from opd.serving.processes import ServerProcess
from opd.serving.server import ServerSettings

logger = logging.getLogger(__name__)

START_SECONDS = 30.0
"""A server that is not ready after this long counts as failed."""

START_ATTEMPTS = 2
"""So many failed starts in a row are a failure of what is started."""

LONGEST_PAUSE = 30.0
"""Seconds between two attempts to start what does not, at most."""

LOOK_SECONDS = 1.0
"""Between two questions to a server that was ready."""

SILENT_LOOKS = 4
"""A server that was ready and does not answer so many questions in a row is taken to hang."""


def pause(failures: int) -> float:
    """Seconds to wait after so many failed starts in a row."""
    return min(2.0**failures, LONGEST_PAUSE)


def is_late(process: ServerProcess, was_ready: bool) -> bool:
    """Whether a server has had its time to become ready."""
    return not was_ready and time.monotonic() - process.started > START_SECONDS


def why_it_ended(process: ServerProcess, was_ready: bool) -> str:
    """For people: what a server that has just ended said last, and that it was killed if it was late."""
    words = process.last_words()
    return f"not ready after {START_SECONDS:g} s; {words}" if is_late(process, was_ready) else words


class KeptServer(ServerProcess):
    """One server and its successors on the same ports.

    Args:
        name: of its files in ``folder``.
        settings: what it runs; its ports are chosen here.
        folder: for its settings and its log.

    Attributes:
        answers: whether it answered when it was last looked at.
        error: why it does not start; empty while there is hope.
    """

    def __init__(self, name: str, settings: ServerSettings, folder: Path) -> None:
        self.answers, self.error = False, ""
        self._failures = 0
        self._next_start = 0.0
        super().__init__(name, settings, folder)

    def _start(self) -> None:
        self._was_ready, self._is_down = False, False
        self._silent, self._next_look = 0, 0.0
        super()._start()

    def tend(self) -> bool:
        """Do what is missing now, without waiting for it; whether it was started again."""
        if not self.ended():
            self._look()
            return False
        if not self._is_down:
            self._note_end()
        if time.monotonic() < self._next_start:
            return False
        self._start()
        return True

    def _look(self) -> None:
        if time.monotonic() < self._next_look:
            return
        self.answers = self.ready()
        if self.answers:
            self._was_ready, self.error = True, ""
            self._silent = self._failures = 0
        else:
            self._silent += 1
        if self._was_ready:
            self._next_look = time.monotonic() + LOOK_SECONDS
        limit = SILENT_LOOKS if self._was_ready else math.inf
        if self._silent >= limit or is_late(self, self._was_ready):
            self.kill()

    def _note_end(self) -> None:
        self._is_down, self.answers = True, False
        reason = why_it_ended(self, self._was_ready)
        logger.warning("%s died: %s; starting it again", self.name, reason)
        if self._was_ready:
            return
        self._failures += 1
        self._next_start = time.monotonic() + pause(self._failures)
        if self._failures >= START_ATTEMPTS:
            self.error = f"{self.name} did not start {self._failures} times in a row: {reason}"
