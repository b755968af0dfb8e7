"""Live runs: a policy reconfigures the pipeline while real traffic arrives, and everything is recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from opd.control.loop import Step, run
from opd.control.policies import Policy
from opd.live.load import start_load
from opd.live.site import LiveBackend, LiveSite
from opd.live.traffic import Traffic
from opd.measurement import Observation, SimulationParameters
from opd.objective import Weights
from opd.pipeline import Configuration, Pipeline, StageConfiguration
from opd.simulator.simulator import SimulatedBackend

ANSWER_SECONDS = 30.0
"""Time limit for outstanding answers after the last request was sent."""


class LiveRun(NamedTuple):
    """One policy's run.

    Attributes:
        steps: of the control loop.
        initial: configuration before the first decision.
        begin: Unix seconds of the first decision; 0 in the simulator.
        records: of the load generator, one row per request; None in the simulator.
    """

    steps: list[Step]
    initial: Configuration
    begin: float
    records: pd.DataFrame | None


class SchedulePolicy(Policy):
    """A fixed sequence of configurations, which exercises every kind of change.

    Args:
        configurations: in order, each held for the same number of decisions.
        decisions: number of decisions in total.
    """

    def __init__(self, configurations: Sequence[Configuration], decisions: int) -> None:
        held = -(-decisions // len(configurations))
        self._remaining = (configuration for configuration in configurations for _ in range(held))

    def decide(self, observation: Observation) -> Configuration:
        """Return the next configuration of the sequence; after its end, the running one."""
        return next(self._remaining, observation.configuration)


def configurations_from(nested: Sequence[Sequence[Sequence[int]]]) -> list[Configuration]:
    """Convert nested lists to configurations: for each stage variant, replicas and batch size."""
    return [tuple(StageConfiguration(*stage) for stage in configuration) for configuration in nested]


def run_simulated(
    pipeline: Pipeline,
    parameters: SimulationParameters,
    initial: Configuration,
    policy: Policy,
    forecast: Callable[[np.ndarray], float],
    weights: Weights,
    traffic: Traffic,
) -> LiveRun:
    """Run ``policy`` in the simulator under the counts of ``traffic``; otherwise like :func:`run_live`."""
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
        policy: makes the decisions.
        forecast: predicts the maximum load (requests/s) from a history of per-second counts.
        weights: of the reward.
        interval: seconds between two decisions.
        traffic: requests to send.
        folder: for the load generator's files.
    """
    initial = backend.configuration
    decisions = (len(traffic.counts) - traffic.lead) // interval
    output = folder / "requests.parquet"
    backend.begin_run()
    generator = start_load(
        backend.address, backend.pipeline.name, traffic.counts, traffic.payloads, traffic.seed, output
    )
    try:
        time.sleep(traffic.lead)
        begin = time.time()
        loop = run(backend, backend.pipeline, policy, forecast, weights, decisions, interval)
        steps = list(tqdm(loop, total=decisions, unit="decision", leave=False))
        records = generator.finish(ANSWER_SECONDS + interval)
    except BaseException:
        generator.interrupt()
        raise
    return LiveRun(steps, initial, begin, records)


def run_policies(
    site: LiveSite,
    pipeline: Pipeline,
    parameters: SimulationParameters,
    initial: Configuration,
    policies: Mapping[str, Policy],
    forecast: Callable[[np.ndarray], float],
    weights: Weights,
    traffic: Traffic,
) -> tuple[dict[str, LiveRun], str]:
    """Run the policies one after the other, each from the same initial configuration and under the same traffic.

    Returns:
        The runs by policy, and a description of the monitoring.
    """
    if site.backend == "simulated":
        rest = forecast, weights, traffic
        runs = {name: run_simulated(pipeline, parameters, initial, policy, *rest) for name, policy in policies.items()}
        return runs, "the simulator itself"
    runs = {}
    with site.open_backend(pipeline, parameters, initial) as backend:
        for name, policy in tqdm(policies.items(), unit="run", desc="policies"):
            backend.apply(initial)
            runs[name] = run_live(backend, policy, forecast, weights, parameters.interval, traffic, site.folder)
        return runs, backend.monitor.description
