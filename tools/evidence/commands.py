"""What makes a table, what that takes, and how far a reader's own run may be off: read from ``reports/README.md``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import NamedTuple, TypeVar

from evidence.tables import Number, Tables

INDEX = "reports/README.md"


class Made(NamedTuple):
    """A line of the index: which files, by which command, at which commit."""

    files: tuple[str, ...]
    command: str
    commit: str


class Cost(NamedTuple):
    """What a command takes on two cores, as the index says it."""

    command: str
    minutes: str
    memory: str


class Tolerance(NamedTuple):
    """How far a number of another run may be off: by a share of it or in its own unit, whichever is more."""

    files: tuple[str, ...]
    share: float
    unit: float
    words: str

    def allows(self, said: str, says: str) -> bool:
        """Whether two numbers, as pages write them, agree."""
        one, other = (float(text.replace(",", "").replace("−", "-")) for text in (said, says))
        return abs(one - other) <= max(self.share * abs(one), self.unit)


def _lines(tables: Tables, head: str) -> Iterator[list[str]]:
    page = (tables.project / INDEX).read_text(encoding="utf-8")
    match = re.search(re.escape(head) + r".*\n\|[-| :]+\|\n((?:\|.*\n)+)", page)
    if match is None:
        raise ValueError(f"{INDEX} has no table that begins with {head!r}; put it back")
    for line in match[1].splitlines():
        yield [part.strip() for part in line.strip("|").split("|")]


def _names(cell: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`([^`]+)`", cell))


def index(tables: Tables) -> list[Made]:
    """What made which files."""
    return [Made(_names(files), command, commit) for files, command, commit in _lines(tables, "| files | command |")]


def costs(tables: Tables) -> list[Cost]:
    """What the commands take."""
    return [Cost(*line) for line in _lines(tables, "| command | minutes |")]


def tolerances(tables: Tables) -> list[Tolerance]:
    """How far numbers may be off; ``2 %`` is a share, ``0.5`` is in the unit of the number, ``nothing`` is exact."""
    return [
        Tolerance(_names(files), *_limits(limits), f"{limits}: {why}")
        for files, limits, why in _lines(tables, "| files | off by |")
    ]


def _limits(words: str) -> tuple[float, float]:
    share, unit = 0.0, 0.0
    for part in words.split(" or "):
        if part.endswith("%"):
            share = float(part[:-1]) / 100.0
        elif part != "nothing":
            unit = float(part)
    return share, unit


Line = TypeVar("Line", Made, Tolerance)


def first(lines: list[Line], table: str) -> Line:
    """The first line that fits a table.

    Raises:
        ValueError: if none does.
    """
    below = table.removeprefix("reports/")
    for line in lines:
        if any(fnmatch(below, files) for files in line.files):
            return line
    raise ValueError(f"no line of {INDEX} fits {table}; add one")


def minutes(tables: Tables, command: str) -> Number:
    """Minutes that a command takes on two cores."""
    for cost in costs(tables):
        if cost.command == f"`{command}`":
            return Number(float(cost.minutes), INDEX, f"minutes of `{command}`")
    raise ValueError(f"{INDEX} has no minutes of {command}; add a line")
