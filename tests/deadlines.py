"""Deadlines of tests: they are there for what hangs, not for what is slow, so that no busy machine fails a test."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

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


@contextmanager
def terminating(process: subprocess.Popen[Any], seconds: float = PATIENCE) -> Iterator[subprocess.Popen[Any]]:
    """Ends a process when the block ends, however it ends: asks it to, and kills it after a grace period.

    Unlike :meth:`subprocess.Popen.__exit__`, which waits for ever, so that a failed assertion hangs.

    Args:
        process: to end.
        seconds: between SIGTERM and SIGKILL; killed at once if 0.
    """
    try:
        yield process
    finally:
        try:
            if seconds > 0:
                process.terminate()
                process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()
            process.wait(PATIENCE)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
