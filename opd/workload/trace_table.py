"""The columns of a user's trace: which one has the times, which one the counts, and what is wrong with them.

A table has a column of counts, and a column of times if seconds are missing; or a column of times alone, with one row a
request. Times are seconds from any start or ISO 8601 dates. Nothing is guessed: what could be meant in two ways, such
as milliseconds or local times at a clock change, is a problem that names its remedy.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from opd.workload.trace_limits import MAX_COUNT, length_problems, recording_problems

TIME_NAMES = ("timestamp", "time", "datetime", "second")
COUNT_NAMES = ("count", "requests")

_MAX_SHOWN = 40
_ISO_DATE = re.compile(r"\s*\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.*)?\s*$")
_ZONE = re.compile(r":\d\d.*(?:[Zz]|[+-]\d\d(?::?\d\d)?)\s*$")
_UNITS = ((1e11, "milliseconds", 1000), (1e14, "microseconds", 10**6), (1e17, "nanoseconds", 10**9))
"""Smallest times that cannot be seconds (of the year 5138), the unit they seem to have, and its number in a second."""

_TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Ticks of a second in the units of dates in pandas."""

_HOUR = 3600
_CLOCK_CHANGE = "time {} follows the row above as if the clock had been changed: local time was used"
_SAMPLE = 100  # first rows that tell dates from numbers
_TO_UTC = (
    "write UTC, with pandas times.dt.tz_localize('Europe/Berlin', ambiguous='infer').dt.tz_convert('UTC') for the zone "
    "of the recorder; if the times are UTC already, end them in Z"
)

Place = Callable[[int], str]


class Recording(NamedTuple):
    """Requests of the recorded seconds, these seconds since the first one, and what is wrong with the table."""

    counts: np.ndarray
    seconds: np.ndarray
    problems: list[str]


class _Times(NamedTuple):
    """Times as (N,) seconds, NaN where there is none; ``is_local`` if they are dates without a time zone."""

    seconds: np.ndarray
    is_local: bool


def read_table(table: pd.DataFrame, place: Place) -> Recording:
    """Read counts and seconds from a table.

    Args:
        table: rows of a user's file.
        place: describes a row for people, such as ``line 7``.

    Returns:
        The recording; with problems, its arrays are empty.
    """
    time, count, problems = _find_columns(table)
    if not problems and not len(table):
        problems = ["it has no rows; write one row a second, or one row a request"]
    if problems:
        return _unusable(problems)
    if count is None:
        return _requests(table[time], place)
    counts, problems = _read_counts(table[count], place)
    seconds = np.arange(len(table), dtype=np.int64)
    if time is not None:
        recorded_at, wrong = _recorded_seconds(table[time], place)
        problems += wrong
        seconds = seconds if wrong else recorded_at
    problems += recording_problems(counts, seconds, place)
    return _unusable(problems) if problems else Recording(counts.astype(np.int64), seconds, [])


def is_date(value: object) -> bool:
    """Return true for text that looks like an ISO 8601 date, with or without a time."""
    return isinstance(value, str) and _ISO_DATE.match(value) is not None


def _unusable(problems: list[str]) -> Recording:
    return Recording(np.array([], dtype=np.int64), np.array([], dtype=np.int64), problems)


# ------------------------------------------------------------------------------------------------------- columns


def _find_columns(table: pd.DataFrame) -> tuple[str | None, str | None, list[str]]:
    """Find the names of the columns of times and counts, None where there is none, and the problems of the header."""
    names = list(table.columns)
    advice = (
        "keep one column 'count' with the requests of each second, and a column 'timestamp' if seconds are missing; or "
        "'timestamp' alone with one row a request"
    )
    if len(set(names)) < len(names) or not names:
        return None, None, [f"the columns are {_listed(names)}; {advice}"]
    times = [name for name in names if _has_times(name, table[name])]
    others = [name for name in names if name not in times]
    if len(times) > 1 or len(others) > 1:
        return None, None, [f"the columns are {_listed(names)}; {advice}"]
    return next(iter(times), None), next(iter(others), None), []


def _has_times(name: str, column: pd.Series) -> bool:
    plain = name.strip().lower()
    if plain in COUNT_NAMES:
        return False
    return plain in TIME_NAMES or _has_dates(column)


def _has_dates(column: pd.Series) -> bool:
    return pd.api.types.is_datetime64_any_dtype(column) or any(map(is_date, map(str, column.iloc[:_SAMPLE])))


def _listed(names: list[str]) -> str:
    shown = ", ".join(_shown(name) for name in names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or "none"


def _shown(value: object) -> str:
    """Show a value as people wrote it, shortened."""
    text = str(value)
    return repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...")


def _numbers(column: pd.Series) -> np.ndarray:
    """(N,) floats, NaN where there is no number."""
    if pd.api.types.is_bool_dtype(column) or not pd.api.types.is_numeric_dtype(column):
        column = pd.to_numeric(column.astype(object).map(str), errors="coerce")
    return column.to_numpy(dtype=float, na_value=np.nan)


def _first(column: pd.Series, place: Place, wrong: np.ndarray, what: str, remedy: str) -> list[str]:
    """Describe the first of the rows where ``wrong`` (N,) is true, and their number, if there are any."""
    number = int(np.count_nonzero(wrong))
    if not number:
        return []
    row = int(wrong.argmax())
    more = f" ({number} such rows)" if number > 1 else ""
    return [f"{place(row)}: {what.format(_shown(column.iloc[row]))}{more}; {remedy}"]


# -------------------------------------------------------------------------------------------------------- counts


def _read_counts(column: pd.Series, place: Place) -> tuple[np.ndarray, list[str]]:
    """(N,) counts as floats, and what is wrong with them."""
    counts = _numbers(column)
    empty = column.isna().to_numpy()
    finite = np.isfinite(counts)
    remedy = f"write the requests of that second, a whole number from 0 to {MAX_COUNT}"
    recorded = "write 0 if no request came; if it was not recorded, leave out the row and add a column 'timestamp'"
    with np.errstate(invalid="ignore"):
        kinds = [
            (empty, "there is no count", recorded),
            (np.isnan(counts) & ~empty, "count {} is not a number", remedy),
            (np.isinf(counts), "count {} is infinite", remedy),
            (finite & (counts < 0), "count {} is negative", remedy),
            (finite & (counts != np.floor(counts)), "count {} is not a whole number", remedy),
            (finite & (counts > MAX_COUNT), "count {} is too large", remedy),
        ]
    return counts, [each for kind in kinds for each in _first(column, place, *kind)]


# --------------------------------------------------------------------------------------------------------- times


def _recorded_seconds(column: pd.Series, place: Place) -> tuple[np.ndarray, list[str]]:
    """(N,) seconds since the first row of a table with one row a second, and what is wrong with its times."""
    times, problems = _read_times(column, place)
    seconds = times.seconds
    steps = np.concatenate([[np.nan], np.diff(seconds)])
    if not problems and not (steps < 0).any():
        problems = _spacing_problem(steps, column)
    if problems:
        return seconds, problems
    changed = _clock_changes(times, steps)
    repeated = (steps == 0) & ~changed
    if times.is_local and np.count_nonzero(repeated) >= _HOUR / 2:
        changed, repeated = changed | repeated, np.zeros_like(repeated)
    kinds = [
        (changed, _CLOCK_CHANGE, _TO_UTC),
        (repeated, "time {} is that of the row above", "give every second one row, with the sum of its counts"),
        ((steps < 0) & ~changed, "time {} is before that of the row above", "sort the rows by time"),
        (
            (steps > 0) & (steps != np.floor(steps)),
            "time {} is not a whole number of seconds after that of the row above",
            "write whole seconds; or, for one row a request, leave out the counts",
        ),
    ]
    problems = [each for kind in kinds for each in _first(column, place, *kind)]
    return (seconds, problems) if problems else ((seconds - seconds[0]).astype(np.int64), [])


def _requests(column: pd.Series, place: Place) -> Recording:
    """Count the requests of every second in a table with one row a request, in any order."""
    times, problems = _read_times(column, place)
    steps = np.concatenate([[np.nan], np.diff(times.seconds)])
    problems += _first(column, place, _clock_changes(times, steps), _CLOCK_CHANGE, _TO_UTC)
    if problems:
        return _unusable(problems)
    seconds = np.floor(times.seconds - times.seconds.min())
    problems = length_problems(int(seconds.max()) + 1)
    if problems:
        return _unusable(problems)
    counts = np.bincount(seconds.astype(np.int64))
    return Recording(counts, np.arange(len(counts)), [])


def _read_times(column: pd.Series, place: Place) -> tuple[_Times, list[str]]:
    """Read times as seconds, and what is wrong with single ones."""
    if _has_dates(column):
        times, problems = _read_dates(column, place)
    else:
        seconds = _numbers(column)
        times, problems = _Times(np.where(np.isfinite(seconds), seconds, np.nan), is_local=False), []
        problems += _unit_problem(times.seconds, column, place)
    unreadable = np.isnan(times.seconds)
    remedy = "write seconds, or dates as in 2024-05-01T12:00:00Z"
    return times, _first(column, place, unreadable, "time {} cannot be read", remedy) + problems


def _read_dates(column: pd.Series, place: Place) -> tuple[_Times, list[str]]:
    """Read dates as seconds since 1970, and where their time zones are mixed."""
    problems: list[str] = []
    if isinstance(column.dtype, pd.DatetimeTZDtype) or pd.api.types.is_datetime64_any_dtype(column):
        dates, is_local = pd.to_datetime(column, utc=True), not isinstance(column.dtype, pd.DatetimeTZDtype)
    else:
        texts = [str(value) for value in column]
        plausible = pd.Series([text if is_date(text) else None for text in texts], dtype=object)
        dates = pd.to_datetime(plausible, errors="coerce", utc=True, format="ISO8601")
        readable, zoned = dates.notna().to_numpy(), np.array([_ZONE.search(text) is not None for text in texts])
        row = int(readable.argmax())
        is_local = not zoned[row]
        problems = _first(
            column,
            place,
            readable & (zoned == is_local),
            f"time {{}} has {'a' if is_local else 'no'} time zone, unlike {place(row)}",
            "write all times in UTC, ending in Z",
        )
    ticks = dates.astype("int64").to_numpy() / _TICKS[dates.dt.unit]  # a difference of dates could overflow
    return _Times(np.where(dates.isna(), np.nan, ticks), is_local), problems


def _unit_problem(seconds: np.ndarray, column: pd.Series, place: Place) -> list[str]:
    """Describe times that are too large for seconds."""
    too_large = np.abs(np.nan_to_num(seconds)) >= _UNITS[0][0]
    if not too_large.any():
        return []
    smallest = np.abs(seconds[too_large]).min()
    _, unit, factor = [each for each in _UNITS if smallest >= each[0]][-1]
    what = f"time {{}} is too large for seconds (at most {_UNITS[0][0]:.0f}) and seems to be in {unit}"
    return _first(column, place, too_large, what, f"divide the column {_shown(column.name)} by {factor}")


def _spacing_problem(steps: np.ndarray, column: pd.Series) -> list[str]:
    """Describe rows that usually are more than a second apart."""
    forward = steps[steps > 0]
    usual = float(np.median(forward)) if len(forward) else 1.0
    if usual < 2:
        return []
    problem = f"the rows are {usual:g} s apart, but every second needs a row; "
    if 900 <= usual <= 1100 and not _has_dates(column):
        return [f"{problem}if the times are in milliseconds, divide the column {_shown(column.name)} by 1000"]
    return [
        f"{problem}export the requests by the second, or one row a request (spreading these counts evenly would hide "
        "bursts); if rows of seconds without requests were left out, add them with count 0"
    ]


def _clock_changes(times: _Times, steps: np.ndarray) -> np.ndarray:
    """(N,) true where local times go back by about an hour, or leave out one hour of the clock."""
    if not times.is_local:
        return np.zeros(len(steps), dtype=bool)
    back = (steps <= -_HOUR / 2) & (steps >= -2 * _HOUR)
    skipped = (steps > _HOUR) & (steps <= _HOUR + 60) & (times.seconds % _HOUR < 60)
    return back | skipped
