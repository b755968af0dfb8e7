"""Deadlines of tests. They catch tests that hang; no slow or busy machine should reach them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

PATIENCE = 240.0
"""Seconds. On an idle machine, what tests wait for takes a few."""

Found = TypeVar("Found")


def eventually(condition: Callable[[], Found], seconds: float = PATIENCE, poll: float = 0.02) -> Found:
    """Poll until ``condition`` returns something true, and return it; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"it did not happen in {seconds:g} s"
        time.sleep(poll)
    return found


@contextmanager
def within(seconds: float = PATIENCE) -> Iterator[None]:
    """Fail if the block takes longer."""
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < seconds


@contextmanager
def terminating(process: subprocess.Popen[Any], seconds: float = PATIENCE) -> Iterator[subprocess.Popen[Any]]:
    """End a process when the block ends, however that ends: terminate it, and kill it after a grace period.

    :meth:`subprocess.Popen.__exit__` waits forever instead, so a failed assertion would hang.

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
