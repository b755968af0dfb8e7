"""The folder of a project: created from the template or an example, found, and read."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from opd.host.documents import DocumentError, describe_problems
from opd.host.paths import package_path, project_path
from opd.measurement import SimulationParameters
from opd.objective import Objective
from opd.pipeline import Pipeline
from opd.profiling.pipeline_file import (
    FILE_NAME,
    PipelineFile,
    is_reference,
    pipeline_path,
    read_pipeline_file,
    shipped_pipelines,
)
from opd.profiling.pipelines import load_pipeline
from opd.serving.models import CLASS
from opd.workload.trace_files import SYNTHETIC_FILE

Section = TypeVar("Section")

NOTEBOOKS = ("01_profiling", "02_load_forecast", "03_ppo_training", "04_evaluation")
"""Notebooks of a project; those of the study that have a stage in its ``dvc.yaml``."""

PARAMETERS_FILE = "params.yaml"

COMMAND_SECONDS = 60.0
"""Time limit of a short command, such as ``dvc init``."""


class ProjectError(ValueError):
    """A folder is no project, or cannot become one."""


@dataclass(frozen=True)
class Project:
    """A project folder.

    Attributes:
        root: the folder, absolute.
        shipped: name of a pipeline that ships with the package, in place of the folder's own; empty for that.
        emulated: whether it is served by emulated replicas.
    """

    root: Path
    shipped: str = ""
    emulated: bool = False

    @classmethod
    def at(cls, folder: Path) -> Project:
        """Open the project in ``folder``.

        Raises:
            ProjectError: if it has no pipeline file or no parameters.
        """
        for name in (FILE_NAME, PARAMETERS_FILE):
            if not (folder / name).is_file():
                raise ProjectError(f"{folder} is no project: it has no {name}; make one with `opd init {folder}`")
        return cls(folder.resolve())

    @classmethod
    def of(cls, source: Path) -> Project:
        """Open a project, or a pipeline that ships, with the models of the project here.

        Raises:
            ProjectError: if it is neither.
        """
        if str(source) in shipped_pipelines() and not (source / FILE_NAME).is_file():
            return cls(project_path(), str(source))
        try:
            return cls.at(source)
        except ProjectError as error:
            raise ProjectError(f"{error}, or name one of the pipelines {', '.join(shipped_pipelines())}") from error

    @classmethod
    def to_emulate(cls, source: Path) -> Project:
        """Open the same with a pipeline that is emulated.

        Raises:
            ProjectError: as :meth:`of`.
        """
        return replace(cls.of(source), emulated=True)

    @property
    def pipeline_path(self) -> Path:
        """The pipeline file."""
        return pipeline_path(self.shipped) if self.shipped else self.root / FILE_NAME

    @cached_property
    def file(self) -> PipelineFile:
        """Content of the pipeline file."""
        return read_pipeline_file(self.pipeline_path)

    def pipeline(self) -> Pipeline:
        """The pipeline with its measured profile."""
        return load_pipeline(self.shipped or self.root)

    @property
    def objective(self) -> Objective:
        """What decisions maximise: the paper's reward if the file gives weights, else its service level."""
        return self.file.weights or self.file.service_level

    def parameters(self) -> dict[str, Any]:
        """Content of ``params.yaml``; a pipeline that ships needs none and then gets that of new projects.

        Raises:
            ProjectError: if it is not a mapping.
        """
        path = self.root / PARAMETERS_FILE
        if self.shipped and not path.is_file():
            path = package_path("project", "template", PARAMETERS_FILE)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ProjectError(f"{path} is not valid YAML: {error}") from error
        if not isinstance(content, dict):
            raise ProjectError(f"{path} must map names to values")
        return content

    def simulation(self) -> SimulationParameters:
        """Behaviour of the device, from ``params.yaml``.

        Raises:
            DocumentError: if a parameter is unknown or out of its range.
        """
        return parameter_section("simulation", SimulationParameters, self.parameters().get("simulation", {}))

    def report(self, *parts: str) -> Any:
        """Content of a JSON file below ``reports/``."""
        return json.loads(self.root.joinpath("reports", *parts).read_text(encoding="utf-8"))


def parameter_section(name: str, model: type[Section], content: Any) -> Section:
    """Read a section of ``params.yaml`` as the dataclass whose fields it gives.

    Raises:
        DocumentError: if a field is unknown or wrong; it lists all problems.
    """
    source = f"{PARAMETERS_FILE}, {name}"
    if not isinstance(content, Mapping):
        raise DocumentError(f"{source} is {content!r:.80}, but must map names to values")
    try:
        return model(**{str(key): value for key, value in content.items()})
    except ValidationError as error:
        raise DocumentError(describe_problems(error, source, model)) from error


def environment(project: Project) -> dict[str, str]:
    """Environment variables of the stages: this interpreter first, one thread a process."""
    given = os.environ
    return {
        "OMP_NUM_THREADS": "1",
        **given,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), given.get("PATH", "")]),
        "DVC_NO_ANALYTICS": "1",
    }


def examples() -> list[str]:
    """Names of the pipelines that ship with sample requests, so that a project can begin with one."""
    return [name for name in shipped_pipelines() if read_pipeline_file(name).samples is not None]


def create(folder: Path, example: str | None = None) -> Project:
    """Create a project folder from the template, or with the pipeline of an example.

    Args:
        folder: a new folder, an empty one, or a new Git repository.
        example: one of :func:`examples`.

    Raises:
        ProjectError: if the folder is not empty, there is no such example, or its models cannot be built.
    """
    if folder.exists() and (not folder.is_dir() or any(path.name != ".git" for path in folder.iterdir())):
        raise ProjectError(f"{folder} exists and is not empty; name a new folder")
    if example is not None and example not in examples():
        raise ProjectError(f"there is no example {example!r}; there are {', '.join(examples())}")
    if importlib.util.find_spec("dvc") is None:  # its command runs the stages
        raise ModuleNotFoundError("No module named 'dvc'", name="dvc")
    build = _builder(example) if example else None
    template = package_path("project", "template")
    shutil.copytree(template, folder, dirs_exist_ok=True)
    (folder / "gitignore").rename(folder / ".gitignore")
    for name in ("variants", "models", "models/agents", "notebooks", "traces"):
        (folder / name).mkdir(exist_ok=True)
    for name in NOTEBOOKS:
        shutil.copy(package_path("project", "notebooks", f"{name}.ipynb"), folder / "notebooks")
    shutil.copy(package_path("profiling", "pipeline.schema.json"), folder)
    shutil.copy(package_path(*SYNTHETIC_FILE), folder / "traces" / "synthetic.csv.gz")
    if example is None:
        pipeline = folder / FILE_NAME
        pipeline.write_text(pipeline.read_text().replace("name: NAME", f"name: {_plain_name(folder.resolve().name)}"))
    else:
        _fill(folder, example)
    if build is not None:
        try:
            build(folder)
        except (OSError, RuntimeError, ValueError) as error:  # no network, no space, another package than expected
            raise ProjectError(f"building models failed: {error}; delete {folder} before you try again") from error
    _init_dvc(folder)
    return Project.at(folder)


def _plain_name(text: str) -> str:
    """A DNS label made of ``text``: lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "pipeline"


def _fill(folder: Path, example: str) -> None:
    """Copy the pipeline file of an example, and the files that it names."""
    source, file = package_path("examples", example), read_pipeline_file(example)
    shutil.rmtree(folder / "samples")
    for name in (FILE_NAME, file.samples, file.labels, *_modules(file)):
        if name and (source / name).is_file():  # samples may be built, and classes may be installed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, folder / name)


def _builder(example: str) -> Callable[[Path], Any] | None:
    """What makes the models of an example in a folder, if it has a module for that.

    Raises:
        ProjectError: if a package is not installed.
    """
    if not package_path("examples", example, "build.py").is_file():
        return None
    try:
        return importlib.import_module(f"opd.examples.{example}.build").build
    except ModuleNotFoundError as error:
        raise ProjectError(
            f"example {example!r} needs the package {error.name!r}; the examples need `pip install 'opd[serving,text]'`"
        ) from error


def _modules(file: PipelineFile) -> set[str]:
    """Files with the modules of the classes that a pipeline file names."""
    variants = [variant for task in file.tasks for variant in task.variants]
    classes = [str(variant.settings.get(CLASS, variant.model)) for variant in variants]
    return {f"{name.partition(':')[0]}.py" for name in classes if is_reference(name)}


def _init_dvc(folder: Path) -> None:
    """Make the folder a DVC project, on its own or inside the Git repository that it is in."""

    def output(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)

    top = output("git", "rev-parse", "--show-toplevel") if shutil.which("git") else None
    if top is None or top.returncode:
        option = ["--no-scm"]
    else:
        option = [] if Path(top.stdout.strip()) == folder.resolve() else ["--subdir"]
    done = output(sys.executable, "-m", "dvc", "init", "-q", *option)
    if done.returncode:
        raise ProjectError(f"`dvc init` failed in {folder}: {done.stderr.strip()}")
    output(sys.executable, "-m", "dvc", "config", "core.analytics", "false")
