"""pyproject.toml, constraints.txt, environment.yml and the rest say the same about the project."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from deadlines import PATIENCE
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import opd

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11", "3.12", "3.13")
# Their builds do not match the CPU build of torch.
UNWANTED = {"torchvision", "timm"}


def read_constraints() -> dict[str, Version]:
    pins: dict[str, Version] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([a-z0-9-]+)==([a-z0-9.]+)", line)
            assert match, f"not a plain pin: {line!r}"
            assert match[1] not in pins, f"pinned twice: {match[1]}"
            pins[match[1]] = Version(match[2])
    return pins


PINS = read_constraints()


def direct_requirements() -> list[Requirement]:
    texts = PROJECT["dependencies"] + [text for extra in PROJECT["optional-dependencies"].values() for text in extra]
    return [requirement for requirement in map(Requirement, texts) if requirement.name != "opd"]


@pytest.mark.parametrize("requirement", direct_requirements(), ids=str)
def test_every_direct_dependency_is_pinned_within_its_bounds(requirement: Requirement):
    name = canonicalize_name(requirement.name)
    assert PINS[name] in requirement.specifier
    assert name not in UNWANTED


def test_torch_is_the_release_of_the_study():
    assert PINS["torch"] == Version("2.13.0")
    assert not UNWANTED & set(PINS)


def test_pins_are_what_is_installed_here():
    """Of the core and the extras that `make` installs, with all they pull in."""
    own = [path for path in sys.path if "thirdparty_files" not in path]  # an imported Ray puts its copies first
    wrong, todo, seen = [], ["opd[notebooks,serving,text,xgboost,lightgbm,cluster,ray,bench,docs,dev]"], set()
    while todo:
        parent = Requirement(todo.pop())
        name = canonicalize_name(parent.name)
        if str(parent) in seen:
            continue
        seen.add(str(parent))
        distribution = next(iter(metadata.distributions(name=name, path=own)))
        if name != "opd" and Version(distribution.version).public != str(PINS.get(name)):
            wrong.append(f"{name} {distribution.version}, pinned {PINS.get(name)}")
        for text in distribution.requires or []:
            child = Requirement(text)
            if not child.marker or any(child.marker.evaluate({"extra": extra}) for extra in parent.extras | {""}):
                extras = f"[{','.join(sorted(child.extras))}]" if child.extras else ""
                todo.append(child.name + extras)
    assert not wrong, "remake the environment with: make clean test"
    assert len(seen) > 100


def test_pinned_packages_take_the_first_release_of_the_oldest_python():
    """Distributions keep the patch release they began with: Debian 12 has Python 3.11.2."""
    oldest = f"{min(PYTHONS, key=Version)}.0"
    asked = {each.name: each.metadata["Requires-Python"] for each in metadata.distributions()}
    pinned = {name: asks for name, asks in asked.items() if asks and canonicalize_name(name) in PINS}
    assert {name: asks for name, asks in pinned.items() if oldest not in SpecifierSet(asks)} == {}


def test_every_import_of_the_library_is_declared():
    declared = {canonicalize_name(requirement.name) for requirement in direct_requirements()}
    providers = metadata.packages_distributions()
    for file in sorted((ROOT / "opd").rglob("*.py")):
        for module in imported_modules(file) - set(sys.stdlib_module_names) - {"opd"}:
            names = {canonicalize_name(name) for name in providers.get(module, [module])}
            assert names & declared, f"{file.name} imports {module}, which pyproject.toml does not declare"


def imported_modules(file: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            modules.add(node.module.partition(".")[0])
    return modules


def test_the_conda_environment_installs_what_pyproject_declares():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    assert environment["channels"] == ["conda-forge"]
    (from_pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert from_pip == ["-c constraints.txt", f"-e .[{','.join(makefile_extras())}]"]
    from_conda = {}
    for entry in environment["dependencies"]:
        if isinstance(entry, str):
            name, bounds = re.fullmatch(r"([a-z-]+)(.*)", entry).groups()
            from_conda[name] = SpecifierSet(bounds)
    assert from_conda.pop("python") == SpecifierSet(PROJECT["requires-python"])
    # Whatever else comes from conda is a tool: Python packages have one source, so they cannot disagree.
    assert set(from_conda) == {"git", "make", "pip"}


def test_what_an_image_runs_needs_nothing_of_training():
    """The image has the extras ``servers`` and ``cluster``."""
    absent = ("torch", "pytorch_lightning", "torchmetrics", "matplotlib", "papermill", "dvc", "ray", "pyarrow")
    used = ("cluster.gateway", "cluster.controller", "cluster.status", "serving.server", "serving.prefetch")
    used += ("serving.emulation.server", "scaling.keda", "control.warm_up", "cli.cluster", "cli.scaling")
    code = f"import sys; sys.modules |= dict.fromkeys({absent})\n" + "".join(f"import opd.{name}\n" for name in used)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


def makefile_extras() -> list[str]:
    (extras,) = re.findall(r"-c constraints\.txt -e '\.\[([a-z,]+)\]'", (ROOT / "Makefile").read_text())
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    return extras.split(",")


def test_python_versions_agree():
    supported = SpecifierSet(PROJECT["requires-python"])
    assert [minor for minor in range(8, 20) if f"3.{minor}" in supported] == [11, 12, 13]
    stated = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if "Python :: 3." in text]
    assert stated == list(PYTHONS)


def test_versions_and_licences_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert opd.__version__ == citation["version"] == metadata.version("opd")
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_pre_commit_configuration_is_valid():
    command = [sys.executable, "-m", "pre_commit", "validate-config", str(ROOT / ".pre-commit-config.yaml")]
    subprocess.run(command, check=True, timeout=PATIENCE)


def test_make_lists_its_commands():
    listed = subprocess.run(["make", "-C", ROOT], check=True, timeout=PATIENCE, capture_output=True, text=True).stdout
    for command in ("repro", "study", "live", "test", "lint", "docs", "lab", "clean"):
        assert f"make {command} " in listed


def test_make_names_the_python_it_needs(tmp_path: Path):
    """With no Python that fits, nothing is created and the message says what to install."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    command = ["make", "-C", str(tmp_path), "lint", "PYTHON=python3.0-absent"]
    result = subprocess.run(command, timeout=PATIENCE, capture_output=True, text=True)
    assert result.returncode != 0
    assert "none of [python3.0-absent] is a Python 3.11, 3.12 or 3.13" in result.stdout
    assert not (tmp_path / ".venv").exists()
