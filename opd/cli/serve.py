"""The command ``opd serve``: one pipeline on this machine, or several that share its cores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opd.cli.command import DONE, CommandError, command, reading_input, say
from opd.cli.project import Emulated, open_project
from opd.cluster import options

if TYPE_CHECKING:
    from opd.project.running import Hosted


@command("opd serve shop --policy myopic-backlog")
def serve(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="The project, or several of them.")],
    policy: Annotated[
        str | None, typer.Option(metavar="NAME", help="A policy, or module:Class (default: the agent).")
    ] = None,
    standbys: Annotated[int, typer.Option(min=0, help="Processes that each stage of a single one keeps warm.")] = 0,
    emulated: Emulated = False,
    cores: Annotated[
        int | None, typer.Option(min=1, help="That several share (default: those of the largest device named).")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append every decision to it, for `opd replay`.")
    ] = None,
    view: options.Page = options.PAGE,
    as_json: Annotated[bool, typer.Option("--json", help="Write every view as a line of JSON.")] = False,
) -> int:
    """Serve a pipeline on this machine, decided every interval, with a live view; Ctrl-C drains and stops it.

    Several pipelines share the cores: an arbiter divides them every interval by what they are worth to each.
    """
    with reading_input():
        record = record and record.resolve()
        hosted = _hosted([each.resolve() if each.is_dir() else each for each in folders], policy, emulated)
        if cores is not None and len(hosted) == 1:
            raise ValueError("--cores is for several pipelines; that of one is in its pipeline file")
        from opd.control.arbiter import limits_on
        from opd.live.serve import show, show_as_json
        from opd.live.serve_together import show_together
        from opd.project.running import serve_project, serve_projects, served_name
        from opd.serving.local import AlreadyControlledError
        from opd.serving.monitoring.source import MonitoringError
        from opd.serving.processes import StartError

        capacity = cores or max(each.pipeline.capacity for each in hosted)
        if len(hosted) > 1:
            limits = limits_on([each.pipeline for each in hosted], capacity)
            hosted = [
                each._replace(pipeline=replace(each.pipeline, capacity=limit))
                for each, limit in zip(hosted, limits, strict=True)
            ]
    for note in dict.fromkeys(note for each in hosted for note in each.chosen.notes):
        say(f"note: {note}")
    try:
        if len(hosted) > 1:
            names = [served_name(each.project) for each in hosted]
            show_together(serve_projects(hosted, capacity, record), names, view, as_json)
        else:
            project, pipeline, chosen = hosted[0]
            views = serve_project(project, pipeline, chosen, standbys, record)
            (show_as_json if as_json else show)(views, view)
    except StartError as error:
        remedy = "" if emulated else f"; `opd check {folders[0]}` loads every model and says what is wrong"
        raise CommandError(f"{error}{remedy}") from error
    except (AlreadyControlledError, MonitoringError) as error:
        raise CommandError(str(error)) from error
    return DONE


def _hosted(folders: list[Path], policy: str | None, emulated: bool) -> list[Hosted]:
    """Open the projects, store their models, and build what decides about each, in the folder of each."""
    from opd.project.running import Hosted, decider
    from opd.project.storing import store_models

    hosted = []
    for folder in folders:
        project = open_project(folder, emulated)
        pipeline = project.pipeline()
        if not emulated:
            store_models(project.pipeline_path, say)
        hosted.append(Hosted(project, pipeline, decider(project, pipeline, policy)))
    names = [each.pipeline.name for each in hosted]
    if len(set(names)) < len(names):
        raise ValueError(f"two pipelines have the same name: {', '.join(names)}; requests are addressed by it")
    return hosted
