"""Damaged traces: whatever a file contains, it is a trace, or one error with its name and remedies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd.workload import trace_limits
from opd.workload.trace_files import read_recording
from opd.workload.trace_limits import TraceError

pytestmark = pytest.mark.slow

CASES = 1500
SHORT = 20
"""Seconds that are enough for a trace here: many short files take seconds."""

# fmt: off
CELLS = (
    "", "nan", "NaN", "inf", "-inf", "-1", "0.5", "1e9", "1e400", "99999999999999999999", "1714564800000", "many",
    "0x1f", "1_000", "1,5", "True", "None", "2024-13-45", "2024-05-01", "2024-05-01T12:00:00", "24:00:00",
    "2024-05-01T12:00:00+02:00", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", '"', "'", ";", "\t", "\0", "é", "𝟟",
    "٣", " 7 ", "7s", "- 7",
)
BYTES = (
    b"\xff", b"\xfe\xff", b"\0", b'"', b",", b";", b"\r", b"\n", b"\n\n", b"\xef\xbb\xbf", b"-", b".", b"e", b"9" * 30,
)
# fmt: on

Lines = list[str]


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace_limits, "MIN_SECONDS", SHORT)
        yield


def valid_traces() -> list[Lines]:
    """Valid traces in all formats of CSV files, at any time and at clock changes."""
    traces = []
    for rows, start in product((SHORT, SHORT + 7, 2 * SHORT), (0, 1_714_564_800, 1_711_846_790, 1_729_990_790)):
        counts = [str((7 * second + start) % 50) for second in range(rows)]
        seconds = start + np.arange(rows)
        dates = pd.to_datetime(seconds, unit="s")
        traces += [counts, ["count", *counts]]
        for times in (seconds.astype(str), *(dates.strftime(form) for form in ("%FT%T", "%FT%TZ", "%F %T+02:00"))):
            traces.append(["timestamp", *times])
            traces.append(["timestamp,count", *map(",".join, zip(times, counts, strict=True))])
    return traces


def with_cell(lines: Lines, rng: np.random.Generator, change: Callable[[str], str]) -> Lines:
    row = int(rng.integers(len(lines)))
    cells = lines[row].split(",")
    column = int(rng.integers(len(cells)))
    cells[column] = change(cells[column])
    return [*lines[:row], ",".join(cells), *lines[row + 1 :]]


def shifted(cell: str, by: int) -> str:
    """A number or date, later by some seconds."""
    try:
        return str(int(cell) + by)
    except ValueError:
        stamp = pd.to_datetime(cell, errors="coerce")
        return cell if pd.isna(stamp) else (stamp + pd.Timedelta(seconds=by)).isoformat()


def damaged_lines(lines: Lines, rng: np.random.Generator) -> Lines:
    """Change lines in one of the ways in which people and exports do."""
    row, other = (int(number) for number in rng.integers(len(lines), size=2))
    match rng.integers(10):
        case 0 | 1 | 2:
            return with_cell(lines, rng, lambda _: str(rng.choice(CELLS)))
        case 3:
            by = int(rng.choice([-7200, -3600, -1, 1, 59, 3600, 3601, 10**6, 10**12]))
            return with_cell(lines, rng, lambda cell: shifted(cell, by))
        case 4:
            return [*lines[:row], *lines[row + 1 :]]
        case 5:
            return [*lines[:row], lines[other], *lines[row:]]
        case 6:
            return [line.replace(",", str(rng.choice([";", "\t", ",,", " "]))) for line in lines]
        case 7:
            return [f"{line},{rng.choice(CELLS)}" for line in lines]
        case 8:
            factor = int(rng.choice([1000, 60, 10**6, 10**9]))
            return [
                ",".join(str(int(cell) * factor) if cell.isdigit() else cell for cell in line.split(","))
                for line in lines
            ]
        case _:
            return lines[:row] + [lines[other]] * int(rng.integers(3)) + lines[max(row, other) :][::-1]


def damaged_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(len(content) + 1))
    match rng.integers(4):
        case 0:
            return content[:at] + BYTES[rng.integers(len(BYTES))] + content[at:]
        case 1:
            return content[:at]
        case 2:
            return content[:at] + rng.bytes(int(rng.integers(1, 9))) + content[at + 4 :]
        case _:
            return content.decode(errors="replace").encode(
                str(rng.choice(["utf-16", "latin-1", "utf-8-sig"])), "replace"
            )


def examine(path: Path) -> bool:
    """Read a file; true if it is a trace, false if it is refused as it should be."""
    try:
        _, counts, seconds = read_recording(path)
    except TraceError as error:
        first, *others = str(error).split("\n- ")
        assert first.startswith(f"trace {path.name!r}"), error
        for problem in others or [first]:
            assert "; " in problem and "\n" not in problem, error
        return False
    assert counts.dtype == seconds.dtype == np.int64 and len(counts) == len(seconds) >= SHORT
    assert counts.min() >= 0 and seconds[0] == 0 and (np.diff(seconds) >= 1).all()
    return True


def examine_bytes(content: bytes, path: Path) -> bool:
    path.write_bytes(content)
    try:
        return examine(path)
    finally:
        path.unlink()  # many file systems create a file faster than they overwrite it


def test_damaged_csv_files(tmp_path):
    rng = np.random.default_rng(17)
    path = tmp_path / "damaged.csv"
    traces, accepted = valid_traces(), 0
    for case in range(CASES):
        lines = traces[rng.integers(len(traces))]
        for _ in range(int(rng.integers(3))):
            lines = damaged_lines(lines, rng) or [""]
        content = "\n".join(lines).encode()
        content = damaged_bytes(content, rng) if rng.random() < 0.25 else content
        try:
            accepted += examine_bytes(content, path)
        except BaseException:
            print(f"case {case}: {content[:500]!r}")
            raise
    assert CASES / 10 < accepted < CASES * 2 / 3, "both outcomes must be common"


def test_damaged_parquet_files(tmp_path):
    rng = np.random.default_rng(18)
    path = tmp_path / "damaged.parquet"
    pd.DataFrame({"count": np.arange(200)}).to_parquet(path)
    intact = path.read_bytes()
    outcomes = set()
    for _ in range(300):
        outcomes.add(examine_bytes(damaged_bytes(intact, rng), path))
    assert False in outcomes


@pytest.mark.parametrize(
    "column",
    [
        [None] * SHORT,
        [[1, 2]] * SHORT,
        [{"a": 1}] * SHORT,
        [b"7"] * SHORT,
        ["7"] * SHORT,
        [True, False] * SHORT,
        [2**63] * SHORT,
        [pd.Timedelta(seconds=1)] * SHORT,
        pd.array([1, None] * SHORT, dtype="Int64"),
        pd.Categorical(["a", "b"] * SHORT),
        pd.to_datetime([0] * SHORT).date,
        pd.to_datetime(["NaT"] * SHORT),
    ],
)
@pytest.mark.parametrize("name", ["count", "timestamp", "other"])
def test_parquet_columns_of_any_type(tmp_path, column, name):
    path = tmp_path / "typed.parquet"
    pd.DataFrame({name: column}).to_parquet(path)
    examine(path)
    pd.DataFrame({name: column, "n": 5}).to_parquet(path)
    examine(path)


@given(
    counts=st.lists(st.integers(0, 2**31 - 1), min_size=SHORT, max_size=60).filter(any),
    gap=st.integers(0, 4),
    start=st.sampled_from([0, 12, 1_714_564_800]),
    form=st.sampled_from(["seconds", "dates"]),
    suffix=st.sampled_from([".csv", ".parquet"]),
)
@settings(max_examples=60, deadline=None)
def test_a_written_trace_is_read_as_it_was(tmp_path_factory, counts, gap, start, form, suffix):
    seconds = np.arange(len(counts)) + gap * (np.arange(len(counts)) >= 10)
    times = start + seconds if form == "seconds" else pd.to_datetime(start + seconds, unit="s", utc=True)
    table = pd.DataFrame({"timestamp": times, "count": counts})
    path = tmp_path_factory.mktemp("round") / f"trip{suffix}"
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    name, read, at = read_recording(path)
    assert (name, read.tolist(), at.tolist()) == (path.name, counts, seconds.tolist())


@given(at=st.lists(st.integers(0, 10**6).map(lambda each: each / 1000), min_size=2, max_size=60))
@settings(max_examples=40, deadline=None)
def test_requests_are_counted_once_each(tmp_path_factory, at):
    path = tmp_path_factory.mktemp("log") / "log.csv"
    pd.DataFrame({"timestamp": [*at, 0.0, 1000.0]}).to_csv(path, index=False)
    _, counts, seconds = read_recording(path)
    assert counts.sum() == len(at) + 2 and len(seconds) == 1001
    for second in set(map(int, at)) - {0, 1000}:
        assert counts[second] == sum(int(each) == second for each in at)
