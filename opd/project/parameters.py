"""Checks of ``params.yaml``: everything that its notebooks would refuse, before any of them runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from opd.agent.fine_tuning import FineTuning
from opd.agent.single.problem import TrainingParameters, agent_objective
from opd.control import READY_POLICIES, is_user_policy
from opd.host.documents import DocumentError
from opd.host.imports import import_object
from opd.measurement import SimulationParameters
from opd.project.folder import NOTEBOOKS, PARAMETERS_FILE, Project, parameter_section
from opd.study.notebook import StageError, check_parameter, declared_parameters
from opd.workload.forecast import ForecastParameters

NOT_IN_NOTEBOOKS = {"pipeline", "pipelines"}
"""Parameters that a project has whether or not a notebook declares them."""


def parameter_problems(project: Project, parameters: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Find what is wrong with the parameters of a project, and which notebooks are missing.

    Yields:
        The place, ``notebooks`` or one in ``params.yaml``, and the error or its message.
    """
    yield from _declared_problems(project, parameters)
    yield from _section_problems(parameters)
    yield from _agent_problems(project, parameters)
    for problem in _policy_problems(parameters):
        yield f"{PARAMETERS_FILE}, policies", problem


def _declared_problems(project: Project, parameters: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Compare names and types with those that the notebooks declare."""
    known, complete, told = set(NOT_IN_NOTEBOOKS), True, set()
    for name in NOTEBOOKS:
        notebook = project.root / "notebooks" / f"{name}.ipynb"
        if not notebook.is_file():
            complete = False
            yield "notebooks", f"there is no {notebook.name}; copy it from a new project of `opd init`"
            continue
        try:
            declarations = declared_parameters(notebook)
        except StageError as error:
            complete = False
            yield "notebooks", str(error)
            continue
        for key, declared in declarations.items():
            known.add(key)
            if key in parameters and key not in told:
                try:
                    check_parameter(Path(notebook.name), key, parameters[key], declared["inferred_type_name"])
                except StageError as error:
                    told.add(key)
                    yield PARAMETERS_FILE, str(error)
    for name in sorted(set(map(str, parameters)) - known) if complete else ():
        yield PARAMETERS_FILE, f"no notebook has a parameter {name!r}; correct or delete it"


def _section_problems(parameters: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Read the sections that stand for the fields of a class."""
    sections = {"simulation": SimulationParameters, "forecast": ForecastParameters, "training": TrainingParameters}
    for name, model in sections.items():
        try:
            parameter_section(name, model, parameters.get(name, {}))
        except DocumentError as error:
            yield f"{PARAMETERS_FILE}, {name}", str(error)


def _agent_problems(project: Project, parameters: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Check what each agent changes of objective and training."""
    agents, training = parameters.get("agents", {}), parameters.get("training", {})
    if not isinstance(agents, Mapping) or not isinstance(training, Mapping):
        return  # a wrong type, which is found elsewhere
    for name, changes in agents.items():
        place = f"{PARAMETERS_FILE}, agents.{name}"
        if not isinstance(changes, Mapping) or not set(changes) <= {"kind", "weights", "training"}:
            yield place, f"it is {changes!r:.80}; write a mapping of kind, weights and training, or {{}}"
            continue
        kind, own = changes.get("kind", "single"), changes.get("training", {})
        if kind not in ("single", "tuned"):
            yield place, f"kind is {kind!r:.80}; write single or tuned"
            continue
        if isinstance(own, Mapping) and kind == "single":
            own = {**training, **own}
        try:
            if "training" in changes:
                model = TrainingParameters if kind == "single" else FineTuning
                parameter_section(f"agents.{name}.training", model, own)
            if "weights" in changes:
                agent_objective(project.objective, changes["weights"], project.file.name)
        except (AttributeError, TypeError, ValueError) as error:  # weights that are no mapping, or no numbers
            yield place, str(error)


def _policy_problems(parameters: Mapping[str, Any]) -> Iterator[str]:
    """Find policies that there are not, and classes that cannot be imported."""
    agents, policies = parameters.get("agents", {}), parameters.get("policies", [])
    known = list(dict.fromkeys([*READY_POLICIES, *(agents if isinstance(agents, Mapping) else ())]))
    for name in policies if isinstance(policies, list) else ():
        if not isinstance(name, str):
            yield f"{name!r:.80} is no name; write names of policies, or module:Class"
        elif is_user_policy(name):
            try:
                import_object(name)
            except ImportError as error:
                yield f"{error}; write module:Class, a file of this folder"
        elif name not in known:
            yield f"{name!r} is not one of {', '.join(known)}; correct it, or write module:Class"
