"""The structure of the package: layers, sizes, names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from deadlines import PATIENCE

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "opd").rglob("*.py"))
LONGEST_MODULE, LONGEST_FUNCTION = 400, 50
LONGEST_COMPILED = 750
COMPILED = ("simulator/kernel.py", "agent/scoring.py")
"""Numba's cache does not see changes in other files, so all compiled functions of an idea are in one module."""


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_imports_keep_to_the_layers():
    """The contracts are in pyproject.toml, drawn in docs/architecture.md."""
    command = [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_modules_and_functions_are_short(path: Path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= (LONGEST_COMPILED if relative(path).endswith(COMPILED) else LONGEST_MODULE)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, node.name


def test_no_two_classes_share_a_name():
    places = defaultdict(list)
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(relative(path))
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}


@pytest.mark.parametrize(
    "folder", ["profiling", "workload", "simulator", "agent", "control", "serving", "live", "cluster"]
)
def test_no_example_is_known_by_name(folder: str):
    for path in sorted((ROOT / "opd" / folder).rglob("*.py")):
        assert not re.search(r"\bocr\b", path.read_text(encoding="utf-8"), re.IGNORECASE), relative(path)


def test_the_architecture_page_names_every_folder():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for folder in (path for path in (ROOT / "opd").iterdir() if (path / "__init__.py").is_file()):
        assert f"`{folder.name}/`" in page, folder.name
