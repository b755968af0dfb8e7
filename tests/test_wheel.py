"""The package as it is installed: a wheel in an environment of its own, used from an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import nbformat
import pytest
from deadlines import PATIENCE

ROOT = Path(__file__).parents[1]
HANGING_SECONDS = 1800
"""After this a command hangs; the longest takes seconds."""

pytestmark = pytest.mark.processes


def run(command: list[str | Path], folder: Path) -> str:
    """Run a command without anything of this process's environment that could reach the checkout."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "OMP_NUM_THREADS") if name in os.environ}
    environment["NUMBA_CACHE_DIR"] = os.environ["NUMBA_CACHE_DIR"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=HANGING_SECONDS, check=False
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the files that git knows."""
    folder = tmp_path_factory.mktemp("source")
    command = [
        "git",
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "opd",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    ]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder / "dist",
        folder,
    ]
    run(build, folder)
    (built,) = (folder / "dist").glob("opd-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts folder of a new environment that has the wheel, and the dependencies of this environment."""
    environment = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", environment], environment)
    python = environment / "bin" / "python"
    run(
        [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel],
        environment,
    )
    packages = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], environment).strip())
    # A path in a .pth file comes after the environment's own packages, and the .pth files behind it are not read: the
    # editable installation of the checkout stays out of sight.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin"


DATA = (
    "examples/video/pipeline.yaml",
    "examples/audio-qa/pipeline.yaml",
    "examples/audio-qa/profile.csv",
    "examples/ocr/profile.json",
    "profiling/pipeline.schema.json",
    "examples/ocr/recipes.yaml",
    "workload/synthetic_trace.parquet",
)


def test_the_wheel_carries_the_data_of_the_package_and_nothing_else(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"opd/{data}" for data in DATA} <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"opd"}


LIBRARY = """
import gymnasium, numpy as np
import opd, opd.simulator
from opd.profiling.pipelines import load_pipeline
from opd.solvers import greedy
from opd.workload.trace import load_trace

print(opd.__file__)
environment = gymnasium.make("opd/Pipeline-v0", pipeline="video")
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
