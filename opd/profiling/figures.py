"""Kinds of values that pipeline files and profiles share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

LONGEST_LATENCY = 60.0
"""Seconds above which a latency is taken for milliseconds."""

LONGEST_STARTUP = 600.0
"""Seconds above which a start-up time is taken for milliseconds."""


def _not_milliseconds(longest: float) -> BeforeValidator:
    def check(seconds: Any) -> Any:
        if isinstance(seconds, int | float) and longest < seconds < 1e9:
            raise ValueError(
                f"{seconds:g} s is more than {longest:g} s, the limit; are these milliseconds? Then write "
                f"{seconds / 1000:g}, in seconds"
            )
        return seconds

    return BeforeValidator(check)


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=63)]
"""Name of a pipeline, task or variant, which is also one of a folder in the model store."""

Seconds = Annotated[float, Field(gt=0.0, le=LONGEST_LATENCY), _not_milliseconds(LONGEST_LATENCY)]
"""A latency."""

StartupSeconds = Annotated[float, Field(ge=0.0, le=LONGEST_STARTUP), _not_milliseconds(LONGEST_STARTUP)]
"""Time until a replica serves."""
