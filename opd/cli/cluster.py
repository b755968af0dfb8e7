"""Commands for a pipeline on a Kubernetes cluster: deploy, status, startup, run and delete."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opd.cli.command import DONE, FAILED, CommandError, Json, command, print_json, print_table, reading_input, say
from opd.cluster import options
from opd.cluster.errors import InputError
from opd.cluster.log import log_as_json

if TYPE_CHECKING:
    from opd.cluster.resources import ObjectChange
    from opd.pipeline import Pipeline

logger = logging.getLogger(__name__)

Stages = Annotated[bool, typer.Option("--stages", help="Print only the options with which deploy restores what runs.")]
NoStore = Annotated[bool, typer.Option("--no-store", help="Do not copy models into the store.")]


@command("opd deploy shop -n edge --stage detect=small:2:4", "serving,cluster")
def deploy(
    place: options.Place,
    given: options.SettingsOptions,
    stage: options.Stage = None,
    wait: options.Wait = 180.0,
    no_store: NoStore = False,
    dry_run: options.DryRun = False,
    as_json: Json = False,
) -> int:
    """Copy the models into the store, create the objects of a pipeline or update them, and wait until it serves."""
    with reading_input():
        from opd.cluster import inputs, operations

        pipeline = inputs.pipeline_of(place.pipeline)
        settings = inputs.settings_of(place, given)
        pipeline = inputs.deployed_pipeline(pipeline, settings)
        stages = inputs.stages_of(pipeline, stage or ())
        cluster = inputs.cluster_of(place, settings.call_seconds)
    file = inputs.pipeline_file_of(place.pipeline)
    if file and not no_store and not settings.emulated:
        _store_models(file, settings.store, dry_run)
    _note_functions(pipeline)
    if dry_run:
        differences = [change.difference() for change in operations.preview(cluster, pipeline, settings, stages, say)]
        if as_json:
            print_json({"differences": differences})
        else:
            print("".join(differences) or "nothing would change")
        return DONE
    rows = _rows(operations.deploy(cluster, pipeline, settings, stages, wait, say))
    address = operations.address(pipeline, settings)
    if as_json:
        print_json({"pipeline": pipeline.name, "address": address, "changes": _named(rows)})
    else:
        print_table([_COLUMNS, *rows])
        print(f"\npipeline {pipeline.name} serves in namespace {place.namespace}: {address}")
    return DONE


def _store_models(file: Path, url: str, dry_run: bool) -> None:
    """Copy the models that a pipeline file names into the store of the pods, as far as it can be reached from here."""
    from opd.profiling.pipeline_file import STORE, read_pipeline_file
    from opd.project.storing import store_models
    from opd.serving.store import StoreError

    variants = [variant for task in read_pipeline_file(file).tasks for variant in task.variants]
    if all(variant.model in (None, STORE) for variant in variants):
        return
    if "://" not in url and not Path(url).is_dir():
        say(f"note: {url} is no folder of this machine, so no model is copied; the pods must find them there")
    elif dry_run:
        say(f"the models would be copied into {url}")
    else:
        with reading_input():
            try:
                store_models(file, say, url)
            except StoreError as error:
                raise CommandError(f"{error}; --no-store leaves it as it is") from error


def _note_functions(pipeline: Pipeline) -> None:
    """Tell which modules the image must have, because the gateway calls functions in them."""
    functions = [task.adapter["function"] for task in pipeline.tasks if task.adapter and "function" in task.adapter]
    if functions:
        say(f"note: the gateway calls {', '.join(functions)}; the image must have these modules (docs/kubernetes.md)")


@command("opd status shop -n edge", "serving,cluster")
def status(place: options.Place, as_json: Json = False, stages: Stages = False) -> int:
    """Show what a pipeline runs, and whether all of it is ready."""
    with reading_input():
        from opd.cluster import inputs, operations

        name, cluster = inputs.pipeline_name_of(place.pipeline), inputs.cluster_of(place)
    if stages:
        print(" ".join(f"--stage={each}" for each in operations.running_stages(cluster, name)))
        return DONE
    found = operations.status(cluster, name)
    if as_json:
        components = _named(found.components, operations.COLUMNS)
        print_json({**found._asdict(), "pipeline": name, "components": components})
        return DONE if found.serves else FAILED
    print(f"pipeline {name} in namespace {place.namespace}: {'serves' if found.serves else 'does not serve fully'}")
    states = "".join(f"; {pod} is {state}" for pod, state in found.controllers.items())
    print(f"controller: {found.leader or 'none leads'}{states}\n")
    print_table([operations.COLUMNS, *found.components])
    return DONE if found.serves else FAILED


@command("opd startup shop -n edge", "serving,cluster")
def startup(
    place: options.Place,
    starts: Annotated[int, typer.Option(min=1, max=100, help="Of each variant; the median counts.")] = 3,
    wait: options.Wait = 180.0,
    as_json: Json = False,
) -> int:
    """Measure how long replicas of every variant take to start on the cluster, and keep it in the profile."""
    with reading_input():
        from opd.cluster import inputs, operations
        from opd.cluster.starts import typical_start
        from opd.profiling.profiler import keep_starts
        from opd.profiling.profiles import FILE_NAME

        pipeline, cluster = inputs.pipeline_of(place.pipeline), inputs.cluster_of(place)
        file = inputs.pipeline_file_of(place.pipeline)
    measured: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    for key, found in operations.startup(cluster, pipeline, starts, wait, say):
        name = "/".join(key)
        if isinstance(found, str):
            left_out[name] = found
            say(f"{name} was not measured: {found}")
            continue
        typical = typical_start(found)
        where = {"namespace": place.namespace, "starts": starts}
        measured[name] = {**typical._asdict(), "seconds": typical.seconds, **where}
        if file:
            keep_starts(file.with_name(FILE_NAME), {key: measured[name]})
    if not file:
        say("note: the profile of a pipeline that ships with the package stays as it is; give a folder to keep these")
    if as_json:
        print_json({"pipeline": pipeline.name, "measured": measured, "left out": left_out})
    else:
        shown = ("scheduling", "image", "loading", "seconds")
        rows = [(name, *(f"{each[part]:g} s" for part in shown), each["node"]) for name, each in measured.items()]
        print_table([("VARIANT", "SCHEDULING", "IMAGE", "LOADING", "START-UP", "NODE"), *rows])
    return FAILED if left_out else DONE


@command("opd run shop -n edge --policy ipa --decisions 3 --dry-run", "serving,cluster", logged=True)
def run(places: options.Places, given: options.SettingsOptions, run_options: options.RunOptions) -> int:
    """Control deployed pipelines from here until interrupted, as the controller in the cluster does.

    Several share the cores of a device: every interval an arbiter divides them by what they are worth to each.
    """
    # PID 1 of a container ignores SIGTERM unless there is a handler, and loading a policy takes a while.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(DONE))
    log_as_json()
    if not sys.stderr.isatty():  # there the log is in lines for people, above the view
        logger.info("loading what controls %s", ", ".join(places.pipelines))
    with reading_input():
        from opd.cluster import inputs

        chosen = _recorded(places, run_options)
        settings = [inputs.settings_of(place, given) for place in places.each()]
        cluster = inputs.cluster_of(places.each()[0], settings[0].call_seconds)
        monitors = [inputs.monitor_of(each, chosen) for each in settings]
        deciding = [inputs.deciding_of(name, chosen) for name in places.pipelines]
        control = inputs.controller_of(cluster, deciding, settings, monitors, chosen)
    code = control()
    if chosen.shadow and chosen.record is not None:
        for number in (signal.SIGTERM, signal.SIGINT):  # the controller has ended, and a report can be left out
            signal.signal(number, signal.default_int_handler)
        from opd.cli.replay import report_shadow

        report_shadow(deciding[0], chosen, chosen.record)
    return code


def _recorded(places: options.Places, given: options.RunOptions) -> options.RunOptions:
    """The options of a run, which in shadow mode has a record in any case."""
    if len(places.pipelines) > 1 and (given.shadow or given.record):
        raise InputError("a record is of one pipeline; run one, or leave --record and --shadow out")
    if not given.shadow:
        return given
    if given.dry_run:
        raise InputError("--shadow and --dry-run both change nothing; give one of them")
    name = f"shadow-{Path(places.pipelines[0]).stem}-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
    return replace(given, record=given.record or Path(name))


@command("opd delete shop -n edge", "serving,cluster")
def delete(
    place: options.Place, wait: options.Wait = 180.0, dry_run: options.DryRun = False, as_json: Json = False
) -> int:
    """Delete a pipeline after it has answered the requests it has."""
    with reading_input():
        from opd.cluster import inputs, operations

        name, cluster = inputs.pipeline_name_of(place.pipeline), inputs.cluster_of(place)
    changes, unseen = operations.delete(cluster, name, wait, dry_run)
    rows = _rows(changes, "would be deleted" if dry_run else "")
    if as_json:
        print_json({"pipeline": name, "changes": _named(rows), "not listed": [kind.plural for kind in unseen]})
        return DONE
    print_table([_COLUMNS, *rows])
    if unseen:
        say(
            f"warning: this account may not list {', '.join(kind.plural for kind in unseen)}; what the pipeline has of "
            "them stays"
        )
    return DONE


_COLUMNS = ("KIND", "NAME", "RESULT")


def _rows(changes: Iterable[ObjectChange], result: str = "") -> list[tuple[str, str, str]]:
    """Kind, name and result of every change."""
    named = [(change.after or change.before, result or change.outcome) for change in changes]
    return [(manifest["kind"], manifest["metadata"]["name"], what) for manifest, what in named]


def _named(rows: Iterable[Sequence[str]], columns: Sequence[str] = _COLUMNS) -> list[dict[str, str]]:
    """Cells by the names of their columns."""
    return [dict(zip(map(str.lower, columns), row, strict=True)) for row in rows]
