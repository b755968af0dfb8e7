"""Thresholds of the reactive policies, tuned on the validation days: ``python -m opd.study.analysis.tuning``.

A random search with successive halving. Candidates are drawn at random; each round runs those that are left on further
cycles of the validation split, and keeps the quarter with the best mean over all of their cycles. The figure that counts
is that of the agent's training: the mean reward less 0.05 for every dropped request. For one policy and one pipeline
this takes 1,280 cycles of 120 decisions (:data:`ROUNDS`), 153,600 decisions; the training of an agent takes 163,840, and
its validation more.

Every reactive policy is tuned for each pipeline, and once for all of them: the same search over their mean.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
import typer

from opd.agent.problem import TrainingParameters
from opd.control.factory import reactive_policy
from opd.control.thresholds import EVERY_PIPELINE, KINDS, TABLE, Thresholds
from opd.host.parallel import run_tasks
from opd.host.progress import progress_bar
from opd.measurement import SimulationParameters
from opd.objective import Objective, Weights
from opd.pipeline import Pipeline
from opd.profiling.pipelines import common_objective, load_pipeline
from opd.solvers import IpaParameters
from opd.study.evaluation.cycles import Setting, cycle_summary, run_cycle
from opd.workload.forecast import HISTORY_SECONDS, RecentMaximum
from opd.workload.trace import CYCLE_SECONDS, Cycle, Trace, cycle_from_start, load_trace


class Round(NamedTuple):
    """One round of the search: the candidates that are left, and the further cycles that each of them runs."""

    candidates: int
    cycles: int


ROUNDS = (Round(64, 8), Round(16, 24), Round(4, 96))

DROP_PENALTY = TrainingParameters.drop_penalty
"""Reward lost for every dropped request, as in the training of an agent."""

_WINDOWS = (0.0, 30.0, 60.0, 120.0, 180.0, 300.0)
_DESIGN_LOADS = scipy.stats.loguniform(3.0, 40.0)

SPACES: dict[str, dict[str, Any]] = {
    "hpa": {"design_load": _DESIGN_LOADS, "target": scipy.stats.uniform(0.2, 0.75), "window": _WINDOWS},
    "queue-threshold": {
        "design_load": _DESIGN_LOADS,
        "requests_per_replica": scipy.stats.loguniform(0.2, 16.0),
        "window": _WINDOWS,
    },
    "ladder": {
        "upper": scipy.stats.uniform(0.3, 0.9),
        "lower": scipy.stats.uniform(0.3, 0.7),
        "drain_seconds": scipy.stats.loguniform(2.0, 100.0),
        "hold_seconds": (0.0, 10.0, 20.0, *_WINDOWS[1:]),
    },
}
"""What is searched: a distribution or the values of every threshold. Windows include the default of Kubernetes."""


def draw_candidates(policy: str, number: int, seed: int) -> list[Thresholds]:
    """Draw candidates at random, the same ones for the same seed."""
    generator = np.random.default_rng(seed)

    def value(space: Any) -> float:
        return float(generator.choice(space) if isinstance(space, tuple) else space.rvs(random_state=generator))

    drawn = ({name: value(space) for name, space in SPACES[policy].items()} for _ in range(number))
    return [KINDS[policy](**{name: round(each, 3) for name, each in one.items()}) for one in drawn]


def validation_cycles(trace: Trace, number: int, seed: int) -> list[Cycle]:
    """Cycles of the validation split that do not overlap and touch no recording gap, in random order.

    Raises:
        ValueError: if there are fewer than ``number``.
    """
    split = trace.split("validation")
    starts = np.arange(split.start + HISTORY_SECONDS, split.stop - CYCLE_SECONDS + 1, CYCLE_SECONDS)
    span = trace.raw_index[starts + CYCLE_SECONDS - 1] - trace.raw_index[starts - HISTORY_SECONDS]
    whole = starts[span == CYCLE_SECONDS + HISTORY_SECONDS - 1]
    if len(whole) < number:
        raise ValueError(
            f"trace {trace.name!r}: its validation split has {len(whole)} whole cycles, but {number} are needed; "
            "provide a longer recording"
        )
    chosen = np.random.default_rng(seed).permutation(whole)[:number]
    return [cycle_from_start(trace, int(trace.raw_index[start])) for start in chosen]


class Trial(NamedTuple):
    """One cycle of one candidate."""

    pipeline: Pipeline
    thresholds: Thresholds
    cycle: Cycle


class TrialResult(NamedTuple):
    """What came of it: mean reward, dropped requests, and the mean reward less the penalty for these."""

    reward: float
    dropped: int
    value: float


def run_trial(setting: Setting, trial: Trial) -> TrialResult:
    """Run one cycle with the thresholds of a candidate."""
    policy = reactive_policy(trial.pipeline, setting.objective, setting.simulation, trial.thresholds)
    steps = run_cycle(trial.pipeline, policy, trial.cycle, 0, setting)
    summary = cycle_summary(steps)
    reward, dropped = summary["reward"], int(summary["dropped"])
    return TrialResult(reward, dropped, reward - DROP_PENALTY * dropped / len(steps))


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
    _done: dict[tuple[str, Thresholds, Cycle], TrialResult] = field(default_factory=dict)

    def tune(self, policy: str, pipelines: Sequence[Pipeline]) -> pd.DataFrame:
        """Search for the thresholds of a policy that are best in the mean over pipelines.

        Returns:
            One row a candidate of the last round, the best first, with the columns ``value``, ``reward``, ``dropped``
            (requests a cycle), ``cycles`` of each pipeline and ``thresholds``.
        """
        cycles = validation_cycles(self.setting.trace, sum(each.cycles for each in self.rounds), self.seed)
        left: Iterable[Thresholds] = draw_candidates(policy, self.rounds[0].candidates, self.seed)
        run = 0
        for each in self.rounds:
            kept, run = list(left)[: each.candidates], run + each.cycles
            self._run([Trial(p, thresholds, c) for thresholds in kept for p in pipelines for c in cycles[:run]])
            rows = [self._mean(thresholds, pipelines, cycles[:run]) for thresholds in kept]
            table = pd.DataFrame(rows).sort_values("value", ascending=False, kind="stable", ignore_index=True)
            left = table["thresholds"]
        return table

    def _run(self, trials: list[Trial]) -> None:
        new = [trial for trial in trials if _key(trial) not in self._done]
        finished = run_tasks(run_trial, self.setting, new, self.workers)
        for trial, result in zip(new, progress_bar(finished, total=len(new), desc="tuning", unit="cycles"), strict=True):
            self._done[_key(trial)] = result

    def _mean(self, thresholds: Thresholds, pipelines: Sequence[Pipeline], cycles: Sequence[Cycle]) -> dict[str, Any]:
        results = [self._done[_key(Trial(p, thresholds, c))] for p in pipelines for c in cycles]
        reward, dropped, value = np.mean(results, axis=0)
        return dict(value=value, reward=reward, dropped=dropped, cycles=len(cycles), thresholds=thresholds)


def _key(trial: Trial) -> tuple[str, Thresholds, Cycle]:
    return trial.pipeline.name, trial.thresholds, trial.cycle


def tune_all(search: Search, pipelines: Sequence[Pipeline]) -> pd.DataFrame:
    """Tune every reactive policy for each pipeline and for all of them; the rows of :meth:`Search.tune`."""
    parts = []
    for policy in KINDS:
        for name, together in [*((each.name, [each]) for each in pipelines), (EVERY_PIPELINE, pipelines)]:
            parts.append(search.tune(policy, together).assign(pipeline=name, policy=policy))
    return pd.concat(parts, ignore_index=True)


def write_thresholds(found: pd.DataFrame, path: Path) -> None:
    """Write the best thresholds of every pipeline and policy in the form of :mod:`opd.control.thresholds`."""
    best = found.groupby(["pipeline", "policy"], sort=False).first()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["pipeline", "policy", "threshold", "value"])
        for (pipeline, policy), row in best.iterrows():  # type: ignore[misc]
            writer.writerows([pipeline, policy, name, f"{each:g}"] for name, each in asdict(row["thresholds"]).items())


def write_candidates(found: pd.DataFrame, path: Path) -> None:
    """Write the candidates of the last rounds, with their thresholds as text."""
    texts = [", ".join(f"{n}={each:g}" for n, each in asdict(one).items()) for one in found["thresholds"]]
    columns = ["pipeline", "policy", "value", "reward", "dropped", "cycles", "thresholds"]
    found.assign(thresholds=texts)[columns].to_csv(path, index=False, float_format="%.6g")


def tuning_setting(trace: Trace, objective: Objective) -> Setting:
    """The setting of all trials; the forecast only chooses the configuration with which a cycle begins."""
    return Setting(trace, RecentMaximum(), objective, SimulationParameters(), IpaParameters(), {})  # type: ignore[arg-type]


def main(
    pipelines: Annotated[list[str], typer.Argument(help="Pipelines of the catalogue, or pipeline files.")],
    trace: Annotated[str, typer.Option(help="synthetic, twitter or a file.")] = "twitter",
    damping: Annotated[int, typer.Option(help="Every count is divided by it.")] = 8,
    output: Annotated[Path, typer.Option(help="Table of thresholds.")] = TABLE,
    candidates: Annotated[Path | None, typer.Option(help="CSV file for the candidates of the last rounds.")] = None,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
) -> None:
    """Tune the thresholds of the reactive policies on the validation days of a trace.

    Example: python -m opd.study.analysis.tuning video nlp --candidates reports/benchmarks/tuning.csv
    """
    weights = None if any(Path(each).exists() for each in pipelines) else asdict(Weights())
    setting = tuning_setting(load_trace(trace, damping), common_objective(pipelines, weights))
    found = tune_all(Search(setting, workers=workers), [load_pipeline(each) for each in pipelines])
    write_thresholds(found, output)
    if candidates is not None:
        write_candidates(found, candidates)
    print(f"wrote {output}")


if __name__ == "__main__":
    typer.run(main)
