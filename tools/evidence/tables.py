"""Tables of results, read once, and numbers that know which cell they are."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd


class Number(NamedTuple):
    """A value, the table that it is from (path below the project) and its cell in words."""

    value: float | str
    table: str
    cell: str


class Tables:
    """The results of a project.

    Args:
        project: folder that contains ``reports/``.
    """

    def __init__(self, project: Path):
        self.project = project
        self.csv = cache(self._csv)
        self.json = cache(self._json)

    def _csv(self, path: str) -> pd.DataFrame:
        return pd.read_csv(self.project / "reports" / path)

    def _json(self, path: str) -> Any:
        return json.loads((self.project / "reports" / path).read_text(encoding="utf-8"))

    def rows(self, path: str, **where: object) -> pd.DataFrame:
        """Rows of a table in which columns have these values.

        Raises:
            KeyError: if there is no such column.
            ValueError: if there is no such row.
        """
        rows = self.csv(path)
        for column, value in where.items():
            rows = rows[rows[column] == value]
        if rows.empty:
            raise ValueError(
                f"reports/{path} has no row with {_named(where)}; correct the claim, or make the table again"
            )
        return rows

    def cell(self, path: str, column: str, **where: object) -> Number:
        """The cell of a column in the only row in which columns have these values.

        Raises:
            KeyError: if there is no such column.
            ValueError: if there is no such row, or more than one.
        """
        rows = self.rows(path, **where)
        if len(rows) > 1:
            raise ValueError(
                f"reports/{path} has {len(rows)} rows with {_named(where)}; a claim needs one: add a column"
            )
        return Number(rows[column].iloc[0], f"reports/{path}", f"`{column}` of {_named(where)}")

    def worked(self, path: str, value: float | str, cell: str) -> Number:
        """A number that is computed from a table, as ``cell`` says in words."""
        return Number(value, f"reports/{path}", cell)

    def key(self, path: str, *keys: str) -> Number:
        """A value of a JSON file."""
        value = self.json(path)
        for key in keys:
            value = value[key]
        return Number(value, f"reports/{path}", f"`{'.'.join(keys)}`")


def smallest(numbers: Iterable[Number]) -> Number:
    """The smallest of several numbers, with its own cell."""
    return min(numbers, key=lambda number: number.value)


def largest(numbers: Iterable[Number]) -> Number:
    """The largest of several numbers, with its own cell."""
    return max(numbers, key=lambda number: number.value)


def _named(where: dict[str, object]) -> str:
    return ", ".join(f"{column} {value}" for column, value in where.items()) or "the table"
