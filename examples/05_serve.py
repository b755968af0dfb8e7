"""Serve: the real gateway and control loop on this machine, replicas emulated; a client sends requests meanwhile.

The same in two terminals: ``opd serve video --emulated --policy myopic`` and ``opd load video --emulated --rate 10``.
"""

import asyncio
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np

from opd.control.factory import build_policy
from opd.control.sharing import StaticSplit
from opd.live.load import offer, summary
from opd.live.serve import Served, serve
from opd.measurement import SimulationParameters
from opd.objective import Weights
from opd.profiling.pipelines import load_pipeline
from opd.serving.emulation.requests import emulated_samples
from opd.serving.samples import read_samples
from opd.solvers import IpaParameters
from opd.view.terminal import line
from opd.workload.forecast import RecentMaximum

if __name__ == "__main__":
    pipeline, objective, simulation = load_pipeline("video"), Weights(), SimulationParameters(interval=5)
    policy, forecast = build_policy("myopic", pipeline, objective, simulation, IpaParameters()), RecentMaximum().predict
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as thread:
        samples = read_samples(emulated_samples(Path(folder)))
        served = Served(pipeline, policy, forecast, objective, simulation, Path(folder), emulated=True)
        with closing(serve([served], StaticSplit((pipeline.capacity,)))) as views:
            first = next(views)  # it serves
            records = thread.submit(asyncio.run, offer(first.address, first.pipeline, np.full(15, 10), samples, seed=0))
            for view in views:
                print(line(view))
                if records.done():
                    break
    print({name: value for name, value in summary(records.result()).items() if name in ("offered", "completed")})
