"""Watch: the live page of a pipeline under control, for people at its address and for programs as JSON.

Here the simulator runs it, ten times as fast as time; ``opd serve`` and the controller show the same page.
"""

import json
import time
import urllib.request

from opd.control.factory import build_policy
from opd.control.loop import run
from opd.measurement import SimulationParameters
from opd.objective import Weights
from opd.profiling.pipelines import load_pipeline
from opd.simulator.backend import SimulatedBackend
from opd.solvers import IpaParameters
from opd.view.model import view_of
from opd.view.page import served_page
from opd.workload.forecast import RecentMaximum
from opd.workload.trace import load_trace

DECISIONS = 10

if __name__ == "__main__":
    pipeline, objective, simulation = load_pipeline("nlp"), Weights(), SimulationParameters()
    policy = build_policy("hpa", pipeline, objective, simulation, IpaParameters())
    load = load_trace("synthetic", damping=8).counts[20_000 : 20_120 + DECISIONS * simulation.interval]
    first = pipeline.smallest_configuration()
    backend = SimulatedBackend(pipeline, simulation, load[:120], load[120:], first, seed=0)
    with served_page(("127.0.0.1", 0)) as page:
        print(f"look at {page.url} while it runs")
        for step in run(backend, pipeline, policy, RecentMaximum().predict, objective, DECISIONS):
            page.show(view_of(pipeline, step.configuration, step, state="simulated"))
            with urllib.request.urlopen(f"{page.url}view.json", timeout=10) as answer:
                seen = json.load(answer)
            stages = ", ".join(f"{stage['replicas']} x {stage['variant']}" for stage in seen["view"]["stages"])
            print(f"{seen['course']['load'][-1]:4.1f} requests/s: {stages}")
            time.sleep(simulation.interval / 10)
