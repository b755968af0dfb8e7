"""Limits of a trace, and the problems of a recording that breaks them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from opd.host.errors import problem_list

DAY_SECONDS = 86_400

MIN_SECONDS = 6 * 3600
"""Shortest trace: training, validation and test need stretches of their own."""

MAX_SECONDS = 366 * DAY_SECONDS
"""Longest trace."""

MAX_GAP_SECONDS = 3600
"""Longest stretch of seconds that were not recorded."""

MAX_MISSING = 0.2
"""Largest share of seconds that were not recorded. They are dropped, so more of them would distort the load."""

MAX_COUNT = 2**31 - 1
"""Largest number of requests in one second."""


class TraceError(ValueError):
    """A trace cannot be read or used; the message names every problem with its place, value, limit and remedy."""

    @classmethod
    def of(cls, name: str, problems: list[str]) -> TraceError:
        """Make the one error of all problems of the trace ``name``."""
        if len(problems) == 1:
            return cls(f"trace {name!r}: {problems[0]}")
        return cls(problem_list(f"trace {name!r} has {len(problems)} problems", problems))


def recording_problems(recorded: np.ndarray, seconds: np.ndarray, place: Callable[[int], str]) -> list[str]:
    """Describe where a recording breaks a limit.

    Args:
        recorded: (T,) requests in every recorded second; T may be 0.
        seconds: (T,) these seconds, increasing whole numbers.
        place: describes a position for people, such as ``line 7``.
    """
    problems = length_problems(len(recorded))
    if len(recorded) < 2:
        return problems
    steps = np.diff(seconds)
    widest, first = int(steps.argmax()), int(np.argmax(steps > 1))
    missing = int(steps.sum()) - len(steps)
    spanned = missing + len(recorded)
    if steps[widest] - 1 > MAX_GAP_SECONDS:
        problems.append(
            f"{place(widest)}: {steps[widest] - 1} seconds are missing after it, but a gap may last at most "
            f"{MAX_GAP_SECONDS} s; cut the trace there and use the longer part, or, if no request came in these "
            "seconds, add them with count 0"
        )
    elif missing > MAX_MISSING * spanned:
        problems.append(
            f"{missing} of {spanned} seconds are missing, the first after {place(first)}, but at most "
            f"{MAX_MISSING:.0%} may be; if no request came in them, add them with count 0, else use a part that was "
            "recorded completely"
        )
    if not recorded.any():
        problems.append(
            f"all {len(recorded)} counts are 0, but a load needs at least one request; "
            "check that the right column was exported"
        )
    return problems


def length_problems(seconds: int) -> list[str]:
    """Describe what is wrong with the number of recorded seconds, if anything."""
    if seconds < MIN_SECONDS:
        return [
            f"it has {seconds} recorded seconds, but at least {MIN_SECONDS} (6 hours) are needed to train, validate "
            "and test; provide a longer recording"
        ]
    if seconds > MAX_SECONDS:
        return [
            f"it has {seconds} seconds, but at most {MAX_SECONDS} (366 days) can be used; "
            "cut it, and check that times are in seconds"
        ]
    return []


def damping_problems(largest: int, damping: int) -> list[str]:
    """Describe what is wrong with the divisor of counts of which ``largest`` is the largest, if anything."""
    if damping < 1 or not float(damping).is_integer():
        return [f"damping {damping} is not a whole number of at least 1"]
    if 0 < largest < damping:
        return [
            f"damping {damping} makes every count 0, because the largest count is {largest}; "
            f"lower `damping` in params.yaml to at most {largest}; 1 leaves the counts as they are"
        ]
    return []
