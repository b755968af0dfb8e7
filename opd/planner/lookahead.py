"""Lookahead: the candidate that does best over sampled futures, by rollouts and successive halving.

Every candidate is simulated from the present state: what waits, which replicas are starting, what is being served. The
first interval runs the candidate; then a solver goes on that knows the future's own peaks. Candidates meet the same
futures. After each round only the best go on, against more futures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from opd.measurement import Observation, score
from opd.pipeline import Configuration, Pipeline, as_array, as_configuration
from opd.planner.candidates import feasible, neighbours
from opd.simulator.rollouts import Arrivals, Continuation, RolloutSimulator, draw_arrivals

Solve = Callable[[Pipeline, float], Configuration]

DROP_PENALTY = 0.05
"""Reward lost per dropped request."""


class PlannerParameters(NamedTuple):
    """Effort of a decision."""

    intervals: int = 5
    rounds: tuple[tuple[float, int], ...] = ((1.0, 2), (0.3, 4), (0.3, 8))
    loads: int = 48


class Planner:
    """Plans for one pipeline on a device of given cores.

    Args:
        pipeline: the pipeline.
        objective: of the reward.
        simulation: behaviour of the device.
        solve: the solver that makes candidates and goes on after the first interval.
        max_rate: largest number of requests in any one second of a future.
        parameters: effort of a decision.
    """

    def __init__(self, pipeline, objective, simulation, solve, max_rate, parameters=PlannerParameters()):
        self.pipeline, self.objective, self.simulation, self.parameters = pipeline, objective, simulation, parameters
        self._solve = solve
        self._rollouts = RolloutSimulator(pipeline, simulation, max_rate)
        loads = np.unique(np.rint(np.geomspace(1.0, 2.0 * max_rate, parameters.loads)))
        self.continuation = Continuation(loads, np.array([as_array(solve(pipeline, load)) for load in loads]))

    def candidates(self, observation: Observation) -> np.ndarray:
        """(C, N, 3) configurations to try."""
        running = as_array(observation.configuration)
        load = max(observation.predicted_load, observation.incoming_load)
        solved = [as_array(self._solve(self.pipeline, each)) for each in (load, load + observation.queue.sum() / 10.0)]
        near = [neighbours(self.pipeline, each) for each in (running, *solved)]
        return feasible(self.pipeline, np.concatenate([*near, self.continuation.table]))

    def decide(self, observation: Observation, counts: np.ndarray, generator: np.random.Generator, loads=None) -> Configuration:
        """The best candidate against futures (F, seconds) of counts."""
        seconds = self.simulation.interval
        arrivals = draw_arrivals(counts, seconds, generator)
        if loads is not None:
            arrivals = arrivals._replace(loads=loads)
        self._rollouts.place(observation.stages)
        candidates = self.candidates(observation)
        total = np.zeros(len(candidates))
        done = 0
        for share, futures in self.parameters.rounds:
            keep = max(int(np.ceil(share * len(candidates))), min(4, len(candidates)))
            best = np.argsort(-total, kind="stable")[:keep]
            candidates, total = candidates[best], total[best]
            part = Arrivals(
                arrivals.times[done : done + futures],
                arrivals.loads[done : done + futures, : self.parameters.intervals],
            )
            if not len(part.times):
                break
            total = total + self._returns(candidates, part).sum(axis=1)
            done += futures
        return as_configuration(candidates[int(np.argmax(total))])

    def _returns(self, candidates: np.ndarray, arrivals: Arrivals) -> np.ndarray:
        """(C, F) mean reward of an interval, less the penalty of what is dropped."""
        ran, interval = self._rollouts.run(candidates, arrivals, self.continuation)
        reward = score(self.pipeline, self.objective, ran, interval, self.simulation.interval).reward
        return (reward - DROP_PENALTY * interval.dropped).mean(axis=2)
