"""A policy on the live pipeline: real traffic comes in, the control loop reconfigures, everything is on record."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from opd.control.loop import Backend, Step, run
from opd.control.policies import Policy
from opd.live import load
from opd.measurement import Observation
from opd.objective import Weights
from opd.pipeline import Configuration, Pipeline, StageConfiguration, as_array
from opd.serving.local import LocalBackend
from opd.serving.monitoring.prometheus import PROMETHEUS_URL_VARIABLE, PrometheusUrl
from opd.serving.monitoring.source import Monitor, MonitoringError
from opd.serving.protocol import COMPLETED
from opd.simulator.backend import SimulatedBackend
from opd.simulator.parameters import SimulationParameters
from opd.simulator.simulator import Simulator
from opd.study.evaluation import timeline

SIMULATED, LOCAL, KUBERNETES = BACKENDS = ("simulated", "local", "kubernetes")
"""Where a pipeline can run."""

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


def varied_window(counts: np.ndarray, lead: int, seconds: int, least: int, most: int, interval: int) -> int:
    """Where the load varies most (standard deviation over intervals) among the stretches that stay within bounds.

    Args:
        counts: (T,) requests of each second.
        lead: seconds of a stretch before the first decision; they may be anything.
        seconds: from the first decision on, a multiple of ``interval``.
        least: requests/s that every interval has at least.
        most: and at most.
        interval: seconds.

    Returns:
        Position in ``counts`` of its first second.

    Raises:
        ValueError: if no stretch stays within the bounds.
    """
    stride = 5
    windows = np.lib.stride_tricks.sliding_window_view(counts[lead:], seconds)[::stride]
    means = windows.reshape(len(windows), -1, interval).mean(axis=2)
    within = (means.min(axis=1) >= least) & (means.max(axis=1) <= most)
    if not within.any():
        raise ValueError(
            f"no {seconds} s of the load stay within {least} and {most} requests/s; widen the bounds or change damping"
        )
    return stride * int(np.argmax(np.where(within, means.std(axis=1), -1.0)))


class SchedulePolicy(Policy):
    """A fixed sequence of configurations: it shows that every kind of change works, not that it is worth making.

    Args:
        configurations: in their order, each for as many decisions.
        decisions: number of them in all.
    """

    def __init__(self, configurations: Sequence[Configuration], decisions: int) -> None:
        held = -(-decisions // len(configurations))
        self._coming = (configuration for configuration in configurations for _ in range(held))

    def decide(self, observation: Observation) -> Configuration:
        """The next of the sequence; when it is over, what runs goes on."""
        return next(self._coming, observation.configuration)


class LiveRun(NamedTuple):
    """One policy's run.

    Attributes:
        steps: of the control loop.
        initial: what ran before the first decision.
        begin: Unix seconds of the first decision; 0 in the simulator.
        records: of the load generator, one row a request; None in the simulator.
    """

    steps: list[Step]
    initial: Configuration
    begin: float
    records: pd.DataFrame | None


class LiveBackend(Backend, Protocol):
    """A backend that real requests can be sent to."""

    pipeline: Pipeline
    monitor: Monitor

    def begin_run(self) -> None:
        """Forget what was measured until now."""
        ...

    @property
    def address(self) -> str:
        """``host:port`` of the router's gRPC endpoint."""
        ...


def run_simulated(
    pipeline: Pipeline,
    parameters: SimulationParameters,
    initial: Configuration,
    policy: Policy,
    forecast: Callable[[np.ndarray], float],
    weights: Weights,
    traffic: Traffic,
) -> LiveRun:
    """As :func:`run_live`, in the simulator."""
    history, counts = traffic.counts[: traffic.lead], traffic.counts[traffic.lead :]
    backend = SimulatedBackend(pipeline, parameters, history, counts, initial, traffic.seed)
    decisions = len(counts) // parameters.interval
    steps = list(run(backend, pipeline, policy, forecast, weights, decisions, parameters.interval))
    return LiveRun(steps, initial, 0.0, None)


def run_live(
    backend: LiveBackend,
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
    backend.begin_run()
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


@dataclass(frozen=True)
class Place:
    """Where the pipeline of a live evaluation runs.

    Attributes:
        backend: ``simulated``, ``local`` or ``kubernetes``.
        folder: for settings, logs and metrics of local processes, and for the load generator's files.
        spares: processes that each local stage keeps warm.
        cluster_settings: YAML file with which the pipeline was deployed, for ``kubernetes``.
        router_address: ``host:port`` of the deployed router's gRPC endpoint as it can be reached from here, likewise.

    Raises:
        ValueError: if there is no such backend, or a cluster is not fully named.
    """

    backend: str
    folder: Path
    spares: int = 0
    cluster_settings: str = ""
    router_address: str = ""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend {self.backend!r} is not one of {', '.join(BACKENDS)}")
        if self.backend == KUBERNETES and not (self.cluster_settings and self.router_address):
            raise ValueError("backend 'kubernetes' needs cluster_settings and router_address; see docs/kubernetes.md")


def open_backend(
    place: Place, pipeline: Pipeline, parameters: SimulationParameters, configuration: Configuration
) -> AbstractContextManager[LiveBackend]:
    """The pipeline on the backend of ``place``, running ``configuration``; on Kubernetes once a policy applies it.

    Raises:
        MonitoringError: if a cluster's Prometheus is not named, or does not answer.
    """
    if place.backend == LOCAL:
        return LocalBackend(pipeline, parameters, configuration, place.folder, standbys=place.spares)
    from opd.cluster.settings import read_settings
    from opd.live.deployed import DeployedPipeline  # needs the extra `cluster`, as this backend alone does

    url = os.environ.get(PROMETHEUS_URL_VARIABLE, "")
    if not url:
        raise MonitoringError(f"a cluster needs its Prometheus server: set {PROMETHEUS_URL_VARIABLE} to its URL")
    settings = read_settings(Path(place.cluster_settings))
    monitor = PrometheusUrl(url, labels=settings.series_labels)
    monitor.check()
    return DeployedPipeline(pipeline, settings, monitor, parameters.interval, place.router_address)


def run_policies(
    place: Place,
    pipeline: Pipeline,
    parameters: SimulationParameters,
    initial: Configuration,
    policies: Mapping[str, Policy],
    forecast: Callable[[np.ndarray], float],
    weights: Weights,
    traffic: Traffic,
) -> tuple[dict[str, LiveRun], str]:
    """One run after the other, each from the same configuration, in the simulator or on a backend.

    Returns:
        the runs by policy, and what watched them.
    """
    if place.backend == SIMULATED:
        rest = forecast, weights, traffic
        runs = {name: run_simulated(pipeline, parameters, initial, policy, *rest) for name, policy in policies.items()}
        return runs, "the simulator itself"
    runs = {}
    with open_backend(place, pipeline, parameters, initial) as backend:
        for name, policy in tqdm(policies.items(), unit="run", desc="policies"):
            backend.apply(initial)
            runs[name] = run_live(backend, policy, forecast, weights, parameters.interval, traffic, place.folder)
        return runs, backend.monitor.description


def configurations(triples: Sequence[Sequence[Sequence[int]]]) -> list[Configuration]:
    """Configurations from nested lists: of each, for every stage, variant, replicas and batch size."""
    return [tuple(StageConfiguration(*stage) for stage in configuration) for configuration in triples]


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
    if run.records is None:
        requests = {
            name: int(sum(getattr(step.interval, name)[0] for step in run.steps))
            for name in ("offered", "completed", "dropped")
        }
    else:
        requests = load.summary(run.records)
    scores = {
        name: float(np.nanmean([getattr(step.score, name)[0] for step in run.steps]))
        for name in ("reward", "qos", "cost", "accuracy")
    }
    return {
        "requests": requests,
        "decisions": len(run.steps),
        "refused": [step.refused for step in run.steps if step.refused],
        "changes": changes(run),
        "by_expert": sum(step.fallback for step in run.steps),
        "decision_ms_mean": 1e3 * float(np.mean([step.decision_seconds for step in run.steps])),
        **scores,
    }


def course(pipeline: Pipeline, run: LiveRun, interval: int) -> pd.DataFrame:
    """The run by interval: that of :func:`opd.study.evaluation.timeline`, measured latencies, and what ran."""
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
    pipelines: Mapping[str, Pipeline], parameters: SimulationParameters, run: LiveRun, seeds: Sequence[int]
) -> pd.DataFrame:
    """What the simulator predicts for the arrivals and the configurations of a run, and what was measured.

    Args:
        pipelines: what ran, as it is known, by the name of the prediction.
        parameters: of the simulator; its interval is that of the run.
        run: the run.
        seeds: of the service noise; predictions are means over them.

    Returns:
        A row for each of the K intervals: ``time`` in seconds, and the mean latency in seconds of the requests answered
        in it, ``measured`` and in one column a prediction; NaN where there were none.

    Raises:
        ValueError: if the run was simulated itself.
    """
    if run.records is None:
        raise ValueError("a run in the simulator has no measurements to compare with; choose another backend")
    length, intervals = parameters.interval, len(run.steps)
    sent = load.unix_times(run.records, "scheduled") - run.begin
    within = np.sort(sent[(sent >= 0) & (sent < length * intervals)])
    predictions = {
        name: np.mean([_replayed(pipeline, parameters, run, within, seed) for seed in seeds], axis=0)
        for name, pipeline in pipelines.items()
    }
    measured = _measured_latency(run.records, run.begin, length).reindex(range(intervals))
    times = length * np.arange(intervals)
    return pd.DataFrame({"time": times, "measured": measured.to_numpy(), **predictions})


def _replayed(
    pipeline: Pipeline, parameters: SimulationParameters, run: LiveRun, arrivals: np.ndarray, seed: int
) -> list[float]:
    """Mean latency of each interval in the simulator; NaN where nothing was answered."""
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
    """Mean latency in seconds by the number of the interval in which a request was answered."""
    done = records[records["outcome"] == COMPLETED]
    number = np.floor((load.unix_times(done, "finished") - begin) / length)
    return pd.Series((done["finished"] - done["scheduled"]).to_numpy()).groupby(number).mean()
