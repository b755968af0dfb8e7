"""Profile tables: the reference, extrapolation, and two machines compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pipeline_folders import PROFILE, write_pipeline
from profile_tables import PIPELINES, REFERENCE, timed

from opd.host.documents import DocumentError
from opd.profiling import profiles
from opd.profiling.pipelines import load_pipeline

# ----------------------------------------------------------------------------------------------- reading and writing


def test_a_saved_table_is_loaded_unchanged(tmp_path: Path):
    profiles.save_profile(REFERENCE, tmp_path / "profile.csv", {"models": {}})
    pd.testing.assert_frame_equal(profiles.load_profile(tmp_path / "profile.csv"), REFERENCE, rtol=1e-4)
    about = json.loads((tmp_path / "profile.json").read_text())
    assert about["cores"] >= 1 and about["models"] == {}


def test_a_profile_typed_by_hand_needs_no_figures_that_only_a_measurement_has(tmp_path: Path):
    path = tmp_path / "profile.csv"
    path.write_text("task,variant,cores,batch_size,latency_mean,kind,startup_seconds\nfirst,small,1,1,0.5,assumed,2\n")
    (row,) = profiles.load_profile(path).to_dict("records")
    assert (row["latency_mean"], row["latency_p99"], row["runs"], row["startup_seconds"]) == (0.5, 0.5, 0, 2.0)
    assert np.isnan(row["memory_mb"])


def test_figures_are_read_to_the_last_digit(tmp_path: Path):
    path = tmp_path / "profile.csv"
    write_pipeline(tmp_path, profile=PROFILE.replace("0.12,", "0.12300000000000001,"))
    assert 0.12300000000000001 in set(profiles.load_profile(path)["latency_mean"])


# ------------------------------------------------------------------------------------------------ extrapolation


def test_amdahl_recovers_a_known_law():
    serial, parallel = profiles.amdahl([1, 2], [1.0, 0.6])
    assert (serial, parallel) == (pytest.approx(0.2), pytest.approx(0.8))


@pytest.mark.parametrize(("latency", "expected"), [([1.0, 0.4], (0.0, 0.96)), ([1.0, 1.2], (1.1, 0.0))])
def test_amdahl_fits_no_negative_part(latency: list[float], expected: tuple[float, float]):
    assert profiles.amdahl([1, 2], latency) == pytest.approx(expected)


def test_extrapolation_marks_its_rows_and_keeps_the_measured_ones():
    measured = timed({(1, 1): 1.0, (2, 1): 0.6})
    table = profiles.extrapolate_cores(measured).set_index("cores")
    assert table["kind"].tolist() == ["measured", "measured", "extrapolated", "extrapolated", "extrapolated"]
    assert table["latency_mean"].tolist() == pytest.approx([1.0, 0.6, 0.4, 0.3, 0.25])
    assert table.loc[16, "latency_p99"] == pytest.approx(1.5 * 0.25)
    assert table.loc[16, "runs"] == 0


def test_measurements_at_a_single_core_count_are_not_extrapolated():
    measured = pd.concat(
        [timed({(1, 1): 1.0, (2, 1): 0.6}, variant="a"), timed({(1, 1): 0.1, (1, 2): 0.2}, variant="b")]
    )
    table = profiles.extrapolate_cores(measured)
    assert table.loc[table["variant"] == "a", "cores"].tolist() == list(profiles.CORE_COUNTS)
    assert table.loc[table["variant"] == "b", "kind"].tolist() == ["measured", "measured"]


def test_noise_cannot_make_a_larger_batch_faster():
    table = timed({(1, 1): 0.1, (1, 2): 0.3, (1, 4): 0.2})
    assert profiles.latency_by_batch_size(table) == pytest.approx({1: 0.1, 2: 0.25, 4: 0.25})


# ------------------------------------------------------------------------------------------------- two machines


def test_a_table_compared_with_itself_has_ratio_one():
    assert profiles.compare_latencies(REFERENCE, REFERENCE)["ratio"].eq(1.0).all()


def test_every_pipeline_loads_from_measurements_filled_from_the_reference(tmp_path: Path):
    slower = REFERENCE[(REFERENCE["variant"] == "resnet-18") & (REFERENCE["kind"] == "measured")]
    slower = slower.assign(latency_mean=2.0 * slower["latency_mean"], latency_p99=2.0 * slower["latency_p99"])
    table = profiles.fill_from_reference(slower, REFERENCE)
    assert len(table) == len(REFERENCE)
    merged = table.merge(REFERENCE, on=profiles.CELL, suffixes=("", "_reference"))
    elsewhere = merged[merged["variant"] != "resnet-18"]
    assert np.allclose(elsewhere["latency_mean"], 2.0 * elsewhere["latency_mean_reference"])
    assert (elsewhere["kind"] == "extrapolated").all()
    profiles.save_profile(table, tmp_path / "profiles.csv")
    for name in PIPELINES:
        load_pipeline(name, tmp_path / "profiles.csv")


def test_comparison_metrics_by_hand():
    comparison = profiles.compare_latencies(timed({(1, 1): 0.2, (1, 2): 0.6}), timed({(1, 1): 0.1, (1, 2): 0.2}))
    assert profiles.comparison_metrics(comparison, ["task/other"]) == {
        "median_ratio": 2.5,
        "quartiles_ratio": [2.25, 2.75],
        "cells": 2,
        "variants": 1,
        "variants_left_out": 1,
    }


# ------------------------------------------------------------------------------------------------------- errors


def test_filling_without_a_common_cell_is_refused():
    with pytest.raises(ValueError, match="no cell is measured in both"):
        profiles.fill_from_reference(timed({(1, 1): 0.1}), REFERENCE)


def test_the_error_for_a_missing_profile_names_the_remedy(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no profile .*nowhere.*`opd profile"):
        profiles.load_profile(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("latency_mean", "latency", "line 1 lacks the columns latency_mean; .*measure again with `opd profile`"),
        (PROFILE.splitlines()[1], "first,small,one,1,0.05,,,measured,2,", r"cores \(line 2\) must be a whole number"),
        ("large,2,1,0.06,", "large,2,1,60.5,", r"latency_mean \(line 5\): 60.5 s .*milliseconds\? Then write 0.0605"),
        ("large,2,1,0.06,", "large,2,1,-0.06,", r"rows\[3\].latency_mean \(line 5\) must be greater than 0, not -0.06"),
        ("large,2,1,0.06,", "large,2,1,nan,", r"latency_mean \(line 5\) must be a finite number, not nan"),
        (
            "large,2,1,0.06,",
            "large,2,1,6ms,",
            r"latency_mean \(line 5\) must be a number, not '6ms' \(seconds of",
        ),
        ("large,2,1,0.06,", "large,2,1,,", r"latency_mean \(line 5\) is missing \(seconds of a call"),
        ("large,2,1,0.06,", "large,2.5,1,0.06,", r"cores \(line 5\) must be a whole number, not 2.5"),
        (
            "large,2,1,0.06,",
            "large,2,2,0.06,",
            r"rows\[4\] \(line 6\): variant large .* size 2 stands in rows\[3\]",
        ),
        (",,,assumed,2.5,", ",,,guessed,2.5,", r"3 problems:\n- rows\[3\].kind \(line 5\) must be 'measured', 'extra"),
        (",,,assumed,2.5,", ",,,assumed,2500,", r"startup_seconds \(line 5\): 2500 s .* milliseconds\? Then write 2.5"),
        ("measured,2.0,120\n", "measured,2.0,120,7\n", r"cells without a column \(line 2\) is not a known key"),
        ("first,small", "../small,small", r"task \(line 2\) is not of the right form: '../small' \(name of the task"),
    ],
)
def test_the_error_for_a_wrong_profile_names_line_column_value_and_remedy(old: str, new: str, message: str, tmp_path):
    assert old in PROFILE
    write_pipeline(tmp_path, profile=PROFILE.replace(old, new))
    with pytest.raises(DocumentError, match=message):
        profiles.load_profile(tmp_path / "profile.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lacks the columns"),
        (b"\xff\xfe", "not a CSV file"),
        (PROFILE.splitlines()[0].encode(), "rows .* needs at least 1 entry"),
        (PROFILE.splitlines()[0].encode() + b",task\n", "a column twice"),
        (b"#" * (profiles.MAX_BYTES + 1), "larger than"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(content: bytes, message: str, tmp_path: Path):
    (tmp_path / "profile.csv").write_bytes(content)
    with pytest.raises(DocumentError, match=message):
        profiles.load_profile(tmp_path / "profile.csv")
