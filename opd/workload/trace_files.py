"""Read traces from files: the bundled one, the recording of Twitter, and those of users."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd

from opd.host.paths import package_path, project_path

SYNTHETIC_FILE = ("workload", "synthetic_trace.parquet")
TWITTER_FILE = ("data", "twitter_workload.tbz2")
TWITTER_VARIABLE = "OPD_TWITTER_TRACE"
TWITTER_MD5 = "a690a358cc1ab2bae5cb401c5049e116"


class TraceError(ValueError):
    """A trace cannot be read or used; the message names the value, its place, the limit and the remedy."""


def read_recording(source: str | Path) -> tuple[str, np.ndarray, np.ndarray]:
    """Read the name of a trace, the requests of its recorded seconds, and these seconds since the first one.

    Args:
        source: as :func:`opd.workload.trace.load_trace` takes it.

    Raises:
        TraceError: if the content is not a usable trace.
        FileNotFoundError: if the file is missing.
    """
    if source == "synthetic":
        recorded = _counts_of_table(pd.read_parquet(package_path(*SYNTHETIC_FILE)), "synthetic")
        return "synthetic", recorded, np.arange(len(recorded))
    if source == "twitter":
        raw = _read_twitter(_twitter_path())
        recorded_at = np.flatnonzero(raw)  # zeros are seconds that the recorder missed
        return "twitter", raw[recorded_at], recorded_at
    path = _user_path(source)
    table = _read_table(path)
    return path.name, _counts_of_table(table, path.name), _seconds_of_table(table, path.name)


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


def _user_path(source: str | Path) -> Path:
    path = Path(source).expanduser()
    if not path.exists():
        path = project_path(str(path))
    if not path.is_file():
        raise FileNotFoundError(
            f"trace {str(source)!r} is neither synthetic, twitter nor an existing file; "
            "give the path of a CSV or Parquet file with one count of requests per second"
        )
    return path


def _read_table(path: Path) -> pd.DataFrame:
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise TraceError(f"trace {path.name!r} ends in {suffix!r}; only .csv and .parquet files can be read")
    try:
        if suffix == ".parquet":
            return pd.read_parquet(path)
        table = pd.read_csv(path)
        # In a file of bare numbers, the first count must not be read as a header.
        return pd.read_csv(path, header=None) if _is_number(table.columns[0]) else table
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError, ValueError) as error:
        raise TraceError(
            f"trace {path.name!r} cannot be read as {suffix[1:]}: {error}; write one count per line or row"
        ) from error


def _is_number(text: object) -> bool:
    try:
        float(str(text))
    except ValueError:
        return False
    return True


def _counts_of_table(table: pd.DataFrame, name: str) -> np.ndarray:
    columns = [column for column in table.columns if column != "timestamp"]
    column = "count" if "count" in columns else columns[0] if len(columns) == 1 else None
    if column is None:
        raise TraceError(f"trace {name!r} has the columns {list(table.columns)}; name the requests per second 'count'")
    values = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    valid = np.isfinite(values) & (values >= 0) & (values == np.floor(values)) & (values < 2**31)
    if not valid.all():
        row = int(np.argmin(valid))
        raise TraceError(
            f"trace {name!r}: count {table[column].iloc[row]!r} in row {row} (the first is row 0) is not a whole "
            "number of at least 0; counts are requests in one second: correct it, or drop the row and add a column "
            "'timestamp'"
        )
    return values.astype(np.int64)


def _seconds_of_table(table: pd.DataFrame, name: str) -> np.ndarray:
    if "timestamp" not in table.columns:
        return np.arange(len(table))
    column = table["timestamp"]
    if pd.api.types.is_numeric_dtype(column):
        seconds = column.to_numpy(dtype=float, na_value=np.nan)
    else:
        dates = pd.to_datetime(column, errors="coerce", utc=True)
        seconds = ((dates - dates.iloc[0]) / pd.Timedelta(seconds=1)).to_numpy()
    steps = np.diff(seconds)
    wrong = ~((steps >= 1) & (steps == np.floor(steps)))
    if wrong.any():
        row = int(wrong.argmax()) + 1
        raise TraceError(
            f"trace {name!r}: timestamp {column.iloc[row]!r} in row {row} does not lie a whole number of seconds after "
            f"{column.iloc[row - 1]!r}; sort the rows by time and sum the requests of each second"
        )
    return np.concatenate([[0], np.cumsum(steps)]).astype(np.int64)
