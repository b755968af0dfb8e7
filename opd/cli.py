"""The command ``opd``: deploys, inspects, controls and deletes a pipeline on a Kubernetes cluster.

A command first reads and checks its input; only then does it ask the cluster anything. Everything that takes long to
import is imported inside the command that needs it, so ``opd --help`` answers at once.
"""

from __future__ import annotations

import functools
import logging
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from opd.cluster import options
from opd.cluster.errors import ClusterError, InputError, NotDeployedError, NotOursError

if TYPE_CHECKING:
    from opd.cluster.resources import ObjectChange

logger = logging.getLogger(__name__)

DONE, FAILED, REFUSED, NOT_DEPLOYED = range(4)
INTERRUPTED = 130

EXIT_CODES = "exit codes: 0 done; 1 failed; 2 wrong usage or refused input; 3 the pipeline is not deployed"

app = typer.Typer(
    help="Run a pipeline on the Kubernetes cluster of the current kubeconfig context.",
    epilog=EXIT_CODES,
    subcommand_metavar="{deploy,status,run,delete}",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@contextmanager
def _reading_input() -> Iterator[None]:
    """Turn the errors of reading names and files into :class:`InputError`."""
    try:
        yield
    except (ClusterError, ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        # str() of a KeyError puts quotes around its message.
        raise InputError(str(error.args[0] if isinstance(error, KeyError) else error)) from error


def _command(example: str) -> Callable[[Callable[..., int]], Callable[..., None]]:
    """Register a command; an error ends it with an exit code and a message, which ``run`` writes to its log.

    Args:
        example: of its use, for the help.
    """

    def register(command: Callable[..., int]) -> Callable[..., None]:
        expanded = options.expanded(command)

        @app.command(epilog=f"example: {example}\n\n{EXIT_CODES}")
        @functools.wraps(expanded)
        def run_to_exit(**given: object) -> None:
            try:
                code = expanded(**given)
            except (ClusterError, InputError, OSError) as error:  # an OSError is, for example, a port in use
                text = str(error) if isinstance(error, InputError) else " ".join(str(error).split())
                logger.error("%s", text) if run_to_exit is run else _say(f"error: {text}")
                refused = isinstance(error, InputError | NotOursError)
                code = NOT_DEPLOYED if isinstance(error, NotDeployedError) else REFUSED if refused else FAILED
            except KeyboardInterrupt:
                _say("interrupted; run the command again to go on")
                code = INTERRUPTED
            raise typer.Exit(code)

        return run_to_exit

    return register


@_command("opd deploy --pipeline ocr --namespace edge --settings settings.yaml --stage text-detection=v5-320:2:4")
def deploy(
    place: options.Place,
    given: options.SettingsOptions,
    stage: options.Stage = None,
    wait: options.Wait = 180.0,
    dry_run: options.DryRun = False,
) -> int:
    """Create the objects of a pipeline or update them, and wait until it serves."""
    with _reading_input():
        from opd.cluster import inputs, operations

        pipeline = inputs.pipeline_of(place.pipeline)
        settings = inputs.settings_of(place.namespace, given)
        stages = inputs.stages_of(pipeline, stage or ())
        cluster = inputs.cluster_of(place, settings.call_seconds)
    if dry_run:
        changes = operations.preview(cluster, pipeline, settings, stages, _say)
        print("".join(change.difference() for change in changes) or "nothing would change")
        return DONE
    _print_changes(operations.deploy(cluster, pipeline, settings, stages, wait, _say))
    address = operations.address(pipeline, settings)
    print(f"\npipeline {pipeline.name} serves in namespace {place.namespace}: {address}")
    return DONE


@_command("opd status --pipeline ocr --namespace edge")
def status(place: options.Place) -> int:
    """Show what a pipeline runs, and whether all of it is ready."""
    with _reading_input():
        from opd.cluster import inputs, operations

        name, cluster = inputs.pipeline_name_of(place.pipeline), inputs.cluster_of(place)
    found = operations.status(cluster, name)
    print(f"pipeline {name} in namespace {place.namespace}: {'serves' if found.serves else 'does not serve fully'}")
    states = "".join(f"; {pod} is {state}" for pod, state in found.controllers.items())
    print(f"controller: {found.leader or 'none leads'}{states}\n")
    _print_table([operations.COLUMNS, *found.components])
    return DONE if found.serves else FAILED


@_command("opd run --pipeline ocr --namespace edge --settings settings.yaml --policy ipa --decisions 3 --dry-run")
def run(place: options.Place, given: options.SettingsOptions, run_options: options.RunOptions) -> int:
    """Control a deployed pipeline from here until interrupted, as the controller in the cluster does."""
    # PID 1 of a container ignores SIGTERM unless there is a handler, and loading a policy takes a while.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(DONE))
    with _reading_input():
        from opd.cluster.record import log_as_json

        log_as_json()
        from opd.cluster import inputs

        settings = inputs.settings_of(place.namespace, given)
        cluster = inputs.cluster_of(place, settings.call_seconds)
        control = inputs.controller_of(cluster, place.pipeline, settings, run_options)
    return control()


@_command("opd delete --pipeline ocr --namespace edge")
def delete(place: options.Place, wait: options.Wait = 180.0, dry_run: options.DryRun = False) -> int:
    """Delete a pipeline after it has answered the requests it has."""
    with _reading_input():
        from opd.cluster import inputs, operations

        name, cluster = inputs.pipeline_name_of(place.pipeline), inputs.cluster_of(place)
    changes, unseen = operations.delete(cluster, name, wait, dry_run)
    _print_changes(changes, "would be deleted" if dry_run else "")
    for kind in unseen:
        _say(f"warning: this account may not list {kind.plural}; if the pipeline has any, they stay")
    return DONE


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print left-aligned columns, with a dash for an empty cell."""
    shown = [[" ".join(cell.split()) or "-" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_changes(changes: Iterable[ObjectChange], result: str = "") -> None:
    named = [(change.after or change.before, result or change.outcome) for change in changes]
    rows = [(manifest["kind"], manifest["metadata"]["name"], what) for manifest, what in named]
    _print_table([("KIND", "NAME", "RESULT"), *rows])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    try:
        app(argv, prog_name="opd")
    except SystemExit as end:  # Typer always exits
        return int(end.code or 0)
    return DONE
