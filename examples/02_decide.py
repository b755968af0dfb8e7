"""Decide: the control loop of Alg. 1 in the simulator, under greedy, ipa, myopic, or the policies that you name."""

import sys

import numpy as np

from opd.control.factory import build_policy
from opd.control.loop import run
from opd.measurement import SimulationParameters
from opd.objective import Weights
from opd.pipeline import configuration_text
from opd.profiling.pipelines import load_pipeline
from opd.simulator.backend import SimulatedBackend
from opd.solvers import IpaParameters
from opd.workload.forecast import RecentMaximum
from opd.workload.trace import load_trace

DECISIONS = 30
FIRST = 20_000  # second of the bundled trace


def main() -> None:
    """Run five minutes under each policy; print the means, and what ran at the end."""
    pipeline, objective, simulation = load_pipeline("video"), Weights(), SimulationParameters()
    counts = load_trace("synthetic", damping=8).counts
    history, load = counts[FIRST - 120 : FIRST], counts[FIRST : FIRST + DECISIONS * simulation.interval]
    print(f"{pipeline.name}: {load.mean():.1f} requests/s in the mean, {load.max()} at most")
    for name in sys.argv[1:] or ("greedy", "ipa", "myopic"):
        policy = build_policy(name, pipeline, objective, simulation, IpaParameters(), simulated=True)
        first = pipeline.smallest_configuration()
        backend = SimulatedBackend(pipeline, simulation, history, load, first, seed=0)
        steps = list(run(backend, pipeline, policy, RecentMaximum().predict, objective, DECISIONS))
        reward, cost = (np.mean([getattr(step.score, figure)[0] for step in steps]) for figure in ("reward", "cost"))
        last = configuration_text(pipeline, steps[-1].configuration)
        print(f"{name:9} reward {reward:6.2f}, {cost:4.1f} cores; at the end {last}")


if __name__ == "__main__":
    main()
