"""Profile tables: the reference, extrapolation, and two machines compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from profile_tables import CATALOGUE, PIPELINES, REFERENCE, VARIANTS, timed

from opd.host.paths import package_path
from opd.profiling import profiles
from opd.profiling.catalogue import load_pipeline
from opd.profiling.measuring import MEASURED_CORES

# ------------------------------------------------------------------------------------------- the reference table


@pytest.mark.parametrize(("task", "name"), VARIANTS)
def test_the_reference_table_is_complete(task: str, name: str):
    table = REFERENCE[(REFERENCE["task"] == task) & (REFERENCE["variant"] == name)]
    stored = task in CATALOGUE.pipeline("ocr").tasks
    cells = {(c, b) for c in ((1,) if stored else profiles.CORE_COUNTS) for b in CATALOGUE.batch_sizes(task)}
    assert set(zip(table["cores"], table["batch_size"], strict=True)) == cells
    assert (table["latency_mean"] > 0).all() and (table["latency_p99"] >= 0.99 * table["latency_mean"]).all()
    measured = table["kind"] == "measured"
    assert set(table.loc[measured, "cores"]) == ({1} if stored else set(MEASURED_CORES))
    assert (table.loc[measured, "runs"] >= 3).all() and (table.loc[~measured, "runs"] == 0).all()
    assert table["load_seconds"].nunique() == 1


def test_the_reference_table_comes_with_the_hardware_it_was_measured_on():
    hardware = yaml.safe_load(package_path("examples", "profiles.json").read_text())
    assert {"processor", "cores", "torch", "transformers", "onnxruntime", "python"} <= set(hardware)


def test_a_saved_table_is_loaded_unchanged(tmp_path: Path):
    profiles.save_profiles(REFERENCE, tmp_path / "profiles.csv")
    pd.testing.assert_frame_equal(profiles.load_profiles(tmp_path / "profiles.csv"), REFERENCE)
    assert yaml.safe_load((tmp_path / "profiles.json").read_text())["cores"] >= 1


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
    assert profiles.latency_by_batch_size(table, "task", "variant", 1) == pytest.approx({1: 0.1, 2: 0.25, 4: 0.25})


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
    profiles.save_profiles(table, tmp_path / "profiles.csv")
    for name in PIPELINES:
        load_pipeline(name, profiles=tmp_path / "profiles.csv", capacity=200)


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


def test_the_error_for_a_missing_table_names_the_remedy(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere.*01_profiling"):
        profiles.load_profiles(tmp_path / "nowhere")


def test_a_table_without_its_columns_is_refused(tmp_path: Path):
    path = tmp_path / "profiles.csv"
    REFERENCE.drop(columns="latency_mean").to_csv(path, index=False)
    with pytest.raises(ValueError, match="lacks the columns latency_mean"):
        profiles.load_profiles(path)
