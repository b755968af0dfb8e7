"""Episodes for training on generated pipelines: a pipeline, a device, a load, and what the agent sees of them."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from opd.agent.description import Description, Situations, core_price, describe
from opd.agent.experience import episode_starts
from opd.measurement import Interval, Score, SimulationParameters
from opd.objective import Objective
from opd.pipeline import Pipeline, from_choices, to_choices
from opd.planner.lookahead import DROP_PENALTY
from opd.profiling.calibrated import calibrated_pipeline
from opd.profiling.generated import draw_speed, generate_pipeline
from opd.simulator.environment import PipelineVectorEnv
from opd.solvers.exact import Solve, solver_for
from opd.workload.forecast import Forecaster
from opd.workload.futures import Futures
from opd.workload.quantile_futures import futures_of
from opd.workload.rescaled import RescaledFutures
from opd.workload.trace import Split, Trace, Workload, burst_starts

REDUCED_SHARE = 0.3
"""Share of the generated devices on which other work takes some of the cores."""

STRETCH = 4320
"""Decisions of the load that a generated pipeline meets, those of half a day; fewer where the load is shorter."""

BURST_SHARE = 0.3
"""Share of the episodes that begin shortly before a burst of the load."""


class Load(NamedTuple):
    """The load of some days with all its forecasts.

    Attributes:
        workload: counts and forecast maxima.
        quantiles: (D + 1, 6, 7) quantiles of the mean load of the coming intervals at every decision.
        bursts: decisions at which the load jumps.
        futures: source of loads that may follow.
    """

    workload: Workload
    quantiles: np.ndarray
    bursts: np.ndarray
    futures: Futures

    @classmethod
    def of(cls, trace: Trace, split: Split, forecaster: Forecaster, interval: int) -> Load:
        """Make the load of one split of a trace; the forecaster has learned from its training split."""
        workload = Workload.of(trace, split, interval, forecaster.predict_many)
        ends = np.arange(1, workload.decisions + 1) * interval
        quantiles = forecaster.quantiles(workload.counts, ends)
        bursts = (burst_starts(trace, split) - trace.split(split).start) // interval
        return cls(workload, np.concatenate([quantiles[:1], quantiles]), bursts, futures_of(forecaster))

    def stretch(self, first: int, decisions: int) -> Load:
        """Some decisions of this load, from number ``first`` on."""
        interval = self.workload.interval
        counts = self.workload.counts[first * interval : (first + decisions) * interval]
        forecasts = self.workload.forecasts[first : first + decisions + 1]
        bursts = self.bursts[(self.bursts >= first) & (self.bursts < first + decisions)] - first
        quantiles = self.quantiles[first : first + decisions + 1]
        return Load(Workload(counts, forecasts, interval), quantiles, bursts, self.futures)

    def rescaled(self, recorded: np.ndarray, damping: int, factor: float) -> Load:
        """The same load at another damping of the recorded counts; ``factor`` leads from it to this one."""
        scaled = Workload(recorded // damping, self.workload.forecasts / factor, self.workload.interval)
        return Load(scaled, self.quantiles / factor, self.bursts, RescaledFutures(self.futures, factor))


class PracticeProblem(NamedTuple):
    """A pipeline to practise on.

    Attributes:
        pipeline: as its device is.
        objective: of the reward.
        simulation: behaviour of the device.
        solve: the exact solver of the objective.
        description: of all of it.
        load: that it meets.
    """

    pipeline: Pipeline
    objective: Objective
    simulation: SimulationParameters
    solve: Solve
    description: Description
    load: Load


def practice_problem(
    pipeline: Pipeline, objective: Objective, simulation: SimulationParameters, load: Load
) -> PracticeProblem:
    """The problem of a pipeline under a load."""
    solve = solver_for(objective, simulation)
    description = describe(pipeline, objective, simulation, solve)
    return PracticeProblem(pipeline, objective, simulation, solve, description, load)


def generated_problem(
    seed: int, simulation: SimulationParameters, trace: Trace, split: Split, load: Load
) -> PracticeProblem:
    """A generated pipeline on a device of any speed, perhaps with fewer free cores, under a load of its scale."""
    generated = generate_pipeline(seed)
    rng = np.random.default_rng([seed, 7])
    pipeline = calibrated_pipeline(generated.pipeline, np.full(generated.pipeline.tables.cores.shape, draw_speed(rng)))
    if rng.random() < REDUCED_SHARE:
        least = pipeline.smallest_cores
        pipeline = replace(pipeline, capacity=int(rng.integers(least, pipeline.capacity, endpoint=True)))
    damping = generated.damping(int(trace.recorded[trace.split("train")].max()))
    decisions = min(STRETCH, load.workload.decisions)
    first = int(rng.integers(load.workload.decisions - decisions, endpoint=True))
    seconds = slice(first * simulation.interval, (first + decisions) * simulation.interval)
    recorded = trace.recorded[trace.split(split)][seconds]
    own = load.stretch(first, decisions).rescaled(recorded, damping, damping / trace.damping)
    return practice_problem(pipeline, generated.objective, simulation, own)


class Episodes:
    """E episodes on one problem.

    Args:
        problem: pipeline, objective, device and load.
        decisions: (E,) of the workload at which they begin.
        choices: (E, N, 3) running at the beginning.
        length: decisions in an episode.
        seed: of arrivals and service times.
    """

    def __init__(
        self, problem: PracticeProblem, decisions: np.ndarray, choices: np.ndarray, length: int, seed: int
    ) -> None:
        p, self.problem = problem, problem
        many = len(decisions)
        self.envs = PipelineVectorEnv(
            p.pipeline, p.load.workload, p.objective, p.simulation, length, num_envs=many, seed=seed
        )
        self.envs.begin(np.arange(many), decisions, from_choices(choices))

    def loads(self) -> np.ndarray:
        """(E, 3) requests/s, see :class:`~opd.agent.description.Situations`."""
        envs, load = self.envs, self.problem.load
        incoming = load.workload.windows(envs.decision - 1).mean(axis=1)
        planned = np.maximum(load.workload.forecasts[envs.decision], incoming)
        waiting = envs.queue.sum(axis=1) / self.problem.simulation.interval
        return np.stack([incoming, planned, waiting], axis=1)

    def situations(self) -> Situations:
        """What the agent sees now."""
        envs, interval = self.envs, self.problem.simulation.interval
        serving, starting, wait = envs.simulator.replica_counts()
        return Situations(
            self.loads(),
            self.problem.load.quantiles[envs.decision],
            to_choices(envs.configurations),
            serving,
            starting,
            wait / interval,
            envs.task_latency,
            envs.ready_throughput,
            envs.queue.astype(np.float64),
        )

    def run(self, choices: np.ndarray) -> tuple[np.ndarray, Score, Interval]:
        """Run choices (E, N, 3) for an interval; the first result is (E,) reward less dropped requests, in cores."""
        score, interval = self.envs.run_interval(from_choices(choices))
        value = (score.reward - DROP_PENALTY * interval.dropped) / core_price(self.problem.objective)
        return value, score, interval


def begin_practice(problem: PracticeProblem, many: int, length: int, rng: np.random.Generator) -> Episodes:
    """Episodes at random decisions, some shortly before bursts, running what is solved for about the present load."""
    load, d = problem.load, problem.description
    latest = load.workload.decisions - length - 1
    decisions = episode_starts(latest, load.bursts, int(round(BURST_SHARE * many)), many, length, rng)
    loads = load.workload.windows(decisions - 1).mean(axis=1) * rng.lognormal(0.1, 0.25, many)
    return Episodes(problem, decisions, solved_choices(d, loads), length, int(rng.integers(2**31)))


def solved_choices(description: Description, loads: np.ndarray) -> np.ndarray:
    """(E, N, 3) the solver's choices for loads (E,)."""
    rows = np.minimum(np.searchsorted(description.loads, loads), len(description.loads) - 1)
    return description.solved[rows]
