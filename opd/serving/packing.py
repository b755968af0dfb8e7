"""Put the models that a pipeline file names into the model store.

Only what the file names is copied and later loaded. Loading a pickle or a class runs its code: name only models whose
origin you trust.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opd.profiling.pipeline_file import STORE, is_reference
from opd.serving.manifest import CODE
from opd.serving.model_kinds import KINDS, ModelKind, infer_kind
from opd.serving.models import CLASS
from opd.serving.store import ModelStore, manifest_of

_PARAMETERS = {"content_type", "format", "version"}
"""Settings that MLServer knows itself; all others are those of its runtime."""


class PackingError(ValueError):
    """A model cannot be stored: it is not there, or its runtime cannot be told or does not fit."""


def store_variant(
    store: ModelStore,
    task: str,
    variant: str,
    model: str,
    folder: Path,
    runtime: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> bool:
    """Copy a model into the store; what is there already is not copied again.

    Args:
        store: the model store.
        task: name of the task.
        variant: name of the variant.
        model: file or folder relative to ``folder``, ``module:Class``, or :data:`opd.profiling.pipeline_file.STORE`.
        folder: folder of the pipeline file. Python modules in it go with classes and pickles, which may need them.
        runtime: one of :data:`opd.serving.model_kinds.KINDS`; inferred if not given.
        settings: settings of the runtime or keyword arguments of the class.

    Returns:
        whether anything was copied.

    Raises:
        PackingError: if the model is not there, or its runtime cannot be told.
        KeyError: if the store should have the model but does not.
        StoreError: if the store cannot be used.
    """
    if model == STORE:
        store.pull(task, variant)
        return False
    place = f"model {model!r} of variant {variant!r} of task {task!r}"
    try:
        kind = _kind(model, folder, runtime)
        files, uri = _files_of(model, folder, kind)
        parameters = _parameters(kind, model, dict(settings or {}))
        manifest = manifest_of(files, kind.runtime, {**({"uri": uri} if uri else {}), **parameters})
    except (OSError, ValueError) as error:
        raise PackingError(f"{place}: {error}") from error
    return store.put(files, manifest, task, variant)


def _kind(model: str, folder: Path, runtime: str | None) -> ModelKind:
    """Determine the kind of a model.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if the runtime is not known or cannot be told.
    """
    if not is_reference(model) and not (folder / model).exists():
        raise FileNotFoundError(f"there is no file or folder {folder / model}; write module:Class for a class")
    runtime = runtime or infer_kind(folder / model if not is_reference(model) else model)
    if runtime not in KINDS:
        raise ValueError(f"runtime {runtime!r} is not known; use {', '.join(KINDS)}")
    return KINDS[runtime]


def _files_of(model: str, folder: Path, kind: ModelKind) -> tuple[dict[str, Path], str]:
    """Collect the files of a model by their names in the store, and tell which of them the runtime loads."""
    files = _code(model, folder) if kind.runs_code else {}
    if is_reference(model):
        return files, ""
    path = folder / model
    if path.is_file():
        siblings = [path, path.with_name(f"{path.name}.data")]  # exporters put the weights of large networks there
        return files | {each.name: each for each in siblings if each.is_file()}, path.name
    contents = _contents(path)
    matching = [name for name in contents if "/" not in name and Path(name).suffix.lower() in kind.suffixes]
    files |= {f"{path.name}/{name}": file for name, file in contents.items()}
    return files, f"{path.name}/{matching[0]}" if len(matching) == 1 else path.name


def _contents(folder: Path) -> dict[str, Path]:
    """Collect the files of a folder by relative name, without hidden ones and caches.

    Raises:
        ValueError: if there are none, or a link leads out of the folder.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in parts):
            if not path.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{path} is a link out of the folder; replace it by what it links to")
            files["/".join(parts)] = path
    if not files:
        raise ValueError(f"folder {folder} has no files")
    return files


def _code(model: str, folder: Path) -> dict[str, Path]:
    """Collect the modules beside the pipeline file that a class or a pickle may need; none for an installed class."""
    files = {f"{CODE}/{path.name}": path for path in sorted(folder.glob("*.py"))}
    if not is_reference(model):
        return files
    package = folder / model.partition(":")[0].partition(".")[0]
    if (package / "__init__.py").is_file():
        return files | {f"{CODE}/{package.name}/{name}": path for name, path in _contents(package).items()}
    return files if package.with_suffix(".py").is_file() else {}


def _parameters(kind: ModelKind, model: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Sort settings into those of MLServer and those of its runtime."""
    if kind is KINDS["python"]:
        if is_reference(model):
            settings = {CLASS: model, **settings}
        if CLASS not in settings:
            raise ValueError("it has files but no class; write settings: {class: module:Class}")
        return {"extra": settings}
    own = {name: value for name, value in settings.items() if name in _PARAMETERS}
    extra = {name: value for name, value in settings.items() if name not in _PARAMETERS}
    return {**own, **({"extra": extra} if extra else {})}
