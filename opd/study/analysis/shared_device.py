"""Pairs of pipelines on one device: does the arbiter reach the best static split of its cores?

``python -m opd.study.analysis.shared_device``. A device has a share of the cores of both pipelines' own devices, so
that what one takes the other lacks. Every pipeline meets a load of its own: another validation cycle. The arbiter is
compared with every static split, also with the one that turns out best. In a static split no pipeline knows of the
other, so each runs once for every number of cores, and splits are sums.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import typer

from opd.control import policy_label
from opd.control.arbiter import Arbiter, CoreValues, limits_on
from opd.control.sharing import Member, StaticSplit, run_together
from opd.host.archive import written_whole
from opd.measurement import SimulationParameters
from opd.pipeline import Pipeline
from opd.profiling.pipelines import common_objective, load_pipeline
from opd.simulator.backend import SimulatedBackend
from opd.solvers import IpaParameters
from opd.study.analysis.kept_rows import run_missing
from opd.study.analysis.tuning import validation_cycles
from opd.study.evaluation.cycles import Setting
from opd.study.report.files import markdown_table
from opd.workload.check_trace import WRONG_INPUT
from opd.workload.forecast import HISTORY_SECONDS, Forecaster
from opd.workload.quantile_futures import futures_of
from opd.workload.trace import Cycle, cycle_counts, load_trace

ARBITER = "arbiter"

OUTPUT = Path("reports", "benchmarks", "shared_device.csv")

FIGURES = ["reward", "worst", "dropped", "dropped_in_worst"]
"""Of a run: mean summed reward, that of the worst interval, dropped requests, and those of the worst interval."""

COLUMNS = ["pipelines", "share", "cycle", "policy", "seed", "first", "second", "division", *FIGURES]


class SharedCell(NamedTuple):
    """Loads under which every pair runs: a cycle for each pipeline, and the share of both devices that a pair has."""

    pipelines: tuple[Pipeline, ...]
    cycles: tuple[Cycle, ...]
    share: float
    runs: tuple[tuple[str, int], ...]

    @property
    def key(self) -> dict[str, Any]:
        """Pipelines, share and the cycle of the first pipeline."""
        names = " ".join(each.name for each in self.pipelines)
        return {"pipelines": names, "share": self.share, "cycle": self.cycles[0].name}


class SharedCourse(NamedTuple):
    """What came of every interval of a run: summed reward and dropped requests, each (T,)."""

    reward: np.ndarray
    dropped: np.ndarray

    def figures(self) -> dict[str, float]:
        """Those of :data:`FIGURES`."""
        worst = int(np.argmin(self.reward))
        values = self.reward.mean(), self.reward[worst], self.dropped.sum(), self.dropped[worst]
        return dict(zip(FIGURES, map(float, values), strict=True))


def shared_cells(
    pipelines: Sequence[Pipeline],
    cycles: Sequence[Cycle],
    shares: Sequence[float],
    policies: Sequence[str],
    seeds: Sequence[int],
) -> list[SharedCell]:
    """List the loads to run: in each, every pipeline has a cycle of its own; the cycles go round.

    Raises:
        ValueError: if there are fewer cycles than pipelines.
    """
    if len(cycles) < len(pipelines):
        raise ValueError(f"{len(cycles)} cycles are too few for {len(pipelines)} pipelines with different loads")
    runs = tuple((policy, seed) for policy in policies for seed in seeds)
    turns = [[cycles[(first + n) % len(cycles)] for n in range(len(pipelines))] for first in range(len(cycles))]
    return [SharedCell(tuple(pipelines), tuple(turn), share, runs) for share in shares for turn in turns]


def shared_capacity(pair: Sequence[Pipeline], share: float) -> int:
    """Cores of the device of a pair: a share of those of both, at least what the smallest configurations need."""
    smallest = sum(each.smallest_cores for each in pair)
    return max(round(share * sum(each.capacity for each in pair)), smallest)


def run_shared(setting: Setting, cell: SharedCell) -> list[dict[str, Any]]:
    """Run all pairs of a cell, divided by the arbiter and in every static way; return rows of :data:`COLUMNS`."""
    rows = []
    for policy, seed in cell.runs:
        same = cell.key | {"policy": policy_label(policy), "seed": seed}
        alone: dict[tuple[int, int], SharedCourse] = {}
        for pair in combinations(range(len(cell.pipelines)), 2):
            names = {"first": cell.pipelines[pair[0]].name, "second": cell.pipelines[pair[1]].name}
            for division, course in _divisions(setting, cell, pair, policy, seed, alone):
                rows.append(same | names | {"division": division} | course.figures())
    return rows


def _divisions(
    setting: Setting,
    cell: SharedCell,
    pair: tuple[int, int],
    policy: str,
    seed: int,
    alone: dict[tuple[int, int], SharedCourse],
) -> Iterator[tuple[str, SharedCourse]]:
    """Name and course of every division of a pair; ``alone`` keeps those of a pipeline by its place and its cores."""
    pipelines = [cell.pipelines[n] for n in pair]
    capacity = shared_capacity(pipelines, cell.share)
    known = setting.objective, setting.simulation, futures_of(setting.forecaster), seed
    arbiter = Arbiter([CoreValues(each, *known) for each in pipelines], capacity)
    yield ARBITER, _course(setting, cell, pair, policy, seed, arbiter)
    limits = limits_on(pipelines, capacity)
    for first in range(max(capacity - limits[1], pipelines[0].smallest_cores), limits[0] + 1):
        split = (first, min(capacity - first, limits[1]))
        for one in zip(pair, split, strict=True):
            if one not in alone:
                alone[one] = _course(setting, cell, one[:1], policy, seed, StaticSplit(one[1:]))
        left, right = (alone[one] for one in zip(pair, split, strict=True))
        yield f"{split[0]} + {split[1]}", SharedCourse(left.reward + right.reward, left.dropped + right.dropped)


def _course(
    setting: Setting,
    cell: SharedCell,
    places: Sequence[int],
    policy: str,
    seed: int,
    arbiter: Arbiter | StaticSplit,
) -> SharedCourse:
    """Run some pipelines of a cell together, from their smallest configurations."""
    members = [_member(setting, cell.pipelines[n], cell.cycles[n], policy, seed) for n in places]
    decisions = len(cycle_counts(setting.trace, cell.cycles[0])) // setting.simulation.interval
    steps = list(run_together(members, arbiter, decisions, setting.calibration))
    reward = [sum(float(step.score.reward[0]) for step in each) for each in steps]
    dropped = [sum(float(step.interval.dropped[0]) for step in each) for each in steps]
    return SharedCourse(np.array(reward), np.array(dropped))


def _member(setting: Setting, pipeline: Pipeline, cycle: Cycle, policy: str, seed: int) -> Member:
    start = setting.trace.position(cycle.start)
    history = setting.trace.counts[max(start - HISTORY_SECONDS, 0) : start]
    counts = cycle_counts(setting.trace, cycle)
    first = pipeline.smallest_configuration()
    backend = SimulatedBackend(pipeline, setting.simulation, history, counts, first, seed)
    decides = setting.policy(policy, pipeline, seed)
    return Member(backend, pipeline, decides, setting.forecaster.predict, setting.objective)


# ------------------------------------------------------------------------------------------------------------ findings


def beside_best_split(rows: pd.DataFrame) -> pd.DataFrame:
    """Put the arbiter beside the static split with the highest mean reward over all cycles and seeds, pair by pair.

    Returns:
        Columns share, policy, first, second and ``split``; ``lead`` of the arbiter over it and ``lead_each``, that over
        the best split of each single cycle, in percent of its reward; and for both, ``_arbiter`` and ``_split``,
        ``reward``, ``dropped`` (requests a cycle), ``worst`` (summed reward of the worst interval) and
        ``dropped_in_worst``.
    """
    lines: list[Mapping[str, Any]] = []
    for names, part in rows.groupby(_PAIR, sort=False):
        means = part.groupby("division")[["reward", "dropped"]].mean()
        splits = means.drop(ARBITER)
        best = str(splits["reward"].idxmax())
        runs = part.pivot(index=["cycle", "seed"], columns="division", values="reward")
        hindsight = float(runs.drop(columns=ARBITER).max(axis=1).mean())
        reward, ours = float(splits["reward"].max()), float(means["reward"][ARBITER])
        line: dict[str, Any] = dict(zip(_PAIR, names, strict=True)) | {"split": best}
        line |= {"lead": 100.0 * (ours / reward - 1.0), "lead_each": 100.0 * (ours / hindsight - 1.0)}
        for name, division in (("arbiter", ARBITER), ("split", best)):
            worst = part[part["division"] == division].sort_values("worst").iloc[0]
            mean = means.loc[division]
            line |= {f"reward_{name}": mean["reward"], f"dropped_{name}": mean["dropped"]}
            line |= {f"worst_{name}": worst["worst"], f"dropped_in_worst_{name}": worst["dropped_in_worst"]}
        lines.append(line)
    return pd.DataFrame(lines)


_PAIR = ["share", "policy", "first", "second"]


def shared_findings(pairs: pd.DataFrame) -> dict[str, str]:
    """The table of every share and policy, under its heading, from :func:`beside_best_split`."""
    found = {}
    for (share, policy), part in pairs.groupby(["share", "policy"], sort=False):
        reached = int((part["lead"] >= 0.0).sum())
        heading = f"{policy}, {float(str(share)):.0%} of both devices: the best split reached in {reached} of "
        found[f"{heading}{len(part)} pairs"] = markdown_table(part.drop(columns=["share", "policy"]), 3)
    return found


def main(
    pipelines: Annotated[list[str], typer.Argument(help="Pipelines that ship with the package, folders or files.")],
    forecaster: Annotated[Path, typer.Option(help="File of the forecaster.")],
    trace: Annotated[str, typer.Option(help="synthetic, twitter or a file.")] = "twitter",
    damping: Annotated[int, typer.Option(help="Every count is divided by it.")] = 8,
    policy: Annotated[list[str], typer.Option(help="Decides within the share of a pipeline.")] = ["myopic-backlog"],  # noqa: B006
    share: Annotated[list[float], typer.Option(help="Cores of a device, as a share of both pipelines' own.")] = [0.5],  # noqa: B006
    cycles: Annotated[int, typer.Option(help="Validation cycles.")] = 12,
    seeds: Annotated[int, typer.Option(help="Seeds of the requests.")] = 1,
    kept: Annotated[Path, typer.Option(help="CSV file of finished runs.")] = Path("models/shared_device.csv"),
    output: Annotated[Path, typer.Option(help="CSV file of the pairs to write.")] = OUTPUT,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
) -> None:
    """Compare the arbiter with all static splits of a device, for every pair of the pipelines.

    Example: python -m opd.study.analysis.shared_device video nlp --forecaster models/twitter/forecaster.npz
    """
    try:
        load, loaded = load_trace(trace, damping), [load_pipeline(each) for each in pipelines]
        shared = Forecaster.load(forecaster, damping), common_objective(pipelines), SimulationParameters()
        setting = Setting(load, *shared, IpaParameters(), {})
        cells = shared_cells(loaded, validation_cycles(load, 0)[:cycles], share, policy, range(seeds))
        rows = run_missing(run_shared, setting, cells, COLUMNS, kept, workers)
        pairs = beside_best_split(rows)
        with written_whole(output) as unfinished:
            pairs.to_csv(unfinished, index=False, float_format="%.7g")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(WRONG_INPUT) from error
    for heading, text in shared_findings(pairs).items():
        print(f"## {heading}\n\n{text}\n")
    print(f"wrote {output}")


if __name__ == "__main__":
    # Under its own name, by which a process of a Ray node finds the functions of tasks; there `__main__` is Ray's.
    from opd.study.analysis.shared_device import main as named

    typer.run(named)
