"""What all commands share: registration, exit codes, errors for people, and output as a table or as JSON."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from opd.cluster import options
from opd.cluster.errors import ClusterError, InputError, NotDeployedError, NotOursError
from opd.host.json_data import plain_data

logger = logging.getLogger(__name__)

DONE, FAILED, REFUSED, NOT_DEPLOYED = range(4)
INTERRUPTED = 130

EXIT_CODES = (
    "exit codes: 0 done; 1 failed; 2 wrong usage or refused input; 3 the pipeline is not deployed; 130 interrupted"
)

app = typer.Typer(
    help="Configure, serve and control pipelines of models on this machine or on a Kubernetes cluster.",
    epilog=EXIT_CODES,
    subcommand_metavar="COMMAND",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Write the result to standard output as JSON.")]


class CommandError(Exception):
    """The command could not do its work; the message states the reason and the remedy."""


@contextmanager
def reading_input() -> Iterator[None]:
    """Turn the errors of reading names and files into :class:`InputError`; a missing package is none."""
    try:
        yield
    except ModuleNotFoundError:
        raise
    except (ClusterError, ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        # str() of a KeyError puts quotes around its message.
        raise InputError(str(error.args[0] if isinstance(error, KeyError) else error)) from error


def command(
    example: str, extras: str = "serving", logged: bool = False
) -> Callable[[Callable[..., int]], Callable[..., None]]:
    """Register a command; an error ends it with an exit code and a message.

    Args:
        example: of its use, for the help.
        extras: of the package that it needs.
        logged: whether the message goes to the log instead of standard error.
    """

    def register(function: Callable[..., int]) -> Callable[..., None]:
        expanded = options.expanded(function)

        @app.command(epilog=f"example: {example}\n\n{EXIT_CODES}")
        @functools.wraps(expanded)
        def run_to_exit(**given: object) -> None:
            try:
                code = expanded(**given)
                sys.stdout.flush()
            except BrokenPipeError:  # who reads, such as `head`, has what it wants
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                code = DONE
            except (ClusterError, CommandError, InputError, OSError) as error:  # an OSError: for example a port in use
                several_lines = isinstance(error, CommandError | InputError)
                text = str(error) if several_lines else " ".join(str(error).split())
                logger.error("%s", text) if logged else say(f"error: {text}")
                refused = isinstance(error, InputError | NotOursError)
                code = NOT_DEPLOYED if isinstance(error, NotDeployedError) else REFUSED if refused else FAILED
            except ModuleNotFoundError as error:
                package = str(error.name).partition(".")[0]
                say(f"error: the package {package} is not installed; install it with: pip install 'opd[{extras}]'")
                code = REFUSED
            except KeyboardInterrupt:
                say("interrupted; run the command again to go on")
                code = INTERRUPTED
            raise typer.Exit(code)

        return run_to_exit

    return register


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print left-aligned columns, with a dash for an empty cell."""
    shown = [[" ".join(cell.split()) or "-" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_json(result: Any) -> None:
    """Print a result as indented JSON; numbers that JSON does not have become null."""
    print(json.dumps(plain_data(result), indent=2))


def say(text: str) -> None:
    """Print a line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    try:
        app(argv, prog_name="opd")
    except SystemExit as end:  # Typer always exits
        return int(end.code or 0)
    return DONE
