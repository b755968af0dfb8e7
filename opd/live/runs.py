"""Live runs: a policy reconfigures the pipeline while real traffic arrives, and everything is recorded.

A run takes place in the simulator, on processes of this machine, or on a Kubernetes cluster.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import joblib
import numpy as np
import pandas as pd

from opd.control.loop import Step, run
from opd.control.policies import Policy
from opd.control.warm_up import warm_up
from opd.host.progress import progress_bar
from opd.live.failures import count_failures, useless_reason
from opd.live.generator import start_load
from opd.live.load import arrival_times, summary
from opd.live.run_log import collected_warnings
from opd.live.traffic import Traffic, samples_path
from opd.measurement import SimulationParameters, Span
from opd.objective import Objective
from opd.pipeline import Configuration, Pipeline
from opd.serving.emulation.names import emulated_pipeline
from opd.serving.emulation.requests import emulated_samples
from opd.serving.local import LocalBackend
from opd.serving.monitoring.prometheus import PROMETHEUS_URL_VARIABLE, PrometheusUrl
from opd.serving.monitoring.source import MonitoringError
from opd.simulator.backend import SimulatedBackend
from opd.study.evaluation.cycles import Setting, timeline

if TYPE_CHECKING:
    from opd.live.deployed import DeployedPipeline

ANSWER_SECONDS = 30.0
"""Time limit for outstanding answers after the last request was sent."""

EMULATED = "emulated"
"""The backend with emulated replicas on this machine."""

BACKENDS = ("simulated", "local", EMULATED, "kubernetes")

LiveBackend: TypeAlias = "LocalBackend | DeployedPipeline"
"""A backend that accepts real requests."""


@dataclass(frozen=True)
class LiveSite:
    """Location of the pipeline of a live evaluation.

    Attributes:
        backend: ``simulated``, ``local``, ``emulated`` or ``kubernetes``.
        folder: for settings, logs and metrics of local processes, and for the load generator's files.
        standbys: processes that each local stage keeps warm.
        cluster_settings: for ``kubernetes``, YAML file that the pipeline was deployed with.
        gateway_address: for ``kubernetes``, ``host:port`` of the gateway's gRPC endpoint as reached from here.

    Raises:
        ValueError: if there is no such backend, or a setting of ``kubernetes`` is missing.
    """

    backend: str
    folder: Path
    standbys: int = 0
    cluster_settings: str = ""
    gateway_address: str = ""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend {self.backend!r} is not one of {', '.join(BACKENDS)}")
        if self.backend == "kubernetes" and not (self.cluster_settings and self.gateway_address):
            raise ValueError("backend 'kubernetes' needs cluster_settings and gateway_address; see docs/kubernetes.md")

    @property
    def emulated(self) -> bool:
        """Whether the replicas are emulated, here or as the cluster's settings say."""
        if self.backend != "kubernetes":
            return self.backend == EMULATED
        from opd.cluster.settings import read_settings  # only this backend needs the extra `cluster`

        return read_settings(Path(self.cluster_settings)).emulated

    def served(self, pipeline: Pipeline) -> Pipeline:
        """The pipeline as it is served: under a name that says so if its replicas are emulated."""
        return emulated_pipeline(pipeline) if self.emulated else pipeline

    def within_machine(self, pipeline: Pipeline) -> Pipeline:
        """The pipeline, with no more cores than this machine has for it where real replicas run here."""
        if self.backend != "local":
            return pipeline
        return replace(pipeline, capacity=min(pipeline.capacity, joblib.cpu_count()))

    def samples(self, source: str | Path) -> Path:
        """File of the requests that a pipeline is loaded with, see :func:`opd.live.traffic.samples_path`."""
        return emulated_samples(self.folder) if self.emulated else samples_path(source)

    def open_backend(
        self, pipeline: Pipeline, parameters: SimulationParameters, initial: Configuration
    ) -> AbstractContextManager[LiveBackend]:
        """Bring up a local pipeline with configuration ``initial``, or take control of a deployed one.

        A deployed pipeline keeps its configuration until one is applied.

        Raises:
            MonitoringError: if the cluster's Prometheus is not named or does not answer.
        """
        if self.backend in ("local", EMULATED):
            return LocalBackend(self.served(pipeline), parameters, initial, self.folder, standbys=self.standbys)
        # Only this backend needs the extra `cluster`.
        from opd.cluster.settings import read_settings
        from opd.live.deployed import DeployedPipeline

        url = os.environ.get(PROMETHEUS_URL_VARIABLE, "")
        if not url:
            raise MonitoringError(
                f"a deployed pipeline is monitored by Prometheus; set {PROMETHEUS_URL_VARIABLE} to its URL"
            )
        settings = read_settings(Path(self.cluster_settings))
        monitor = PrometheusUrl(url, labels=settings.series_labels)
        monitor.check()
        return DeployedPipeline(self.served(pipeline), settings, monitor, parameters.interval, self.gateway_address)


class LiveRun(NamedTuple):
    """One policy's run.

    Attributes:
        steps: of the control loop.
        initial: configuration before the first decision.
        begin: Unix seconds of the first decision; 0 in the simulator.
        records: of the load generator, one row per request; None in the simulator.
        warnings: that were logged during the run, such as replicas that ended.
    """

    steps: list[Step]
    initial: Configuration
    begin: float
    records: pd.DataFrame | None
    warnings: Sequence[str] = ()

    def seconds_under_load(self) -> np.ndarray:
        """(K,) seconds of every measured interval in which load was offered; the simulator offers load throughout."""
        spans = [step.span for step in self.steps]
        if self.records is None:
            return np.array([span.seconds for span in spans])
        load = Span(self.records.attrs["started"], self.records.attrs["started"] + self.records.attrs["seconds"])
        return np.array([max(min(span.end, load.end) - max(span.begin, load.begin), 0.0) for span in spans])


def run_simulated(
    pipeline: Pipeline,
    parameters: SimulationParameters,
    initial: Configuration,
    policy: Policy,
    forecast: Callable[[np.ndarray], float],
    objective: Objective,
    traffic: Traffic,
) -> LiveRun:
    """Run ``policy`` in the simulator, under the requests of ``traffic`` at their times; else like :func:`run_live`."""
    history, counts = traffic.counts[: traffic.lead], traffic.counts[traffic.lead :]
    since = arrival_times(traffic.counts, traffic.seed) - traffic.lead
    arrivals = since[since >= 0.0]
    backend = SimulatedBackend(pipeline, parameters, history, counts, initial, traffic.seed, arrivals=arrivals)
    decisions = len(counts) // parameters.interval
    steps = list(run(backend, pipeline, policy, forecast, objective, decisions))
    return LiveRun(steps, initial, 0.0, None)


def run_live(
    backend: LiveBackend,
    policy: Policy,
    forecast: Callable[[np.ndarray], float],
    objective: Objective,
    interval: int,
    traffic: Traffic,
    folder: Path,
) -> LiveRun:
    """Send the traffic and let ``policy`` decide every ``interval`` seconds until it ends.

    Args:
        backend: the pipeline, up and idle.
        policy: makes the decisions.
        forecast: predicts the maximum load (requests/s) from a history of per-second counts.
        objective: of the reward.
        interval: seconds between two decisions.
        traffic: requests to send.
        folder: for the load generator's files.
    """
    initial = backend.configuration
    decisions = (len(traffic.counts) - traffic.lead) // interval
    warm_up(backend.pipeline, policy, forecast)
    backend.begin_run()
    sent = traffic.counts, traffic.samples, traffic.seed
    generator = start_load(backend.address, backend.pipeline.name, *sent, folder / "requests.parquet")
    try:
        with collected_warnings() as warnings:
            time.sleep(max(generator.started() + traffic.lead - time.time(), 0.0))
            begin = time.time()
            loop = run(backend, backend.pipeline, policy, forecast, objective, decisions)
            steps = list(progress_bar(loop, total=decisions, unit="decision", desc="decisions", leave=False))
            records = generator.finish(ANSWER_SECONDS + interval)
    except BaseException:
        generator.interrupt()
        raise
    return LiveRun(steps, initial, begin, records, warnings)


def run_policies(
    site: LiveSite,
    pipeline: Pipeline,
    initial: Configuration,
    policies: Mapping[str, Policy],
    setting: Setting,
    traffic: Traffic,
) -> tuple[dict[str, LiveRun], str]:
    """Run the policies one after the other, each from the same initial configuration and under the same traffic.

    Returns:
        The runs by policy, and a description of the monitoring.
    """
    parameters, forecast, objective = setting.simulation, setting.forecaster.predict, setting.objective
    runs: dict[str, LiveRun] = {}
    if site.backend == "simulated":
        for name, policy in policies.items():
            runs[name] = run_simulated(pipeline, parameters, initial, policy, forecast, objective, traffic)
        return runs, "the simulator itself"
    with site.open_backend(pipeline, parameters, initial) as backend:
        for name, policy in progress_bar(policies.items(), unit="run", desc="policies"):
            backend.apply(initial)
            runs[name] = run_live(backend, policy, forecast, objective, parameters.interval, traffic, site.folder)
        return runs, backend.monitor.description


def count_changes(run: LiveRun) -> dict[str, int]:
    """Count the reconfigurations of a run, and those that changed the variant, replicas or batch size of a stage."""
    configurations = np.array([run.initial, *(step.configuration for step in run.steps)])
    differs = np.diff(configurations, axis=0) != 0
    by_field = differs.any(axis=1).sum(axis=0)
    return {
        "reconfigurations": int(differs.any(axis=(1, 2)).sum()),
        **{name: int(count) for name, count in zip(("variant", "replicas", "batch_size"), by_field, strict=True)},
    }


def summarise_run(run: LiveRun) -> dict[str, Any]:
    """Summarise a run: failures, requests by outcome, latencies, reconfigurations, and mean scores.

    Means are over the time under load of the measured intervals; None if nothing was measured under load.
    """
    if run.records is None:
        requests = {
            name: int(sum(getattr(step.interval, name)[0] for step in run.steps))
            for name in ("offered", "completed", "dropped")
        }
        share = requests["dropped"] / max(requests["offered"], 1)
        failures = {"requests": requests["dropped"], "share": share, "most_frequent": None}
    else:
        requests, failures = summary(run.records), count_failures(run.records)
    seconds = run.seconds_under_load()
    scores = {name: _mean_score(run, name, seconds) for name in ("reward", "qos", "within", "cost", "accuracy")}
    return {
        "failures": failures,
        "useless": useless_reason(requests),
        "requests": requests,
        "decisions": len(run.steps),
        "refused": [step.refused for step in run.steps if step.refused],
        "changes": count_changes(run),
        "warnings": list(run.warnings),
        "seconds_under_load": float(seconds.sum()),
        "by_expert": sum(step.fallback for step in run.steps),
        "decision_ms_mean": 1e3 * float(np.mean([step.decision_seconds for step in run.steps])),
        **scores,
    }


def _mean_score(run: LiveRun, name: str, seconds: np.ndarray) -> float | None:
    """Mean of a score, weighted by the ``seconds`` under load of each interval."""
    values = np.array([getattr(step.score, name)[0] for step in run.steps], dtype=float)
    counts = np.isfinite(values) & (seconds > 0.0)
    return float(np.average(values[counts], weights=seconds[counts])) if counts.any() else None


def live_timeline(pipeline: Pipeline, run: LiveRun) -> pd.DataFrame:
    """Tabulate a run: one row per interval with load, scores, measured latencies and the configuration.

    Args:
        pipeline: names tasks and variants.
        run: to tabulate.

    Returns:
        The columns of :func:`opd.study.evaluation.cycles.timeline`, with ``time`` since the first decision; ``seconds``
        that were measured from then on, ``seconds_under_load``; ``latency_mean`` and ``latency_p99`` in seconds; and
        ``<task>.variant``, ``<task>.replicas`` and ``<task>.batch_size`` of every task.
    """
    table = timeline(run.steps, run.begin)
    table["seconds"] = [step.span.seconds for step in run.steps]
    table["seconds_under_load"] = run.seconds_under_load()
    table["latency_mean"] = [float(step.interval.latency_mean[0]) for step in run.steps]
    table["latency_p99"] = [float(step.interval.latency_p99[0]) for step in run.steps]
    for position, task in enumerate(pipeline.tasks):
        stages = [step.configuration[position] for step in run.steps]
        table[f"{task.name}.variant"] = [task.variants[stage.variant].name for stage in stages]
        table[f"{task.name}.replicas"] = [stage.replicas for stage in stages]
        table[f"{task.name}.batch_size"] = [stage.batch_size for stage in stages]
    return table
