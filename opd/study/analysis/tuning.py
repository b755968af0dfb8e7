"""Thresholds of the reactive policies, tuned on the validation days: ``python -m opd.study.analysis.tuning``.

A random search with successive halving. Candidates are drawn at random; each round runs those that are left on further
cycles of the validation split, and keeps the quarter with the best mean over all of their cycles. The figure that
counts is that of the agent's training: the mean reward less 0.05 for every dropped request. For one policy and one
pipeline this takes 1,280 cycles of 120 decisions (:data:`ROUNDS`), 153,600 decisions; the training of an agent takes
163,840, and its validation more.

Every reactive policy is tuned for each pipeline, and once for all of them: the same search over their mean.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
import typer

from opd.agent.single.problem import TrainingParameters
from opd.control.factory import reactive_policy
from opd.control.thresholds import EVERY_PIPELINE, FILE_NAME, KINDS, Thresholds
from opd.host.parallel import run_tasks
from opd.host.progress import progress_bar
from opd.measurement import SimulationParameters
from opd.objective import Objective
from opd.pipeline import Configuration, Pipeline
from opd.profiling.pipelines import common_objective, load_pipeline
from opd.solvers import IpaParameters
from opd.solvers.exact import Solve, solver_for
from opd.study.evaluation.batched import run_cycles
from opd.study.evaluation.cycles import Setting
from opd.workload.check_trace import WRONG_INPUT
from opd.workload.forecast import HISTORY_SECONDS, RecentMaximum
from opd.workload.trace import CYCLE_SECONDS, Cycle, Trace, cycle_from_start, load_trace


class Round(NamedTuple):
    """One round of the search: the candidates that are left, and the further cycles that each of them runs."""

    candidates: int
    cycles: int


ROUNDS = (Round(64, 8), Round(16, 24), Round(4, 96))

DROP_PENALTY = TrainingParameters.drop_penalty
"""Reward lost for every dropped request, as in the training of an agent."""

TOGETHER = 256
"""Trials that run together."""

_WINDOWS = (0.0, 30.0, 60.0, 120.0, 180.0, 300.0)
_HEADROOM = scipy.stats.loguniform(0.7, 6.0)

SPACES: dict[str, dict[str, Any]] = {
    "hpa": {"headroom": _HEADROOM, "target": scipy.stats.uniform(0.45, 0.5), "window": _WINDOWS},
    "queue-threshold": {
        "headroom": _HEADROOM,
        "requests_per_replica": scipy.stats.loguniform(0.5, 10.0),
        "window": _WINDOWS,
    },
    "ladder": {
        "upper": scipy.stats.uniform(0.75, 0.45),
        "lower": scipy.stats.uniform(0.75, 0.25),
        "load_seconds": (5.0, 10.0, 20.0, 30.0),
        "drain_seconds": scipy.stats.loguniform(3.0, 30.0),
        "hold_seconds": (0.0, 10.0, 20.0, 30.0, 60.0),
    },
}
"""What is searched: a distribution or the values of every threshold.

Windows include the default of Kubernetes. An earlier search of the same size, in wider ranges, found these ranges; of
the two, the better thresholds ship.
"""


def draw_candidates(policy: str, number: int, seed: int) -> list[Thresholds]:
    """Draw candidates at random, the same ones for the same seed."""
    generator = np.random.default_rng(seed)

    def value(space: Any) -> float:
        return float(generator.choice(space) if isinstance(space, tuple) else space.rvs(random_state=generator))

    drawn = ({name: value(space) for name, space in SPACES[policy].items()} for _ in range(number))
    return [KINDS[policy](**{name: round(each, 3) for name, each in one.items()}) for one in drawn]


def validation_cycles(trace: Trace, seed: int) -> list[Cycle]:
    """All cycles of the validation split that do not overlap and touch no recording gap, in random order."""
    split = trace.split("validation")
    starts = np.arange(split.start + HISTORY_SECONDS, split.stop - CYCLE_SECONDS + 1, CYCLE_SECONDS)
    span = trace.raw_index[starts + CYCLE_SECONDS - 1] - trace.raw_index[starts - HISTORY_SECONDS]
    whole = np.random.default_rng(seed).permutation(starts[span == CYCLE_SECONDS + HISTORY_SECONDS - 1])
    return [cycle_from_start(trace, int(trace.raw_index[start])) for start in whole]


def fitting_rounds(rounds: Sequence[Round], cycles: int) -> list[Round]:
    """Rounds that need at most so many cycles: where they are too few, every round has its share of them.

    Raises:
        ValueError: if a round would have none.
    """
    needed = sum(each.cycles for each in rounds)
    if cycles >= needed:
        return list(rounds)
    fitting = [each._replace(cycles=each.cycles * cycles // needed) for each in rounds]
    if not all(each.cycles for each in fitting):
        raise ValueError(
            f"the validation split of the trace has {cycles} whole cycles of {CYCLE_SECONDS} s, too few for "
            f"{len(rounds)} rounds of the search; provide a longer recording"
        )
    return fitting


class Trial(NamedTuple):
    """One cycle of one candidate on one pipeline."""

    pipeline: str
    thresholds: Thresholds
    cycle: Cycle


class TrialResult(NamedTuple):
    """What came of it: mean reward, dropped requests, and the mean reward less the penalty for these."""

    reward: float
    dropped: int
    value: float


class RememberedSolver:
    """A solver that remembers its solutions, for one pipeline: all candidates ask for the same loads.

    Args:
        solve: the solver.
    """

    def __init__(self, solve: Solve) -> None:
        self._solve = solve
        self._solved: dict[float, Configuration] = {}

    def __call__(self, pipeline: Pipeline, load: float) -> Configuration:
        """The solution for a load."""
        if load not in self._solved:
            self._solved[load] = self._solve(pipeline, load)
        return self._solved[load]


class TrialBatch(NamedTuple):
    """Trials on one pipeline that run together."""

    pipeline: Pipeline
    trials: Sequence[Trial]


def run_batch(setting: Setting, batch: TrialBatch) -> list[TrialResult]:
    """Run every trial of a batch."""
    solve = RememberedSolver(solver_for(setting.objective, setting.simulation))
    interval = setting.simulation.interval
    known, usual_load = (batch.pipeline, solve, interval), setting.usual_load
    policies = [reactive_policy(*known, trial.thresholds, usual_load) for trial in batch.trials]
    totals = run_cycles(batch.pipeline, policies, [trial.cycle for trial in batch.trials], setting, 0)
    penalty = DROP_PENALTY * totals.dropped * interval / CYCLE_SECONDS
    figures = zip(totals.reward, totals.dropped, totals.reward - penalty, strict=True)
    return [TrialResult(float(reward), int(dropped), float(value)) for reward, dropped, value in figures]


@dataclass
class Search:
    """The search for the thresholds of every policy; what has been run for one purpose is not run for another.

    Attributes:
        setting: trace, objective and device.
        rounds: of successive halving.
        seed: of candidates and cycles.
        workers: processes.
    """

    setting: Setting
    rounds: Sequence[Round] = ROUNDS
    seed: int = 0
    workers: int = 1
    _done: dict[Trial, TrialResult] = field(default_factory=dict)

    def tune(self, policy: str, pipelines: Sequence[Pipeline]) -> pd.DataFrame:
        """Search for the thresholds of a policy that are best in the mean over pipelines.

        Returns:
            One row a candidate of the last round, the best first, with the columns ``value``, ``reward``, ``dropped``
            (requests a cycle), ``cycles`` of each pipeline and ``thresholds``.
        """
        cycles = validation_cycles(self.setting.trace, self.seed)
        left: Iterable[Thresholds] = draw_candidates(policy, self.rounds[0].candidates, self.seed)
        run = 0
        for each in fitting_rounds(self.rounds, len(cycles)):
            kept, run = list(left)[: each.candidates], run + each.cycles
            for pipeline in pipelines:
                self._run(pipeline, _trials(kept, pipeline, cycles[:run]))
            rows = [self._mean(thresholds, pipelines, cycles[:run]) for thresholds in kept]
            table = pd.DataFrame(rows).sort_values("value", ascending=False, kind="stable", ignore_index=True)
            left = table["thresholds"]
        return table

    def _run(self, pipeline: Pipeline, trials: list[Trial]) -> None:
        new = [trial for trial in trials if trial not in self._done]
        batches = [TrialBatch(pipeline, new[first : first + TOGETHER]) for first in range(0, len(new), TOGETHER)]
        finished = run_tasks(run_batch, self.setting, batches, self.workers)
        for batch, results in zip(batches, finished, strict=True):
            self._done.update(zip(batch.trials, results, strict=True))

    def _mean(self, thresholds: Thresholds, pipelines: Sequence[Pipeline], cycles: Sequence[Cycle]) -> dict[str, Any]:
        results = [self._done[trial] for pipeline in pipelines for trial in _trials([thresholds], pipeline, cycles)]
        reward, dropped, value = np.mean(results, axis=0)
        return dict(value=value, reward=reward, dropped=dropped, cycles=len(cycles), thresholds=thresholds)


def _trials(candidates: Iterable[Thresholds], pipeline: Pipeline, cycles: Sequence[Cycle]) -> list[Trial]:
    return [Trial(pipeline.name, thresholds, cycle) for thresholds in candidates for cycle in cycles]


def tune_all(search: Search, pipelines: Sequence[Pipeline]) -> pd.DataFrame:
    """Tune every reactive policy for each pipeline and for all of them; the rows of :meth:`Search.tune`."""
    groups = {**{each.name: [each] for each in pipelines}, EVERY_PIPELINE: pipelines}
    searches = [(policy, name) for name in groups for policy in KINDS]
    parts = []
    for policy, name in progress_bar(searches, total=len(searches), desc="tuning", unit="searches"):
        parts.append(search.tune(policy, groups[name]).assign(pipeline=name, policy=policy))
    return pd.concat(parts, ignore_index=True)


def write_thresholds(found: pd.DataFrame, path: Path) -> None:
    """Write the best thresholds of every pipeline and policy in the form of :mod:`opd.control.thresholds`."""
    best = found.groupby(["pipeline", "policy"], sort=False)["thresholds"].first()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["pipeline", "policy", "threshold", "value"])
        for key, thresholds in best.items():
            writer.writerows([*key, name, f"{value:g}"] for name, value in asdict(thresholds).items())  # type: ignore[misc]


def write_candidates(found: pd.DataFrame, path: Path) -> None:
    """Write the candidates of the last rounds, with their thresholds as text."""
    texts = [", ".join(f"{n}={each:g}" for n, each in asdict(one).items()) for one in found["thresholds"]]
    columns = ["pipeline", "policy", "value", "reward", "dropped", "cycles", "thresholds"]
    found.assign(thresholds=texts)[columns].to_csv(path, index=False, float_format="%.6g")


def tuning_setting(trace: Trace, objective: Objective) -> Setting:
    """The setting of all trials; the forecast only chooses the configuration with which a cycle begins."""
    return Setting(trace, RecentMaximum(), objective, SimulationParameters(), IpaParameters(), {})  # type: ignore[arg-type]


def main(
    pipelines: Annotated[list[str], typer.Argument(help="Pipelines that ship with the package, folders or files.")],
    trace: Annotated[str, typer.Option(help="synthetic, twitter or a file.")] = "synthetic",
    damping: Annotated[int, typer.Option(help="Every count is divided by it.")] = 8,
    output: Annotated[Path, typer.Option(help="Table of thresholds to write.")] = Path(FILE_NAME),
    candidates: Annotated[Path | None, typer.Option(help="CSV file for the candidates of the last rounds.")] = None,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
) -> None:
    """Tune the thresholds of the reactive policies on the validation days of a trace.

    Example: python -m opd.study.analysis.tuning shop --trace my-load.csv --damping 1
    """
    try:
        setting = tuning_setting(load_trace(trace, damping), common_objective(pipelines))
        found = tune_all(Search(setting, workers=workers), [load_pipeline(each) for each in pipelines])
        write_thresholds(found, output)
        if candidates is not None:
            write_candidates(found, candidates)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(WRONG_INPUT) from error
    print(f"wrote {output}")


if __name__ == "__main__":
    # Under its own name, by which a process of a Ray node finds the functions of tasks; there `__main__` is Ray's.
    from opd.study.analysis.tuning import main as named

    typer.run(named)
