"""The command ``opd replay``, and the report that ends ``opd run --shadow``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opd.cli.command import DONE, Json, command, print_json, print_table, reading_input, say

if TYPE_CHECKING:
    from opd.cluster.inputs import Deciding
    from opd.cluster.options import RunOptions
    from opd.live.replay import Replayed

SHADOW_SEEDS = 3
"""Simulations of the report of a shadow."""


@command("opd replay shop.jsonl --pipeline shop --policy agent --policy hpa")
def replay(
    source: Annotated[
        str,
        typer.Argument(metavar="RECORD", help="A record, the log of a controller, or a trace.", show_default=False),
    ],
    policy: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Or module:Class; may be repeated (default: agent).")
    ] = None,
    pipeline: Annotated[
        Path, typer.Option(metavar="FOLDER", help="The project, or the name of a shipped pipeline.")
    ] = Path("."),
    start: Annotated[int, typer.Option(help="First second of a trace (default: its test split).")] = -1,
    seconds: Annotated[int, typer.Option(min=60, help="Of a trace, the first 120 before the first decision.")] = 1200,
    seeds: Annotated[int, typer.Option(min=1, help="Simulations of every policy.")] = 3,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Page (default: RECORD.html here).")] = None,
    as_json: Json = False,
) -> int:
    """Report what policies would have done under a recorded load, beside what ran, as one HTML page."""
    with reading_input():
        output = (report or Path(f"{Path(source).stem}.html")).resolve()
        given = str(Path(source).resolve()) if Path(source).is_file() else source
        from opd.project.folder import Project
        from opd.project.replaying import replay_project

        project = Project.of(pipeline)
        os.chdir(project.root)
        replayed, begin, notes = replay_project(project, given, policy or ["agent"], seeds, start, seconds)
    for note in notes:
        say(f"note: {note}")
    show_replay(replayed, source, begin, output, as_json)
    return DONE


def report_shadow(deciding: Deciding, options: RunOptions, record: Path) -> None:
    """Report what the policy of a shadow would have done, from its record; without figures' packages say how."""
    from opd.control import policy_label
    from opd.control.record import RecordError, read_record

    output = options.report or record.with_suffix(".html")
    try:
        from opd.live.replay import ReplayedPolicy, ReplayLoad, replay_policies
        from opd.live.replay_page import render_replay  # noqa: F401  is it installed?

        known = read_record(record, deciding.pipeline)
    except ModuleNotFoundError as error:
        say(f"no report: {error.name} is not installed here; `opd replay {record}` makes it where it is")
        return
    except (OSError, RecordError) as error:
        say(f"no report: {error}")
        return

    def make(seed: int) -> Any:
        return deciding.policy(seed, True)

    contender = ReplayedPolicy(policy_label(options.policy), make, deciding.forecast)
    common = deciding.pipeline, deciding.objective, deciding.simulation, ReplayLoad.recorded(known), [contender]
    show_replay(replay_policies(*common, range(SHADOW_SEEDS)), str(record), known.begin, output, as_json=False)


def show_replay(replayed: Replayed, source: str, begin: float, output: Path, as_json: bool) -> None:
    """Write the page, and print the figures and the verdict."""
    from opd.live.replay import verdicts
    from opd.live.replay_page import COLUMNS, figure_rows, render_replay

    output.write_text(render_replay(replayed, Path(source).name, begin), encoding="utf-8")
    rows = figure_rows(replayed)
    if as_json:
        error = None if replayed.error is None else replayed.error._asdict()
        named = [dict(zip(("course", "figures", *COLUMNS), row, strict=True)) for row in rows]
        print_json({"courses": named, "verdicts": verdicts(replayed), "error": error, "page": output})
        return
    print_table([("course", "figures", *COLUMNS), *rows])
    print()
    for verdict in verdicts(replayed):
        print(f"{verdict}.")
    if replayed.error is not None:
        print(
            f"The simulator's error on what ran: {100 * replayed.error.within:+.2f} points within the level, "
            f"{100 * replayed.error.lost:+.2f} lost, {replayed.error.latency:.0%} of an interval's mean latency."
        )
    say(f"report: {output}")
