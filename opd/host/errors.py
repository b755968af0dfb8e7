"""Words of errors for people: the reason of one error, and a list of many problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

MAX_PROBLEMS = 20
"""Problems that an error lists; of the others it gives the number."""

Problem = TypeVar("Problem")


def reason_of(error: BaseException) -> str:
    """Type and message of an error, in one line, even if its own conversion to text fails."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def problem_list(heading: str, problems: Sequence[Problem], describe: Callable[[Problem], str] = str) -> str:
    """List problems below a heading, :data:`MAX_PROBLEMS` of them at most.

    Args:
        heading: first line, without a colon.
        problems: what is wrong.
        describe: gives the text of a problem; called for those that are listed only.

    Returns:
        The heading, and a line that begins with "- " for every problem.
    """
    listed = [describe(problem) for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        listed.append(f"and {len(problems) - MAX_PROBLEMS} more")
    return "\n- ".join([f"{heading}:", *listed])
