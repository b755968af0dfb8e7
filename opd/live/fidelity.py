"""How well the simulator predicts the live pipeline: fixed configurations, steady load, the same arrivals in both."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from opd.live import load
from opd.live.overhead import PAUSE_SECONDS, TIMEOUT
from opd.live.runs import ANSWER_SECONDS
from opd.pipeline import Configuration, Pipeline, StageConfiguration, as_array
from opd.serving.client import Client, complete
from opd.serving.local import LocalBackend
from opd.serving.protocol import COMPLETED
from opd.simulator.parameters import SimulationParameters
from opd.simulator.simulator import Simulator

SEEDS = range(20)
"""Of the simulator's service noise; predictions are means over them."""

WARM_UP_CALLS = 5

FIGURES = ("throughput", "latency_mean", "latency_p95")
"""What is predicted and measured: requests/s, seconds, seconds."""


def label(pipeline: Pipeline, configuration: Configuration) -> str:
    """A configuration in one line: variant, replicas and batch size of every stage."""
    chosen = pipeline.selected(configuration)
    return " + ".join(f"{variant.name} x{stage.replicas} b{stage.batch_size}" for variant, stage in chosen)


async def _paced_calls(
    replicas: Sequence[Client], batch_sizes: Sequence[int], payloads: Sequence[bytes], calls: int
) -> list[dict[int, float]]:
    results: list[dict[int, float]] = []
    for replica in replicas:
        means, answers = {}, []
        for size in batch_sizes:
            seconds = []
            for call in range(calls):
                batch = [payloads[(call + place) % len(payloads)] for place in range(size)]
                await asyncio.sleep(PAUSE_SECONDS)
                begin = time.perf_counter()
                answers += await replica.infer(batch, 0.0, TIMEOUT)
                seconds.append(time.perf_counter() - begin)
            means[size] = float(np.mean(seconds[WARM_UP_CALLS:]))
        results.append(means)
        payloads = answers
    return results


def served_latency(
    backend: LocalBackend, payloads: Sequence[bytes], calls: int = 30 + WARM_UP_CALLS
) -> list[dict[int, float]]:
    """What a queue waits for a replica of each stage: one call after the other, with pauses as under light load.

    Beyond the model's own time that is gRPC, MLServer and waking up a process that slept; the profiler, which calls
    the model in a busy loop, sees none of it.

    Args:
        backend: the pipeline, up and idle.
        payloads: for the first stage; each further stage gets the answers of the one before.
        calls: of each batch size up to the largest of the configuration.

    Returns:
        of every stage, mean seconds by batch size.
    """

    async def measure() -> list[dict[int, float]]:
        replicas = [Client(stage.replicas[0].process.grpc_address, stage.task.name) for stage in backend.stages]
        try:
            largest = max(stage.batch_size for stage in backend.configuration)
            sizes = [size for size in backend.pipeline.batch_sizes if size <= largest]
            return await _paced_calls(replicas, sizes, payloads, calls)
        finally:
            for replica in replicas:
                await replica.close()

    return complete(measure())


def calibrated(pipeline: Pipeline, configuration: Configuration, latencies: Sequence[dict[int, float]]) -> Pipeline:
    """The pipeline in which the variants of ``configuration`` take as long as they did when served.

    Args:
        pipeline: with its profiles.
        configuration: what was served.
        latencies: of :func:`served_latency`; batch sizes that are not among them stay as profiled.
    """
    tasks = []
    for task, stage, latency in zip(pipeline.tasks, configuration, latencies, strict=True):
        variants = list(task.variants)
        profiled = variants[stage.variant]
        variants[stage.variant] = replace(profiled, latency={**profiled.latency, **latency})
        tasks.append(replace(task, variants=tuple(variants)))
    return replace(pipeline, tasks=tuple(tasks))


def calibrate(backend: LocalBackend, configurations: Sequence[Configuration], payloads: Path) -> Pipeline:
    """The pipeline in which every variant that ``configurations`` run takes as long as it does here and now.

    Args:
        backend: the pipeline, up and idle; nothing else should run on the machine.
        configurations: of the variants that matter, and of their batch sizes.
        payloads: Parquet file of payloads.
    """
    pages, pipeline = _payloads(payloads), backend.pipeline
    for configuration in tqdm(covering(configurations), unit="configuration", desc="calibration"):
        backend.apply(configuration)
        pipeline = calibrated(pipeline, configuration, served_latency(backend, pages))
    return pipeline


def covering(configurations: Sequence[Configuration]) -> list[Configuration]:
    """A few configurations of single replicas in which every variant of the given ones runs, at their largest batch."""
    largest = max(stage.batch_size for configuration in configurations for stage in configuration)
    chosen: list[Configuration] = []
    covered: set[tuple[int, int]] = set()
    for configuration in configurations:
        variants = [stage.variant for stage in configuration]
        if not covered.issuperset(enumerate(variants)):
            covered.update(enumerate(variants))
            chosen.append(tuple(StageConfiguration(variant, 1, largest) for variant in variants))
    return chosen


def _payloads(path: Path) -> list[bytes]:
    return list(pd.read_parquet(path, columns=[load.PAYLOAD])[load.PAYLOAD])


def predict(
    pipeline: Pipeline, parameters: SimulationParameters, configuration: Configuration, arrivals: np.ndarray
) -> tuple[float, float, float]:
    """Throughput (requests/s answered while load comes), mean and p95 latency (s) that the simulator says.

    Args:
        pipeline: what is simulated.
        parameters: how the device behaves; the interval is set to the length of the load.
        configuration: fixed, ready from the start.
        arrivals: (M,) seconds, ascending.
    """
    seconds = _length(arrivals)
    settings = replace(parameters, interval=seconds)
    results = []
    for seed in SEEDS:
        simulator = Simulator(pipeline, settings, max_rate=len(arrivals), seed=seed, record_latencies=True)
        simulator.reset(configuration)
        interval = simulator.step_arrivals(as_array(configuration), arrivals)
        throughput, ended = interval.completed[0] / seconds, interval.completed[0] + interval.dropped[0]
        latencies = [interval.latencies[0, : interval.completed[0]]]
        while ended < len(arrivals):  # what waits when the load is over
            interval = simulator.step_arrivals(as_array(configuration), np.empty(0))
            ended += interval.completed[0] + interval.dropped[0]
            latencies.append(interval.latencies[0, : interval.completed[0]])
        together = np.concatenate(latencies)
        results.append((throughput, together.mean(), np.quantile(together, 0.95)))
    throughput, mean, p95 = np.mean(results, axis=0)
    return float(throughput), float(mean), float(p95)


def _length(arrivals: np.ndarray) -> int:
    """Whole seconds of a load."""
    return int(np.ceil(arrivals[-1]))


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
    """Run every configuration under every load and simulate the very same arrivals.

    Two predictions are made before anything is sent: one from the pipeline's profiles as they are (``_profiled``), and
    one (``_predicted``) from what a call to a replica takes on this machine (:func:`served_latency`), to which the
    latency of router and queues is added.

    Args:
        backend: the pipeline, up and idle; nothing else should run on the machine.
        parameters: of the simulator.
        configurations: to apply one after the other.
        loads: mean requests/s; every second's count is drawn from a Poisson distribution.
        seconds: of load for each.
        payloads: Parquet file of payloads.
        overhead: seconds that router and queues add to an idle pipeline, :func:`opd.live.overhead.measure_overhead`.
        folder: for the load generator's files.
        seed: of counts, arrival times and payloads.

    Returns:
        one row a configuration and load: throughput in requests/s answered while load comes, latencies in seconds,
        predicted and measured.
    """
    rows = []
    generator = np.random.default_rng(seed)
    pages = _payloads(payloads)
    with tqdm(total=len(configurations) * len(loads), unit="run", desc="fidelity") as progress:
        for configuration in configurations:
            backend.apply(configuration)
            served = calibrated(backend.pipeline, configuration, served_latency(backend, pages))
            for rate in loads:
                counts, draw = generator.poisson(rate, seconds), int(generator.integers(1 << 31))
                arrivals = load.arrival_times(counts, draw)
                profiled = predict(backend.pipeline, parameters, configuration, arrivals)
                throughput, mean, p95 = predict(served, parameters, configuration, arrivals)
                predicted = throughput, mean + overhead, p95 + overhead
                process = load.start(
                    backend.address, backend.pipeline.name, counts, payloads, draw, folder / "fidelity.parquet"
                )
                records = load.finish(process, seconds + ANSWER_SECONDS)
                row = {"configuration": label(backend.pipeline, configuration), "load": rate, "offered": len(records)}
                measured = _measured(records)
                rows.append(row | _named("profiled", profiled) | _named("predicted", predicted) | measured)
                progress.update()
    return pd.DataFrame(rows)


def _named(suffix: str, figures: Sequence[float]) -> dict[str, float]:
    return {f"{name}_{suffix}": value for name, value in zip(FIGURES, figures, strict=True)}


def _measured(records: pd.DataFrame) -> dict[str, float]:
    """Latency counts from sending: that the generator was late by a millisecond or two is no doing of the pipeline."""
    done = records[records["outcome"] == COMPLETED]
    latency = done["finished"] - done["sent"]
    seconds = _length(records["scheduled"].to_numpy())
    throughput = (done["finished"] < seconds).sum() / seconds
    figures = float(throughput), float(latency.mean()), float(latency.quantile(0.95))
    return {"completed": len(done), **_named("measured", figures)}


def errors(table: pd.DataFrame, prediction: str = "predicted") -> pd.DataFrame:
    """Measured over predicted, less one, of throughput, mean and p95 latency, beside configuration and load.

    Args:
        table: of :func:`measure_fidelity`.
        prediction: ``predicted`` or ``profiled``.
    """
    figures = {name: table[f"{name}_measured"] / table[f"{name}_{prediction}"] - 1.0 for name in FIGURES}
    return table[["configuration", "load"]].assign(**figures)
