"""Everything that is wrong with a project, at once, before anything is measured or deployed."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mlserver.grpc.dataplane_pb2 import ModelInferRequest

from opd.profiling.pipeline_file import FILE_NAME, PipelineFile, read_pipeline_file
from opd.profiling.profiles import FILE_NAME as PROFILE_NAME
from opd.project.folder import PARAMETERS_FILE, Project
from opd.project.parameters import parameter_problems
from opd.project.storing import unstorable_models
from opd.serving.accuracy import load_metric, read_labels
from opd.serving.compatibility import find_mismatches
from opd.serving.samples import read_samples
from opd.serving.stage_samples import StageSamples, adapter_of
from opd.serving.store import ModelStore
from opd.workload.check_trace import check_trace, trace_use


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
    checking = _Checking(Project.at(folder), say)
    content = checking.attempt(FILE_NAME, lambda: read_pipeline_file(checking.project.pipeline_path))
    checking.parameters()
    if content is not None:
        checking.models(content, checking.samples(content), run_models)
        checking.profile(content)
    return CheckResult(checking.problems, checking.notes)


class _Checking:
    """The check of one project.

    Attributes:
        project: the project.
        problems: found so far.
        notes: likewise.
    """

    def __init__(self, project: Project, say: Callable[[str], None]) -> None:
        self.project, self.problems, self.notes = project, list[ProjectProblem](), list[str]()
        self._say = say

    def attempt(self, place: str, step: Callable[[], Any]) -> Any:
        """Return what a step returns, or None if it finds problems."""
        try:
            return step()
        except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            self._add(place, str(error.args[0]) if isinstance(error, KeyError) else str(error))
            return None

    def _add(self, place: str, message: str) -> None:
        """Add the problems that a message lists, one line each."""
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        listed = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
        for text in listed or [" ".join(lines).removeprefix(f"{place}: ")]:
            self.problems.append(ProjectProblem(place, text))

    def parameters(self) -> None:
        """Check the parameters, the notebooks that declare them, and the trace that they name."""
        parameters = self.attempt(PARAMETERS_FILE, self.project.parameters)
        if parameters is not None:
            for place, message in parameter_problems(self.project, parameters):
                self._add(place, message)
            self.attempt("trace", self._trace)

    def _trace(self) -> None:
        use = trace_use(self.project.root / PARAMETERS_FILE)
        own = self.project.root / use.trace
        check_trace(own if own.is_file() else use.trace, use)

    def samples(self, content: PipelineFile) -> list[ModelInferRequest]:
        """Check samples and labels; return the samples, none if there are none."""
        root = self.project.root
        if content.samples is None:
            self.notes.append(f"{FILE_NAME} names no samples; `opd check`, `opd profile` and `opd load` need some")
            return []
        samples = self.attempt("samples", lambda: read_samples(root / str(content.samples))) or []
        if content.labels is not None and samples:
            self.attempt("labels", lambda: read_labels(content, root, samples))
            self.attempt("metric", lambda: load_metric(str(content.metric)))
        return samples

    def models(self, content: PipelineFile, samples: list[ModelInferRequest], run_models: bool) -> None:
        """Store the models, and send samples through those that there are."""
        root = self.project.root
        unstorable = self.attempt("models", lambda: unstorable_models(content, root, self._say))
        for message in (unstorable or {}).values():
            self._add("models", message)
        if unstorable is None or not samples or not run_models:
            for task in content.tasks:
                self.attempt(f"adapter of task {task.name!r}", partial(adapter_of, task))
            return
        self._say("serving every variant with a sample")
        stages = StageSamples(_without(content, unstorable), samples, ModelStore(), root / ".cache" / "samples")
        for mismatch in self.attempt("models", partial(find_mismatches, stages)) or ():
            self.problems.append(ProjectProblem("models", str(mismatch)))

    def profile(self, content: PipelineFile) -> None:
        """Check the profile, if there is one yet."""
        if not (self.project.root / PROFILE_NAME).is_file():
            self.notes.append("not measured yet; run `opd profile`")
            return
        pipeline = self.attempt(PROFILE_NAME, self.project.pipeline)
        if pipeline is None:
            return
        if pipeline.assumed_note:
            self.notes.append(pipeline.assumed_note)
        limit = pipeline.service_level.seconds
        for task in pipeline.tasks:
            self.notes += [
                f"variant {each.name!r} of task {task.name!r} takes {each.service_time(1):g} s for one request, more "
                f"than the latency objective of {limit:g} s; {PROFILE_NAME} has seconds, not milliseconds"
                for each in task.variants
                if each.assumed and each.service_time(1) > limit
            ]


def _without(content: PipelineFile, missing: Collection[tuple[str, str]]) -> PipelineFile:
    """Leave out the variants that cannot be served; a stage without any ends the check of those after it."""
    tasks = [
        task.model_copy(
            update={
                "variants": [
                    variant
                    for variant in task.variants
                    if variant.model is not None and (task.name, variant.name) not in missing
                ]
            }
        )
        for task in content.tasks
    ]
    return content.model_copy(update={"tasks": tasks})
