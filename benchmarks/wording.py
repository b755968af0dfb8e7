"""Figures in sentences."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

Row = Mapping[Hashable, Any]
"""One row of the summary."""


def signed(value: float, digits: int = 3) -> str:
    """A figure with its sign; none where it rounds to zero."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0.0 else text.replace("-", "−")


def with_interval(row: Row, quantity: str) -> str:
    """A quantity with its interval, as in ``+0.061 [+0.040, +0.083]``."""
    return f"{signed(row[quantity])} [{signed(row[f'{quantity}_low'])}, {signed(row[f'{quantity}_high'])}]"
