"""Commands for a pipeline on a Kubernetes cluster: deploy, status, run and delete."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from opd.cli.command import DONE, FAILED, command, print_table, reading_input, say
from opd.cluster import options

if TYPE_CHECKING:
    from opd.cluster.resources import ObjectChange


@command("opd deploy shop -n edge --settings settings.yaml --stage detect=small:2:4")
def deploy(
    place: options.Place,
    given: options.SettingsOptions,
    stage: options.Stage = None,
    wait: options.Wait = 180.0,
    dry_run: options.DryRun = False,
) -> int:
    """Create the objects of a pipeline or update them, and wait until it serves."""
    with reading_input():
        from opd.cluster import inputs, operations

        pipeline = inputs.pipeline_of(place.pipeline)
        settings = inputs.settings_of(place.namespace, given)
        stages = inputs.stages_of(pipeline, stage or ())
        cluster = inputs.cluster_of(place, settings.call_seconds)
    if dry_run:
        changes = operations.preview(cluster, pipeline, settings, stages, say)
        print("".join(change.difference() for change in changes) or "nothing would change")
        return DONE
    _print_changes(operations.deploy(cluster, pipeline, settings, stages, wait, say))
    address = operations.address(pipeline, settings)
    print(f"\npipeline {pipeline.name} serves in namespace {place.namespace}: {address}")
    return DONE


@command("opd status shop -n edge")
def status(place: options.Place) -> int:
    """Show what a pipeline runs, and whether all of it is ready."""
    with reading_input():
        from opd.cluster import inputs, operations

        name, cluster = inputs.pipeline_name_of(place.pipeline), inputs.cluster_of(place)
    found = operations.status(cluster, name)
    print(f"pipeline {name} in namespace {place.namespace}: {'serves' if found.serves else 'does not serve fully'}")
    states = "".join(f"; {pod} is {state}" for pod, state in found.controllers.items())
    print(f"controller: {found.leader or 'none leads'}{states}\n")
    print_table([operations.COLUMNS, *found.components])
    return DONE if found.serves else FAILED


@command("opd run shop -n edge --settings settings.yaml --policy ipa --decisions 3 --dry-run", logged=True)
def run(place: options.Place, given: options.SettingsOptions, run_options: options.RunOptions) -> int:
    """Control a deployed pipeline from here until interrupted, as the controller in the cluster does."""
    # PID 1 of a container ignores SIGTERM unless there is a handler, and loading a policy takes a while.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(DONE))
    with reading_input():
        from opd.cluster.record import log_as_json

        log_as_json()
        from opd.cluster import inputs

        settings = inputs.settings_of(place.namespace, given)
        cluster = inputs.cluster_of(place, settings.call_seconds)
        control = inputs.controller_of(cluster, place.pipeline, settings, run_options)
    return control()


@command("opd delete shop -n edge")
def delete(place: options.Place, wait: options.Wait = 180.0, dry_run: options.DryRun = False) -> int:
    """Delete a pipeline after it has answered the requests it has."""
    with reading_input():
        from opd.cluster import inputs, operations

        name, cluster = inputs.pipeline_name_of(place.pipeline), inputs.cluster_of(place)
    changes, unseen = operations.delete(cluster, name, wait, dry_run)
    _print_changes(changes, "would be deleted" if dry_run else "")
    for kind in unseen:
        say(f"warning: this account may not list {kind.plural}; if the pipeline has any, they stay")
    return DONE


def _print_changes(changes: Iterable[ObjectChange], result: str = "") -> None:
    named = [(change.after or change.before, result or change.outcome) for change in changes]
    rows = [(manifest["kind"], manifest["metadata"]["name"], what) for manifest, what in named]
    print_table([("KIND", "NAME", "RESULT"), *rows])
