"""Fidelity: predicted against measured performance, under steady load and in the closed loop."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd

from opd.host.progress import progress_bar
from opd.live.calibration import calibrated_by_calls
from opd.live.generator import start_load
from opd.live.load import arrival_times
from opd.live.runs import ANSWER_SECONDS, LiveBackend, LiveRun, LiveSite
from opd.measurement import SimulationParameters
from opd.objective import throughput
from opd.pipeline import Configuration, Pipeline, as_array
from opd.profiling.attainable import attainable_load
from opd.profiling.calibrated import calibrated_pipeline
from opd.serving.local import LocalBackend
from opd.serving.outcomes import COMPLETED
from opd.serving.samples import read_samples
from opd.simulator.simulator import Simulator
from opd.solvers import greedy

SEEDS = range(20)
"""Of the simulator's service noise; predictions are means over them."""


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
    utilisations: Sequence[float],
    seconds: int,
    samples: Path,
    overhead: float,
    folder: Path,
    seed: int = 0,
) -> pd.DataFrame:
    """Run every configuration from little load up to much, and simulate the same arrivals.

    Two predictions precede the load: ``profiled`` from the pipeline's profiles, and ``predicted`` from calibrated ones
    (:func:`opd.live.calibration.calibrated_by_calls`), with the latency that the gateway adds.

    Args:
        backend: the pipeline, up and idle; nothing else should run on the machine.
        parameters: of the simulator.
        configurations: to apply one after the other.
        utilisations: loads, as shares of what each configuration carries as calibrated; Poisson counts.
        seconds: duration of each load.
        samples: file of requests, see :mod:`opd.serving.samples`.
        overhead: seconds that the gateway adds, see :func:`opd.live.calibration.measure_overhead`.
        folder: for the load generator's files.
        seed: of counts, arrival times and requests.

    Returns:
        One row per configuration and load (requests/s): requests offered and completed, and :class:`Performance`
        profiled, predicted and measured.
    """
    rows = []
    rng = np.random.default_rng(seed)
    requests, pipeline = read_samples(samples), backend.pipeline
    for configuration in progress_bar(configurations, unit="configuration", desc="fidelity"):
        backend.apply(configuration)
        calibrated = calibrated_by_calls(backend, requests)
        label = configuration_label(pipeline, configuration)
        for utilisation in utilisations:
            load = utilisation * throughput(calibrated, configuration)
            counts, draw = rng.poisson(load, seconds), int(rng.integers(1 << 31))
            arrivals = arrival_times(counts, draw)
            profiled = predict(pipeline, parameters, configuration, arrivals)
            predicted = predict(calibrated, replace(parameters, added_latency=overhead), configuration, arrivals)
            records = _send(backend, counts, samples, draw, folder)
            row = {"configuration": label, "load": load, "utilisation": utilisation, "offered": len(records)}
            row |= profiled.columns("profiled") | predicted.columns("predicted")
            row["completed"] = int((records["outcome"] == COMPLETED).sum())
            rows.append(row | measured_performance(records).columns("measured"))
    return pd.DataFrame(rows)


OVERLOAD = 1.5
"""Load with which :func:`carried_load` finds the limit, in multiples of what the profile promises."""


def carried_load(
    site: LiveSite,
    pipeline: Pipeline,
    parameters: SimulationParameters,
    samples: Path,
    seconds: int = 20,
    seed: int = 0,
) -> float:
    """Requests/s that a pipeline carries, in its configuration of the highest profiled throughput.

    Where real replicas run on this machine it is measured: what shares the cores with them, such as gateway and load
    generator, counts against it. Elsewhere it is what the profile says.

    Args:
        site: of the pipeline; nothing else should run on the machine.
        pipeline: with its limits.
        parameters: of the simulator.
        samples: file of requests, see :mod:`opd.serving.samples`.
        seconds: duration of the load, which is more than is carried.
        seed: of arrival times and requests.
    """
    promised = attainable_load(pipeline, sys.float_info.max)
    if site.backend != "local":
        return promised
    counts = np.full(seconds, np.ceil(OVERLOAD * promised), dtype=np.int64)
    with site.open_backend(pipeline, parameters, greedy(pipeline, promised)) as backend:
        return measured_performance(_send(backend, counts, samples, seed, site.folder)).throughput


def _send(backend: LiveBackend, counts: np.ndarray, samples: Path, seed: int, folder: Path) -> pd.DataFrame:
    """Send one load to the pipeline and wait for its answers; returns a row per request."""
    output = folder / "fidelity.parquet"
    generator = start_load(backend.address, backend.pipeline.name, counts, samples, seed, output)
    return generator.finish(len(counts) + ANSWER_SECONDS)


def predict(
    pipeline: Pipeline,
    parameters: SimulationParameters,
    configuration: Configuration,
    arrivals: np.ndarray,
) -> Performance:
    """Simulate a fixed configuration under a load.

    Args:
        pipeline: with the latency profiles to use.
        parameters: of the simulator; the interval is set to the duration of the load.
        configuration: ready from the start.
        arrivals: (M,) seconds, ascending.
    """
    seconds = _duration(arrivals)
    settings = replace(parameters, interval=seconds)
    results = []
    for seed in SEEDS:
        simulator = Simulator(pipeline, settings, max_rate=len(arrivals), seed=seed, record_latencies=True)
        simulator.reset(configuration)
        intervals = [simulator.step_arrivals(as_array(configuration), arrivals)]
        while sum(each.completed[0] + each.dropped[0] for each in intervals) < len(arrivals):  # in flight at the end
            intervals.append(simulator.step_arrivals(as_array(configuration), np.empty(0)))
        latencies = np.concatenate([each.latencies[0, : each.completed[0]] for each in intervals])
        results.append((intervals[0].completed[0] / seconds, latencies.mean(), np.quantile(latencies, 0.95)))
    throughput, mean, p95 = np.mean(results, axis=0)
    return Performance(float(throughput), float(mean), float(p95))


def measured_performance(records: pd.DataFrame) -> Performance:
    """Compute the performance from the records of a load.

    Latency counts from the sending: the pipeline cannot help it if the generator is late by a millisecond or two.
    """
    done = records[records["outcome"] == COMPLETED]
    latency = done["finished"] - done["sent"]
    seconds = _duration(records["scheduled"].to_numpy())
    throughput = (done["finished"] < seconds).sum() / seconds
    return Performance(float(throughput), float(latency.mean()), float(latency.quantile(0.95)))


def _duration(arrivals: np.ndarray) -> int:
    """Duration of a load in whole seconds."""
    return int(np.ceil(arrivals[-1]))


def relative_errors(table: pd.DataFrame, prediction: str = "predicted") -> pd.DataFrame:
    """Compute measured / predicted - 1 for every field of :class:`Performance`.

    Args:
        table: of :func:`measure_fidelity`.
        prediction: ``predicted`` or ``profiled``.

    Returns:
        One row per configuration and load, which are columns as well, with the utilisation.
    """
    figures = {name: table[f"{name}_measured"] / table[f"{name}_{prediction}"] - 1.0 for name in Performance._fields}
    return table[["configuration", "load", "utilisation"]].assign(**figures)


def calibrated_in(pipeline: Pipeline, run: LiveRun) -> Pipeline:
    """The pipeline with the latencies that the calibration of a run had found when it ended."""
    found = [step.observation.calibration for step in run.steps if step.observation is not None]
    known = found[-1] if found else None
    return pipeline if known is None else calibrated_pipeline(pipeline, known.factor, known.slope)


def replay(
    pipelines: Mapping[str, Pipeline],
    parameters: SimulationParameters,
    run: LiveRun,
    seeds: Sequence[int],
    added: Mapping[str, float] = MappingProxyType({}),
) -> pd.DataFrame:
    """Predict the latency of every interval of a live run from its arrivals and configurations.

    The simulator changes the configuration in the second in which the live pipeline began to, and its latencies are
    averaged over the seconds that were measured live.

    Args:
        pipelines: the pipeline with different latency profiles, by the name of the prediction.
        parameters: of the simulator.
        run: a live run.
        seeds: of the service noise; predictions are means over them.
        added: seconds that the gateway adds, by the name of the prediction; none for the others.

    Returns:
        One row for each of the K intervals: ``time`` since the first decision and ``seconds`` measured from then on,
        and the mean latency in seconds of the requests answered in that time, ``measured`` and one column per
        prediction; NaN where no request was answered.

    Raises:
        ValueError: if the run itself was simulated.
    """
    if run.records is None:
        raise ValueError("a simulated run has no measurements to compare with; choose another backend")
    spans = np.array([step.span for step in run.steps]) - run.begin
    sent = (run.records["scheduled"] + run.records.attrs["started"] - run.begin).to_numpy()
    within = np.sort(sent[(sent >= 0) & (sent < np.ceil(spans[-1, 1]))])
    predictions = {}
    for name, pipeline in pipelines.items():
        device = pipeline, replace(parameters, added_latency=added.get(name, parameters.added_latency))
        predictions[name] = np.mean([_predicted_latency(*device, run, within, seed) for seed in seeds], axis=0)
    measured = _measured_latency(run.records, run.begin, spans)
    seconds = spans[:, 1] - spans[:, 0]
    return pd.DataFrame({"time": spans[:, 0], "seconds": seconds, "measured": measured, **predictions})


def _predicted_latency(
    pipeline: Pipeline, parameters: SimulationParameters, run: LiveRun, arrivals: np.ndarray, seed: int
) -> list[float]:
    """Mean latency in seconds of each interval, simulated second by second; NaN where no request was answered."""
    spans = np.array([step.span for step in run.steps]) - run.begin
    per_second = np.bincount(arrivals.astype(np.int64), minlength=int(np.ceil(spans[-1, 1])))
    simulator = Simulator(pipeline, replace(parameters, interval=1), max_rate=int(per_second.max()) + 1, seed=seed)
    simulator.reset(run.initial)
    ends = np.cumsum(per_second)
    middles = np.arange(len(per_second)) + 0.5
    decided = np.searchsorted(spans[:-1, 1], middles)  # a change begins when the last interval ends
    sums, completed = np.zeros(len(per_second)), np.zeros(len(per_second))
    for second, (end, count, step) in enumerate(zip(ends, per_second, decided, strict=True)):
        configuration = as_array(run.steps[step].configuration)
        interval = simulator.step_arrivals(configuration, arrivals[end - count : end])
        completed[second] = interval.completed[0]
        sums[second] = interval.completed[0] * interval.latency_mean[0]
    return [_mean_within(middles, sums, completed, *span) for span in spans]


def _mean_within(times: np.ndarray, sums: np.ndarray, counts: np.ndarray, begin: float, end: float) -> float:
    """Mean of ``sums`` over ``counts`` at the times from ``begin`` until ``end``; NaN if nothing was counted."""
    within = (times >= begin) & (times < end)
    count = counts[within].sum()
    return float(sums[within].sum() / count) if count else np.nan


def _measured_latency(records: pd.DataFrame, begin: float, spans: np.ndarray) -> list[float]:
    """Mean latency in seconds of the requests that were answered in each interval."""
    done = records[records["outcome"] == COMPLETED]
    finished = (done["finished"] + records.attrs["started"] - begin).to_numpy()
    latency = (done["finished"] - done["scheduled"]).to_numpy()
    return [_mean_within(finished, latency, np.ones(len(latency)), *span) for span in spans]
