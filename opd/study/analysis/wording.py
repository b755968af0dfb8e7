"""Figures in sentences."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

MINUS = "−"
"""What stands for the hyphen of a negative number."""

Row = Mapping[Hashable, Any]
"""One row of the summary."""


def signed(value: float, digits: int = 3) -> str:
    """A figure with its sign; none where it rounds to zero."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0.0 else text.replace("-", MINUS)


def plainly(value: float) -> str:
    """A figure in the fewest digits."""
    return f"{value:g}".replace("-", MINUS)


def with_interval(row: Row, quantity: str) -> str:
    """A quantity with its interval, as in ``+0.061 [+0.040, +0.083]``."""
    return f"{signed(row[quantity])} [{_end(row[f'{quantity}_low'])}, {_end(row[f'{quantity}_high'])}]"


def _end(value: float) -> str:
    """An end of an interval; one that rounds to zero by its first digit, since verdicts go by the side it is on."""
    rounds_to_zero = value != 0.0 and round(value, 3) == 0.0
    return f"{value:+.1g}".replace("-", MINUS) if rounds_to_zero else signed(value)


def write_page(path: Path, title: str, source: str, findings: Mapping[str, str]) -> None:
    """Write what was found as a page of Markdown.

    Args:
        path: of the file.
        title: of the page.
        source: what was measured on what.
        findings: text by heading.
    """
    parts = [f"# {title}", source, *(f"## {heading}\n\n{text}" for heading, text in findings.items())]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
