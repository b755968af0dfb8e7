"""Run a notebook, one stage of the study, with papermill and the parameters it declares.

``python -m opd.study.notebook notebooks/03_ppo_training.ipynb --params params.yaml key=value`` is the command of the
stages in ``dvc.yaml``; it works in any folder. A notebook gets those top-level keys of the parameter files that its
parameters cell declares, so one ``params.yaml`` serves all stages; its own defaults fill in the rest. The executed copy
is ``reports/notebooks/<name>.ipynb``, or with overrides ``reports/notebooks/<name>-<key>=<value>.ipynb``: a run by hand
with other parameters leaves the copy of the stage alone.
"""

from __future__ import annotations

import argparse
import builtins
import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import indent
from typing import Any

import nbformat
import papermill
import yaml
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat.reader import NotJSONError
from papermill.exceptions import PapermillExecutionError
from pydantic import TypeAdapter, ValidationError

from opd.host.paths import project_path
from opd.host.progress import STYLE_VARIABLE

CELL_TIMEOUT = 6 * 3600.0
"""Seconds one cell may take before the stage fails."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as from a shell."""

_LONGEST_NAME = 120
"""Characters of the name of an executed notebook; file systems allow 255 bytes."""

# Strict: a number is not a text, and True is not a number; an integer is a float.
_TYPES = {kind.__name__: TypeAdapter(kind, config={"strict": True}) for kind in (bool, int, float, str, list, dict)}
_WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
}
_KERNEL_ARGUMENTS = [
    # Every kernel would warn that its messages pass through the loopback interface, and log its own interruption as an
    # error. Errors of cells reach papermill.
    "--log-level=CRITICAL",
    # Worker processes print into the log; the kernel would send that to the notebook as well, and so to the log twice.
    "--IPKernelApp.capture_fd_output=False",
]
_WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class StageError(Exception):
    """A stage cannot run or did not finish; the message states the reason and the remedy."""


def merge(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two trees of parameters: ``update`` wins, nested mappings are merged, lists are replaced."""
    merged = dict(base)
    for key, value in update.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = merge(below, value)
        merged[key] = value
    return merged


def read_parameters(files: Iterable[Path]) -> dict[str, Any]:
    """Read and merge YAML files; later ones win.

    Raises:
        StageError: if a file is missing, is not valid YAML, or does not map names to values.
    """
    parameters: dict[str, Any] = {}
    for file in files:
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            raise StageError(f"no parameter file {file}; --params takes YAML files such as params.yaml") from None
        except yaml.YAMLError as error:
            raise StageError(f"{file} is not valid YAML: {error}") from error
        if not isinstance(content, Mapping):
            raise StageError(f"{file} contains a {type(content).__name__}; it must map names to values")
        parameters = merge(parameters, content)
    return parameters


def parse_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """Parse ``key=value`` arguments; values are YAML, so ``seeds=[0,1]`` is a list.

    Raises:
        StageError: if an argument has no ``=``, no key, or a value that is not valid YAML.
    """
    overrides: dict[str, Any] = {}
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator or not key.isidentifier():
            raise StageError(f"cannot read {argument!r}; overrides are written key=value, such as seed=1")
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise StageError(f"the value of {argument!r} is not valid YAML: {error}") from error
    return overrides


def select_parameters(notebook: Path, parameters: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Select the parameters that a notebook declares, and merge in the overrides; an empty mapping empties one.

    Args:
        notebook: file of the notebook.
        parameters: tree shared by all stages; keys that the notebook does not declare are ignored.
        overrides: for this notebook; it must declare every key.

    Raises:
        StageError: if the notebook does not declare an override, or a value is not of the declared type.
    """
    declared = declared_parameters(notebook)
    unknown = sorted(set(overrides) - set(declared))
    if unknown:
        names = ", ".join(declared) or "none"
        raise StageError(f"{notebook} has no parameter {', '.join(unknown)}; it declares {names}")
    shared = {key: value for key, value in parameters.items() if key in declared and overrides.get(key) != {}}
    selected = merge(shared, overrides)
    for key, value in selected.items():
        check_parameter(notebook, key, value, declared[key]["inferred_type_name"])
    return selected


def declared_parameters(notebook: Path) -> dict[str, Any]:
    """What the parameters cell of a notebook declares: papermill's description of each parameter, by name.

    Raises:
        StageError: if the file is no notebook.
    """
    try:
        return dict(papermill.inspect_notebook(str(notebook)))
    except (nbformat.ValidationError, NotJSONError) as error:
        line = str(error).partition("\n")[0]
        raise StageError(f"{notebook} is no notebook: {line}; save it again in JupyterLab, or restore it") from error


def check_parameter(notebook: Path, key: str, value: Any, declared: str) -> None:
    """Check a parameter against the type that its notebook declares.

    Raises:
        StageError: if it is of another type.
    """
    kind = declared.split("[")[0].strip()
    try:
        if kind in _TYPES:
            _TYPES[kind].validate_python(value)
    except ValidationError as error:
        hint = "; YAML reads 1e-4 as text, write 1.0e-4" if kind == "float" and isinstance(value, str) else ""
        raise StageError(
            f"{notebook}: parameter {key} is {value!r}, but must be {_WORDS[kind]} ({declared}){hint}"
        ) from error


def executed_name(notebook: Path, overrides: Sequence[str]) -> str:
    """Name the executed copy of a notebook; overrides become part of it, so that a stage's copy is not overwritten.

    Args:
        notebook: file of the notebook.
        overrides: as written, ``key=value``; unusual characters are replaced, and a long list is cut.
    """
    words = [re.sub(r"[^\w.=+-]+", "_", override, flags=re.ASCII).strip("_") for override in overrides]
    return "-".join([notebook.stem, *words])[:_LONGEST_NAME] + ".ipynb"


def strip_run_details(notebook: nbformat.NotebookNode) -> None:
    """Remove, in place, what differs between two runs with equal results: times, paths, random ids, widgets."""
    for name in ("papermill", "widgets"):
        notebook.metadata.pop(name, None)
    for position, cell in enumerate(notebook.cells):
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        inserted = {"injected-parameters", "papermill-error-cell-tag"}.intersection(cell.metadata.get("tags", []))
        if inserted:
            cell.id = f"{inserted.pop()}-{position}"
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(_WIDGET_VIEW, None)


def run(notebook: Path, output: Path, parameters: Mapping[str, Any], timeout: float = CELL_TIMEOUT) -> None:
    """Execute a notebook in the project's root and keep the executed copy, also when a cell fails.

    The output of the cells is shown while they run.

    Args:
        notebook: file to execute; it is not modified.
        output: file of the executed copy.
        parameters: values for the notebook's parameters cell.
        timeout: seconds that one cell may take.

    Raises:
        StageError: if a cell fails, takes too long, or its kernel dies.
    """
    if output.resolve() == notebook.resolve():
        raise StageError(f"the executed notebook would overwrite its source {notebook}; choose another --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    try:
        with _stage_errors(notebook, output, timeout), _progress_lines():
            papermill.execute_notebook(
                str(notebook),
                str(output),
                parameters=dict(parameters),
                kernel_name="python3",
                cwd=str(project_path()),
                progress_bar=sys.stderr.isatty(),
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
                execution_timeout=timeout,
                extra_arguments=_KERNEL_ARGUMENTS,
            )
    finally:
        if output.is_file():
            executed = nbformat.read(output, as_version=4)
            strip_run_details(executed)
            nbformat.write(executed, output)


@contextmanager
def _progress_lines() -> Iterator[None]:
    """Let the kernel show progress as lines in the log: bars would stay in the executed notebook."""
    before = os.environ.get(STYLE_VARIABLE)
    os.environ[STYLE_VARIABLE] = "lines"
    try:
        yield
    finally:
        if before is None:
            del os.environ[STYLE_VARIABLE]
        else:
            os.environ[STYLE_VARIABLE] = before


@contextmanager
def _stage_errors(notebook: Path, output: Path, timeout: float) -> Iterator[None]:
    """Turn the errors of papermill into errors that name the notebook, the cell and the remedy."""
    try:
        yield
    except PapermillExecutionError as error:
        # The messages of our own exceptions need no class; those of Python often say nothing without it.
        kind = f"{error.ename}: " if hasattr(builtins, error.ename) else ""
        raise StageError(
            f"{notebook}, cell In [{error.exec_count}] failed:\n\n{indent(error.source, '    ')}\n\n"
            f"{kind}{error.evalue}\n\nThe notebook up to this cell, with the traceback: {output}"
        ) from error
    except CellTimeoutError as error:
        raise StageError(
            f"{notebook}: a cell took longer than {timeout:g} s; allow more with --timeout, or request less work. "
            f"The notebook up to this cell: {output}"
        ) from error
    except DeadKernelError as error:
        raise StageError(
            f"{notebook}: the kernel died, probably for lack of memory; run fewer processes at a time. "
            f"The notebook up to this cell: {output}"
        ) from error


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m opd.study.notebook",
        description="Run a notebook with parameters from YAML files and the command line.",
    )
    parser.add_argument("notebook", type=Path, help="the notebook to execute")
    parser.add_argument(
        "--params",
        nargs="+",
        default=[],
        metavar="FILE",
        help="YAML files, later ones win (default: params.yaml)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="executed copy (default: reports/notebooks/NAME.ipynb; with overrides, which make it a run of its own, "
        "reports/notebooks/NAME-KEY=VALUE.ipynb)",
    )
    parser.add_argument("--timeout", type=float, default=CELL_TIMEOUT, help="seconds for one cell (default: 6 h)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="parameters for this run, as YAML")
    arguments = parser.parse_intermixed_args(argv)
    # argparse takes an override right after --params for one of its files.
    arguments.overrides += [item for item in arguments.params if "=" in item]
    arguments.params = [Path(item) for item in arguments.params if "=" not in item]
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 1 for a stage that did not finish, or :data:`INTERRUPTED`."""
    arguments = _arguments(argv)
    notebook: Path = arguments.notebook
    started = time.monotonic()
    try:
        if not notebook.is_file():
            raise StageError(f"no notebook {notebook} in {Path.cwd()}; give the path of an .ipynb file")
        output = arguments.output or project_path("reports", "notebooks", executed_name(notebook, arguments.overrides))
        shared = read_parameters(arguments.params or filter(Path.is_file, [project_path("params.yaml")]))
        parameters = select_parameters(notebook, shared, parse_overrides(arguments.overrides))
        print(f"{notebook.stem}: started", flush=True)
        run(notebook, output, parameters, arguments.timeout)
    except (StageError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        # Papermill leaves a task behind, whose end asyncio would report with a stack trace.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        print(f"{notebook.stem}: interrupted", file=sys.stderr)
        return INTERRUPTED
    print(f"{notebook.stem}: done in {time.monotonic() - started:.0f} s, see {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
