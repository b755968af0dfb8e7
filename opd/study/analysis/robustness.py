"""How the agent does where the world is not the one it was trained in, beside policies that are not trained.

A world departs from the study's in one thing: in the load that comes, in what the forecaster says, or in the speed of
the device. What is wrong is wrong for all policies alike: they plan with the same forecasts and know the same profiles,
and for one cycle and seed they meet the same requests on the same device.

What has to be known to read the results:

* On the other trace the agent brings the forecaster that it was trained with, and the rules and solvers plan with that
  one, too. They have nothing else to bring, so their loss there is what a foreign forecaster costs.
* A forecaster that fails does so after its first forecast in a cycle, which chooses the configuration to begin with.
* Where every variant is wrong by a factor of its own, the device is another in every cycle and for every seed.
* Greedy, IPA and myopic do not learn: their seed is that of the requests.
* All three plan for the forecast alone. The agent also sees what waits, and so does a second myopic solver, which plans
  for the load and for working off within an interval what waits: a rival that knows no less than the agent.
* The agent is the deployed one, whose expert, that very rival, takes over where it is beyond its training or has
  fallen behind. How many of its decisions that were is counted.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from opd.agent.jobs import Job, run_jobs
from opd.agent.parameters import TrainingParameters
from opd.agent.problem import build_problem
from opd.parallel import run_tasks
from opd.pipeline import Pipeline
from opd.study.analysis.estimates import Row, estimate, with_interval
from opd.study.evaluation.cycles import Setting, cycle_summary, run_cycle
from opd.study.plots.style import policy_style
from opd.workload.cycles import Cycle, cycle_counts
from opd.workload.forecast import Forecaster
from opd.workload.load import HISTORY_SECONDS
from opd.workload.trace import MIN_SECONDS, Trace

AGENT, BACKLOG, MYOPIC, IPA, GREEDY = POLICIES = ("agent", "myopic-backlog", "myopic", "ipa", "greedy")

AS_TRAINED = "as trained"
OTHER_TRACE = "other trace"
OVERLOAD = "overload"
FORECASTER_FAILS = "forecaster fails"
PROFILES_WRONG = "profiles wrong"

EXCESS = 1.25
"""Peak of an overloaded cycle over the largest load of the training split."""

ERROR = 0.2
"""By which share of its profile a device is slower or faster."""

KEYS = ["pipeline", "cycle", "seed"]
"""What two rows share that can be compared as a pair: for the same requests, from the same trace."""

COLUMNS = [
    *("world", "variant", "trace", "pipeline", "cycle", "policy", "seed", "factor"),
    *("reward", "qos", "cost", "dropped", "refused", "fallbacks", "by_expert"),
]


# ------------------------------------------------------------------------------------------------------ worlds


class Met(NamedTuple):
    """What a policy meets in one cycle of a world.

    Attributes:
        setting: trace and forecaster, and what is the same for all.
        device: the pipeline as it really is.
        factor: by which the load, or every latency, is multiplied; NaN where neither is.
    """

    setting: Setting
    device: Pipeline
    factor: float = np.nan


def unchanged(setting: Setting, pipeline: Pipeline, cycle: Cycle, seed: int) -> Met:
    """The world as the setting has it."""
    return Met(setting, pipeline)


@dataclass(frozen=True)
class World:
    """Where policies are tried.

    Attributes:
        name: what is wrong.
        variant: how.
        setting: trace, forecaster and agents; what :attr:`meet` starts from.
        cycles: of that trace.
        meet: what is met in a cycle, from the setting, the pipeline as it is known, the cycle and the seed.
    """

    name: str
    variant: str
    setting: Setting
    cycles: Sequence[Cycle]
    meet: Callable[[Setting, Pipeline, Cycle, int], Met] = unchanged


def all_worlds(
    home: Setting, home_cycles: Sequence[Cycle], other: Setting, other_cycles: Sequence[Cycle]
) -> list[World]:
    """All worlds, those without a fault first.

    Args:
        home: the trace that everything is tried on, with the forecaster and the agents that learned from it.
        home_cycles: of its trace.
        other: another trace, with the forecaster and the agents that learned from that one.
        other_cycles: of its trace.
    """
    here, there = home.trace.name, other.trace.name
    changes: list[tuple[str, str, Callable[[Setting, Pipeline, Cycle, int], Met]]] = [
        (OVERLOAD, f"peak {100 * EXCESS:.0f} % of training", overloaded),
        *((FORECASTER_FAILS, failure, partial(misled, failure)) for failure in FAILURES),
        (PROFILES_WRONG, f"{100 * ERROR:.0f} % slower", partial(rescaled, 1.0 + ERROR)),
        (PROFILES_WRONG, f"{100 * ERROR:.0f} % faster", partial(rescaled, 1.0 - ERROR)),
        (PROFILES_WRONG, f"each variant ±{100 * ERROR:.0f} %", drawn),
    ]
    return [
        World(AS_TRAINED, here, home, home_cycles),
        World(AS_TRAINED, there, other, other_cycles),
        World(OTHER_TRACE, f"from {there} to {here}", replace(other, trace=home.trace), home_cycles),
        World(OTHER_TRACE, f"from {here} to {there}", replace(home, trace=other.trace), other_cycles),
        *(World(name, variant, home, home_cycles, change) for name, variant, change in changes),
    ]


# -------------------------------------------------------------------------------------------------------- load


def scaled(trace: Trace, cycle: Cycle, factor: float) -> Trace:
    """The part of a trace around a cycle with ``factor`` times the counts, rounded to whole requests."""
    first = min(max(trace.position(cycle.start) - HISTORY_SECONDS, 0), len(trace.counts) - MIN_SECONDS)
    part = slice(first, first + MIN_SECONDS)
    counts = np.rint(factor * trace.counts[part]).astype(np.int64)
    return replace(trace, recorded=counts, raw_index=trace.raw_index[part], damping=1)


def overloaded(setting: Setting, pipeline: Pipeline, cycle: Cycle, seed: int) -> Met:
    """More load than was ever trained on: the cycle's peak is :data:`EXCESS` times that of the training split."""
    trace = setting.trace
    largest = trace.counts[trace.split("train")].max()
    factor = float(EXCESS * largest / max(cycle_counts(trace, cycle).max(), 1))
    return Met(replace(setting, trace=scaled(trace, cycle, factor)), pipeline, factor)


# ---------------------------------------------------------------------------------------------------- forecast


FAILURES: Mapping[str, Callable[[float, float], float]] = {
    "says 0": lambda truth, first: 0.0,
    "says NaN": lambda truth, first: np.nan,
    "stuck": lambda truth, first: first,
    "says twice": lambda truth, first: 2.0 * truth,
    "says half": lambda truth, first: 0.5 * truth,
}
"""What a failed forecaster says (requests/s) instead of its forecast, from that and its first one in the cycle.

One that raises an error is no world of its own: to the control loop that is the same as no number.
"""


class BrokenForecaster:
    """A forecaster that works once and then fails.

    Args:
        forecaster: as it was before.
        failure: one of :data:`FAILURES`.
    """

    def __init__(self, forecaster: Forecaster, failure: str) -> None:
        self._forecaster, self._failure = forecaster, FAILURES[failure]
        self._first: float | None = None

    def predict(self, history: np.ndarray) -> float:
        """The forecast (requests/s) the first time, then what the failure makes of it."""
        truth = self._forecaster.predict(history)
        if self._first is None:
            self._first = truth
            return truth
        return self._failure(truth, self._first)


def misled(failure: str, setting: Setting, pipeline: Pipeline, cycle: Cycle, seed: int) -> Met:
    """The forecaster fails in one of the ways of :data:`FAILURES`, anew in every cycle."""
    broken = BrokenForecaster(setting.forecaster, failure)
    return Met(replace(setting, forecaster=broken), pipeline)  # type: ignore[arg-type]  # only asked to predict


# ---------------------------------------------------------------------------------------------------- profiles


def distorted(pipeline: Pipeline, factors: np.ndarray) -> Pipeline:
    """A pipeline whose variants take other times than profiled, at every batch size.

    Args:
        pipeline: as it was profiled, N tasks of at most Z variants.
        factors: (N, Z) on latency; those of variants a task does not have are not used.
    """
    tasks = tuple(
        replace(
            task,
            variants=tuple(
                replace(variant, latency={size: factor * seconds for size, seconds in variant.latency.items()})
                for variant, factor in zip(task.variants, row, strict=False)
            ),
        )
        for task, row in zip(pipeline.tasks, factors.tolist(), strict=True)
    )
    return replace(pipeline, tasks=tasks)


def rescaled(factor: float, setting: Setting, pipeline: Pipeline, cycle: Cycle, seed: int) -> Met:
    """A device that takes ``factor`` times as long as its profiles say."""
    return Met(setting, distorted(pipeline, np.full(pipeline.tables.cores.shape, factor)), factor)


def drawn(setting: Setting, pipeline: Pipeline, cycle: Cycle, seed: int) -> Met:
    """A device of which every variant is slower or faster by up to :data:`ERROR`, by a factor of its own."""
    generator = np.random.default_rng([seed, cycle.start, zlib.crc32(pipeline.name.encode())])
    factors = generator.uniform(1.0 - ERROR, 1.0 + ERROR, pipeline.tables.cores.shape)
    return Met(setting, distorted(pipeline, factors))


# ------------------------------------------------------------------------------------------------------ agents


def trained_agents(
    pipelines: Sequence[Pipeline],
    setting: Setting,
    parameters: TrainingParameters,
    seeds: Sequence[int],
    known: Path,
    folder: Path,
    workers: int,
) -> dict[tuple[str, str, int], Path]:
    """Path of an agent for every pipeline and seed; those that are not there yet are trained.

    Args:
        pipelines: one agent for each of them and each seed.
        setting: what is trained on; its agents do not matter.
        parameters: of the trainings.
        seeds: of the trainings.
        known: folder with agents of earlier trainings; taken are those that this training would give.
        folder: for all others, and for what an interrupted training left.
        workers: agents trained at the same time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    for pipeline in pipelines:
        problem = build_problem(
            pipeline, setting.trace, setting.forecaster, setting.weights, setting.simulation, parameters
        )
        for seed in seeds:
            name = f"{pipeline.name}/{AGENT}-{seed}.npz"
            earlier = Job(AGENT, seed, problem, parameters, known / name)
            jobs.append(earlier if earlier.done else replace(earlier, path=folder / name))
    run_jobs(jobs, workers)
    return {(job.problem.pipeline.name, AGENT, job.seed): job.path for job in jobs}


# -------------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class RobustnessCell:
    """One cycle to run: the number of the world, and who decides for what."""

    world: int
    pipeline: Pipeline
    policy: str
    cycle: Cycle
    seed: int


def run(world: World, cell: RobustnessCell) -> dict[str, Any]:
    """What one cycle brought, see :func:`evaluate`; the policy is built for it, since some remember what they did."""
    pipeline, cycle, seed = cell.pipeline, cell.cycle, cell.seed
    met = world.meet(world.setting, pipeline, cycle, seed)
    row = {"world": world.name, "variant": world.variant, "trace": world.setting.trace.name, "factor": met.factor}
    row |= {"pipeline": pipeline.name, "cycle": cycle.name, "policy": cell.policy, "seed": seed}
    solver = "dynamic-program" if cell.policy == IPA else cell.policy  # the optimum of HiGHS in a fraction of its time
    policy = met.setting.policy(solver, pipeline, seed)
    steps = run_cycle(pipeline, policy, cycle, seed, met.setting, met.device)
    row |= {"refused": sum(bool(step.refused) for step in steps)}
    row |= {"fallbacks": sum(bool(step.forecast_failure) for step in steps)}
    return row | cycle_summary(steps)


def _run_cell(worlds: Sequence[World], cell: RobustnessCell) -> dict[str, Any]:
    return run(worlds[cell.world], cell)


def evaluate(
    worlds: Sequence[World], pipelines: Sequence[Pipeline], seeds: Sequence[int], workers: int = 1
) -> pd.DataFrame:
    """Every policy on every pipeline and seed through all cycles of every world, with progress.

    Args:
        worlds: where.
        pipelines: what is configured; the worlds' settings must have an agent for each and each seed.
        seeds: of the requests and of the agents' trainings.
        workers: cycles simulated at the same time.

    Returns:
        A row a cycle with the columns of :data:`COLUMNS`: ``reward`` and ``qos`` (Eqs. 7 and 3) and ``cost`` (cores)
        are means over its decisions, ``dropped`` the requests and ``refused`` the decisions that were, ``fallbacks``
        the decisions for which the control loop had no forecast and took the largest load of the last 20 s, and
        ``by_expert`` those of the agent that its expert made.
    """
    cells = [
        RobustnessCell(number, pipeline, policy, cycle, seed)
        for number, world in enumerate(worlds)
        for pipeline in pipelines
        for cycle in world.cycles
        for policy in POLICIES
        for seed in seeds
    ]
    rows = list(tqdm(run_tasks(_run_cell, worlds, cells, workers), total=len(cells), unit="cycle"))
    return pd.DataFrame(rows, columns=COLUMNS)


# ----------------------------------------------------------------------------------------------------- summary


def table_of(values: pd.Series) -> np.ndarray:
    """(S, C) means over the pipelines, seeds x cycles, of figures indexed by :data:`KEYS`.

    Pipelines are no sample of anything: only seeds and cycles are resampled.
    """
    return values.groupby(["seed", "cycle"]).mean().unstack("cycle").to_numpy()


def _parts(rows: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """The rows of every world, variant and policy, indexed by :data:`KEYS`."""
    names = ["world", "variant", "policy"]
    for key, part in rows.groupby(names, sort=False):
        yield dict(zip(names, map(str, key), strict=True)), part.set_index(KEYS)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """What each policy is left with in every world.

    Args:
        rows: of :func:`evaluate`.

    Returns:
        A row a world, variant and policy. Each of these is a mean over pipelines, cycles and seeds, with the ends of
        its 95 % interval in ``_low`` and ``_high``, over pairs of the same pipeline, cycle and seed where it is
        a difference:

        * ``reward`` and ``qos`` (Eqs. 7 and 3);
        * ``reward_loss`` and ``qos_loss``: what the same policy had on the same cycles as trained, less what it has;
        * ``lead``: the agent's reward in this world less this policy's.

        Then ``dropped``, ``refused``, ``fallbacks`` and ``by_expert``, numbers a cycle.
    """
    trained = {
        (part["trace"].iloc[0], names["policy"]): part for names, part in _parts(rows) if names["world"] == AS_TRAINED
    }
    agents = {(n["world"], n["variant"]): part["reward"] for n, part in _parts(rows) if n["policy"] == AGENT}
    lines = []
    for names, part in _parts(rows):
        before = trained[part["trace"].iloc[0], names["policy"]]
        line: dict[str, Any] = dict(names)
        for figure in ("reward", "qos"):
            line |= estimate(figure, table_of(part[figure]))
            line |= estimate(f"{figure}_loss", table_of(before[figure] - part[figure]))
        if names["policy"] != AGENT:
            line |= estimate("lead", table_of(agents[names["world"], names["variant"]] - part["reward"]))
        lines.append(line | part[["dropped", "refused", "fallbacks", "by_expert"]].mean().to_dict())
    return pd.DataFrame(lines)


# -------------------------------------------------------------------------------------------------- paragraphs


def paragraph(summary: pd.DataFrame, world: str) -> str:
    """What one world does to each policy, as a list in Markdown, an item a variant."""
    rows = summary[summary["world"] == world]
    return "\n".join(_item(variant, rows[rows["variant"] == variant]) for variant in dict.fromkeys(rows["variant"]))


def _item(variant: str, rows: pd.DataFrame) -> str:
    lines = {policy_style(row["policy"]).label: row for row in rows.to_dict("records")}
    changes = ", ".join(f"{label} {with_interval(_change(row), 'change')}" for label, row in lines.items())
    leads = [f"over {label} {with_interval(row, 'lead')}" for label, row in lines.items() if row["policy"] != AGENT]
    dropped = ", ".join(f"{label} {_requests(row['dropped'])}" for label, row in lines.items())
    as_trained = rows["world"].iloc[0] == AS_TRAINED
    text = f"* **{variant}**. " + ("" if as_trained else f"Change of reward: {changes}. ")
    text += f"The agent's lead: {', '.join(leads)}. Requests dropped in a cycle: {dropped}."
    text += f" Decisions of a cycle that the agent's expert made: {lines[policy_style(AGENT).label]['by_expert']:.1f}."
    fallbacks = rows["fallbacks"].max()
    return text + (f" Without a forecast: {fallbacks:.0f}." if fallbacks else "")


def _change(row: Row) -> Row:
    """The loss of reward the other way round: what is higher by as much, with its interval, is better."""
    return {f"change{end}": -row[f"reward_loss{of}"] for end, of in (("", ""), ("_low", "_high"), ("_high", "_low"))}


def _requests(number: float) -> str:
    """A mean number of requests; a few of them with a decimal, so that only none is 0."""
    if 0.0 < number < 0.05:
        return "less than 0.1"
    return f"{number:,.1f}" if 0.0 < number < 9.95 else f"{number:,.0f}"


def overview(summary: pd.DataFrame) -> str:
    """In how many worlds the agent is above its rivals, and in which it is below, as a list in Markdown.

    Above and below are where the whole interval of its lead is.
    """
    return "\n".join(_standing(summary[summary["policy"] == policy]) for policy in POLICIES if policy != AGENT)


def _standing(rows: pd.DataFrame) -> str:
    above, below = rows[rows["lead_low"] > 0.0], rows[rows["lead_high"] < 0.0]
    where = ": " + "; ".join(below["world"] + ", " + below["variant"]) if len(below) else ""
    name = policy_style(rows["policy"].iloc[0]).label
    return f"* Against {name}: above in {len(above)} of {len(rows)}, below in {len(below)}{where}."


def findings(summary: pd.DataFrame) -> dict[str, str]:
    """The overview and the paragraph of every world, each under its heading."""
    worlds = {world[0].upper() + world[1:]: paragraph(summary, world) for world in dict.fromkeys(summary["world"])}
    return {"All at once": overview(summary)} | worlds
