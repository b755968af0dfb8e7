"""Finished runs of an evaluation, kept in a CSV file: an interrupted evaluation goes on where it stopped.

A cell is one problem on which several policies run. A further policy, or an agent with other weights, runs without the
others.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import pandas as pd

from opd.agent.weights import SHIPPED
from opd.control import AGENT, policy_label
from opd.host.archive import written_whole
from opd.host.parallel import run_tasks
from opd.host.progress import progress_bar
from opd.study.evaluation.cycles import Setting
from opd.workload.forecast import HISTORY_SECONDS

_CONDITIONS = "conditions"


class Cell(Protocol):
    """A problem to run policies on."""

    @property
    def runs(self) -> tuple[tuple[str, int], ...]:
        """Policy and seed of every run."""
        ...

    @property
    def key(self) -> dict[str, Any]:
        """What tells the rows of this cell from those of others, by column; the same columns in every cell."""
        ...

    def _replace(self, *, runs: tuple[tuple[str, int], ...]) -> Self:
        """The same cell with other runs."""
        ...


SomeCell = TypeVar("SomeCell", bound=Cell)


def setting_conditions(setting: Setting, policy: str) -> int:
    """A number of trace, forecaster, simulation, IPA and the weights of an agent; of the code it knows nothing."""
    trace = setting.trace
    forecast = setting.forecaster.predict(trace.counts[:HISTORY_SECONDS])
    load = [trace.name, int(trace.recorded.sum()), trace.damping, forecast]
    parts = [load, asdict(setting.simulation), asdict(setting.ipa)]
    trained = [path for (_, name, _), path in sorted(setting.agents.items()) if name == policy]
    found = zlib.crc32(json.dumps(parts).encode())
    for path in trained or [SHIPPED] * (policy == AGENT):
        found = zlib.crc32(path.read_bytes(), found)
    return found


def run_missing(
    run: Callable[[Any, SomeCell], list[dict[str, Any]]],
    shared: Any,
    cells: Sequence[SomeCell],
    columns: Sequence[str],
    kept: Path,
    workers: int = 1,
    conditions: Callable[[Any, str], int] = setting_conditions,
) -> pd.DataFrame:
    """Run every cell with progress, less what an earlier evaluation under the same conditions has finished.

    Args:
        run: makes a row of the columns for every run of a cell.
        shared: what all runs share, such as their setting.
        cells: to run, at least one.
        columns: of a row; those of :attr:`Cell.key`, ``policy`` and ``seed`` are among them.
        kept: CSV file of finished runs, written after every cell.
        workers: cells run at the same time.
        conditions: a number that differs where other conditions would give a policy other results.

    Returns:
        Rows for the runs of the cells, in their order.
    """
    names = [*cells[0].key, "policy", "seed"]
    number = cache(lambda policy: conditions(shared, policy))  # it reads files of agents
    done = _finished(number, kept, columns)
    known = set(done[names].itertuples(index=False, name=None))
    todo = [rest for cell in cells if (rest := _remaining(cell, known)).runs]
    for rows in progress_bar(run_tasks(run, shared, todo, workers), total=len(todo), desc="evaluation", unit="cell"):
        new = pd.DataFrame(rows, columns=list(columns))
        new[_CONDITIONS] = [number(policy) for policy in new["policy"]]
        done = new if done.empty else pd.concat([done, new], ignore_index=True)
        with written_whole(kept) as unfinished:
            done.to_csv(unfinished, index=False)
    wanted = [_name(cell, run) for cell in cells for run in cell.runs]
    return done.set_index(names).loc[wanted].reset_index()[list(columns)]


def _name(cell: Cell, run: tuple[str, int]) -> tuple[Any, ...]:
    return (*cell.key.values(), policy_label(run[0]), run[1])


def _finished(number: Callable[[str], int], kept: Path, columns: Sequence[str]) -> pd.DataFrame:
    if not kept.is_file():
        return pd.DataFrame(columns=[*columns, _CONDITIONS])
    rows = pd.read_csv(kept)
    now = {policy: number(policy) for policy in rows["policy"].unique()}
    return rows[rows[_CONDITIONS] == rows["policy"].map(now)]


def _remaining(cell: SomeCell, known: set[tuple[Any, ...]]) -> SomeCell:
    return cell._replace(runs=tuple(run for run in cell.runs if _name(cell, run) not in known))
