"""Compare every CSV and JSON file of two folders of reports, except measured times.

    python tools/same_results.py OLD NEW

Values must be equal as they are written, to the last digit. Files, columns and keys that only NEW has are listed, but
are no difference. Exit code: 0 when everything agrees, 1 otherwise.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

TIMES = re.compile(r"(decision|median|p99|total)_ms|latency_ms_median|(^|\.)seconds$")
"""Columns and keys that hold measured times; every machine and every run has others."""

MEASURED = ("profile/*", "notebooks/*")
"""Files that hold nothing but measurements of the machine."""

SHOWN = 10
"""Differences printed for one file."""


def results(folder: Path) -> set[str]:
    """Relative paths of the CSV and JSON files to compare."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in (".csv", ".json"))
    return {path for path in paths if not any(fnmatch(path, pattern) for pattern in MEASURED)}


def values(path: Path) -> Iterator[tuple[str, str]]:
    """Place and text of every value of a file that is not a time."""
    if path.suffix == ".json":
        found = leaves(json.loads(path.read_text(encoding="utf-8")), "")
    else:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        found = ((f"row {number}: {column}", str(row[column])) for number, row in enumerate(rows, 1) for column in row)
    yield from ((place, value) for place, value in found if not TIMES.search(place))


def leaves(content: object, place: str) -> Iterator[tuple[str, str]]:
    """Dotted key and text of every value in nested JSON."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from leaves(value, f"{place}.{key}" if place else key)
    elif isinstance(content, list):
        for number, value in enumerate(content):
            yield from leaves(value, f"{place}[{number}]")
    else:
        yield place, repr(content)


def column_of(place: str) -> str:
    """Column of a value in a CSV file, or its key in a JSON file without the numbers of list entries."""
    return re.sub(r"^row \d+: |\[\d+\]", "", place)


def added(old: Path, new: Path) -> list[str]:
    """Columns or keys that only the new file has."""
    before, after = ({column_of(place): None for place, _ in values(path)} for path in (old, new))
    return [column for column in after if column not in before]


def differences(old: Path, new: Path) -> list[str]:
    """One line for every value that differs or disappeared, or appeared without being one of the :func:`added`."""
    before, after, new_ones = dict(values(old)), dict(values(new)), added(old, new)
    places = [place for place in dict.fromkeys([*before, *after]) if column_of(place) not in new_ones]
    return [
        f"{place}: {before.get(place, 'missing')} became {after.get(place, 'missing')}"
        for place in places
        if before.get(place) != after.get(place)
    ]


def main(arguments: list[str]) -> int:
    """Print what differs between two folders."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    old, new = map(Path, arguments)
    for folder in (old, new):
        if not folder.is_dir():
            print(f"{folder} is not a folder; name two folders of reports", file=sys.stderr)
            return 2
    in_old, in_new = results(old), results(new)
    for path in sorted(in_old ^ in_new):
        print(f"{path}: {'missing' if path in in_old else 'added'}")
    different = len(in_old - in_new)
    for path in sorted(in_old & in_new):
        found = differences(old / path, new / path)
        different += bool(found)
        if columns := added(old / path, new / path):
            print(f"{path}: added {', '.join(columns)}")
        for line in found[:SHOWN]:
            print(f"{path}: {line}")
        if len(found) > SHOWN:
            print(f"{path}: {len(found) - SHOWN} more differences")
    print(f"{len(in_old & in_new)} files compared, {different} differ")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
