"""The models of a project in the model store, from where replicas pull them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from opd.host.documents import DocumentError
from opd.host.errors import problem_list
from opd.profiling.pipeline_file import PipelineFile, read_pipeline_file
from opd.serving.packing import PackingError, store_variant
from opd.serving.store import ModelStore


def store_models(file: Path, say: Callable[[str], None], url: str | None = None) -> None:
    """Copy the models that the pipeline file names into the store; what is there already is not copied again.

    Args:
        file: the pipeline file.
        say: gets a line for every variant that is copied.
        url: of the store; by default :func:`opd.serving.store.store_url`.

    Raises:
        DocumentError: naming all models that cannot be stored.
        StoreError: if the store cannot be used.
    """
    problems = unstorable_models(read_pipeline_file(file), file.parent, say, url)
    if problems:
        raise DocumentError(problem_list("models that cannot be stored", list(problems.values())))


def unstorable_models(
    content: PipelineFile, folder: Path, say: Callable[[str], None], url: str | None = None
) -> dict[tuple[str, str], str]:
    """Copy as :func:`store_models`; return what is wrong with the others, by names of task and variant.

    Args:
        content: the pipeline file.
        folder: its folder.
        say: as for :func:`store_models`.
        url: as for :func:`store_models`.
    """
    store, problems = ModelStore(url), {}
    for task in content.tasks:
        for variant in task.variants:
            if variant.model is None:
                continue
            try:
                copied = store_variant(
                    store, task.name, variant.name, variant.model, folder, variant.runtime, variant.settings
                )
            except (KeyError, PackingError) as error:
                problems[task.name, variant.name] = str(error.args[0])
            else:
                if copied:
                    say(f"stored {task.name}/{variant.name}")
    return problems
