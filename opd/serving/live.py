"""A policy on the live pipeline: real traffic comes in, the control loop reconfigures, everything is on record."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from opd.control import Step, run
from opd.evaluation import timeline
from opd.objective import Weights
from opd.pipeline import Configuration, Pipeline
from opd.policy import Policy
from opd.serving import load
from opd.serving.local import LocalBackend
from opd.simulation import SimulationParameters, Simulator, as_array

ANSWER_SECONDS = 30.0
"""After the last request is sent, answers are waited for this long."""


@dataclass(frozen=True)
class Traffic:
    """What is sent to a pipeline.

    Attributes:
        counts: (T,) requests of each second, those before the first decision included.
        lead: seconds of it before the first decision, so that there is a history to forecast from.
        payloads: Parquet file of payloads to choose from.
        seed: of arrival times and choice.
    """

    counts: np.ndarray
    lead: int
    payloads: Path
    seed: int


class LiveRun(NamedTuple):
    """One policy's run.

    Attributes:
        steps: of the control loop.
        initial: what ran before the first decision.
        begin: Unix seconds of the first decision.
        records: of the load generator, one row a request.
    """

    steps: list[Step]
    initial: Configuration
    begin: float
    records: pd.DataFrame


def run_live(
    backend: LocalBackend,
    policy: Policy,
    forecast: Callable[[np.ndarray], float],
    weights: Weights,
    interval: int,
    traffic: Traffic,
    folder: Path,
) -> LiveRun:
    """Send the traffic and let ``policy`` decide every ``interval`` seconds until it ends.

    Args:
        backend: the pipeline, up and idle.
        policy: what decides.
        forecast: predicted maximum load (requests/s) for a history of per-second counts.
        weights: of the reward.
        interval: seconds between two decisions.
        traffic: what comes.
        folder: for the load generator's files.
    """
    initial = backend.configuration
    decisions = (len(traffic.counts) - traffic.lead) // interval
    generator = load.start(
        backend.address,
        backend.pipeline.name,
        traffic.counts,
        traffic.payloads,
        traffic.seed,
        folder / "requests.parquet",
    )
    try:
        time.sleep(traffic.lead)
        begin = time.time()
        loop = run(backend, backend.pipeline, policy, forecast, weights, decisions, interval)
        steps = list(tqdm(loop, total=decisions, unit="decision", leave=False))
        records = load.finish(generator, ANSWER_SECONDS + interval)
    except BaseException:
        generator.terminate()
        raise
    return LiveRun(steps, initial, begin, records)


def changes(run: LiveRun) -> dict[str, int]:
    """Reconfigurations of a run: how many, and in how many the variant, the replicas or the batch size changed."""
    configurations = np.array([run.initial, *(step.configuration for step in run.steps)])
    differs = np.diff(configurations, axis=0) != 0
    by_field = differs.any(axis=1).sum(axis=0)
    return {
        "reconfigurations": int(differs.any(axis=(1, 2)).sum()),
        **{name: int(count) for name, count in zip(("variant", "replicas", "batch_size"), by_field, strict=True)},
    }


def summarise(run: LiveRun) -> dict[str, Any]:
    """A run in figures: requests by their end, latencies, reconfigurations, and the means of the scores."""
    scores = {
        name: float(np.nanmean([getattr(step.score, name)[0] for step in run.steps]))
        for name in ("reward", "qos", "cost", "accuracy")
    }
    return {
        "requests": load.summary(run.records),
        "decisions": len(run.steps),
        "refused": [step.refused for step in run.steps if step.refused],
        "changes": changes(run),
        "decision_ms_mean": 1e3 * float(np.mean([step.decision_seconds for step in run.steps])),
        **scores,
    }


def course(pipeline: Pipeline, run: LiveRun, interval: int) -> pd.DataFrame:
    """The run by interval: what :func:`opd.evaluation.timeline` has, the measured latencies, and what ran."""
    table = timeline(run.steps, interval)
    table["latency_mean"] = [float(step.interval.latency_mean[0]) for step in run.steps]
    table["latency_p99"] = [float(step.interval.latency_p99[0]) for step in run.steps]
    for position, task in enumerate(pipeline.tasks):
        stages = [step.configuration[position] for step in run.steps]
        table[f"{task.name}.variant"] = [task.variants[stage.variant].name for stage in stages]
        table[f"{task.name}.replicas"] = [stage.replicas for stage in stages]
        table[f"{task.name}.batch_size"] = [stage.batch_size for stage in stages]
    return table


def replay(
    pipeline: Pipeline, parameters: SimulationParameters, run: LiveRun, seeds: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """What the simulator predicts for the arrivals and the configurations of a run, and what was measured.

    Args:
        pipeline: what ran.
        parameters: of the simulator; its interval is that of the run.
        run: the run.
        seeds: of the service noise; predictions are means over them.

    Returns:
        (K,) predicted and (K,) measured mean latency in seconds of the requests answered in each interval; NaN where
        there were none.
    """
    length, intervals = parameters.interval, len(run.steps)
    sent = load.unix_times(run.records, "scheduled") - run.begin
    within = np.sort(sent[(sent >= 0) & (sent < length * intervals)])
    most = int(np.bincount(within.astype(np.int64), minlength=1).max()) + 1
    predicted = np.zeros((len(seeds), intervals))
    for row, seed in zip(predicted, seeds, strict=True):
        simulator = Simulator(pipeline, parameters, max_rate=most, seed=seed)
        simulator.reset(run.initial)
        for k, step in enumerate(run.steps):
            times = within[(within >= k * length) & (within < (k + 1) * length)]
            interval = simulator.step_arrivals(as_array(step.configuration), times)
            row[k] = interval.latency_mean[0] if interval.completed[0] else np.nan
    done = run.records[run.records["outcome"] == "completed"]
    finished = load.unix_times(done, "finished") - run.begin
    number = np.floor(finished / length)
    latency = pd.Series((done["finished"] - done["scheduled"]).to_numpy()).groupby(number).mean()
    return predicted.mean(axis=0), latency.reindex(range(intervals)).to_numpy()
