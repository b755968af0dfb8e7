"""Check a trace before it is used: ``python -m opd.workload.check_trace FILE``.

The command prints what a trace has, or everything that is wrong with it; its exit code is then 2. With ``--params`` it
also checks what the study will do with the trace: damping and cycles. ``--write`` then makes it the trace of the study,
with the damping that suits it, and ``--output`` keeps the summary; neither changes a file if there is a problem.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml
from pydantic import Field

from opd.host.archive import written_whole
from opd.host.documents import DocumentError, DocumentModel, as_model, read_document
from opd.workload.trace import Split, Trace, cycle_from_start, evaluation_cycles, load_trace
from opd.workload.trace_files import TWITTER_FILE, is_bundled, locate
from opd.workload.trace_limits import TraceError

WRONG_INPUT = 2
"""Exit code for a trace that cannot be used."""

BUNDLED_DAMPING = 8
"""Damping of the bundled trace and of the recording of Twitter, which are far too much load for a small device."""

_VALUE = r"""('([^'\n]|'')*'|"([^"\\\n]|\\.)*"|[^\n]*?)(?P<comment>[ \t]+\#[^\n]*)?[ \t]*$"""
"""The value of a key, and the comment behind it, to the end of the line."""


class TraceUse(DocumentModel):
    """Those parameters of a study that concern the trace."""

    trace: str = ""
    """synthetic, twitter, or the path of a file"""
    damping: int = Field(default=1, ge=1)
    """every count is divided by it"""
    cycles: int | None = Field(default=None, ge=0)
    """evaluation cycles beside the three characteristic ones; left out, cycles are not checked"""
    cycle_starts: list[int] = []
    """seconds at which the cycles start, if they are given instead"""


def check_trace(source: str | Path, use: TraceUse) -> Trace:
    """Load a trace and try what forecast, training and evaluation need of it.

    Args:
        source: as :func:`~opd.workload.trace.load_trace` takes it.
        use: what the study does with it; its own ``trace`` does not matter.

    Raises:
        TraceError: if the trace cannot be used.
        FileNotFoundError: if the file is missing.
    """
    trace = load_trace(source, use.damping)
    check_splits(trace)
    for start in use.cycle_starts:
        cycle_from_start(trace, start)
    if use.cycles is not None and not use.cycle_starts:
        evaluation_cycles(trace, use.cycles)
    return trace


def check_splits(trace: Trace) -> None:
    """Raise :class:`TraceError` unless there is load to learn from and load to evaluate on, after damping."""
    purposes: dict[Split, str] = {"train": "agent and forecaster learn from it", "test": "policies are compared on it"}
    for split, purpose in purposes.items():
        positions = trace.split(split)
        if not trace.counts[positions].any():
            first, last = trace.raw_index[[positions.start, positions.stop - 1]]
            problem = f"no request comes in the {split} split, seconds {first} to {last}, but {purpose}"
            remedy = f"use a recording with load in all its parts, or a damping below {trace.damping}"
            raise TraceError.of(trace.name, [f"{problem}; {remedy if trace.damping > 1 else remedy.partition(',')[0]}"])


def summary(trace: Trace) -> dict[str, Any]:
    """Describe a trace: its recorded and missing seconds, and its load in requests/s before and after damping."""
    steps = np.diff(trace.raw_index)
    return {
        "trace": trace.name,
        "seconds": len(trace.recorded),
        "missing_seconds": int((steps - 1).sum()),
        "gaps": int((steps > 1).sum()),
        "longest_gap": int(steps.max()) - 1,
        "mean": round(float(trace.recorded.mean()), 3),
        "max": int(trace.recorded.max()),
        "zero_seconds": int((trace.recorded == 0).sum()),
        "damping": trace.damping,
        "damped_mean": round(float(trace.counts.mean()), 3),
        "damped_max": int(trace.counts.max()),
    }


def use_of(params: Path, source: str | Path) -> TraceUse:
    """Return the parameters for a trace that takes the place of the one in a parameter file.

    The counts of a user's file are taken as they are: in place of a bundled trace, it gets damping 1. A bundled trace
    in place of a user's file gets :data:`BUNDLED_DAMPING`. Otherwise the damping of the parameters stays.
    """
    use = trace_use(params)
    own = params.parent / use.trace
    before, after = is_bundled(own if own.is_file() else use.trace), is_bundled(source)
    damping = use.damping if before == after else BUNDLED_DAMPING if after else 1
    return use.model_copy(update={"damping": damping})


def write_trace(params: Path, source: str) -> str:
    """Make ``source`` the value of ``trace`` in a parameter file, with the damping of :func:`use_of`.

    It is written as the path of a file, which DVC can watch. The parameter file is replaced as a whole, so an
    interruption leaves the old one. Comments stay.

    Returns:
        What became of the damping, in a sentence; empty if it stays.

    Raises:
        TraceError: if the file has no line ``trace:``, or a damping that must change has none.
    """
    folder = params.resolve().parent
    committed = folder.joinpath(*TWITTER_FILE)
    path = committed if source == "twitter" and committed.is_file() else locate(source).resolve()
    relative = path.relative_to(folder) if path.is_relative_to(folder) else path
    value = yaml.safe_dump(str(relative), width=10**6, allow_unicode=True).removesuffix("\n").removesuffix("\n...")
    before, damping = trace_use(params).damping, use_of(params, source).damping
    new = _with_value(params, params.read_text(encoding="utf-8"), "trace", value)
    if damping != before:
        new = _with_value(params, new, "damping", str(damping))
    with written_whole(params) as unfinished:
        unfinished.write_text(new, encoding="utf-8")
    if damping == before:
        return ""
    counts = "taken as they are" if damping == 1 else f"divided by {damping}"
    return f"damping is now {damping} (before: {before}): the counts of {path.name} are {counts}"


def _with_value(params: Path, text: str, key: str, value: str) -> str:
    """Replace the value of a key in the text of a parameter file."""
    line = re.compile(rf"^{key}:[ \t]*{_VALUE}", re.MULTILINE)
    new, number = line.subn(lambda found: f"{key}: {value}{found['comment'] or ''}", text, count=1)
    if not number:
        raise TraceError(f"{params} has no line '{key}:'; add `{key}: {value}`")
    return new


def main(
    source: Annotated[
        str, typer.Argument(metavar="TRACE", help="synthetic, twitter, or a file; by default that of --params.")
    ] = "",
    params: Annotated[Path | None, typer.Option(help="Parameters of the study, such as params.yaml.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Make it the trace in the file of --params.")] = False,
    output: Annotated[Path | None, typer.Option(help="JSON file for the summary.")] = None,
) -> None:
    """Print the summary of a trace, or everything that is wrong with it.

    Example: python -m opd.workload.check_trace requests.csv --params params.yaml
    """
    try:
        given = trace_use(params) if params is None or not source else use_of(params, source)
        source, note = source or given.trace, ""
        if not source or (write and params is None):
            raise TraceError("no trace or no parameters are given; name a file, and --params params.yaml for --write")
        found = summary(check_trace(source, given))
        if write and params is not None:
            note = write_trace(params, source)
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    except (TraceError, DocumentError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(WRONG_INPUT) from error
    print("\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in found.items()))
    if note:
        print(note)


def trace_use(params: Path | None) -> TraceUse:
    """Read those keys of a parameter file that concern the trace."""
    if params is None:
        return TraceUse()
    document = read_document(params)
    if not isinstance(document, dict):
        raise DocumentError(f"{params} must map names to values")
    return as_model(TraceUse, {key: document[key] for key in TraceUse.model_fields if key in document}, str(params))


if __name__ == "__main__":
    typer.run(main)
