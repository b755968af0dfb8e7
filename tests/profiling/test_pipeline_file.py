"""Pipeline files: what is read, and the errors that say what to correct and where."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from code_blocks import code_blocks
from pipeline_folders import SHOP, write_pipeline
from profile_tables import FILES, PIPELINES

from opd.host.documents import DocumentError
from opd.host.paths import package_path, project_path
from opd.objective import Weights
from opd.pipeline import ServiceLevel
from opd.profiling.pipeline_file import PipelineFile, WeightsSection, json_schema, pipeline_path, read_pipeline_file
from opd.profiling.profiles import COLUMNS, load_profile

LARGE = "shop.models:Large"
SMALL = "accuracy: 0.5\n        cores: 1"

# ------------------------------------------------------------------------------------------------------- what is read


def test_a_file_is_read_as_written(tmp_path: Path):
    shop = read_pipeline_file(write_pipeline(tmp_path))
    assert (shop.name, shop.capacity, shop.limits.replicas, shop.limits.batch_size) == ("shop", 6, 3, 4)
    assert shop.service_level == ServiceLevel(1.0, 95.0, accuracy_floor=0.4)
    assert shop.weights is None and shop.samples == "samples/requests.json"
    first, second = shop.tasks
    assert [variant.accuracy.value for variant in first.variants] == [0.5, 0.6]
    assert first.variants[1].accuracy.source == "measured" and first.variants[1].settings == {"depth": 3}
    assert second.adapter.rename == {"scores": "features"} and second.variants[0].architecture == "bert-tiny"


@pytest.mark.parametrize(("budget", "capacity"), [("cores: 4", 4), ("cores: 9", 6)])
def test_a_budget_caps_the_cores_of_the_device(budget: str, capacity: int, tmp_path: Path):
    text = SHOP.replace("  accuracy: {floor", f"  {budget}\n  accuracy: {{floor")
    assert read_pipeline_file(write_pipeline(tmp_path, text)).capacity == capacity


def test_weights_make_the_objective_of_the_paper(tmp_path: Path):
    text = SHOP.replace("objective:", "objective:\n  weights: {alpha: 5}")
    assert read_pipeline_file(write_pipeline(tmp_path, text)).weights == Weights(alpha=5.0)
    assert FILES["video"].weights == Weights()
    assert set(WeightsSection.model_fields) == {field.name for field in fields(Weights)}


def test_an_adapter_may_be_a_function(tmp_path: Path):
    text = SHOP.replace("{rename: {scores: features}}", "shop.adapters:flatten")
    assert read_pipeline_file(write_pipeline(tmp_path, text)).tasks[1].adapter.function == "shop.adapters:flatten"


def test_a_pipeline_is_found_by_name_folder_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_pipeline(tmp_path / "shop")
    file = folder / "pipeline.yaml"
    assert pipeline_path(folder) == pipeline_path(file) == file
    assert pipeline_path("ocr") == package_path("examples", "ocr", "pipeline.yaml")
    (tmp_path / "params.yaml").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert pipeline_path("shop") == file  # text is relative to the project


def test_the_error_for_an_unknown_pipeline_lists_those_there_are(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no pipeline 'vidio'.* pipeline\.yaml.*audio-qa.*video"):
        pipeline_path("vidio")
    with pytest.raises(FileNotFoundError, match="neither a YAML file, nor a folder with pipeline.yaml"):
        pipeline_path(tmp_path)


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (SMALL, "accuracy: 83\n        cores: 1", "accuracy.value (line 14): 83 is not a fraction of 0..1; if it is"),
        (SMALL, "accuracy: -1\n        cores: 1", "tasks[0].variants[0].accuracy.value (line 14) must be at least 0"),
        (SMALL, "accuracy: high\n        cores: 1", "must be a number, not 'high' (accuracy as a fraction of 0..1,"),
        (SMALL, "accuracy: 0.5\n        cores: 2.9", "cores (line 15) must be a whole number, not 2.9 (CPU cores of"),
        (SMALL, "accuracy: 0.5\n        cores: 0", "cores (line 15) must be at least 1, not 0"),
        (SMALL, "cores: 1", "tasks[0].variants[0].accuracy (line 12) is missing (accuracy as a fraction of 0..1, or"),
        ("{cores: 6}", "{cores: 2.9}", "device.cores (line 2) must be a whole number, not 2.9 (CPU cores of the dev"),
        ("{cores: 6}", "{cores: 1}", "device.cores is 1, too small for any configuration: one replica of the smalle"),
        ("  accuracy: {floor", "  cores: 1\n  accuracy: {floor", "objective.cores is 1, too small for any configura"),
        ("batch_size: 4", "batch_size: 6", "limits.batch_size (line 3): 6 is not a power of two; write 4 or 8"),
        ("seconds: 1.0", "seconds: 500", "latency.seconds (line 5): 500 s is more than 60 s, the limit; are these m"),
        ("seconds: 1.0", "seconds: 500ms", "seconds (line 5) must be a number, not '500ms' (seconds within which a"),
        ("seconds: 1.0", "seconds: 0", "objective.latency.seconds (line 5) must be greater than 0, not 0"),
        ("percentile: 95", "percentile: 0.95", "percentile (line 5) must be at least 50, not 0.95 (percent of the r"),
        ("percentile: 95", "percentile: 100", "objective.latency.percentile (line 5) must be less than 100, not 100"),
        ("{floor: 0.4}", "{floor: 40}", "accuracy.floor (line 6): 40 is not a fraction of 0..1; if it is a percenta"),
        ("name: shop", "name: my shop", "name (line 1) is not of the right form: 'my shop' (name of the pipeline: l"),
        ("name: shop", "name: ../etc", "name (line 1) is not of the right form: '../etc'"),
        ("name: large", "name: small", "tasks[0].variants[1].name (line 16): the name 'small' is taken by an earlie"),
        ("name: second", "name: first", "tasks[1].name (line 22): the name 'first' is taken by an earlier entry; gi"),
        ("runtime: python", "runtime: pytorch", "runtime (line 18) must be 'onnx', 'sklearn', 'xgboost', 'lightgbm'"),
        (f"        model: {LARGE}\n", "", "tasks[0].variants[1] (line 16): the variant 'large' has neither model no"),
        ("        runtime: python", "        architecture: x", "tasks[0].variants[1].architecture (line 18): there"),
        (f"model: {LARGE}", "architecture: x", "tasks[0].variants[1].runtime (line 18): an architecture needs no ru"),
        ("models/small.onnx", "../../etc/passwd", "model (line 13): '../../etc/passwd' is not inside the folder of"),
        ("models/small.onnx", "/etc/passwd", "tasks[0].variants[0].model (line 13): '/etc/passwd' is not inside the"),
        ("models/small.onnx", "s3://bucket/x.onnx", "'s3://bucket/x.onnx' is not inside the folder of the pipeline"),
        ("samples/requests.json", "../requests.json", "samples (line 7): '../requests.json' is not inside the folde"),
        ("tasks:", "labels: labels.json\ntasks:", "labels (line 8): labels cannot be used without metric; give both"),
        ("tasks:", "metric: accuracy_score\ntasks:", "metric (line 8): 'accuracy_score' is not of the form module:n"),
        ("{rename: {scores: features}}", "{}", "tasks[1].adapter (line 23): the adapter does nothing; give pick, re"),
        ("{rename: {scores: features}}", "{pick: []}", "tasks[1].adapter.pick (line 23) needs at least 1 entry (nam"),
        ("metric: F1", "metrics: F1", "tasks[0].metrics (line 10) is not a known key; known are name, metric, adapt"),
        ("cores: 2", "cores: 2\n        latency: {1: 0.1}", "latency (line 22) is not a known key; known are name,"),
        ("tasks:", "stages:", "tasks (line 1) is missing (stages in the order in which a request visits them)"),
        ("accuracy: {floor: 0.4}", "weights: {alfa: 1}", "objective.weights.alfa (line 6) is not a known key; known"),
    ],
)  # fmt: skip
def test_the_error_for_a_wrong_file_names_place_value_limit_and_remedy(old: str, new: str, message: str, tmp_path):
    assert old in SHOP
    folder = write_pipeline(tmp_path, SHOP.replace(old, new, 1))
    with pytest.raises(DocumentError) as error:
        read_pipeline_file(folder)
    assert str(error.value).startswith(str(folder / "pipeline.yaml")) and message in str(error.value), error.value


def test_all_problems_of_a_file_are_reported_together(tmp_path: Path):
    text = SHOP.replace("{cores: 6}", "{cores: many}").replace("batch_size: 4", "batch_size: 5")
    text = (
        text.replace("name: large", "name: small")
        .replace("accuracy: 0.5\n", "accuracy: 50\n")
        .replace("seconds: 1.0", "seconds: 900")
    )
    text = (
        text.replace("        model: shop.models:Large\n", "")
        .replace("metric: F1", "metric: 1")
        .replace("cores: 2", "cores: 0")
    )
    with pytest.raises(DocumentError) as error:
        read_pipeline_file(write_pipeline(tmp_path, text))
    first, *problems = str(error.value).splitlines()
    assert first.endswith(f"has {len(problems)} problems:")
    assert [problem.split(" (line")[0].removeprefix("- ") for problem in problems] == [
        "device.cores",
        "limits.batch_size",
        "objective.latency.seconds",
        "tasks[0].metric",
        "tasks[0].variants[0].accuracy.value",
        "tasks[0].variants[1].cores",
        "tasks[0].variants[1]",
        "tasks[0].variants[1].name",
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ editors


def test_the_version_of_the_format_may_be_left_out_and_another_one_is_refused(tmp_path):
    path, text = tmp_path / "pipeline.yaml", pipeline_path("video").read_text(encoding="utf-8")
    for given in ("", "version: 1\n"):
        path.write_text(given + text, encoding="utf-8")
        assert read_pipeline_file(path).version == 1
    for version, remedy in ((2, "install a newer opd"), (0, "leave it out")):
        path.write_text(f"version: {version}\n{text}", encoding="utf-8")
        message = rf"version \(line 1\): {version} is not 1, the version of .* that this opd reads; {remedy}"
        with pytest.raises(DocumentError, match=message):
            read_pipeline_file(path)


def test_the_published_json_schema_is_up_to_date():
    published = package_path("profiling", "pipeline.schema.json").read_text(encoding="utf-8")
    remedy = "python -c 'from opd.profiling.pipeline_file import json_schema; print(json_schema(), end=\"\")'"
    assert published == json_schema(), f"write it again: {remedy} > opd/profiling/pipeline.schema.json"


def test_every_key_of_the_json_schema_is_described():
    schema = PipelineFile.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        assert all(entry.get("description") for entry in section["properties"].values()), section["title"]


@pytest.mark.parametrize("name", PIPELINES)
def test_shipped_files_name_the_schema_for_editors(name: str):
    first = package_path("examples", name, "pipeline.yaml").read_text(encoding="utf-8").splitlines()[0]
    place = first.removeprefix("# yaml-language-server: $schema=")
    assert package_path("examples", name, place).resolve() == package_path("profiling", "pipeline.schema.json")


def test_the_examples_of_the_documentation_are_right(tmp_path: Path):
    page = project_path("docs", "pipeline-file.md").read_text(encoding="utf-8")
    (text,), (table,) = (code_blocks(page, language) for language in ("yaml", "csv"))
    folder = write_pipeline(tmp_path, text, table)
    shop = read_pipeline_file(folder)
    assert (shop.name, shop.capacity, [task.name for task in shop.tasks]) == ("shop", 6, ["features", "intent"])
    assert set(load_profile(folder / "profile.csv")["kind"]) == {"assumed"}
    for column in COLUMNS:
        assert f"`{column}`" in page
