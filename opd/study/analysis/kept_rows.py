"""Finished runs of an evaluation, kept in a CSV file: an interrupted evaluation goes on where it stopped.

A cell is one problem under one set of conditions, on which several policies run. A further policy, or an agent with
other weights, runs without the others.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
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
    def key(self) -> tuple[Any, ...]:
        """Values of the columns that tell the rows of this cell from those of others."""
        ...

    def _replace(self, *, runs: tuple[tuple[str, int], ...]) -> Self:
        """The same cell with other runs."""
        ...


SomeCell = TypeVar("SomeCell", bound=Cell)


def run_missing(
    run: Callable[[Setting, SomeCell], list[dict[str, Any]]],
    setting: Setting,
    cells: Sequence[SomeCell],
    columns: Sequence[str],
    key: Sequence[str],
    kept: Path,
    workers: int = 1,
) -> pd.DataFrame:
    """Run every cell with progress, less what an earlier evaluation under the same conditions has finished.

    Args:
        run: makes a row of the columns for every run of a cell.
        setting: trace, forecaster and what else all runs share; its objective is not used.
        cells: to run.
        columns: of a row; ``policy`` and ``seed`` are among them.
        key: columns with the values of :attr:`Cell.key`.
        kept: CSV file of finished runs, written after every cell.
        workers: cells run at the same time.

    Returns:
        Rows for the runs of the cells, in their order.
    """
    names = [*key, "policy", "seed"]
    done = _finished(setting, kept, columns)
    known = set(done[names].itertuples(index=False, name=None))
    todo = [rest for cell in cells if (rest := _remaining(cell, known)).runs]
    for rows in progress_bar(run_tasks(run, setting, todo, workers), total=len(todo), desc="pipelines", unit="cell"):
        new = pd.DataFrame(rows, columns=list(columns))
        new[_CONDITIONS] = [conditions(setting, policy) for policy in new["policy"]]
        done = new if done.empty else pd.concat([done, new], ignore_index=True)
        with written_whole(kept) as unfinished:
            done.to_csv(unfinished, index=False)
    wanted = [_name(cell, run) for cell in cells for run in cell.runs]
    return done.set_index(names).loc[wanted].reset_index()[list(columns)]


def conditions(setting: Setting, policy: str) -> int:
    """A number that differs where the same policy would give other results; of the code it knows nothing."""
    trace = setting.trace
    forecast = setting.forecaster.predict(trace.counts[:HISTORY_SECONDS])
    load = [trace.name, int(trace.recorded.sum()), trace.damping, forecast]
    parts = [load, asdict(setting.simulation), asdict(setting.ipa)]
    weights = SHIPPED.read_bytes() if policy == AGENT else b""
    return zlib.crc32(weights, zlib.crc32(json.dumps(parts).encode()))


def _name(cell: Cell, run: tuple[str, int]) -> tuple[Any, ...]:
    return (*cell.key, policy_label(run[0]), run[1])


def _finished(setting: Setting, kept: Path, columns: Sequence[str]) -> pd.DataFrame:
    if not kept.is_file():
        return pd.DataFrame(columns=[*columns, _CONDITIONS])
    rows = pd.read_csv(kept)
    now = {policy: conditions(setting, policy) for policy in rows["policy"].unique()}
    return rows[rows[_CONDITIONS] == rows["policy"].map(now)]


def _remaining(cell: SomeCell, known: set[tuple[Any, ...]]) -> SomeCell:
    return cell._replace(runs=tuple(run for run in cell.runs if _name(cell, run) not in known))
