"""Records of simulated runs, whose every figure is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from live_runs import LARGE, SMALL
from small_pipelines import ocr_pipeline

from opd.control.loop import Step, run
from opd.control.record import append_entry, step_entry
from opd.live.configurations import SchedulePolicy
from opd.measurement import SimulationParameters
from opd.objective import Weights
from opd.simulator.backend import SimulatedBackend

PIPELINE = ocr_pipeline()
QUIET = SimulationParameters(service_noise=0.0)
HISTORY, COUNTS = np.full(120, 3), np.tile([2, 3, 4, 3, 3], 20)


def recorded_run(file: Path, schedule=(SMALL, LARGE)) -> list[Step]:
    """Write the record of ten intervals in which the configurations were applied in turn, and return the steps."""
    backend = SimulatedBackend(PIPELINE, QUIET, HISTORY, COUNTS, SMALL, seed=1)
    policy = SchedulePolicy(list(schedule), 10)
    steps = list(run(backend, PIPELINE, policy, lambda history: 4.0, Weights(), 10))
    for step in steps:
        append_entry(file, step_entry(PIPELINE, step))
    return steps
