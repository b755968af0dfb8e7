"""Result files: JSON, and pages and tables in Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_page(path: Path, title: str, source: str, findings: Mapping[str, str]) -> None:
    """Write findings as a page of Markdown.

    Args:
        path: of the file.
        title: of the page.
        source: what the findings were measured on.
        findings: text by heading.
    """
    parts = [f"# {title}", source, *(f"## {heading}\n\n{text}" for heading, text in findings.items())]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def markdown_table(frame: pd.DataFrame, digits: int = 2) -> str:
    """Format a table in Markdown: text to the left, numbers to the right, floats with ``digits`` decimals.

    Zero never has a sign.
    """
    text = pd.DataFrame(
        {
            column: frame[column].map(f"{{:z.{digits}f}}".format if frame[column].dtype.kind == "f" else str)
            for column in frame
        }
    )
    rules = ["---:" if frame[column].dtype.kind in "fiu" else "---" for column in frame]
    rows = [list(map(str, frame.columns)), rules, *text.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
