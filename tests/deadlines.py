"""Deadlines of tests: they are there for what hangs, not for what is slow, so that no busy machine fails a test."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

PATIENCE = 60.0
"""Seconds. What tests wait for takes a few on an idle machine."""

Found = TypeVar("Found")


def eventually(condition: Callable[[], Found], seconds: float = PATIENCE, poll: float = 0.02) -> Found:
    """What ``condition`` gives once that is true; fails after ``seconds`` without."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"it did not happen in {seconds:g} s"
        time.sleep(poll)
    return found


@contextmanager
def within(seconds: float = PATIENCE) -> Iterator[None]:
    """Fails when what is inside takes longer."""
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < seconds
