"""A step of the control loop with known figures, and views of a loop in the simulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from live_runs import LARGE, SMALL, run_of
from small_pipelines import ocr_pipeline

from opd.control.loop import Step, run
from opd.live.configurations import SchedulePolicy
from opd.measurement import SimulationParameters
from opd.objective import Weights
from opd.simulator.backend import SimulatedBackend
from opd.view.model import View, view_of


def known_step() -> Step:
    """4 requests/s that met what was forecast, served by a configuration that has just been chosen."""
    step = run_of([LARGE]).steps[0]
    latency = {"latency_mean": np.array([0.25]), "latency_p99": np.array([0.5])}
    measured = step.interval._replace(**latency, queue=np.array([[3, 0]]))
    return replace(step, interval=measured, score=step.score._replace(within=np.array([0.975])), decision_seconds=0.012)


def view_after(step: Step, **known) -> View:
    """The view of :func:`small_pipelines.ocr_pipeline` after a step."""
    return view_of(ocr_pipeline(), step.configuration, step, **{"state": "serving", "address": "127.0.0.1:9", **known})


def loop_views(decisions: int):
    """Views of a loop in the simulator that changes the configuration halfway, one after the other."""
    pipeline, counts = ocr_pipeline(), np.full(10 * decisions, 4)
    backend = SimulatedBackend(pipeline, SimulationParameters(), np.full(20, 4), counts, SMALL, 0)
    policy = SchedulePolicy([SMALL, LARGE], decisions)
    for step in run(backend, pipeline, policy, lambda history: 5.0, Weights(), decisions):
        yield view_of(pipeline, step.configuration, step, state="serving")
