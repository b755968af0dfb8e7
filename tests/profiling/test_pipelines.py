"""Pipelines from a file and its profile."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeline_folders import PROFILE, SHOP, write_pipeline

from opd.host.documents import DocumentError
from opd.pipeline import Pipeline, ServiceLevel, Task, Variant
from opd.profiling.pipelines import load_pipeline, variant_table

EXPECTED = Pipeline(
    "shop",
    (
        Task(
            "first",
            (
                Variant("small", 0.5, 1, {1: 0.05, 2: 0.05, 4: 0.05}, 2.0),
                Variant("large", 0.6, 2, {1: 0.06, 2: 0.08, 4: 0.12}, 2.5, assumed=True),
            ),
        ),
        Task(
            "second",
            (Variant("small", 0.5, 1, {1: 0.05, 2: 0.05, 4: 0.05}, 2.0),),
            adapter={"rename": {"scores": "features"}},
        ),
    ),
    capacity=6,
    max_replicas=3,
    max_batch_size=4,
    service_level=ServiceLevel(1.0, 95.0, accuracy_floor=0.4),
)


def test_a_pipeline_is_its_file_and_its_profile(tmp_path: Path):
    folder = write_pipeline(tmp_path / "shop")
    assert load_pipeline(folder) == load_pipeline(folder / "pipeline.yaml") == load_pipeline(str(folder)) == EXPECTED


def test_another_profile_may_be_used_and_may_have_more_variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_pipeline(tmp_path / "shop")
    other = tmp_path / "profiles.csv"
    other.write_text(PROFILE.replace("0.05,", "0.04,") + "other,small,1,1,0.1,0.1,0,assumed,1,\n")
    faster = load_pipeline(folder, other)
    assert faster.tasks[1].variants[0].service_time(1) == 0.04
    assert load_pipeline(folder, "") == EXPECTED
    monkeypatch.chdir(tmp_path)
    assert load_pipeline("shop", "profiles.csv") == faster


def test_the_variant_table_says_which_figures_are_assumed(tmp_path: Path):
    table = variant_table(load_pipeline(write_pipeline(tmp_path)))
    assert list(zip(table["task"], table["variant"], table["assumed"], strict=True)) == [
        ("first", "small", False),
        ("first", "large", True),
        ("second", "small", False),
    ]
    assert table["latency at batch 1 (s)"].tolist() == [0.05, 0.06, 0.05]
    assert table["highest throughput (requests/s)"].tolist() == pytest.approx([80.0, 4 / 0.12, 80.0])


def test_all_that_a_profile_lacks_is_named_together_with_the_remedy(tmp_path: Path):
    rows = [
        row for row in PROFILE.splitlines() if not row.startswith(("first,small,1,2", "first,small,1,4", "second,"))
    ]
    folder = write_pipeline(tmp_path, profile="\n".join(rows).replace("large,2", "large,4"))
    with pytest.raises(DocumentError) as error:
        load_pipeline(folder)
    first, *problems, remedy = str(error.value).splitlines()
    assert first == f"{folder / 'profile.csv'} does not cover pipeline 'shop':"
    assert problems == [
        "- variant 'small' of task 'first' has no figures for batch size 2, 4",
        "- variant 'large' of task 'first' has no figures at 2 cores, only at 4",
        "- variant 'small' of task 'second' has no figures at all",
    ]
    assert "opd profile" in remedy


def test_the_error_for_a_missing_profile_names_the_remedy(tmp_path: Path):
    folder = write_pipeline(tmp_path)
    (folder / "profile.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no profile .*profile\.csv; measure one with `opd profile"):
        load_pipeline(folder)
    with pytest.raises(FileNotFoundError, match="no profile .*elsewhere.csv"):
        load_pipeline(folder, tmp_path / "elsewhere.csv")


def test_a_larger_batch_size_needs_a_profile_of_it(tmp_path: Path):
    folder = write_pipeline(tmp_path, SHOP.replace("batch_size: 4", "batch_size: 8"))
    with pytest.raises(DocumentError, match="has no figures for batch size 8"):
        load_pipeline(folder)
