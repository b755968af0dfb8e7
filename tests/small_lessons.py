"""A lesson to test with: a trace of six hours, and a forecaster that has hardly learned."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from small_trainings import BARELY

from opd.agent.demonstrations import Lesson
from opd.agent.lessons import prepare_lesson
from opd.measurement import SimulationParameters
from opd.workload.forecast import Forecaster
from opd.workload.trace_limits import MIN_SECONDS


class Prepared(NamedTuple):
    """Sources and folder that a lesson was prepared from, and what came of it."""

    sources: list[str]
    folder: Path
    lesson: Lesson
    forecasters: dict[str, Forecaster]


def prepared_in(folder: Path) -> Prepared:
    """The lesson of a load that swings between 100 and 500 requests/s, at damping 8."""
    rate = 300.0 + 200.0 * np.sin(np.arange(MIN_SECONDS) / 900.0)
    pd.DataFrame({"count": np.random.default_rng(0).poisson(rate)}).to_csv(folder / "waves.csv", index=False)
    sources = [str(folder / "waves.csv")]
    return Prepared(sources, folder, *prepare_lesson(sources, 8, BARELY, SimulationParameters(), 3, folder))
