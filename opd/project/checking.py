"""Everything that is wrong with a project, at once, before anything is measured or deployed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import papermill

from opd.host.documents import DocumentError
from opd.profiling.pipeline_file import FILE_NAME, PipelineFile, read_pipeline_file
from opd.profiling.pipelines import load_pipeline
from opd.profiling.profiles import FILE_NAME as PROFILE_NAME
from opd.project.folder import NOTEBOOKS, PARAMETERS_FILE, Project, ProjectError
from opd.project.storing import store_models
from opd.serving.compatibility import find_mismatches
from opd.serving.samples import read_samples
from opd.serving.stage_samples import StageSamples
from opd.serving.store import ModelStore, StoreError
from opd.study.notebook import StageError, select_parameters
from opd.workload.check_trace import TraceUse, check_trace
from opd.workload.trace_limits import TraceError


class ProjectProblem(NamedTuple):
    """Something to correct: the file or part of the project, and the value, limit and remedy in a sentence."""

    place: str
    text: str


class CheckResult(NamedTuple):
    """Result of a check.

    Attributes:
        problems: what has to be corrected.
        notes: what is still missing or assumed, which is no mistake.
    """

    problems: list[ProjectProblem]
    notes: list[str]


def check_project(folder: Path, run_models: bool = True, say: Callable[[str], None] = lambda _: None) -> CheckResult:
    """Check pipeline file, parameters, trace, samples, models and profile of a project.

    Args:
        folder: the project.
        run_models: also serve every variant and send samples through all stages, which takes seconds a variant.
        say: gets a line about what is being done.

    Raises:
        ProjectError: if it is no project.
    """
    project, problems, notes = Project.at(folder), list[ProjectProblem](), list[str]()

    def attempt(place: str, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except (DocumentError, OSError, ProjectError, StageError, StoreError, TraceError, ValueError) as error:
            problems.extend(ProjectProblem(place, text) for text in _sentences(str(error)))
            return None

    content = attempt(FILE_NAME, lambda: read_pipeline_file(project.pipeline_path))
    parameters = attempt(PARAMETERS_FILE, project.parameters)
    if parameters is not None:
        problems += _parameter_problems(project, parameters)
        attempt(PARAMETERS_FILE, project.simulation)
        attempt("trace", lambda: _check_trace(parameters))
    if content is not None:
        samples = content.samples and attempt("samples", lambda: read_samples(project.root / str(content.samples)))
        found = len(problems)
        attempt("models", lambda: store_models(project, say))
        if samples and len(problems) == found and run_models:
            say("serving every variant with a sample")
            stages = StageSamples(content, samples, ModelStore(), project.root / ".cache" / "samples")
            problems += [ProjectProblem("models", str(mismatch)) for mismatch in find_mismatches(stages)]
        if not content.samples:
            notes.append(f"{FILE_NAME} names no samples; `opd check`, `opd profile` and `opd load` need some")
        notes += _profile_notes(project, content, attempt)
    return CheckResult(problems, notes)


def _sentences(message: str) -> list[str]:
    """The problems that an error lists, one line each."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    listed = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    return listed or [" ".join(lines)]


def _parameter_problems(project: Project, parameters: dict[str, Any]) -> list[ProjectProblem]:
    """Check the parameters against those that the notebooks declare."""
    problems, known = [], {"pipelines", "pipeline"}
    for name in NOTEBOOKS:
        notebook = project.root / "notebooks" / f"{name}.ipynb"
        if not notebook.is_file():
            problems.append(ProjectProblem("notebooks", f"there is no {notebook.name}; copy it from a new `opd init`"))
            continue
        known |= set(papermill.inspect_notebook(str(notebook)))
        try:
            select_parameters(notebook, parameters, {})
        except StageError as error:
            problems.append(ProjectProblem(PARAMETERS_FILE, str(error)))
    if not problems:
        for name in sorted(set(map(str, parameters)) - known):
            problems.append(
                ProjectProblem(PARAMETERS_FILE, f"no notebook has a parameter {name!r}; correct or delete it")
            )
    return problems


def _check_trace(parameters: dict[str, Any]) -> None:
    use = {name: parameters[name] for name in TraceUse.model_fields if name in parameters}
    check_trace(str(parameters.get("trace", "")), TraceUse(**use))


def _profile_notes(
    project: Project, content: PipelineFile, attempt: Callable[[str, Callable[[], Any]], Any]
) -> list[str]:
    """Check the profile, if there is one yet."""
    if not (project.root / PROFILE_NAME).is_file():
        return ["not measured yet; run `opd profile`"]
    pipeline = attempt(PROFILE_NAME, lambda: load_pipeline(project.root))
    if pipeline is None:
        return []
    assumed = [f"{task.name}/{each.name}" for task in pipeline.tasks for each in task.variants if each.assumed]
    return [f"assumed, not measured: {', '.join(assumed)}"] if assumed else []
