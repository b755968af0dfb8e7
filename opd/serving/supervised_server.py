"""A server that must always be there at the same address: started again when it ends or falls silent.

The queue of a stage and the router are such servers; replicas are not, for another one takes their place.
"""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

from opd.serving.backoff import StartBackoff, is_late, why_it_ended
from opd.serving.processes import ServerProcess
from opd.serving.server import ServerSettings

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two questions to a server that was ready."""

SILENT_LOOKS = 4
"""A server that was ready and does not answer so many questions in a row is taken to hang."""


class SupervisedServer(ServerProcess):
    """One server and its successors on the same ports.

    Args:
        name: of its files in ``folder``.
        settings: what it runs; its ports are chosen here.
        folder: for its settings and its log.

    Attributes:
        answers: whether it answered when it was last looked at.
        starts: its failed ones, and why it does not start.
    """

    def __init__(self, name: str, settings: ServerSettings, folder: Path) -> None:
        self.answers, self.starts = False, StartBackoff()
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
        if not self.starts.due:
            return False
        self._start()
        return True

    def _look(self) -> None:
        if time.monotonic() < self._next_look:
            return
        self.answers = self.ready()
        if self.answers:
            self._was_ready, self._silent = True, 0
            self.starts.succeeded()
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
        if not self._was_ready:
            self.starts.failed(self.name, reason)
