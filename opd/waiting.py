"""Polling with a deadline."""

from __future__ import annotations

from collections.abc import Callable

from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed


def wait_until(condition: Callable[[], bool], seconds: float, poll: float = 0.05) -> bool:
    """Poll until a condition holds or time is up.

    Args:
        condition: is asked at least once; what it raises ends the wait.
        seconds: deadline from now.
        poll: seconds between two attempts.

    Returns:
        Whether the condition held.
    """
    attempts = Retrying(
        stop=stop_after_delay(seconds), wait=wait_fixed(poll), retry=retry_if_result(lambda held: not held)
    )
    try:
        attempts(condition)
    except RetryError:
        return False
    return True
