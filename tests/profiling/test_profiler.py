"""Profiling a pipeline: real measurements, the budget, and runs that were interrupted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pandas as pd
import pytest
from pipeline_folders import PROFILE, write_pipeline

from opd.profiling import profiler
from opd.profiling.pipelines import load_pipeline
from opd.profiling.profiler import ProfilingOptions, UnfinishedProfileError, profile_pipeline
from opd.profiling.profiles import load_profile

NAMES = ("a", "b", "c")
FILE = "name: three\ndevice: {cores: 8}\nlimits: {replicas: 2, batch_size: 2}\n"
FILE += "objective: {latency: {seconds: 1}}\ntasks:\n"
FILE += "".join(
    f"  - name: {task}\n    variants:\n"
    + "".join(f"      - {{name: {name}, model: store, accuracy: 0.5, cores: 1}}\n" for name in NAMES)
    for task in ("first", "second")
)
PLAIN = ProfilingOptions()


class Counted:
    """A model that takes no time and counts its starts; calls advance its own clock by 0.01 s a request."""

    max_cores, pause = 1, 0.0

    def __init__(self, content: str = "model") -> None:
        self.content, self.starts, self.calls, self.now = content, 0, 0, 0.0
        self.ends_after = 1_000_000

    def fingerprint(self) -> str:
        return self.content

    def clock(self) -> float:
        return self.now

    @contextmanager
    def loaded(self, seed: int) -> Iterator[tuple[None, float]]:
        self.starts += 1
        yield None, 1.0 + self.starts

    def threads(self, count: int):
        return nullcontext()

    def inputs(self, batch_size: int) -> int:
        return batch_size

    def infer(self, model: None, inputs: int) -> None:
        self.calls += 1
        self.now += 0.01 * inputs
        if self.calls > self.ends_after:
            raise KeyboardInterrupt

    def memory_mb(self, model: None) -> float:
        return 100.0


@pytest.fixture
def site(tmp_path: Path):
    """Folder of a pipeline of two tasks with three variants each, and the models by task and variant."""
    folder = tmp_path / "three"
    folder.mkdir()
    (folder / "pipeline.yaml").write_text(FILE)
    return folder, {(task, name): Counted() for task in ("first", "second") for name in NAMES}


def profiled(site, options: ProfilingOptions = PLAIN) -> tuple[pd.DataFrame, list[str]]:
    folder, models = site
    return profile_pipeline(folder, folder / "profile.csv", lambda *key: models[key], options)


def starts(site) -> list[int]:
    return [model.starts for model in site[1].values()]


def test_a_pipeline_needs_no_profile_to_be_profiled_and_can_be_loaded_then(site):
    measured, left_out = profiled(site)
    assert not left_out and len(measured) == 6 * 2 and (measured["kind"] == "measured").all()
    pipeline = load_pipeline(site[0])
    for task in pipeline.tasks:
        for variant in task.variants:
            assert variant.latency == pytest.approx({1: 0.01, 2: 0.02})
            assert (variant.startup_time, variant.assumed) == (2.0, False)
    table = load_profile(site[0] / "profile.csv")
    assert (table["memory_mb"] == 100.0).all() and (table["runs"] >= 20).all()
    assert json.loads((site[0] / "profile.json").read_text())["cores"] >= 1


def test_what_was_measured_is_kept_unless_asked_to_measure_again(site):
    before, _ = profiled(site)
    after, _ = profiled(site)
    assert starts(site) == [1] * 6
    pd.testing.assert_frame_equal(after, before, rtol=1e-4)
    profiled(site, ProfilingOptions(again=True))
    assert starts(site) == [2] * 6


def test_a_changed_model_is_measured_again_and_no_other(site):
    profiled(site)
    site[1]["second", "b"].content = "another"
    profiled(site)
    assert starts(site) == [1, 1, 1, 1, 2, 1]


def test_other_hardware_or_versions_measure_again(site):
    profiled(site)
    path = site[0] / "profile.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"processor": "another"}))
    profiled(site)
    assert starts(site) == [2] * 6


def test_an_interrupted_run_loses_nothing_measured_and_the_next_one_continues(site):
    interrupted = site[1]["second", "b"]
    interrupted.ends_after = 101  # in the second of its two cells
    with pytest.raises(KeyboardInterrupt):
        profiled(site)
    found = load_profile(site[0] / "profile.csv")
    assert [tuple(row) for row in found[["task", "variant"]].drop_duplicates().values] == [
        ("first", "a"),
        ("second", "a"),
        ("first", "b"),
        ("second", "b"),
    ]
    assert len(found) == 7
    interrupted.ends_after, interrupted.calls = 1_000_000, 0
    measured, _ = profiled(site)
    assert len(measured) == 12 and starts(site) == [1, 1, 1, 1, 2, 1]
    assert interrupted.calls <= 102  # only the cell that was missing
    own = measured[(measured["task"] == "second") & (measured["variant"] == "b")]
    assert own["startup_seconds"].tolist() == [3.0, 3.0]  # one figure a variant


def test_figures_typed_by_hand_stay_until_their_variant_is_measured(tmp_path: Path):
    folder = write_pipeline(tmp_path / "shop", profile=PROFILE.replace("extrapolated", "assumed"))
    text = (folder / "pipeline.yaml").read_text().replace("architecture: bert-tiny", "model: store")
    (folder / "pipeline.yaml").write_text(text)
    large, small = Counted(), Counted()
    large.ends_after, large.max_cores = 0, 2
    with pytest.raises(KeyboardInterrupt):
        models = {("first", "small"): small, ("first", "large"): large, ("second", "small"): small}
        profile_pipeline(folder, folder / "profile.csv", lambda *key: models[key])
    assumed = [[variant.assumed for variant in task.variants] for task in load_pipeline(folder).tasks]
    assert assumed == [[False, True], [False]]


def test_stages_take_turns_and_a_short_budget_covers_the_first_variant(site):
    folder, models = site
    options = ProfilingOptions(seconds=1e-9)
    measured, left_out = profile_pipeline(folder, folder / "elsewhere.csv", lambda *key: models[key], options)
    assert set(zip(measured["task"], measured["variant"], strict=True)) == {("first", "a")}
    assert left_out == ["second/a", "first/b", "second/b", "first/c", "second/c"]


def test_the_own_profile_of_a_pipeline_is_completed_run_by_run(site):
    for left in (5, 4, 3, 2, 1):
        with pytest.raises(
            UnfinishedProfileError, match="profile_seconds, 1e-09 s, ended before.*run it again"
        ) as error:
            profiled(site, ProfilingOptions(seconds=1e-9))
        assert sum(f"{task}/{name}" in str(error.value) for task, name in site[1]) == left
    _, left_out = profiled(site, ProfilingOptions(seconds=1e-9))
    assert not left_out and starts(site) == [1] * 6 and load_pipeline(site[0])


@pytest.mark.parametrize(
    ("elapsed", "expected"), [([], 0.0), ([3.0], 6.0), ([2.0, 6.0], 18.0), ([6.0, 3.0], 3.0), ([1.0, 2.0, 3.0], 4.5)]
)
def test_the_time_of_a_variant_is_expected_from_the_smaller_ones_of_its_stage(elapsed: list[float], expected: float):
    assert profiler._expected(elapsed) == pytest.approx(expected)


@pytest.mark.skipif(os.cpu_count() == 1, reason="needs two cores")
def test_architectures_are_measured_on_further_cores_and_extrapolated(tmp_path: Path):
    text = FILE[: FILE.index("  - name: first")]
    text += "  - name: sentiment\n    variants: [{name: tiny, architecture: bert-tiny, accuracy: 0.5, cores: 16}]\n"
    (tmp_path / "pipeline.yaml").write_text(text.replace("device: {cores: 8}", "device: {cores: 16}"))
    options = ProfilingOptions(core_counts=[1, 2], max_batch_size=1, seconds=0.1)
    measured, left_out = profile_pipeline(tmp_path, tmp_path / "profile.csv", None, options)
    assert measured["cores"].tolist() == [1, 2] and not left_out
    table = load_profile(tmp_path / "profile.csv").set_index("cores")
    assert table.loc[16, "kind"] == "extrapolated"
    assert 0 < table.loc[16, "latency_mean"] <= table.loc[[1, 2], "latency_mean"].max()
    assert table["startup_seconds"].nunique() == 1 and table["memory_mb"].isna().all()


@pytest.mark.skipif(os.cpu_count() == 1, reason="needs two cores")
def test_other_cores_of_a_variant_are_extrapolated_from_what_is_known(site):
    folder, models = site
    for model in models.values():
        model.max_cores = 2
    options = ProfilingOptions(core_counts=[1, 2])
    profiled(site, options)
    file = folder / "pipeline.yaml"
    text = file.read_text()
    file.write_text(
        text.replace("b, model: store, accuracy: 0.5, cores: 1", "b, model: store, accuracy: 0.5, cores: 3")
    )
    profiled(site, options)
    assert starts(site) == [1] * 6
    assert [[variant.cores for variant in task.variants] for task in load_pipeline(folder).tasks] == [[1, 3, 1]] * 2


# ------------------------------------------------------------------------------------------------------------- errors


def test_all_variants_that_cannot_be_measured_are_named_before_anything_is(tmp_path: Path):
    text = FILE.replace("{name: b, model: store", "{name: b, architecture: bert-titan")
    text = text.replace(
        "{name: c, model: store, accuracy: 0.5, cores: 1}", "{name: c, model: store, accuracy: 0.5, cores: 4}"
    )
    (tmp_path / "pipeline.yaml").write_text(text)
    with pytest.raises(ValueError, match="4 variants cannot be measured:") as error:
        profile_pipeline(tmp_path, tmp_path / "profile.csv", lambda *key: Counted())
    assert "variant 'b' of task 'first': there is no architecture 'bert-titan'; opd.profiling.arch" in str(error.value)
    assert "variant 'c' of task 'second': it has 4 cores, but can be measured here on at most 1" in str(error.value)
    assert not (tmp_path / "profile.csv").exists()


def test_variants_with_a_model_need_something_that_serves_them(site):
    with pytest.raises(ValueError, match="it has a model, which is measured as it is served"):
        profile_pipeline(site[0], site[0] / "profile.csv")


def test_a_negative_budget_is_refused():
    with pytest.raises(ValueError, match="profile_seconds is -1.0"):
        ProfilingOptions(seconds=-1.0)
