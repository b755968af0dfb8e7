"""Every DVC stage depends on all the code that its notebook imports."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import grimp
import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[1]
RUNNER = "opd.study.notebook"


def stages() -> Iterator[tuple[str, dict]]:
    """Name and definition of every stage that runs a notebook."""
    for path in sorted(ROOT.glob("**/dvc.yaml")):
        if ".venv" in path.parts:
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
