"""The pipelines that ship with the package, and the rules that gave their figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from profile_tables import FILES, PIPELINES, REFERENCE, SERVED, VARIANTS

from opd.host.paths import package_path, project_path
from opd.objective import Weights
from opd.profiling import profiles
from opd.profiling.architectures import ARCHITECTURES, CONTAINER_SECONDS
from opd.profiling.measuring import as_table
from opd.profiling.pipeline_file import pipeline_path, shipped_pipelines
from opd.profiling.pipelines import common_objective, load_pipeline
from opd.study.plots.profiles import accuracy_by_cores


def test_ipas_five_pipelines_and_the_ocr_pipeline_ship_with_the_package():
    assert set(PIPELINES) <= set(shipped_pipelines())
    assert all(FILES[name].name == name and len(FILES[name].tasks) in (2, 3) for name in PIPELINES)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_variant_has_an_accuracy_a_source_and_a_model(name: str):
    for task in FILES[name].tasks:
        assert task.metric and 2 <= len(task.variants) <= 6
        accuracies = [variant.accuracy.value for variant in task.variants]
        assert accuracies == sorted(set(accuracies)) and accuracies[0] > 0.0 and accuracies[-1] < 1.0
        for variant in task.variants:
            assert variant.checkpoint
            if name == "ocr":
                assert variant.model == "store" and variant.accuracy.source.startswith("reports/ocr/")
            else:
                assert variant.architecture in ARCHITECTURES and "http" in variant.accuracy.source


def test_pipelines_with_the_same_task_describe_it_alike():
    described: dict[str, list] = {}
    for file in FILES.values():
        for task in file.tasks:
            variants = [variant.model_dump(exclude={"cores"}) for variant in task.variants]
            assert described.setdefault(task.name, variants) == variants


def test_accuracies_of_trained_variants_match_the_report():
    reported = pd.read_csv(project_path("reports", "ocr", "accuracy.csv")).query("split == 'report'")
    assert set(reported["task"]) == set(SERVED)
    for task in FILES["ocr"].tasks:
        accuracies = {variant.name: variant.accuracy.value for variant in task.variants}
        assert accuracies == reported[reported["task"] == task.name].set_index("variant")["accuracy"].to_dict()


def test_every_architecture_is_used():
    used = {variant.architecture for file in FILES.values() for task in file.tasks for variant in task.variants}
    assert used - {None} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_loads(name: str):
    pipeline = load_pipeline(name)
    assert pipeline.name == name
    assert [task.name for task in pipeline.tasks] == [task.name for task in FILES[name].tasks]
    assert pipeline.capacity == FILES[name].device.cores
    assert not pipeline.service_level.accuracy_floor and FILES[name].weights is not None
    for task in pipeline.tasks:
        for variant in task.variants:
            latency = [variant.latency[size] for size in pipeline.batch_sizes]
            assert latency == sorted(latency)
            assert variant.startup_time > CONTAINER_SECONDS and not variant.assumed


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_can_serve_the_loads_of_the_evaluation(name: str):
    assert np.isfinite(accuracy_by_cores(load_pipeline(name), 40.0)[-1])


def test_pipelines_load_from_the_package_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    inside = load_pipeline("video")
    monkeypatch.chdir(tmp_path)
    assert load_pipeline("video") == inside
    assert load_pipeline(package_path("examples", "video")) == inside
    assert load_pipeline(package_path("examples", "video", "pipeline.yaml")) == inside


# ------------------------------------------------------------------------------------------------------ the profiles


@pytest.mark.parametrize(("task", "name"), VARIANTS)
def test_every_variant_is_profiled_completely(task: str, name: str):
    table = REFERENCE[(REFERENCE["task"] == task) & (REFERENCE["variant"] == name)]
    sizes = {size for file in FILES.values() if task in [t.name for t in file.tasks] for size in batch_sizes(file)}
    counts = (1,) if task in SERVED else profiles.CORE_COUNTS
    assert set(zip(table["cores"], table["batch_size"], strict=True)) == {(c, b) for c in counts for b in sizes}
    assert (table["latency_p99"] >= 0.99 * table["latency_mean"]).all()
    measured = table["kind"] == "measured"
    assert set(table.loc[measured, "cores"]) == ({1} if task in SERVED else {1, 2})
    assert (table.loc[measured, "runs"] >= 3).all() and (table.loc[~measured, "runs"] == 0).all()
    assert table["startup_seconds"].nunique() == 1


def batch_sizes(file) -> list[int]:
    """Batch sizes that a pipeline allows."""
    return [1 << power for power in range(file.limits.batch_size.bit_length())]


@pytest.mark.parametrize("name", PIPELINES)
def test_a_profile_comes_with_the_hardware_it_was_measured_on(name: str):
    hardware = json.loads(package_path("examples", name, "profile.json").read_text())
    assert {"processor", "cores", "torch", "transformers", "onnxruntime", "python"} <= set(hardware)


def test_pipelines_with_the_same_task_have_the_same_profile_of_it():
    tables = [profiles.load_profile(package_path("examples", name, "profile.csv")) for name in PIPELINES]
    distinct = pd.concat(tables).drop_duplicates()
    assert not distinct.duplicated(profiles.CELL).any()
    pd.testing.assert_frame_equal(as_table(REFERENCE.values.tolist()), REFERENCE)


# ------------------------------------------------------------------------------- the rules of docs/pipeline-file.md

THRESHOLDS = {"video": 1.5, "audio-qa": 0.8, "audio-sentiment": 0.8, "summarisation-qa": 0.6, "nlp": 0.6, "ocr": 0.5}
"""Requests/s that one replica should carry."""


def stage_target(task: str) -> float:
    """Seconds: five times the mean over the variants at batch 1 on one core."""
    rows = REFERENCE[(REFERENCE["task"] == task) & (REFERENCE["cores"] == 1) & (REFERENCE["batch_size"] == 1)]
    return 5.0 * float(rows["latency_mean"].mean())


@pytest.mark.parametrize("name", PIPELINES)
def test_the_latency_objective_is_the_sum_of_the_targets_of_the_stages(name: str):
    assert FILES[name].objective.latency.seconds == sum(stage_target(task.name) for task in FILES[name].tasks)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_replica_has_the_fewest_cores_that_carry_the_threshold_or_that_still_gain(name: str):
    for task in FILES[name].tasks:
        for variant in task.variants:
            rows = REFERENCE[(REFERENCE["task"] == task.name) & (REFERENCE["variant"] == variant.name)]
            single = rows[rows["batch_size"] == 1].sort_values("cores")
            latency = dict(zip(single["cores"], single["latency_mean"], strict=True))
            longest = min(1.0 / THRESHOLDS[name], stage_target(task.name))
            enough = [cores for cores in latency if latency[cores] <= longest]
            counts = list(latency)
            pairs = zip(counts, [*counts[1:], None], strict=True)
            gaining = (a for a, b in pairs if b is None or latency[a] < 1.25 * latency[b])
            assert variant.cores == (min(enough) if enough else next(gaining)), (task.name, variant.name)


def test_pipelines_that_are_compared_share_an_objective(tmp_path: Path):
    assert common_objective(PIPELINES) == Weights()
    assert common_objective(["video", "nlp"], {"cost_weight": 0.3}) == Weights(cost_weight=0.3)
    text = pipeline_path("video").read_text(encoding="utf-8").replace("weights: {}", "accuracy: {floor: 0.5}")
    (tmp_path / "pipeline.yaml").write_text(text, encoding="utf-8")
    assert common_objective([tmp_path]) == replace(load_pipeline("video").service_level, accuracy_floor=0.5)
    with pytest.raises(ValueError, match=r"need one objective, these have several \(nlp: Weights.*: ServiceLevel"):
        common_objective(["nlp", tmp_path])
