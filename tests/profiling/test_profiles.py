"""The catalogue, the profiles, and the pipelines made of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from opd.examples.ocr.stored import StoredVariant
from opd.paths import package_path
from opd.pipeline import Pipeline
from opd.profiling import profiles
from opd.profiling.architectures import ARCHITECTURES
from opd.serving.store import URL_VARIABLE, ModelStore
from opd.study.plots_profiles import accuracy_by_cores, plot_comparison, plot_frontier, plot_latency

DATA = package_path("examples")
CATALOGUE = profiles.load_catalogue(DATA / "pipelines.yaml")
REFERENCE = profiles.load_profiles(DATA / "profiles.csv")
PIPELINES = ("video", "audio-qa", "audio-sentiment", "summarisation-qa", "nlp", "ocr")
VARIANTS = [(task, name) for task, entry in CATALOGUE["tasks"].items() for name in entry["variants"]]


def load(name: str, **overrides) -> Pipeline:
    return profiles.load_pipeline(name, DATA / "pipelines.yaml", DATA / "profiles.csv", **overrides)


def rows(latency: dict[tuple[int, int], float], task: str = "task", variant: str = "variant") -> pd.DataFrame:
    """A measured table from latencies by (cores, batch size)."""
    table = [[task, variant, c, b, s, 1.5 * s, 5, "measured", 1.0] for (c, b), s in latency.items()]
    return pd.DataFrame(table, columns=profiles.COLUMNS)


# ------------------------------------------------------------------------------------------------ the catalogue


def test_the_catalogue_has_the_five_pipelines_of_ipa_and_the_one_that_is_served():
    assert tuple(CATALOGUE["pipelines"]) == PIPELINES
    for settings in CATALOGUE["pipelines"].values():
        assert len(settings["tasks"]) in (2, 3)
        assert all(task in CATALOGUE["tasks"] for task in settings["tasks"])


@pytest.mark.parametrize(("task", "name"), VARIANTS)
def test_every_variant_states_its_accuracy_where_it_is_published_and_what_it_is(task: str, name: str):
    variant = CATALOGUE["tasks"][task]["variants"][name]
    assert 0.0 < variant["accuracy"] < 1.0
    assert variant["checkpoint"]
    if variant["architecture"].startswith(profiles.STORED):
        assert variant["architecture"] == f"store:{task}/{name}"
        assert variant["source"].startswith("reports/ocr/")
    else:
        assert variant["architecture"] in ARCHITECTURES
        assert "http" in variant["source"]


def test_the_accuracies_of_the_stored_variants_are_those_that_were_reported():
    table = pd.read_csv(DATA.parents[1] / "reports" / "ocr" / "accuracy.csv")
    reported = table[table["split"] == "report"]
    for task, rows in reported.groupby("task"):
        accuracies = {name: entry["accuracy"] for name, entry in CATALOGUE["tasks"][task]["variants"].items()}
        assert accuracies == rows.set_index("variant")["accuracy"].to_dict()


@pytest.mark.parametrize("task", CATALOGUE["tasks"])
def test_a_task_names_its_metric_and_orders_up_to_six_variants_by_accuracy(task: str):
    entry = CATALOGUE["tasks"][task]
    accuracies = [variant["accuracy"] for variant in entry["variants"].values()]
    assert entry["metric"]
    assert 2 <= len(accuracies) <= 6
    assert accuracies == sorted(set(accuracies))


def test_every_architecture_is_in_use():
    used = {v["architecture"] for entry in CATALOGUE["tasks"].values() for v in entry["variants"].values()}
    assert {key for key in used if not key.startswith(profiles.STORED)} == set(ARCHITECTURES)


# ------------------------------------------------------------------------------------------- the reference table


@pytest.mark.parametrize(("task", "name"), VARIANTS)
def test_the_reference_table_is_complete(task: str, name: str):
    table = REFERENCE[(REFERENCE["task"] == task) & (REFERENCE["variant"] == name)]
    sizes = profiles.batch_sizes_of(CATALOGUE, task)
    stored = CATALOGUE["tasks"][task]["variants"][name]["architecture"].startswith(profiles.STORED)
    cells = {(c, b) for c in ((1,) if stored else profiles.CORE_COUNTS) for b in sizes}
    assert set(zip(table["cores"], table["batch_size"], strict=True)) == cells
    assert (table["latency_mean"] > 0).all() and (table["latency_p99"] >= 0.99 * table["latency_mean"]).all()
    measured = table["kind"] == "measured"
    assert set(table.loc[measured, "cores"]) == ({1} if stored else set(profiles.MEASURED_CORES))
    assert (table.loc[measured, "runs"] >= 3).all() and (table.loc[~measured, "runs"] == 0).all()
    assert table["load_seconds"].nunique() == 1


def test_the_reference_table_says_what_it_was_measured_on():
    hardware = yaml.safe_load((DATA / "profiles.json").read_text())
    assert {"processor", "cores", "torch", "transformers", "onnxruntime", "python"} <= set(hardware)


# ------------------------------------------------------------------------------------------------- the pipelines


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_loads(name: str):
    pipeline = load(name)
    assert pipeline.name == name
    assert [task.name for task in pipeline.tasks] == CATALOGUE["pipelines"][name]["tasks"]
    assert pipeline.latency_sla == pytest.approx(sum(profiles.stage_sla(REFERENCE, t.name) for t in pipeline.tasks))
    for task in pipeline.tasks:
        for variant in task.variants:
            latency = [variant.latency[size] for size in pipeline.batch_sizes]
            assert latency == sorted(latency)
            assert variant.cores in profiles.CORE_COUNTS
            assert variant.startup_time > CATALOGUE["container_startup"]


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_serves_the_loads_of_the_evaluation(name: str):
    pipeline = load(name)
    assert np.isfinite(accuracy_by_cores(pipeline, 40.0)[-1])


def test_overrides_replace_the_catalogue():
    pipeline = load("video", capacity=99, max_replicas=3, max_batch_size=2, latency_sla=1.5)
    assert (pipeline.capacity, pipeline.max_replicas, pipeline.max_batch_size) == (99, 3, 2)
    assert pipeline.latency_sla == 1.5


def test_base_cores_is_the_smallest_that_reaches_threshold_and_target():
    latency = {1: 1.0, 2: 0.5, 4: 0.26, 8: 0.2}
    assert profiles.base_cores(latency, threshold_rps=1.0, sla=5.0) == 1
    assert profiles.base_cores(latency, threshold_rps=1.5, sla=5.0) == 2
    assert profiles.base_cores(latency, threshold_rps=1.0, sla=0.3) == 4


def test_base_cores_out_of_reach_stops_where_cores_no_longer_help():
    latency = {1: 1.0, 2: 0.6, 4: 0.4, 8: 0.35, 16: 0.33}
    assert profiles.base_cores(latency, threshold_rps=10.0, sla=5.0) == 4


@given(st.floats(0.01, 5.0), st.floats(0.0, 1.0), st.floats(0.2, 20.0))
def test_base_cores_reaches_the_threshold_whenever_anything_does(seconds: float, parallel: float, threshold: float):
    latency = {c: seconds * (1.0 - parallel + parallel / c) for c in profiles.CORE_COUNTS}
    chosen = profiles.base_cores(latency, threshold, np.inf)
    reached = [c for c in latency if 1.0 / latency[c] >= threshold]
    assert chosen == (min(reached) if reached else chosen)


def test_the_latency_target_of_a_stage_is_five_times_the_mean_of_its_variants():
    table = pd.concat([rows({(1, 1): 0.1, (2, 1): 0.05}, variant="a"), rows({(1, 1): 0.3, (1, 2): 0.5}, variant="b")])
    assert profiles.stage_sla(table, "task") == pytest.approx(5 * 0.2)


def test_amdahl_of_a_known_law():
    serial, parallel = profiles.amdahl([1, 2], [1.0, 0.6])
    assert (serial, parallel) == (pytest.approx(0.2), pytest.approx(0.8))


@pytest.mark.parametrize(("latency", "expected"), [([1.0, 0.4], (0.0, 0.96)), ([1.0, 1.2], (1.1, 0.0))])
def test_amdahl_has_no_negative_part(latency: list[float], expected: tuple[float, float]):
    assert profiles.amdahl([1, 2], latency) == pytest.approx(expected)


def test_extrapolation_marks_its_rows_and_keeps_the_measured_ones():
    measured = rows({(1, 1): 1.0, (2, 1): 0.6})
    table = profiles.extrapolate(measured).set_index("cores")
    assert table["kind"].tolist() == ["measured", "measured", "extrapolated", "extrapolated", "extrapolated"]
    assert table["latency_mean"].tolist() == pytest.approx([1.0, 0.6, 0.4, 0.3, 0.25])
    assert table.loc[16, "latency_p99"] == pytest.approx(1.5 * 0.25)
    assert table.loc[16, "runs"] == 0


def test_what_was_measured_at_one_core_count_is_not_extrapolated():
    measured = pd.concat([rows({(1, 1): 1.0, (2, 1): 0.6}, variant="a"), rows({(1, 1): 0.1, (1, 2): 0.2}, variant="b")])
    table = profiles.extrapolate(measured)
    assert table.loc[table["variant"] == "a", "cores"].tolist() == list(profiles.CORE_COUNTS)
    assert table.loc[table["variant"] == "b", "kind"].tolist() == ["measured", "measured"]


def test_noise_cannot_make_a_larger_batch_faster():
    table = rows({(1, 1): 0.1, (1, 2): 0.3, (1, 4): 0.2})
    assert profiles.latency_table(table, "task", "variant", 1) == pytest.approx({1: 0.1, 2: 0.25, 4: 0.25})


# ------------------------------------------------------------------------------------------------------- errors


def test_an_unknown_pipeline_names_those_there_are():
    with pytest.raises(KeyError, match="no pipeline 'vidio'.*video, audio-qa"):
        load("vidio")


def test_an_unknown_override_is_refused():
    with pytest.raises(ValueError, match="unknown override replicas"):
        load("video", replicas=3)


def test_a_batch_size_without_a_profile_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="no profile for batch 8.*01_profiling"):
        load("video", max_batch_size=64)


def test_a_variant_without_a_profile_is_named(tmp_path: Path):
    path = tmp_path / "profiles.csv"
    profiles.save_profiles(REFERENCE[REFERENCE["variant"] != "resnet-50"], path)
    with pytest.raises(ValueError, match="no profile of variant 'resnet-50'.*01_profiling"):
        profiles.load_pipeline("video", DATA / "pipelines.yaml", path)


@pytest.mark.parametrize(
    ("reader", "remedy"),
    [(profiles.load_profiles, "01_profiling"), (profiles.load_catalogue, "leave it out")],
)
def test_a_missing_file_is_named(reader, remedy: str, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=f"nowhere.*{remedy}"):
        reader(tmp_path / "nowhere")


def test_a_table_without_its_columns_is_refused(tmp_path: Path):
    path = tmp_path / "profiles.csv"
    REFERENCE.drop(columns="latency_mean").to_csv(path, index=False)
    with pytest.raises(ValueError, match="lacks the columns latency_mean"):
        profiles.load_profiles(path)


def test_something_else_than_a_catalogue_is_refused(tmp_path: Path):
    path = tmp_path / "pipelines.yaml"
    path.write_text("tasks: {}\n")
    with pytest.raises(ValueError, match="lacks container_startup, pipelines"):
        profiles.load_catalogue(path)


def test_a_budget_that_is_no_time_is_refused():
    with pytest.raises(ValueError, match="profile_seconds is 0"):
        profiles.remeasure("video", 0, catalogue=DATA / "pipelines.yaml", profiles=DATA / "profiles.csv")


def test_more_cores_than_the_machine_has_cannot_be_measured():
    with pytest.raises(ValueError, match="cannot measure on 4096 cores"):
        profiles.measure("sentiment", "bert-tiny", [1], [4096], architecture="bert-tiny")


def test_an_architecture_that_is_not_there_names_those_there_are():
    with pytest.raises(KeyError, match="unknown architecture 'bert-titan'.*bert-tiny"):
        profiles.measure("sentiment", "bert-titan", [1], [1], architecture="bert-titan")


def test_a_stored_variant_runs_on_one_thread():
    assert profiles.measured_cores("store:text-recognition/small") == (1,)
    with pytest.raises(ValueError, match="text-recognition/small runs on one thread"):
        StoredVariant("text-recognition", "small").threads(2).__enter__()


# ---------------------------------------------------------------------------------------------- real measurements


@pytest.mark.parametrize("task", ["text-detection", "text-recognition"])
def test_a_stored_variant_is_measured_as_the_others_are(
    task: str, ocr_store: ModelStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(URL_VARIABLE, ocr_store.url)
    name, entry = next(iter(CATALOGUE["tasks"][task]["variants"].items()))
    settings = dict(architecture=entry["architecture"], cell_seconds=0.0, min_runs=3)
    table = profiles.measure(task, name, [1, 4], [1], **settings)
    assert table[["cores", "batch_size"]].values.tolist() == [[1, 1], [1, 4]]
    assert (table["latency_mean"] > 0).all() and (table["load_seconds"] > table["latency_mean"].iloc[0]).all()
    assert table["runs"].eq(3).all()
    assert profiles.extrapolate(table)[profiles.COLUMNS].equals(table[profiles.COLUMNS])


@pytest.fixture(scope="module")
def measured() -> pd.DataFrame:
    return profiles.measure(
        "sentiment", "bert-tiny", [1, 4], [1], architecture="bert-tiny", cell_seconds=0.2, min_runs=3, max_runs=50
    )


def test_a_real_measurement(measured: pd.DataFrame):
    assert measured[["cores", "batch_size"]].values.tolist() == [[1, 1], [1, 4]]
    assert (measured["latency_mean"] > 0).all() and (measured["latency_p99"] >= measured["latency_mean"]).all()
    assert measured["runs"].between(3, 50).all() and (measured["kind"] == "measured").all()
    assert (measured["load_seconds"] > measured["latency_mean"].iloc[0]).all()


def test_a_comparison_with_itself_is_one(measured: pd.DataFrame):
    assert profiles.compare(REFERENCE, REFERENCE)["ratio"].eq(1.0).all()
    assert len(profiles.compare(measured, REFERENCE)) == len(measured)


def test_own_measurements_are_completed_to_a_table_that_every_pipeline_loads_from(
    measured: pd.DataFrame, tmp_path: Path
):
    slower = REFERENCE[(REFERENCE["variant"] == "resnet-18") & (REFERENCE["kind"] == "measured")]
    slower = slower.assign(latency_mean=2.0 * slower["latency_mean"], latency_p99=2.0 * slower["latency_p99"])
    table = profiles.complete(slower, REFERENCE)
    assert len(table) == len(REFERENCE)
    merged = table.merge(REFERENCE, on=["task", "variant", "cores", "batch_size"], suffixes=("", "_reference"))
    elsewhere = merged[merged["variant"] != "resnet-18"]
    assert np.allclose(elsewhere["latency_mean"], 2.0 * elsewhere["latency_mean_reference"])
    assert (elsewhere["kind"] == "extrapolated").all()
    profiles.save_profiles(table, tmp_path / "profiles.csv")
    for name in PIPELINES:
        profiles.load_pipeline(name, DATA / "pipelines.yaml", tmp_path / "profiles.csv", capacity=200)


def test_nothing_to_scale_by_is_an_error():
    with pytest.raises(ValueError, match="no cell is measured in both"):
        profiles.complete(rows({(1, 1): 0.1}), REFERENCE)


def test_stages_take_turns():
    assert profiles._in_turns([["a1", "a2", "a3"], ["b1"]]) == ["a1", "b1", "a2", "a3"]


@pytest.mark.parametrize("key", ["bert-mini-qa", "resnet-18"])
def test_an_architecture_answers_every_request_of_a_batch(key: str):
    architecture = ARCHITECTURES[key]
    output = architecture.infer(architecture.build().eval(), architecture.inputs(2))
    assert len(output[0]) == 2


# ------------------------------------------------------------------------------------------------------ figures


def test_the_frontier_is_what_enumeration_finds():
    pipeline = load("audio-sentiment")
    best = accuracy_by_cores(pipeline, 10.0)
    stages = []
    for task in pipeline.tasks:
        options = []
        for variant in task.variants:
            for size in pipeline.batch_sizes:
                needed = int(np.ceil(10.0 / variant.throughput(size) - 1e-9))
                if needed <= pipeline.max_replicas:
                    options.append((needed * variant.cores, variant.accuracy))
        stages.append(options)
    for cores in (4, 8, pipeline.capacity):
        pairs = [a + b for used, a in stages[0] for more, b in stages[1] if used + more <= cores]
        assert best[cores] == pytest.approx(max(pairs, default=-np.inf))


def test_figures_are_written(tmp_path: Path):
    plot_latency(REFERENCE, ["detection", "classification"], tmp_path / "latency.png")
    plot_frontier([load(name) for name in PIPELINES], tmp_path / "frontier.png")
    plot_comparison(profiles.compare(REFERENCE, REFERENCE), tmp_path / "comparison.png")
    assert {path.name for path in tmp_path.iterdir()} == {"latency.png", "frontier.png", "comparison.png"}
