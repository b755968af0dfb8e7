"""Traces of requests per second and their splits.

A :class:`Trace` counts the requests of every second. Seconds that were not recorded are dropped: the counts are one
contiguous array, indexed by *position*. Each entry keeps its *raw index*, the second since the start of the recording,
by which cycles are named.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from opd.host.paths import package_path, project_path

DAY_SECONDS = 86_400
MIN_SECONDS = 6 * 3600
MAX_GAP_SECONDS = 3600
SYNTHETIC_FILE = ("workload", "synthetic_trace.parquet")
TWITTER_FILE = ("data", "twitter_workload.tbz2")
TWITTER_VARIABLE = "OPD_TWITTER_TRACE"
TWITTER_MD5 = "a690a358cc1ab2bae5cb401c5049e116"

Split = Literal["train", "validation", "test"]


class TraceError(ValueError):
    """A trace cannot be read or used; the message names the value, its place, the limit and the remedy."""


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests per second over days, without recording gaps.

    Attributes:
        name: ``synthetic``, ``twitter`` or the name of the user's file with its suffix.
        recorded: (T,) requests in every recorded second, before damping.
        raw_index: (T,) second since the start of the recording of every entry, increasing.
        damping: divisor of the recorded counts (integer division), to suit a small device.
        is_synthetic: true for a generated trace; figures of it say so.

    Raises:
        TraceError: if a count is negative, the trace too short, a gap too long or ``damping`` below 1.
    """

    name: str
    recorded: np.ndarray = field(repr=False)
    raw_index: np.ndarray = field(repr=False)
    damping: int = 1
    is_synthetic: bool = False

    def __post_init__(self) -> None:
        if int(self.damping) != self.damping or self.damping < 1:
            raise TraceError(f"trace {self.name!r}: damping {self.damping} is not a whole number of at least 1")
        if len(self.recorded) < MIN_SECONDS:
            raise TraceError(
                f"trace {self.name!r} has {len(self.recorded)} recorded seconds, but at least {MIN_SECONDS} "
                "(6 hours) are needed to train, validate and test; provide a longer recording"
            )
        if self.recorded.min() < 0:
            position = int(np.argmax(self.recorded < 0))
            raise TraceError(
                f"trace {self.name!r}: count {self.recorded[position]} at second {self.raw_index[position]} is "
                "negative; counts are requests per second, at least 0"
            )
        steps = np.diff(self.raw_index)
        if steps.max() - 1 > MAX_GAP_SECONDS:
            position = int(steps.argmax())
            raise TraceError(
                f"trace {self.name!r}: {steps[position] - 1} seconds are missing after second "
                f"{self.raw_index[position]}, but a gap may last at most {MAX_GAP_SECONDS} s; "
                "cut the trace there and use the longer part"
            )

    @cached_property
    def counts(self) -> np.ndarray:
        """(T,) requests per second after damping, int64, by position."""
        return self.recorded // self.damping

    @property
    def label(self) -> str:
        """Name in figures, with the damping; a synthetic trace is marked as such."""
        kind = "synthetic trace (generated)" if self.is_synthetic else f"{self.name} trace"
        return kind if self.damping == 1 else f"{kind}, damping {self.damping}"

    def position(self, raw_index: int) -> int:
        """Position in :attr:`counts` of the second ``raw_index`` of the recording.

        Raises:
            TraceError: if that second was not recorded or lies outside the trace.
        """
        position = int(np.searchsorted(self.raw_index, raw_index))
        if not self.raw_index[0] <= raw_index <= self.raw_index[-1]:
            raise TraceError(
                f"trace {self.name!r}: second {raw_index} lies outside the recording, which spans seconds "
                f"{self.raw_index[0]} to {self.raw_index[-1]}"
            )
        if self.raw_index[position] != raw_index:
            raise TraceError(
                f"trace {self.name!r}: second {raw_index} falls into a recording gap; the nearest recorded seconds "
                f"are {self.raw_index[position - 1]} and {self.raw_index[position]}"
            )
        return position

    def split(self, name: Split) -> slice:
        """Positions of a split; the three splits are disjoint and cover the trace in the order of time.

        The first two thirds of the trace, at most 14 days (14 days of the Twitter trace, as in the paper's predictor
        [13]), are for learning: their last seventh is ``validation``, the rest ``train``. The remainder is ``test``.
        """
        learning = min(14 * DAY_SECONDS, len(self.recorded) * 2 // 3)
        training = learning * 6 // 7
        splits = {
            "train": slice(0, training),
            "validation": slice(training, learning),
            "test": slice(learning, len(self.recorded)),
        }
        if name not in splits:
            raise TraceError(f"split {name!r} is not one of {', '.join(splits)}")
        return splits[name]


def load_trace(source: str | Path, damping: int = 1) -> Trace:
    """Load a trace of requests per second.

    Args:
        source: ``synthetic`` for the bundled generated trace; ``twitter`` for the Twitter trace in
            ``data/twitter_workload.tbz2`` or where the environment variable ``OPD_TWITTER_TRACE`` points; or the
            path of a CSV or Parquet file with one count per second in the column ``count`` (or its only column)
            and, if seconds are missing, a column ``timestamp`` in seconds or as dates. A relative path is looked
            up in the working directory, then in the project.
        damping: every count is divided by it (integer division).

    Raises:
        TraceError: if the content is not a usable trace.
        FileNotFoundError: if the file is missing.
    """
    if source == "synthetic":
        recorded = _counts_of_table(pd.read_parquet(package_path(*SYNTHETIC_FILE)), "synthetic")
        return Trace("synthetic", recorded, np.arange(len(recorded)), damping, is_synthetic=True)
    if source == "twitter":
        raw = _read_twitter(_twitter_path())
        recorded_at = np.flatnonzero(raw)  # zeros are seconds that the recorder missed
        return Trace("twitter", raw[recorded_at], recorded_at, damping)
    path = _user_path(source)
    table = _read_table(path)
    recorded = _counts_of_table(table, path.name)
    return Trace(path.name, recorded, _seconds_of_table(table, path.name), damping)


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
