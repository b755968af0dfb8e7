"""Lookahead: the candidate that does best over futures of the load, by rollouts and successive halving.

Every candidate is simulated from the present state: what waits, what is being served, which replicas are starting. The
first interval runs the candidate; then the solver goes on, which knows the load that comes in this future. All
candidates meet the same futures. After each round only the best stay, and meet more futures.

A rollout is just long enough for every replica that the candidate starts to serve. Later intervals say less about the
candidate than about the solver that goes on, and more about the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from opd.measurement import Interval, Observation, SimulationParameters, StageState, backlog, planned_load, score
from opd.objective import Objective
from opd.pipeline import Configuration, Pipeline, ServiceLevel, as_array, as_configuration
from opd.planner.candidates import feasible, neighbours
from opd.planner.expected import expected_rewards
from opd.planner.present import present_stages
from opd.profiling.attainable import attainable_load
from opd.simulator.rollouts import Arrivals, Continuation, RolloutSimulator, draw_arrivals
from opd.solvers.exact import Solve
from opd.workload.futures import Futures

DROP_PENALTY = 0.05
"""Reward lost per dropped request, as in training: Eq. 7 itself does not count them."""

LIKELY = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Quantiles of the futures' loads that stand for all of them in closed form."""


@dataclass(frozen=True)
class PlannerParameters:
    """Effort of a decision.

    Attributes:
        intervals: length of a rollout at least; more where replicas start slowly, so that each serves within it.
        futures: those that the candidates of each round meet in addition to those of the rounds before.
        kept: share of the candidates that go on to the next round.
        fewest: candidates that go on at least.
        tried: candidates of the first round, those with the best expected reward in closed form; all of them where the
            objective is a service level.
        loads: number of loads for which the solver's configurations are kept.
        milliseconds: no round begins after so much time, so that the best of the last one is decided; results then
            depend on the machine.
    """

    intervals: int = 2
    futures: tuple[int, ...] = (8, 16, 32)
    kept: float = 0.3
    fewest: int = 4
    tried: int = 24
    loads: int = 48
    milliseconds: float = float("inf")


class Planner:
    """Plans for one pipeline.

    Args:
        pipeline: as its device is now, N tasks.
        objective: of the reward.
        simulation: behaviour of the device.
        solve: the solver that proposes candidates and goes on after the first interval.
        parameters: effort of a decision.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        objective: Objective,
        simulation: SimulationParameters,
        solve: Solve,
        parameters: PlannerParameters,
    ) -> None:
        self._pipeline, self._objective, self._simulation, self._solve = pipeline, objective, simulation, solve
        self._parameters = parameters
        self._rollouts = RolloutSimulator(pipeline, simulation)
        self._intervals = intervals_to_serve(pipeline, simulation, parameters.intervals)
        highest = max(attainable_load(pipeline, np.finfo(float).max), 1.0)
        loads = np.unique(np.append(np.geomspace(1.0, highest, parameters.loads).round(1), 0.0))
        self._continuation = Continuation(loads, np.array([as_array(solve(pipeline, load)) for load in loads]))

    @property
    def futures(self) -> int:
        """Number of futures that a decision takes."""
        return sum(self._parameters.futures)

    @property
    def seconds(self) -> int:
        """Length of a rollout."""
        return self._intervals * self._simulation.interval

    def draw(self, futures: Futures, observation: Observation, generator: np.random.Generator) -> np.ndarray:
        """(F, T) requests of each second that may come, as many futures and as long as a decision takes."""
        history, load = observation.history, observation.predicted_load
        return futures.sample(history, load, self.futures, self.seconds, generator)

    def candidates(self, observation: Observation, near: Sequence[np.ndarray] = ()) -> np.ndarray:
        """(C, N, 3) configurations to try: neighbours of the running, solved and further ones; those of other loads."""
        load = planned_load(observation)
        loads = {load, load + backlog(observation, self._simulation.interval)}  # one where nothing waits
        solved = [as_array(self._solve(self._pipeline, each)) for each in loads]
        around = [neighbours(self._pipeline, each) for each in (as_array(observation.configuration), *solved, *near)]
        return feasible(self._pipeline, np.concatenate([*around, self._continuation.table]))

    def decide(self, observation: Observation, counts: np.ndarray, generator: np.random.Generator) -> Configuration:
        """The best candidate; see :meth:`compare`."""
        candidates, values = self.compare(observation, counts, generator)
        return as_configuration(candidates[int(np.argmax(values))])

    def compare(
        self, observation: Observation, counts: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """The candidates of the last round, and what they are worth.

        Args:
            observation: the present.
            counts: (F, T) requests of each second of the futures, :attr:`futures` and :attr:`seconds` of them.
            generator: of the arrivals within each second, and of service times.

        Returns:
            (C, N, 3) candidates; (C,) mean reward of an interval over the futures, less what dropped requests cost.
        """
        begin, p = perf_counter(), self._parameters
        arrivals, stages = self._placed(observation, counts, generator)
        candidates = self._promising(self.candidates(observation), stages, counts)
        total, met = np.zeros(len(candidates)), 0
        for futures in p.futures:
            if met and 1e3 * (perf_counter() - begin) > p.milliseconds:
                break
            if met:
                kept = max(int(np.ceil(p.kept * len(candidates))), p.fewest)
                best = np.argsort(-total, kind="stable")[:kept]
                candidates, total = candidates[best], total[best]
            total = total + self._returns(candidates, arrivals.part(met, met + futures), generator).sum(axis=1)
            met += futures
        return candidates, total / met

    def appraise(
        self, observation: Observation, candidates: np.ndarray, counts: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        """(C,) what each of (C, N, 3) configurations is worth, all in the same futures; see :meth:`compare`."""
        arrivals, _ = self._placed(observation, counts, generator)
        return self._returns(candidates, arrivals, generator).mean(axis=1)

    def _placed(
        self, observation: Observation, counts: np.ndarray, generator: np.random.Generator
    ) -> tuple[Arrivals, tuple[StageState, ...]]:
        """Begin rollouts at the present: the arrivals that they meet, and what is under way in each stage."""
        arrivals = draw_arrivals(counts, self._simulation.interval, generator)
        stages = present_stages(self._pipeline, observation)
        self._rollouts.place(stages, arrivals)
        return arrivals, stages

    def _promising(self, candidates: np.ndarray, stages: tuple[StageState, ...], counts: np.ndarray) -> np.ndarray:
        """Those of (C, N, 3) candidates with the best expected reward under quantiles of the futures' loads."""
        if isinstance(self._objective, ServiceLevel) or len(candidates) <= self._parameters.tried:
            return candidates
        means = counts.reshape(len(counts), self._intervals, -1).mean(axis=2)
        loads = np.quantile(means, LIKELY, axis=0)
        values = expected_rewards(self._pipeline, self._objective, self._simulation, stages, candidates, loads)
        return candidates[np.argsort(-values, kind="stable")[: self._parameters.tried]]

    def _returns(self, candidates: np.ndarray, arrivals: Arrivals, generator: np.random.Generator) -> np.ndarray:
        """(C, F) mean reward of an interval, less what dropped requests cost."""
        ran, interval = self._rollouts.run(candidates, arrivals, self._continuation, generator)
        return returns(self._pipeline, self._objective, ran, interval, self._simulation.interval)


def intervals_to_serve(pipeline: Pipeline, simulation: SimulationParameters, fewest: int) -> int:
    """Intervals of a rollout in which every replica that is started serves for one; at least ``fewest``."""
    slowest = pipeline.tables.startup_time[np.isfinite(pipeline.tables.startup_time)].max()
    return max(fewest, 1 + int(np.ceil(slowest / simulation.interval)))


def returns(
    pipeline: Pipeline, objective: Objective, configurations: np.ndarray, interval: Interval, seconds: float
) -> np.ndarray:
    """Mean reward of an interval, less what dropped requests cost.

    Args:
        pipeline: the pipeline, N tasks.
        objective: of the reward.
        configurations: (..., H, N, 3) what ran in H intervals.
        interval: their measurements, with leading axes (..., H).
        seconds: length of an interval.

    Returns:
        (...).
    """
    reward = score(pipeline, objective, configurations, interval, seconds).reward
    return np.asarray((reward - DROP_PENALTY * interval.dropped).mean(axis=-1))
