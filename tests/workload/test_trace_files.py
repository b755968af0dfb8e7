"""Files of users: formats that are read, and one error with place, value, limit and remedy for what is wrong."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from opd.host.paths import package_path
from opd.workload import trace_files
from opd.workload.trace import load_trace
from opd.workload.trace_files import SYNTHETIC_FILE
from opd.workload.trace_limits import MIN_SECONDS, TraceError

COUNTS = np.arange(MIN_SECONDS) % 50
SECONDS = np.arange(MIN_SECONDS)
EPOCH = 1_714_564_800  # 2024-05-01T12:00:00Z


def dates(seconds: np.ndarray, zone: str | None = "UTC") -> pd.Series:
    """Dates of seconds since 2024-05-01T12:00:00Z; without a zone, as a clock in it shows them."""
    return pd.Series(pd.to_datetime(EPOCH + seconds, unit="s", utc=True)).dt.tz_convert(zone)


def write(path: Path, columns: dict[str, object]) -> Path:
    table = pd.DataFrame(columns)
    table.to_csv(path, index=False) if path.suffix != ".parquet" else table.to_parquet(path)
    return path


def error_of(path: Path) -> str:
    with pytest.raises(TraceError) as caught:
        load_trace(path)
    return str(caught.value)


# Formats


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
@pytest.mark.parametrize(
    "times",
    [
        {},
        {"timestamp": SECONDS},
        {"Time": SECONDS + 7.0},
        {" second ": EPOCH + SECONDS},
        {"timestamp": dates(SECONDS)},
        {"when": dates(SECONDS, None)},
        {"when": dates(SECONDS, "Europe/Berlin")},
        {"datetime": dates(SECONDS).dt.strftime("%Y-%m-%d %H:%M:%S")},
        {"timestamp": dates(SECONDS).dt.strftime("%Y-%m-%dT%H:%M:%SZ")},
    ],
)
def test_a_row_a_second(tmp_path, times, suffix):
    trace = load_trace(write(tmp_path / f"own{suffix}", {**times, "count": COUNTS}), damping=2)
    np.testing.assert_array_equal(trace.recorded, COUNTS)
    np.testing.assert_array_equal(trace.raw_index, SECONDS)
    assert (trace.name, trace.is_synthetic, trace.damping) == (f"own{suffix}", False, 2)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
@pytest.mark.parametrize("kind", ["seconds", "fractions", "dates"])
def test_a_row_a_request_in_any_order(tmp_path, kind, suffix):
    rng = np.random.default_rng(3)
    at = rng.permutation(np.concatenate([[0.0], np.sort(rng.uniform(0, MIN_SECONDS, 5000)), [MIN_SECONDS]]))
    if kind == "seconds":
        at = np.floor(at)
    path = write(tmp_path / f"log{suffix}", {"timestamp": dates(at) if kind == "dates" else EPOCH + at})
    trace = load_trace(path)
    np.testing.assert_array_equal(trace.recorded, np.bincount(np.floor(at).astype(int)))
    np.testing.assert_array_equal(trace.raw_index, np.arange(MIN_SECONDS + 1))


@pytest.mark.parametrize("header", ["count\n", "requests\n", "", "\ufeffcount\n", '"count"\r\n'])
def test_csv_of_one_column_with_any_header_or_none(tmp_path, header):
    path = tmp_path / "own.csv"
    path.write_text(header + "\n".join(map(str, COUNTS)) + "\n\n", encoding="utf-8")
    np.testing.assert_array_equal(load_trace(str(path)).recorded, COUNTS)


def test_a_series_with_a_time_index(tmp_path):
    path = tmp_path / "series.parquet"
    pd.Series(COUNTS, index=pd.DatetimeIndex(dates(SECONDS)), name="count").to_frame().to_parquet(path)
    np.testing.assert_array_equal(load_trace(path).recorded, COUNTS)
    pd.DataFrame({"count": COUNTS}, index=dates(SECONDS)).to_csv(path.with_suffix(".csv"))
    np.testing.assert_array_equal(load_trace(path.with_suffix(".csv")).recorded, COUNTS)


def test_seconds_without_a_row_are_not_recorded(tmp_path):
    left = np.delete(np.arange(MIN_SECONDS + 3), [5, 100, 101])
    trace = load_trace(write(tmp_path / "gaps.csv", {"timestamp": EPOCH + left, "count": COUNTS}))
    np.testing.assert_array_equal(trace.raw_index, left)


def test_offsets_from_utc_may_change_with_the_clock(tmp_path):
    """Local times with their offset are unambiguous in the hour that comes twice."""
    october = pd.Series(pd.to_datetime(1_729_980_000 + SECONDS, unit="s", utc=True)).dt.tz_convert("Europe/Berlin")
    text = october.map(pd.Timestamp.isoformat)
    assert {each[-6:] for each in text} == {"+02:00", "+01:00"}
    trace = load_trace(write(tmp_path / "autumn.csv", {"timestamp": text, "count": COUNTS}))
    np.testing.assert_array_equal(trace.raw_index, SECONDS)


def test_the_bundled_trace_is_recognised_wherever_it_lies(tmp_path):
    copy = tmp_path / "copy.csv.gz"
    copy.write_bytes(package_path(*SYNTHETIC_FILE).read_bytes())
    assert load_trace(copy).is_synthetic and load_trace(copy).name == "synthetic"


# Counts


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "there is no count"),
        (2.5, "count '2.5' is not a whole number"),
        (-4, "count '-4.0' is negative"),
        (np.inf, "count 'inf' is infinite"),
        (3e9, "count '3000000000.0' is too large"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_a_bad_count_is_named_with_its_row(tmp_path, value, message, suffix):
    counts = np.array([1.0, value, value, *COUNTS])
    place = "row 1 (the first is row 0)" if suffix == ".parquet" else "line 3"
    path = write(tmp_path / f"bad{suffix}", {"count": counts})
    error = error_of(path)
    assert error.startswith(f"trace 'bad{suffix}': {place}: {message} (2 such rows); write ")
    assert np.isnan(value) or "a whole number from 0 to 2147483647" in error


@pytest.mark.parametrize("text", ["many", "12k", "1,5", "True", "NaN", "n/a", "0x10", ""])
def test_text_is_no_count(tmp_path, text):
    path = write(tmp_path / "text.csv", {"timestamp": np.arange(MIN_SECONDS + 1), "count": [text, *map(str, COUNTS)]})
    expected = f"line 2: count {text!r} is not a number" if text else "line 2: there is no count"
    assert expected in error_of(path)


def test_all_problems_of_a_file_are_reported_together(tmp_path):
    counts, seconds = COUNTS.astype(object), SECONDS.copy()
    counts[[3, 4, 9]] = -1, -2, "x"
    seconds[500] = seconds[499]
    error = error_of(write(tmp_path / "many.csv", {"timestamp": seconds, "count": counts}))
    assert error.splitlines()[0] == "trace 'many.csv' has 3 problems:"
    assert "- line 11: count 'x' is not a number;" in error
    assert "- line 5: count '-1' is negative (2 such rows);" in error
    assert "- line 502: time '499' is that of the row above; give every second one row" in error


def test_line_numbers_are_those_of_an_editor(tmp_path):
    path = tmp_path / "blank.csv"
    path.write_text("count\n1\n\n2\nx\n" + "\n".join(map(str, COUNTS)), encoding="utf-8")
    assert "line 3: there is no count" in (error := error_of(path)) and "line 5: count 'x'" in error
    path.write_text("7\n8\nx\n" + "\n".join(map(str, COUNTS)), encoding="utf-8")
    assert "line 3: count 'x'" in error_of(path)


# Times


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (1000 * SECONDS, "the rows are 1000 s apart, but every second needs a row; if the times are in milliseconds, "
         "divide the column 'timestamp' by 1000"),
        (1000 * (EPOCH + SECONDS), "line 2: time '1714564800000' is too large for seconds .*in milliseconds.* by 1000"),
        (10**6 * (EPOCH + SECONDS), "line 2: .*in microseconds.* by 1000000"),
        (10**9 * (EPOCH + SECONDS), "line 2: .*in nanoseconds.* by 1000000000"),
        (60 * SECONDS, "the rows are 60 s apart, .*by the second, or one row a request .*with count 0"),
        (dates(60 * SECONDS), "the rows are 60 s apart"),
        (dates(86_400 * SECONDS), "the rows are 86400 s apart"),
        (SECONDS / 2, "line 3: time '0.5' is not a whole number of seconds after .*leave out the counts"),
        (SECONDS // 2, r"line 3: time '0' is that of the row above \(10800 such rows\); .*the sum of its counts"),
        (SECONDS[::-1], r"line 3: time '21598' is before that of the row above \(21599 such rows\); sort the rows"),
        (np.where(SECONDS == 7, np.inf, SECONDS), "line 9: time 'inf' cannot be read; write seconds, or dates as"),
        (np.where(SECONDS == 7, np.nan, SECONDS), "line 9: time 'nan' cannot be read"),
        (np.where(SECONDS == 7, "soon", SECONDS.astype(str)), "line 9: time 'soon' cannot be read"),
        (dates(SECONDS).dt.strftime("%d/%m/%Y %H:%M:%S"), "line 2: time '01/05/2024 12:00:00' cannot be read"),
        (dates(SECONDS + 3601 * (SECONDS > 9000)), "line 9002: 3601 seconds are missing after it"),
    ],
)  # fmt: skip
def test_wrong_times_are_named_with_the_remedy(tmp_path, times, message):
    with pytest.raises(TraceError, match=rf"^trace 'times.csv': {message}"):
        load_trace(write(tmp_path / "times.csv", {"timestamp": times, "count": COUNTS}))


def clock_change(month: str) -> np.ndarray:
    """Seconds around a clock change in Berlin, as dates without a zone that clocks there showed."""
    start = {"spring": 1_711_839_600, "autumn": 1_729_980_000}[month]
    shown = pd.Series(pd.to_datetime(start + SECONDS, unit="s", utc=True)).dt.tz_convert("Europe/Berlin")
    return shown.dt.tz_localize(None).to_numpy()


@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize("month", ["spring", "autumn"])
def test_clock_changes_ask_for_utc_and_not_for_sums(tmp_path, month, sort):
    times = np.sort(clock_change(month)) if sort else clock_change(month)
    error = error_of(write(tmp_path / "local.csv", {"timestamp": times, "count": COUNTS}))
    assert "had been changed: local time was used" in error and "write UTC" in error and "tz_localize" in error
    assert "sum" not in error


@pytest.mark.parametrize("month", ["spring", "autumn"])
def test_clock_changes_in_a_log_of_requests(tmp_path, month):
    error = error_of(write(tmp_path / "log.csv", {"timestamp": clock_change(month)}))
    assert "local time was used" in error


def test_a_gap_of_an_hour_in_utc_is_a_gap(tmp_path):
    seconds = np.concatenate([SECONDS[:14_400], SECONDS[14_400:] + 3600])
    path = write(tmp_path / "utc.csv", {"timestamp": dates(seconds).dt.strftime("%FT%TZ"), "count": COUNTS})
    assert load_trace(path).raw_index[-1] == MIN_SECONDS + 3599


def test_time_zones_may_not_be_mixed(tmp_path):
    text = dates(SECONDS).dt.strftime("%Y-%m-%dT%H:%M:%SZ").to_numpy(dtype=object)
    text[4] = text[4].removesuffix("Z")
    path = write(tmp_path / "mixed.csv", {"timestamp": text, "count": COUNTS})
    expected = "line 6: time '2024-05-01T12:00:04' has no time zone, unlike line 2; write all times in UTC, ending in Z"
    assert expected in error_of(path)


# Files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("trace.xlsx", b"1", "ends in '.xlsx'; only .csv, .csv.gz and .parquet"),
        ("broken.parquet", b"not parquet", "cannot be read as parquet: .*; write it with pandas"),
        ("empty.csv", b"", "line 1 is empty; write the header 'count'"),
        ("header.csv", b"count\n", "has no rows; write one row a second"),
        ("blank.csv", b"count\n\n\n", "has no rows"),
        ("one.csv", b"count\n5\n", "it has 1 recorded seconds, but at least 21600"),
        ("two.csv", b"a,b\n1,2\n", "the columns are 'a', 'b'; keep one column 'count'"),
        ("extra.csv", b"timestamp,count,host\n1,2,a\n", "columns are 'timestamp', 'count', 'host'; keep one column"),
        ("twice.csv", b"timestamp,time\n1,2\n", "columns are 'timestamp', 'time'; keep"),
        ("index.csv", b",count\n0,5\n1,6\n", "columns are 'Unnamed: 0', 'count'; keep"),
        ("semicolons.csv", b"timestamp;count\n1;2\n", "line 1: the columns are separated by semicolons; write commas"),
        ("tabs.csv", b"timestamp\tcount\n1\t2\n", "line 1: the columns are separated by tabs"),
        ("headless.csv", b"0,5\n1,6\n", "line 1: the header is missing before '0,5'; name the columns"),
        ("dates.csv", b"2024-05-01T12:00:00Z\n", "line 1: the header is missing before '2024"),
        ("ragged.csv", b"count\n1\n2,3\n", "cannot be read as csv: .*line 3.*; save it as UTF-8 text with commas"),
        ("wide.csv", b"count\n1,2\n3,4\n", "cannot be read as csv: .*; save it"),
        ("latin.csv", b"count\n\xff\xfe\n", "cannot be read as csv: .*utf-8.*; save it as UTF-8"),
        ("utf16.csv", "count\n5\n".encode("utf-16"), "cannot be read as csv: .*; save it as UTF-8"),
        ("packed.csv.gz", b"not packed", "cannot be read as csv: Not a gzipped file.*; save it as UTF-8"),
        ("cut.csv.gz", gzip.compress(b"count\n5\n", mtime=0)[:-9], "cannot be read as csv: .*; save it as UTF-8"),
        ("quote.csv", b'count\n"5\n', "count '5.n' is not a number|cannot be read as csv"),
    ],
)
def test_files_that_are_not_traces_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TraceError, match=f"^trace '{name}'.*(?:{message})"):
        load_trace(tmp_path / name)


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="'nowhere.csv' is neither synthetic, twitter nor an existing file"):
        load_trace("nowhere.csv")


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "huge.csv"
    with path.open("wb") as file:
        file.truncate(trace_files.MAX_BYTES + 1)  # sparse
    assert "it has more than 1073741824 bytes, the limit of a trace; cut it" in error_of(path)


def test_a_small_file_that_unpacks_to_a_huge_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(trace_files, "MAX_BYTES", 10_000)
    path = tmp_path / "huge.csv.gz"
    path.write_bytes(gzip.compress(b"5\n" * 10_000))
    assert path.stat().st_size < 1000
    assert "it has more than 10000 bytes, the limit of a trace; cut it" in error_of(path)


def test_without_pyarrow_the_error_names_it(tmp_path, monkeypatch):
    path = write(tmp_path / "own.parquet", {"count": COUNTS})
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    assert "Parquet files need the package pyarrow; install it with: pip install pyarrow, or save" in error_of(path)


def test_a_log_over_years_is_refused_before_its_seconds_are_counted(tmp_path):
    path = write(tmp_path / "log.csv", {"timestamp": [0, 1_714_564_800]})
    assert "it has 1714564801 seconds, but at most 31622400 (366 days)" in error_of(path)


def test_all_zeros_are_refused(tmp_path):
    assert "all 21600 counts are 0" in error_of(write(tmp_path / "zero.csv", {"count": 0 * COUNTS}))
