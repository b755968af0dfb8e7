"""Runs of the live evaluation with known requests, and configurations of :func:`small_pipelines.ocr_pipeline`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from small_pipelines import ocr_pipeline

from opd.live.configurations import SchedulePolicy, configurations_from
from opd.live.runs import run_simulated
from opd.live.traffic import Traffic
from opd.measurement import SimulationParameters, Span
from opd.objective import Weights

SMALL, LARGE = configurations_from([[[0, 1, 1], [0, 1, 1]], [[1, 2, 2], [2, 1, 1]]])


def requests(scheduled, latency):
    """Records of a load whose requests were all answered after ``latency`` seconds."""
    scheduled = np.asarray(scheduled, dtype=float)
    table = pd.DataFrame({"scheduled": scheduled, "sent": scheduled, "finished": scheduled + latency})
    table = table.assign(outcome="completed", code="OK", detail="", payload=0, answer="")
    table.attrs = {"started": 1000.0, "seconds": 20.0}
    return table


def run_of(configurations, records=None, begin=1000.0):
    """Run that applies ``configurations`` one after the other, simulated as if it had begun at Unix time ``begin``."""
    traffic = Traffic(np.full(10 + 10 * len(configurations), 4), 10, None, 0)
    schedule = SchedulePolicy(configurations, len(configurations))
    simulated = run_simulated(
        ocr_pipeline(), SimulationParameters(), SMALL, schedule, lambda history: 4.0, Weights(), traffic
    )
    shifted = [replace(step, span=Span(step.span.begin + begin, step.span.end + begin)) for step in simulated.steps]
    return simulated._replace(steps=shifted, records=records, begin=begin)
