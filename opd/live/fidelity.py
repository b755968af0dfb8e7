"""Fidelity: predicted against measured performance for fixed configurations under steady load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from opd.live.calibration import measure_served_latencies, with_served_latencies
from opd.live.load import read_payloads, start_load
from opd.live.open_loop import arrival_times
from opd.live.runs import ANSWER_SECONDS
from opd.measurement import SimulationParameters
from opd.pipeline import Configuration, Pipeline, as_array
from opd.serving.local import LocalBackend
from opd.serving.protocol import COMPLETED
from opd.simulator.simulator import Simulator

SEEDS = range(20)
"""Of the simulator's service noise; predictions are means over them."""


RECORDS = "fidelity.parquet"
"""File for the records of a load."""


class Performance(NamedTuple):
    """Performance of a pipeline under a given load, predicted or measured.

    Attributes:
        throughput: requests/s answered during the load.
        latency_mean: seconds.
        latency_p95: seconds.
    """

    throughput: float
    latency_mean: float
    latency_p95: float

    def columns(self, suffix: str) -> dict[str, float]:
        """The figures by column name, for example ``throughput_measured``."""
        return {f"{name}_{suffix}": value for name, value in self._asdict().items()}


def configuration_label(pipeline: Pipeline, configuration: Configuration) -> str:
    """Describe a configuration in one line: variant, replicas and batch size of every stage."""
    chosen = pipeline.selected(configuration)
    return " + ".join(f"{variant.name} x{stage.replicas} b{stage.batch_size}" for variant, stage in chosen)


def measure_fidelity(
    backend: LocalBackend,
    parameters: SimulationParameters,
    configurations: Sequence[Configuration],
    loads: Sequence[float],
    seconds: int,
    payloads: Path,
    overhead: float,
    folder: Path,
    seed: int = 0,
) -> pd.DataFrame:
    """Run every configuration under every load, and simulate exactly the same arrivals.

    Two predictions precede the load: ``profiled`` from the pipeline's profiles, and ``predicted`` from calibrated ones
    (:func:`opd.live.calibration.measure_served_latencies`), plus the latency of router and queues.

    Args:
        backend: the pipeline, up and idle; nothing else should run on the machine.
        parameters: of the simulator.
        configurations: to apply one after the other.
        loads: mean requests/s; the count of each second is drawn from a Poisson distribution.
        seconds: duration of each load.
        payloads: Parquet file of payloads.
        overhead: seconds that router and queues add on an idle pipeline (:func:`opd.live.overhead.measure_overhead`).
        folder: for the load generator's files.
        seed: of counts, arrival times and payloads.

    Returns:
        One row per configuration and load: requests offered and completed, and :class:`Performance` profiled,
        predicted and measured.
    """
    rows = []
    generator = np.random.default_rng(seed)
    contents, pipeline = read_payloads(payloads), backend.pipeline
    with tqdm(total=len(configurations) * len(loads), unit="run", desc="fidelity") as progress:
        for configuration in configurations:
            backend.apply(configuration)
            calibrated = with_served_latencies(pipeline, configuration, measure_served_latencies(backend, contents))
            label = configuration_label(pipeline, configuration)
            for load in loads:
                counts, draw = generator.poisson(load, seconds), int(generator.integers(1 << 31))
                arrivals = arrival_times(counts, draw)
                profiled = predict(pipeline, parameters, configuration, arrivals)
                predicted = predict(calibrated, parameters, configuration, arrivals, overhead)
                process = start_load(backend.address, pipeline.name, counts, payloads, draw, folder / RECORDS)
                records = process.finish(seconds + ANSWER_SECONDS)
                row = {"configuration": label, "load": load, "offered": len(records)}
                rows.append(row | profiled.columns("profiled") | predicted.columns("predicted") | _measured(records))
                progress.update()
    return pd.DataFrame(rows)


def predict(
    pipeline: Pipeline,
    parameters: SimulationParameters,
    configuration: Configuration,
    arrivals: np.ndarray,
    overhead: float = 0.0,
) -> Performance:
    """Simulate a fixed configuration under a load.

    Args:
        pipeline: with the latency profiles to use.
        parameters: of the simulator; the interval is set to the duration of the load.
        configuration: ready from the start.
        arrivals: (M,) seconds, ascending.
        overhead: seconds to add to the simulated latencies.
    """
    seconds = _duration(arrivals)
    settings = replace(parameters, interval=seconds)
    results = []
    for seed in SEEDS:
        simulator = Simulator(pipeline, settings, max_rate=len(arrivals), seed=seed, record_latencies=True)
        simulator.reset(configuration)
        interval = simulator.step_arrivals(as_array(configuration), arrivals)
        throughput, ended = interval.completed[0] / seconds, interval.completed[0] + interval.dropped[0]
        latencies = [interval.latencies[0, : interval.completed[0]]]
        while ended < len(arrivals):  # requests in flight at the end of the load
            interval = simulator.step_arrivals(as_array(configuration), np.empty(0))
            ended += interval.completed[0] + interval.dropped[0]
            latencies.append(interval.latencies[0, : interval.completed[0]])
        together = np.concatenate(latencies)
        results.append((throughput, together.mean(), np.quantile(together, 0.95)))
    throughput, mean, p95 = np.mean(results, axis=0)
    return Performance(float(throughput), float(mean) + overhead, float(p95) + overhead)


def measured_performance(records: pd.DataFrame) -> Performance:
    """Compute the performance from the records of a load.

    Latency counts from the sending: the pipeline cannot help it if the generator is late by a millisecond or two.
    """
    done = records[records["outcome"] == COMPLETED]
    latency = done["finished"] - done["sent"]
    seconds = _duration(records["scheduled"].to_numpy())
    throughput = (done["finished"] < seconds).sum() / seconds
    return Performance(float(throughput), float(latency.mean()), float(latency.quantile(0.95)))


def _measured(records: pd.DataFrame) -> dict[str, float]:
    """The measured columns of :func:`measure_fidelity`."""
    completed = int((records["outcome"] == COMPLETED).sum())
    return {"completed": completed, **measured_performance(records).columns("measured")}


def _duration(arrivals: np.ndarray) -> int:
    """Duration of a load in whole seconds."""
    return int(np.ceil(arrivals[-1]))


def relative_errors(table: pd.DataFrame, prediction: str = "predicted") -> pd.DataFrame:
    """Compute measured / predicted - 1 for every field of :class:`Performance`.

    Args:
        table: of :func:`measure_fidelity`.
        prediction: ``predicted`` or ``profiled``.

    Returns:
        One row per configuration and load, which are columns as well.
    """
    figures = {name: table[f"{name}_measured"] / table[f"{name}_{prediction}"] - 1.0 for name in Performance._fields}
    return table[["configuration", "load"]].assign(**figures)
