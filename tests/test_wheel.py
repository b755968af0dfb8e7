"""The package as it is installed: a wheel in an environment of its own, used from an empty folder."""

from __future__ import annotations

import zipfile
from pathlib import Path

import nbformat
import pytest
from installed_package import build_wheel, install, run

pytestmark = [pytest.mark.processes, pytest.mark.slow]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts folder of an environment that has the wheel."""
    return install(wheel, tmp_path_factory.mktemp("environment"))


DATA = (
    "examples/video/pipeline.yaml",
    "examples/audio-qa/pipeline.yaml",
    "examples/audio-qa/profile.csv",
    "examples/ocr/profile.json",
    "profiling/pipeline.schema.json",
    "examples/ocr/recipes.yaml",
    "project/notebooks/04_evaluation.ipynb",
    "project/template/gitignore",
    "project/template/samples/requests.json",
    "view/page.css",
    "view/page.html",
    "view/page.js",
    "workload/synthetic_trace.csv.gz",
)


def test_the_wheel_carries_the_data_of_the_package_and_nothing_else(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"opd/{data}" for data in DATA} <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"opd"}


LIBRARY = """
import gymnasium, numpy as np
import opd
from opd.profiling.pipelines import load_pipeline
from opd.solvers import greedy
from opd.workload.trace import load_trace

print(opd.__file__)
environment = gymnasium.make("opd.simulator.environment:opd/Pipeline-v0", pipeline="video")
environment.reset(seed=0)
print(environment.step(environment.action_space.sample())[1])
several = gymnasium.make_vec("opd/Pipeline-v0", 3, vectorization_mode="vector_entry_point", pipeline="nlp")
states, _ = several.reset(seed=0)
print(states.shape)
print(len(greedy(load_pipeline("nlp"), 5.0)))
print(load_trace("synthetic").is_synthetic)
"""


def test_the_library_works_in_an_empty_folder(installed: Path, tmp_path: Path):
    where, reward, shape, stages, synthetic = run([installed / "python", "-c", LIBRARY], tmp_path).splitlines()
    assert Path(where).is_relative_to(installed.parent)
    assert float(reward) < 100
    assert (shape, stages, synthetic) == ("(3, 24)", "3", "True")


def test_the_command_line_works_in_an_empty_folder(installed: Path, tmp_path: Path):
    assert "deploy" in run([installed / "opd", "--help"], tmp_path)


def test_notebooks_run_in_an_empty_folder(installed: Path, tmp_path: Path):
    parameters = nbformat.v4.new_code_cell("rate: float = 5.0  # requests/s", metadata={"tags": ["parameters"]})
    imports = "from opd.profiling.pipelines import load_pipeline\nfrom opd.solvers import greedy\n"
    code = nbformat.v4.new_code_cell(imports + "greedy(load_pipeline('video'), rate)")
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# Small"), parameters, code], metadata=metadata
    )
    nbformat.write(notebook, tmp_path / "small.ipynb")
    run([installed / "python", "-m", "opd.study.notebook", "small.ipynb", "rate=7.0"], tmp_path)
    executed = nbformat.read(tmp_path / "reports" / "notebooks" / "small-rate=7.0.ipynb", as_version=4)
    assert "StageConfiguration" in executed.cells[-1].outputs[0]["data"]["text/plain"]
