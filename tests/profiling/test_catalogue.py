"""The catalogue, and the pipelines built from it and the reference profiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from profile_tables import CATALOGUE, PIPELINES, REFERENCE, VARIANTS, timed

from opd.host.documents import DocumentError
from opd.host.paths import package_path, project_path
from opd.pipeline import ServiceLevel
from opd.profiling import profiles
from opd.profiling.architectures import ARCHITECTURES
from opd.profiling.catalogue import base_cores, load_catalogue, load_pipeline, stage_sla, variant_table
from opd.study.plots.profiles import accuracy_by_cores

SMALL_CATALOGUE = """
container_startup: 2.0
tasks:
  first:
    metric: top-1
    variants:
      small: {accuracy: 0.5, source: nowhere, architecture: resnet-18, checkpoint: none}
pipelines:
  tiny: {tasks: [first], threshold_rps: 1, capacity: 4, max_replicas: 2, max_batch_size: 2}
"""


# ------------------------------------------------------------------------------------------------ the catalogue


def test_the_catalogue_has_ipas_five_pipelines_and_the_ocr_pipeline():
    assert tuple(CATALOGUE.pipelines) == PIPELINES
    for pipeline in CATALOGUE.pipelines.values():
        assert len(pipeline.tasks) in (2, 3)
        assert all(task in CATALOGUE.tasks for task in pipeline.tasks)


@pytest.mark.parametrize(("task", "name"), VARIANTS)
def test_every_variant_has_an_accuracy_a_source_and_an_architecture(task: str, name: str):
    variant = CATALOGUE.tasks[task].variants[name]
    assert 0.0 < variant.accuracy < 1.0
    assert variant.checkpoint
    if task in CATALOGUE.pipeline("ocr").tasks:
        assert variant.architecture == "opd.examples.ocr.served:OcrVariant"
        assert variant.source.startswith("reports/ocr/")
    else:
        assert variant.architecture in ARCHITECTURES
        assert "http" in variant.source


def test_accuracies_of_stored_variants_match_the_report():
    reported = pd.read_csv(project_path("reports", "ocr", "accuracy.csv")).query("split == 'report'")
    assert set(reported["task"]) == set(CATALOGUE.pipeline("ocr").tasks)
    for task, table in reported.groupby("task"):
        accuracies = {name: entry.accuracy for name, entry in CATALOGUE.tasks[task].variants.items()}
        assert accuracies == table.set_index("variant")["accuracy"].to_dict()


@pytest.mark.parametrize("task", CATALOGUE.tasks)
def test_a_task_has_a_metric_and_up_to_six_variants_in_order_of_accuracy(task: str):
    entry = CATALOGUE.tasks[task]
    accuracies = [variant.accuracy for variant in entry.variants.values()]
    assert entry.metric
    assert 2 <= len(accuracies) <= 6
    assert accuracies == sorted(set(accuracies))


def test_every_architecture_is_used():
    used = {variant.architecture for entry in CATALOGUE.tasks.values() for variant in entry.variants.values()}
    assert {key for key in used if ":" not in key} == set(ARCHITECTURES)


# ------------------------------------------------------------------------------------------------- the pipelines


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_loads(name: str):
    pipeline = load_pipeline(name)
    assert pipeline.name == name
    assert [task.name for task in pipeline.tasks] == CATALOGUE.pipeline(name).tasks
    assert pipeline.service_level.seconds == pytest.approx(sum(stage_sla(REFERENCE, t.name) for t in pipeline.tasks))
    for task in pipeline.tasks:
        for variant in task.variants:
            latency = [variant.latency[size] for size in pipeline.batch_sizes]
            assert latency == sorted(latency)
            assert variant.cores in profiles.CORE_COUNTS
            assert variant.startup_time > CATALOGUE.container_startup


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_can_serve_the_loads_of_the_evaluation(name: str):
    assert np.isfinite(accuracy_by_cores(load_pipeline(name), 40.0)[-1])


def test_catalogue_and_profiles_load_from_the_package_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    inside = load_pipeline("video")
    monkeypatch.chdir(tmp_path)
    assert load_pipeline("video") == inside
    given = load_pipeline("video", package_path("examples", "pipelines.yaml"), package_path("examples", "profiles.csv"))
    assert given == inside


def test_overrides_replace_the_catalogue():
    pipeline = load_pipeline("video", capacity=99, max_replicas=3, max_batch_size=2, latency_sla=1.5)
    assert (pipeline.capacity, pipeline.max_replicas, pipeline.max_batch_size) == (99, 3, 2)
    assert pipeline.service_level == ServiceLevel(1.5)


def test_the_variant_table_lists_all_variants():
    pipeline = load_pipeline("ocr")
    table = variant_table(pipeline)
    listed = [(task.name, variant.name) for task in pipeline.tasks for variant in task.variants]
    assert list(zip(table["task"], table["variant"], strict=True)) == listed
    first = pipeline.tasks[0].variants[0]
    assert table["latency at batch 1 (s)"][0] == first.service_time(1)
    assert table["highest throughput (requests/s)"][0] == max(first.throughput(size) for size in (1, 2, 4))


# ------------------------------------------------------------------------------------------- cores and latency targets


def test_base_cores_are_the_fewest_that_reach_threshold_and_target():
    latency = {1: 1.0, 2: 0.5, 4: 0.26, 8: 0.2}
    assert base_cores(latency, threshold_rps=1.0, sla=5.0) == 1
    assert base_cores(latency, threshold_rps=1.5, sla=5.0) == 2
    assert base_cores(latency, threshold_rps=1.0, sla=0.3) == 4


def test_base_cores_stop_where_more_no_longer_help_if_the_threshold_is_out_of_reach():
    latency = {1: 1.0, 2: 0.6, 4: 0.4, 8: 0.35, 16: 0.33}
    assert base_cores(latency, threshold_rps=10.0, sla=5.0) == 4


@given(st.floats(0.01, 5.0), st.floats(0.0, 1.0), st.floats(0.2, 20.0))
def test_base_cores_reach_the_threshold_if_any_core_count_does(seconds: float, parallel: float, threshold: float):
    latency = {c: seconds * (1.0 - parallel + parallel / c) for c in profiles.CORE_COUNTS}
    chosen = base_cores(latency, threshold, np.inf)
    reached = [c for c in latency if 1.0 / latency[c] >= threshold]
    assert chosen == (min(reached) if reached else chosen)


def test_the_latency_target_of_a_stage_is_five_times_the_mean_of_its_variants():
    table = pd.concat(
        [
            timed({(1, 1): 0.1, (2, 1): 0.05}, variant="a"),
            timed({(1, 1): 0.3, (1, 2): 0.5}, variant="b"),
        ]
    )
    assert stage_sla(table, "task") == pytest.approx(5 * 0.2)


# ------------------------------------------------------------------------------------------------------- errors


def test_the_error_for_an_unknown_pipeline_lists_the_pipelines():
    with pytest.raises(KeyError, match="no pipeline 'vidio'.*video, audio-qa"):
        load_pipeline("vidio")


def test_an_unknown_override_is_refused():
    with pytest.raises(ValueError, match="pipeline 'video': replicas is not a known key; known are .*max_replicas"):
        load_pipeline("video", replicas=3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"capacity": 0}, "capacity must be at least 1, not 0"),
        ({"max_replicas": 2.5}, "max_replicas must be a whole number, not 2.5"),
        ({"latency_sla": -1.0}, "latency_sla must be greater than 0, not -1.0"),
        ({"max_batch_size": 3}, "max_batch_size 3 is not a power of two"),
    ],
)
def test_an_override_out_of_its_range_is_refused(override: dict, message: str):
    with pytest.raises(ValueError, match=f"pipeline 'video': {message}"):
        load_pipeline("video", **override)


def test_the_error_for_a_batch_size_without_a_profile_names_the_remedy():
    with pytest.raises(ValueError, match="no profile for batch 8.*01_profiling"):
        load_pipeline("video", max_batch_size=64)


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ("variant == 'resnet-50'", "no profile of variant 'resnet-50'.*01_profiling"),
        ("variant == 'resnet-50' and cores == 1", r"'resnet-50' .* at 1 cores \(profiled: \[2, 4, 8, 16\]\).*01_prof"),
    ],
)
def test_the_error_for_a_missing_profile_names_the_variant(left_out: str, message: str, tmp_path: Path):
    path = tmp_path / "profiles.csv"
    profiles.save_profiles(REFERENCE.query(f"not ({left_out})"), path)
    with pytest.raises(ValueError, match=message):
        load_pipeline("video", profiles=path)


def test_the_error_for_a_missing_catalogue_names_the_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no file .*nowhere"):
        load_catalogue(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("old", "new", "problems"),
    [
        ("container_startup: 2.0", "", ["container_startup .* is missing \\(seconds to schedule a container"]),
        ("container_startup: 2.0", "startup: 2.0", ["startup .line 2. is not a known key", "2 problems"]),
        ("accuracy: 0.5", "accuracy: 50", ["tasks.first.variants.small.accuracy .line 7. must be at most 1, not 50"]),
        ("tasks: [first]", "tasks: [last]", ["pipeline 'tiny' has a task 'last', but tasks are first"]),
        ("capacity: 4", "capacity: four", ["pipelines.tiny.capacity .line 9. must be a whole number, not 'four'"]),
        ("tasks: [first]", "tasks: []", ["pipelines.tiny.tasks .line 9. needs at least 1 entry"]),
    ],
)
def test_the_error_for_a_wrong_catalogue_names_the_place(old: str, new: str, problems: list[str], tmp_path: Path):
    assert old in SMALL_CATALOGUE
    path = tmp_path / "pipelines.yaml"
    path.write_text(SMALL_CATALOGUE.replace(old, new))
    with pytest.raises(DocumentError, match="pipelines.yaml") as error:
        load_catalogue(path)
    for problem in problems:
        assert error.match(problem)


def test_a_file_that_is_not_a_catalogue_is_refused(tmp_path: Path):
    path = tmp_path / "pipelines.yaml"
    path.write_text("tasks: {}\n")
    with pytest.raises(DocumentError, match="has 3 problems") as error:
        load_catalogue(path)
    assert all(key in str(error.value) for key in ("container_startup", "tasks", "pipelines"))


def test_the_small_catalogue_of_these_tests_is_valid(tmp_path: Path):
    path = tmp_path / "pipelines.yaml"
    path.write_text(SMALL_CATALOGUE)
    assert load_catalogue(path).model_dump()["pipelines"]["tiny"] == {
        **yaml.safe_load(SMALL_CATALOGUE)["pipelines"]["tiny"],
        "latency_sla": None,
    }
