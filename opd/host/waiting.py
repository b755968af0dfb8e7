"""Polling with a deadline."""

from __future__ import annotations

from collections.abc import Callable

from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed


def wait_until(condition: Callable[[], bool], seconds: float, poll: float = 0.05) -> bool:
    """Poll until a condition holds or time is up.

    Args:
        condition: is asked at least once; what it raises ends the wait.
        seconds: deadline from now.
        poll: seconds between two attempts.

    Returns:
        True if the condition held in time.
    """
    return not wait_while(lambda: "" if condition() else "not yet", seconds, poll)


def wait_while(problem: Callable[[], str], seconds: float, poll: float = 0.05) -> str:
    """Poll while there is a problem, until time is up.

    Args:
        problem: says what is still missing, empty if nothing; asked at least once. What it raises ends the wait.
        seconds: deadline from now.
        poll: seconds between two attempts.

    Returns:
        The last problem, empty if none is left.
    """
    attempts = Retrying(
        stop=stop_after_delay(seconds),
        wait=wait_fixed(poll),
        retry=retry_if_result(bool),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else "",
    )
    return str(attempts(problem))
