"""Recommend configurations for a load: candidates from the solvers' options, judged by the simulator.

The candidates are the configurations that no other one dominates in cores, accuracy and predicted latency. The best of
them are simulated under the load, several copies of each, and ranked by the reward of the service level. If none keeps
it, :mod:`opd.study.reachability` tells what binds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from opd.measurement import Interval, SimulationParameters
from opd.objective import accuracy, service_quality, service_reward, share_within
from opd.pipeline import Configuration, Pipeline, ServiceLevel, as_array, configuration_text, used_cores
from opd.profiling.attainable import check_load
from opd.simulator.simulator import Simulator
from opd.solvers.latency import deviations
from opd.solvers.service_level import LevelOptions, fronts, level_options, shortest_latency
from opd.study.reachability import Limit, Nearest, binding_limits

COPIES = 8
"""Copies of a configuration that are simulated, each with arrivals and service times of its own."""

REQUESTS = 6000
"""Requests that are simulated for a configuration, about; 60 of them are slower than the 99th percentile."""

SETTLING = 1
"""Intervals at the beginning that are not counted, because queues begin empty."""

SHORTEST, LONGEST = 6, 60
"""Counted intervals of a steady load, at least and at most."""

REACH = 1.25
"""Predicted latency, as a multiple of the shortest one that has to do, up to which a configuration is a candidate. The
prediction is up to 30 % too long (``docs/service-levels.md``), and the simulator decides."""

SIMULATED_PER_SHOWN = 4
"""Candidates that are simulated for every configuration that is to be recommended."""


@dataclass(frozen=True)
class RecommendedConfiguration:
    """A configuration and what it achieved in the simulator.

    Attributes:
        configuration: variant, replicas and batch size of every stage.
        text: the same in words.
        keeps_level: whether latency and accuracy keep the service level.
        cores: of all replicas.
        accuracy: mean over the tasks.
        latency_p50: seconds, median.
        latency_p95: seconds.
        latency_p99: seconds.
        latency_at_level: seconds at the percentile of the service level.
        within: share of the requests that were answered within the latency of the service level.
        dropped: share of the requests that were dropped.
        reward: of the service level, in cores.
        assumed: whether a profile behind these figures was assumed and not measured.
    """

    configuration: Configuration
    text: str
    keeps_level: bool
    cores: int
    accuracy: float
    latency_p50: float
    latency_p95: float
    latency_p99: float
    latency_at_level: float
    within: float
    dropped: float
    reward: float
    assumed: bool


@dataclass(frozen=True)
class Recommendation:
    """Answer of :func:`recommend`.

    Attributes:
        pipeline: its name.
        load: requests/s.
        level: the service level.
        configurations: the best first.
        limits: what cannot be reached, if no configuration keeps the level.
    """

    pipeline: str
    load: float
    level: ServiceLevel
    configurations: tuple[RecommendedConfiguration, ...]
    limits: tuple[Limit, ...]

    @property
    def reached(self) -> bool:
        """Whether a configuration keeps the service level."""
        return any(each.keeps_level for each in self.configurations)

    def as_table(self) -> pd.DataFrame:
        """One row a configuration, the best first, with the attributes of :class:`RecommendedConfiguration`."""
        names = [name for name in RecommendedConfiguration.__dataclass_fields__ if name != "configuration"]
        rows = [{name: getattr(each, name) for name in names} for each in self.configurations]
        return pd.DataFrame(rows, columns=names).rename(columns={"text": "configuration"})

    def as_json(self) -> dict[str, Any]:
        """Plain data for :func:`json.dump`; a latency that nothing has is null."""
        table = self.as_table().replace(np.inf, np.nan).astype(object)
        rows = table.where(table.notna(), None).to_dict("records")
        return {
            "pipeline": self.pipeline,
            "load": self.load,
            "service_level": asdict(self.level),
            "reached": self.reached,
            "limits": [asdict(limit) for limit in self.limits],
            "configurations": [
                row | {"stages": [stage._asdict() for stage in each.configuration]}
                for row, each in zip(rows, self.configurations, strict=True)
            ],
        }


def recommend(
    pipeline: Pipeline,
    load: float,
    top: int = 10,
    level: ServiceLevel | None = None,
    simulation: SimulationParameters | None = None,
    trace: np.ndarray | None = None,
    seed: int = 0,
) -> Recommendation:
    """Recommend configurations that keep a service level at a load.

    Args:
        pipeline: the pipeline; its capacity is the budget of cores.
        load: requests/s to plan for; with a trace, the load that it is to be planned for, such as its peak.
        top: number of configurations, at most.
        level: the service level; that of the pipeline if not given.
        simulation: behaviour of the device.
        trace: (T,) requests of each second to simulate instead of a steady load; at least two intervals.
        seed: of arrivals and service times; all configurations meet the same requests.

    Raises:
        ValueError: if the load or ``top`` is not a positive number, or the trace is too short.
    """
    check_load(load)
    if load == 0.0:
        raise ValueError("a load of 0 requests/s needs no recommendation; name the requests/s to plan for")
    if top < 1:
        raise ValueError(f"top {top} recommends nothing; ask for at least 1 configuration")
    level, simulation = level or pipeline.service_level, simulation or SimulationParameters()
    counts = _steady_counts(load, simulation.interval, seed) if trace is None else _repeated(trace, simulation.interval)
    candidates = candidate_configurations(pipeline, load, level, simulation, SIMULATED_PER_SHOWN * top)
    judged = [_judge(pipeline, each, level, simulation, counts, seed) for each in candidates]
    by_reward = sorted(judged, key=lambda each: (-each.reward, -each.accuracy, each.latency_at_level))
    if any(each.keeps_level for each in judged):
        return Recommendation(pipeline.name, load, level, tuple(by_reward[:top]), ())
    # Where nothing is in time, rewards say little; the fastest configurations are the nearest ones.
    by_latency = sorted(judged, key=lambda each: (each.accuracy < level.accuracy_floor, each.latency_at_level))
    in_time = any(each.within >= level.percentile / 100.0 for each in judged)
    nearest = Nearest(by_latency[0].latency_at_level, by_latency[0].configuration) if judged else None
    limits = binding_limits(pipeline, load, level, simulation, nearest)
    ranked = by_reward if in_time else by_latency
    return Recommendation(pipeline.name, load, level, tuple(ranked[:top]), tuple(limits))


# ----------------------------------------------------------------------------------------------- candidates


def candidate_configurations(
    pipeline: Pipeline, load: float, level: ServiceLevel, simulation: SimulationParameters, count: int
) -> list[Configuration]:
    """The undominated configurations with the best predicted rewards, the best first.

    Args:
        pipeline: the pipeline.
        load: requests/s.
        level: the service level.
        simulation: batch timeout and noise of the service times.
        count: number of configurations, at most.

    Returns:
        The configurations; none if nothing within the limits carries the load.
    """
    options, capacity = level_options(pipeline, load, simulation), pipeline.capacity
    shortest, fastest = shortest_latency(options, capacity, level.percentile, level.seconds)
    if not np.isfinite(shortest):
        return []
    reach = REACH * max(level.seconds, shortest)
    found = {tuple(fastest)}
    for _, _, _, selected in fronts(options, capacity, level.percentile, reach):
        found |= set(map(tuple, selected))
    return _ranked(options, capacity, level, found)[:count]


def _ranked(
    options: LevelOptions, capacity: int, level: ServiceLevel, selections: Iterable[tuple[int, ...]]
) -> list[Configuration]:
    """Configurations ordered by how far they miss the latency, in steps of a tenth, then by reward, then by latency."""
    selected = np.array(sorted(selections))
    stages = np.arange(selected.shape[1])
    cores, mean_accuracy, mean, variance = (
        figures[stages, selected].sum(axis=1)
        for figures in (options.cores, options.accuracy / len(stages), options.mean, options.variance)
    )
    latency = mean + deviations(level.percentile) * np.sqrt(variance)
    reward = service_reward(service_quality(level, capacity, mean_accuracy, np.ones(len(selected))), cores)
    missed = np.ceil(10.0 * np.maximum(latency / level.seconds - 1.0, 0.0))
    return [options.configuration(selected[row]) for row in np.lexsort((latency, -reward, missed))]


# ----------------------------------------------------------------------------------------------- simulation


def _steady_counts(load: float, interval: int, seed: int) -> np.ndarray:
    """(intervals, copies, interval) requests of each second, Poisson at one rate."""
    counted = np.clip(np.ceil(REQUESTS / (load * interval * COPIES)), SHORTEST, LONGEST)
    return np.random.default_rng(seed).poisson(load, (SETTLING + int(counted), COPIES, interval))


def _repeated(trace: np.ndarray, interval: int) -> np.ndarray:
    """(intervals, copies, interval) requests of each second of a trace, the same in every copy."""
    intervals = len(trace) // interval
    if intervals <= SETTLING:
        raise ValueError(
            f"a trace of {len(trace)} s is too short; it must last for {(SETTLING + 1) * interval} s, two intervals"
        )
    windows = np.asarray(trace[: intervals * interval], dtype=np.int64).reshape(intervals, 1, interval)
    return np.repeat(windows, COPIES, axis=1)


def _judge(
    pipeline: Pipeline,
    configuration: Configuration,
    level: ServiceLevel,
    simulation: SimulationParameters,
    counts: np.ndarray,
    seed: int,
) -> RecommendedConfiguration:
    """Simulate a configuration and describe what it achieved."""
    simulator = Simulator(pipeline, simulation, COPIES, int(counts.max(initial=1)), seed, record_latencies=True)
    simulator.reset(configuration)
    rows = np.broadcast_to(as_array(configuration), (COPIES, len(configuration), 3))
    steps = [simulator.step(rows, count) for count in counts][SETTLING:]
    latencies = np.concatenate([_latencies(step) for step in steps])
    dropped = float(sum(step.dropped.sum() for step in steps))
    ended = len(latencies) + dropped
    within = float(share_within(float((latencies <= level.seconds).sum()), ended))
    # A dropped request is later than any that was answered.
    everyone = np.concatenate([latencies, np.full(int(dropped), np.inf)])
    percentiles = (50.0, 95.0, 99.0, level.percentile)
    figures = np.percentile(everyone, percentiles, method="higher") if len(everyone) else np.full(4, np.nan)
    p50, p95, p99, at_level = map(float, figures)
    mean_accuracy = float(accuracy(pipeline, configuration)) / len(configuration)
    cores = int(used_cores(pipeline, configuration))
    return RecommendedConfiguration(
        configuration,
        configuration_text(pipeline, configuration),
        within >= level.percentile / 100.0 and mean_accuracy >= level.accuracy_floor - 1e-9,
        cores,
        mean_accuracy,
        p50,
        p95,
        p99,
        at_level,
        within,
        dropped / ended if ended else 0.0,
        float(service_reward(service_quality(level, pipeline.capacity, mean_accuracy, within), float(cores))),
        any(variant.assumed for variant, _ in pipeline.selected(configuration)),
    )


def _latencies(interval: Interval) -> np.ndarray:
    return np.concatenate([row[:done] for row, done in zip(interval.latencies, interval.completed, strict=True)])
