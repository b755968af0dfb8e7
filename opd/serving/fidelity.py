"""How well the simulator predicts the live pipeline: fixed configurations, steady load, the same arrivals in both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from opd.pipeline import Configuration, Pipeline
from opd.serving import load
from opd.serving.live import ANSWER_SECONDS
from opd.serving.local import LocalBackend
from opd.simulation import SimulationParameters, Simulator, as_array

SEEDS = range(20)
"""Of the simulator's service noise; predictions are means over them."""

WARM_UP_SECONDS = 3


def label(pipeline: Pipeline, configuration: Configuration) -> str:
    """A configuration in one line: variant, replicas and batch size of every stage."""
    chosen = pipeline.selected(configuration)
    return " + ".join(f"{variant.name} x{stage.replicas} b{stage.batch_size}" for variant, stage in chosen)


def predict(
    pipeline: Pipeline, parameters: SimulationParameters, configuration: Configuration, arrivals: np.ndarray
) -> tuple[float, float, float]:
    """Throughput (requests/s), mean and p95 latency (s) that the simulator says.

    Args:
        pipeline: what is simulated.
        parameters: how the device behaves; the interval is set to the length of the run.
        configuration: fixed, ready from the start.
        arrivals: (M,) seconds, ascending.
    """
    length = int(np.ceil(arrivals[-1] + parameters.drop_after + 1))
    settings = SimulationParameters(**{**parameters.__dict__, "interval": length})
    results = []
    for seed in SEEDS:
        simulator = Simulator(pipeline, settings, max_rate=len(arrivals), seed=seed, record_latencies=True)
        simulator.reset(configuration)
        interval = simulator.step_arrivals(as_array(configuration), arrivals)
        latencies = interval.latencies[0, : interval.completed[0]]
        results.append((len(latencies), latencies.mean(), np.quantile(latencies, 0.95)))
    completed, mean, p95 = np.mean(results, axis=0)
    return float(completed / np.ceil(arrivals[-1])), float(mean), float(p95)


def measure_fidelity(
    backend: LocalBackend,
    parameters: SimulationParameters,
    configurations: Sequence[Configuration],
    loads: Sequence[float],
    seconds: int,
    payloads: Path,
    folder: Path,
    seed: int = 0,
) -> pd.DataFrame:
    """Run every configuration under every load and simulate the very same arrivals.

    Args:
        backend: the pipeline, up and idle; nothing else should run on the machine.
        parameters: of the simulator.
        configurations: to apply one after the other.
        loads: mean requests/s; every second's count is drawn from a Poisson distribution.
        seconds: of load for each.
        payloads: Parquet file of payloads.
        folder: for the load generator's files.
        seed: of counts, arrival times and payloads.

    Returns:
        one row a configuration and load: throughput in requests/s, latencies in seconds, predicted and measured.
    """
    rows = []
    generator = np.random.default_rng(seed)
    with tqdm(total=len(configurations) * len(loads), unit="run", desc="fidelity") as progress:
        for configuration in configurations:
            backend.apply(configuration)
            _send(backend, np.full(WARM_UP_SECONDS, round(min(loads))), payloads, folder, seed)
            for rate in loads:
                counts = generator.poisson(rate, seconds)
                records = _send(backend, counts, payloads, folder, int(generator.integers(1 << 31)))
                rows.append(_compare(backend.pipeline, parameters, configuration, rate, records))
                progress.update()
    return pd.DataFrame(rows)


def _send(backend: LocalBackend, counts: np.ndarray, payloads: Path, folder: Path, seed: int) -> pd.DataFrame:
    path = folder / "fidelity.parquet"
    process = load.start(backend.address, backend.pipeline.name, counts, payloads, seed, path)
    return load.finish(process, len(counts) + ANSWER_SECONDS)


def _compare(
    pipeline: Pipeline,
    parameters: SimulationParameters,
    configuration: Configuration,
    rate: float,
    records: pd.DataFrame,
) -> dict[str, object]:
    arrivals = np.sort(records["scheduled"].to_numpy())
    throughput, mean, p95 = predict(pipeline, parameters, configuration, arrivals)
    done = records[records["outcome"] == "completed"]
    latency = done["finished"] - done["scheduled"]
    return {
        "configuration": label(pipeline, configuration),
        "load": rate,
        "offered": len(records),
        "completed": len(done),
        "throughput_predicted": throughput,
        "throughput_measured": len(done) / np.ceil(arrivals[-1]),
        "latency_mean_predicted": mean,
        "latency_mean_measured": float(latency.mean()),
        "latency_p95_predicted": p95,
        "latency_p95_measured": float(latency.quantile(0.95)),
    }


def errors(table: pd.DataFrame) -> pd.DataFrame:
    """Measured over predicted, less one, of throughput, mean and p95 latency, beside configuration and load."""
    figures = {
        name: table[f"{name}_measured"] / table[f"{name}_predicted"] - 1.0
        for name in ("throughput", "latency_mean", "latency_p95")
    }
    return table[["configuration", "load"]].assign(**figures)
