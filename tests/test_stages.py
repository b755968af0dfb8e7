"""Every DVC stage depends on all the code that its notebook imports."""

from __future__ import annotations

import ast
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import grimp
import nbformat
import pandas as pd
import papermill
import pytest
import yaml
from deadlines import PATIENCE

from opd.workload.trace_files import TWITTER_FILE
from opd.workload.trace_limits import MIN_SECONDS

ROOT = Path(__file__).parents[1]
RUNNER = "opd.study.notebook"


def stages() -> Iterator[tuple[str, dict]]:
    """Name and definition of every stage that runs a notebook."""
    for path in sorted(ROOT.glob("**/dvc.yaml")):
        if {".venv", "template"} & {*path.parts}:  # a project has the library installed
            continue
        pipeline = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name, stage in pipeline["stages"].items():
            commands = [stage["cmd"]] if isinstance(stage["cmd"], str) else stage["cmd"]
            command = " && ".join(commands).replace("${run}", pipeline.get("vars", [{}])[0].get("run", ""))
            if RUNNER in command:
                yield f"{path.parent.relative_to(ROOT)}:{name}", stage | {"cmd": command}


STAGES = dict(stages())


@cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("opd", cache_dir=None)


def notebook_of(stage: dict) -> Path:
    (name,) = [word for word in shlex.split(stage["cmd"]) if word.startswith("notebooks/")]
    return ROOT / name


def imported_by(notebook: Path) -> set[str]:
    """Modules of the package that the code cells import directly, and the runner."""
    found = {RUNNER}
    for cell in nbformat.read(notebook, as_version=nbformat.NO_CONVERT).cells:
        if cell.cell_type == "code":
            lines = [line for line in cell.source.splitlines() if not line.startswith(("%", "!"))]
            for node in ast.walk(ast.parse("\n".join(lines))):
                if isinstance(node, ast.Import):
                    found |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & graph().modules


def needed_by(notebook: Path) -> set[Path]:
    """Files of all modules that the notebook imports, directly or through others."""
    modules = imported_by(notebook)
    for module in tuple(modules):
        modules |= graph().find_upstream_modules(module)
    files = set()
    for module in modules:
        path = ROOT.joinpath(*module.split("."))
        files.add(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))
    return files - {ROOT / "opd" / "__init__.py"}


def covers(dependency: str, file: Path) -> bool:
    path = ROOT / dependency
    return path == file or path in file.parents


def parameters_of(notebook: Path) -> set[str]:
    return set(papermill.inspect_notebook(str(notebook)))


def test_there_are_stages_to_check():
    assert len(STAGES) >= 13


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_its_notebook_and_on_all_code_that_it_imports(name: str):
    stage = STAGES[name]
    if stage.get("always_changed"):
        pytest.skip("runs every time, whatever changed")
    notebook = notebook_of(stage)
    assert notebook.relative_to(ROOT).as_posix() in stage["deps"]
    missing = {
        file.relative_to(ROOT).as_posix()
        for file in needed_by(notebook)
        if not any(covers(dependency, file) for dependency in stage["deps"])
    }
    assert not missing, f"add the folders of these files to the dependencies of stage {name}"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_folders_of_code(name: str):
    """Modules within a folder come and go; only those that stand at the top of the package are named."""
    files = [dependency for dependency in STAGES[name]["deps"] if dependency.endswith(".py")]
    assert all(Path(file).parent == Path("opd") or file == "opd/study/notebook.py" for file in files)


@pytest.mark.parametrize("name", STAGES)
def test_what_a_stage_depends_on_is_there(name: str):
    for dependency in STAGES[name]["deps"]:
        if dependency.startswith(("opd/", "notebooks/")):
            assert (ROOT / dependency).exists(), dependency


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_that_reads_the_trace_depends_on_its_file(name: str):
    """Otherwise results would go stale when the file is edited in place."""
    stage = STAGES[name]
    if stage.get("always_changed") or "trace" not in parameters_of(notebook_of(stage)):
        pytest.skip("does not read the trace, or runs every time")
    folder = ROOT / name.partition(":")[0]
    trace = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))["trace"]
    file = "/".join(TWITTER_FILE) if trace == "twitter" else trace
    assert file in [dependency.replace("${trace}", trace) for dependency in stage["deps"]]


def test_the_trace_is_checked_before_results_are_removed():
    """DVC removes what a stage wrote before it runs the stage again."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert "opd.workload.check_trace" in stages["trace"]["cmd"]
    assert set(stages["trace"]["outs"]) <= {_path(dependency) for dependency in stages["forecast"]["deps"]}
    for name in ("train", "evaluate"):
        assert {_path(output) for output in stages["forecast"]["outs"]} & set(stages[name]["deps"])


def _path(entry: str | dict) -> str:
    return entry if isinstance(entry, str) else next(iter(entry))


@pytest.mark.processes
def test_an_edited_trace_is_noticed_and_a_damaged_one_refused(tmp_path: Path):
    definition = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["trace"]
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"trace": definition}}), encoding="utf-8")
    parameters = {"trace": "my load.csv", "damping": 1, "cycles": 0, "cycle_starts": []}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(parameters), encoding="utf-8")
    for folder in ("host", "workload"):
        shutil.copytree(ROOT / "opd" / folder, tmp_path / "opd" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "opd" / "__init__.py", tmp_path / "opd")
    trace, result = tmp_path / "my load.csv", tmp_path / "reports" / "trace.json"
    counts = pd.DataFrame({"count": [3] * MIN_SECONDS})
    counts.to_csv(trace, index=False)
    assert dvc("init", "--no-scm", "--quiet", folder=tmp_path)[0] == 0
    assert dvc("repro", folder=tmp_path)[0] == 0 and '"max": 3' in result.read_text(encoding="utf-8")
    assert "up to date" in dvc("repro", folder=tmp_path)[1]

    counts.iloc[9] = 7
    counts.to_csv(trace, index=False)
    assert dvc("repro", folder=tmp_path)[0] == 0 and '"max": 7' in result.read_text(encoding="utf-8")
    assert "up to date" in dvc("repro", folder=tmp_path)[1]

    counts.iloc[9] = -7
    counts.to_csv(trace, index=False)
    code, output = dvc("repro", folder=tmp_path)
    assert code != 0 and "error: trace 'my load.csv': line 11: count '-7' is negative" in output


def dvc(*arguments: str, folder: Path) -> tuple[int, str]:
    """Run dvc in a folder; gives its exit code and what it printed."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
    }
    done = subprocess.run(
        ["dvc", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    return done.returncode, done.stdout + done.stderr
