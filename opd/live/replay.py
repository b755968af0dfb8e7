"""Replay: a live run's arrivals and configurations in the simulator, to compare predicted and measured latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from opd.live.records import unix_times
from opd.live.runs import LiveRun
from opd.measurement import SimulationParameters
from opd.pipeline import Pipeline, as_array
from opd.serving.protocol import COMPLETED
from opd.simulator.simulator import Simulator


def replay(
    pipelines: Mapping[str, Pipeline], parameters: SimulationParameters, run: LiveRun, seeds: Sequence[int]
) -> pd.DataFrame:
    """Predict the latency of every interval of a live run from its arrivals and configurations.

    Args:
        pipelines: the pipeline with different latency profiles, by the name of the prediction.
        parameters: of the simulator, with the interval of the run.
        run: a live run.
        seeds: of the service noise; predictions are means over them.

    Returns:
        One row for each of the K intervals: ``time`` in seconds, and the mean latency in seconds of the requests
        answered in that interval, ``measured`` and one column per prediction; NaN where no request was answered.

    Raises:
        ValueError: if the run itself was simulated.
    """
    if run.records is None:
        raise ValueError("a simulated run has no measurements to compare with; choose another backend")
    length, intervals = parameters.interval, len(run.steps)
    sent = unix_times(run.records, "scheduled") - run.begin
    within = np.sort(sent[(sent >= 0) & (sent < length * intervals)])
    predictions = {
        name: np.mean([_predicted_latency(pipeline, parameters, run, within, seed) for seed in seeds], axis=0)
        for name, pipeline in pipelines.items()
    }
    measured = _measured_latency(run.records, run.begin, length).reindex(range(intervals))
    times = length * np.arange(intervals)
    return pd.DataFrame({"time": times, "measured": measured.to_numpy(), **predictions})


def _predicted_latency(
    pipeline: Pipeline, parameters: SimulationParameters, run: LiveRun, arrivals: np.ndarray, seed: int
) -> list[float]:
    """Mean latency in seconds of each simulated interval; NaN where no request was answered."""
    most = int(np.bincount(arrivals.astype(np.int64), minlength=1).max()) + 1
    simulator = Simulator(pipeline, parameters, max_rate=most, seed=seed)
    simulator.reset(run.initial)
    means, length = [], parameters.interval
    for k, step in enumerate(run.steps):
        times = arrivals[(arrivals >= k * length) & (arrivals < (k + 1) * length)]
        interval = simulator.step_arrivals(as_array(step.configuration), times)
        means.append(float(interval.latency_mean[0]) if interval.completed[0] else np.nan)
    return means


def _measured_latency(records: pd.DataFrame, begin: float, length: int) -> pd.Series:
    """Mean latency in seconds by the index of the interval in which a request was answered."""
    done = records[records["outcome"] == COMPLETED]
    number = np.floor((unix_times(done, "finished") - begin) / length)
    return pd.Series((done["finished"] - done["scheduled"]).to_numpy()).groupby(number).mean()
