"""Read traces from files: the bundled one, the recording of Twitter, and those of users."""

from __future__ import annotations

import filecmp
import gzip
import hashlib
import io
import os
import tarfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from opd.host.paths import package_path, project_path
from opd.workload.trace_limits import TraceError
from opd.workload.trace_table import Place, is_date, read_table

SYNTHETIC_FILE = ("workload", "synthetic_trace.csv.gz")
TWITTER_FILE = ("data", "twitter_workload.tbz2")
TWITTER_SUFFIX = ".tbz2"
TWITTER_VARIABLE = "OPD_TWITTER_TRACE"
TWITTER_MD5 = "a690a358cc1ab2bae5cb401c5049e116"


MAX_BYTES = 2**30
"""Largest file of a user's trace, unpacked."""

_MAX_HEADER = 4096
_SUFFIXES = (".csv", ".csv.gz", ".parquet")


def locate(source: str | Path) -> Path:
    """Find the file of a trace.

    Args:
        source: as :func:`opd.workload.trace.load_trace` takes it.

    Raises:
        FileNotFoundError: if there is none.
    """
    if source == "synthetic":
        return package_path(*SYNTHETIC_FILE)
    if source == "twitter":
        return _twitter_path()
    path = Path(source).expanduser()
    if not path.exists():
        path = project_path(str(path))
    if path == project_path(*TWITTER_FILE):
        return _twitter_path()
    if not path.is_file():
        raise FileNotFoundError(
            f"trace {str(source)!r} is neither synthetic, twitter nor an existing file; "
            "give the path of a CSV or Parquet file with one count of requests per second"
        )
    return path


def is_bundled(source: str | Path) -> bool:
    """True for the bundled trace, a copy of it, and the recording of Twitter; a file of a user need not exist."""
    if source in ("synthetic", "twitter") or Path(source).suffix == TWITTER_SUFFIX:
        return True
    path = Path(source).expanduser()
    return path.is_file() and _is_copy(path)


def _is_copy(path: Path) -> bool:
    return filecmp.cmp(path, package_path(*SYNTHETIC_FILE), shallow=False)


def read_recording(source: str | Path) -> tuple[str, np.ndarray, np.ndarray]:
    """Read the name of a trace, the requests of its recorded seconds, and these seconds since the first one.

    Args:
        source: as :func:`opd.workload.trace.load_trace` takes it. A copy of the bundled trace is ``synthetic``,
            wherever it is.

    Raises:
        TraceError: if the content is not a usable trace.
        FileNotFoundError: if the file is missing.
    """
    path = locate(source)
    if source == "twitter" or path.suffix == TWITTER_SUFFIX:
        raw = _read_twitter(path)
        recorded_at = np.flatnonzero(raw)  # zeros are seconds that the recorder missed
        return "twitter", raw[recorded_at], recorded_at
    table, place = _read_file(path)
    recording = read_table(table, place)
    if recording.problems:
        raise TraceError.of(path.name, recording.problems)
    return "synthetic" if _is_copy(path) else path.name, recording.counts, recording.seconds


def _twitter_path() -> Path:
    variable = os.environ.get(TWITTER_VARIABLE)
    path = Path(variable).expanduser() if variable else project_path(*TWITTER_FILE)
    if not path.is_file():
        raise FileNotFoundError(
            f"the Twitter trace is not at {path}; fetch it with `dvc update data/twitter_workload.tbz2.dvc` (or "
            f"`dvc pull` from a DVC remote that has it), or set the environment variable {TWITTER_VARIABLE} to the "
            "path of a copy"
        )
    return path


def _read_twitter(path: Path) -> np.ndarray:
    content = path.read_bytes()
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != TWITTER_MD5:
        raise TraceError(
            f"{path} has the MD5 sum {digest}, but the Twitter trace has {TWITTER_MD5}; fetch it again with "
            f"`dvc update data/twitter_workload.tbz2.dvc`, or set {TWITTER_VARIABLE} to the path of an intact copy"
        )
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:bz2") as archive:
        member = archive.extractfile("workload.txt")
        assert member is not None  # guaranteed by the digest
        return np.fromstring(member.read().decode(), dtype=np.int64, sep=" ")


# ------------------------------------------------------------------------------------------------- files of users


def _read_file(path: Path) -> tuple[pd.DataFrame, Place]:
    """Read the rows of a file and how to name them.

    Raises:
        TraceError: if it is too large or not of its format.
    """
    if not path.name.lower().endswith(_SUFFIXES):
        problem = f"it ends in {path.suffix!r}; only .csv, .csv.gz and .parquet files can be read"
        raise TraceError.of(path.name, [problem])
    parquet = path.suffix.lower() == ".parquet"
    try:
        content = _content(path)
        return _read_parquet(content) if parquet else _read_csv(content, path.name)
    except TraceError:
        raise
    except ImportError as error:
        remedy = "install it with: pip install pyarrow, or save the trace as .csv"
        raise TraceError.of(path.name, [f"Parquet files need the package pyarrow; {remedy}"]) from error
    except _UNREADABLE as error:
        kind = "parquet" if parquet else "csv"
        remedy = "write it with pandas or pyarrow" if parquet else "save it as UTF-8 text with commas"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TraceError.of(path.name, [f"it cannot be read as {kind}: {reason}; {remedy}"]) from error


def _content(path: Path) -> bytes:
    """Read a file, unpacked if it ends in ``.gz``.

    Raises:
        TraceError: if it has more than :data:`MAX_BYTES`.
    """
    content, size = b"", path.stat().st_size
    if size <= MAX_BYTES:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    if max(size, len(content)) > MAX_BYTES:
        problem = f"it has more than {MAX_BYTES} bytes, the limit of a trace"
        raise TraceError.of(path.name, [f"{problem}; cut it, or count the requests of every second first"])
    return content


_UNREADABLE = (
    pd.errors.ParserError,
    pd.errors.ParserWarning,
    pd.errors.EmptyDataError,
    ArithmeticError,
    LookupError,
    EOFError,
    OSError,
    NotImplementedError,
    TypeError,
    ValueError,
    zlib.error,
)


def _read_parquet(content: bytes) -> tuple[pd.DataFrame, Place]:
    table = pd.read_parquet(io.BytesIO(content))
    if not isinstance(table.index, pd.RangeIndex):
        table = table.reset_index()  # an index has the times
    table.columns = table.columns.map(str)
    return table, lambda row: f"row {row} (the first is row 0)"


def _read_csv(content: bytes, name: str) -> tuple[pd.DataFrame, Place]:
    with io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="") as file:
        cells = [cell.strip().strip('"') for cell in file.readline(_MAX_HEADER).split(",")]
    names_columns = not any(is_date(cell) or _is_number(cell) for cell in cells)
    _check_first_line(name, cells, names_columns)
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # rows with more cells than the header
        table = pd.read_csv(
            io.BytesIO(content),
            encoding="utf-8-sig",
            header=0 if names_columns else None,
            names=None if names_columns else ["count"],
            index_col=False,
            skip_blank_lines=False,  # lines are counted
            keep_default_na=False,
            na_values=[""],
            low_memory=False,
        )
    table.columns = table.columns.map(str)
    first = 2 if names_columns else 1
    filled = np.flatnonzero(table.notna().any(axis=1))
    table = table.iloc[: filled[-1] + 1 if len(filled) else 0]  # without blank lines at the end
    return table, lambda row: f"line {row + first}"


def _check_first_line(name: str, cells: list[str], names_columns: bool) -> None:
    """Raise if the first line of a CSV file neither names columns nor is a count."""
    if cells == [""]:
        raise TraceError.of(name, ["line 1 is empty; write the header 'count' and then one count a line"])
    for separator, description in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(cells) == 1 and separator in cells[0]:
            raise TraceError.of(name, [f"line 1: the columns are separated by {description}; write commas"])
    if not names_columns and (len(cells) > 1 or is_date(cells[0])):
        problem = f"line 1: the header is missing before {','.join(cells)[:40]!r}"
        raise TraceError.of(name, [f"{problem}; name the columns in the first line: 'timestamp' and 'count'"])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
