"""A policy of your own: any class with ``decide``, held to its limits, replaced where it fails.

The command line takes it as ``module:Class``, as in ``opd serve shop --policy my_policies:Thrifty``.
"""

import numpy as np

from opd.control.factory import build_policy
from opd.control.loop import run
from opd.measurement import Observation, SimulationParameters
from opd.objective import Weights
from opd.pipeline import Pipeline
from opd.profiling.pipelines import load_pipeline
from opd.simulator.backend import SimulatedBackend
from opd.solvers import IpaParameters
from opd.workload.forecast import RecentMaximum


class Thrifty:
    """The smallest variants, and for every five requests/s of forecast load a replica more; fails above 25."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._smallest = pipeline.smallest_configuration()

    def decide(self, observation: Observation) -> list[tuple[int, int, int]]:
        """Variant, replicas and batch size of every stage."""
        if observation.predicted_load > 25.0:
            raise RuntimeError("I never saw such a load")
        return [(stage.variant, 1 + int(observation.predicted_load // 5), 4) for stage in self._smallest]


if __name__ == "__main__":
    pipeline, objective, simulation = load_pipeline("video"), Weights(), SimulationParameters()
    policy = build_policy("__main__:Thrifty", pipeline, objective, simulation, IpaParameters())
    load = np.repeat([4, 8, 12, 30, 8], 10)
    backend = SimulatedBackend(pipeline, simulation, load[:10], load, pipeline.smallest_configuration(), seed=0)
    for step in run(backend, pipeline, policy, RecentMaximum().predict, objective, decisions=5):
        replicas = [stage.replicas for stage in step.configuration]
        reason = f" ({step.refused})" if step.refused else ""
        print(f"forecast {step.predicted_load:2.0f} requests/s: replicas {replicas}{reason}")
