"""Policies that plan by simulation: against futures that may come, or against the one that does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from opd.control.policies import PerDevice, Policy
from opd.measurement import Observation
from opd.pipeline import Configuration, Pipeline
from opd.planner.lookahead import Planner
from opd.workload.futures import Futures


class LookaheadPolicy(Policy):
    """The best of many configurations over futures of the load, see :mod:`opd.planner.lookahead`.

    Args:
        pipeline: the pipeline to control.
        plan: makes the planner for the pipeline as its device is now.
        futures: source of loads that may come.
        seed: of the futures.
    """

    def __init__(
        self, pipeline: Pipeline, plan: Callable[[Pipeline], Planner], futures: Futures, seed: int = 0
    ) -> None:
        self._planners: PerDevice[Planner] = PerDevice(pipeline, plan)
        self._futures = futures
        self._generator = np.random.default_rng(seed)

    def warm_up(self, observation: Observation) -> None:
        """Decide once, with a generator of its own."""
        generator, self._generator = self._generator, np.random.default_rng(0)
        self.decide(observation)
        self._generator = generator

    def decide(self, observation: Observation) -> Configuration:
        """The candidate with the best mean reward over the futures."""
        planner = self._planners.now(observation)
        counts = self._counts(observation, planner)
        return planner.decide(observation, counts, self._generator)

    def _counts(self, observation: Observation, planner: Planner) -> np.ndarray:
        """(F, T) counts per second that may come."""
        return planner.draw(self._futures, observation, self._generator)


class ForesightPolicy(LookaheadPolicy):
    """The same planner, told the requests of every coming second: how much a perfect forecast is worth."""

    def warm_up(self, observation: Observation) -> None:
        """Decide once, as if no request came."""
        super().warm_up(replace(observation, coming_counts=np.zeros(1, dtype=np.int64)))

    def _counts(self, observation: Observation, planner: Planner) -> np.ndarray:
        """(F, T) the counts that come, in every future; after the end of the workload those of its last second.

        Raises:
            ValueError: if the backend does not know the future.
        """
        if observation.coming_counts is None:
            raise ValueError("policy 'foresight' needs the coming load, which only the simulated backend knows")
        coming = observation.coming_counts[: planner.seconds]
        if not len(coming):
            coming = np.zeros(1, dtype=np.int64)
        padded = np.pad(coming, (0, planner.seconds - len(coming)), mode="edge")
        return np.tile(padded, (planner.futures, 1))
