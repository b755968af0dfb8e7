"""Many cycles of one pipeline at once, each with a policy of its own, for searches that run thousands of them.

What a policy sees and what is scored are those of :func:`opd.study.evaluation.cycles.run_cycle`; there is no guard, and
the arrivals within a second are drawn for all cycles together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from opd.control.policies import Policy
from opd.measurement import Interval, Observation, score, utilisation
from opd.objective import profiled_service_time, profiled_throughput
from opd.pipeline import Pipeline, as_array, as_configuration
from opd.simulator.simulator import Simulator
from opd.solvers import greedy
from opd.study.evaluation.cycles import Setting
from opd.workload.forecast import HISTORY_SECONDS
from opd.workload.trace import CYCLE_SECONDS, Cycle


class CycleTotals(NamedTuple):
    """Results of E cycles: the mean reward of a decision (E,), and the dropped requests (E,)."""

    reward: np.ndarray
    dropped: np.ndarray


def run_cycles(
    pipeline: Pipeline, policies: Sequence[Policy], cycles: Sequence[Cycle], setting: Setting, seed: int
) -> CycleTotals:
    """Run E policies, each through a cycle of its own, from the cheapest configuration for the first forecast.

    Args:
        pipeline: the pipeline.
        policies: E of them, which need no forecast.
        cycles: E cycles of the trace.
        setting: trace, forecaster, objective and device.
        seed: of arrivals and service noise.
    """
    starts = np.array([setting.trace.position(cycle.start) for cycle in cycles])
    counts = setting.trace.counts[starts[:, None] + np.arange(-HISTORY_SECONDS, CYCLE_SECONDS)].astype(np.int64)
    simulator = Simulator(
        pipeline, setting.simulation, len(cycles), int(counts.max(initial=1)), seed, record_batches=True
    )
    initial = [greedy(pipeline, setting.forecaster.predict(each[:HISTORY_SECONDS])) for each in counts]
    for e, configuration in enumerate(initial):
        simulator.reset(configuration, np.array([e]))
    configurations = np.stack([as_array(configuration) for configuration in initial])
    observed = _first_observations(pipeline, configurations)
    seconds, decisions = setting.simulation.interval, CYCLE_SECONDS // setting.simulation.interval
    reward, dropped = np.zeros(len(cycles)), np.zeros(len(cycles), dtype=np.int64)
    for decision in range(decisions):
        now = HISTORY_SECONDS + decision * seconds
        observations = _observations(pipeline, configurations, counts[:, :now], seconds, observed)
        decided = [policy.decide(seen) for policy, seen in zip(policies, observations, strict=True)]
        configurations = np.stack([as_array(configuration) for configuration in decided])
        interval = simulator.step(configurations, counts[:, now : now + seconds])
        observed = _measured(pipeline, configurations, interval, seconds)
        reward += score(pipeline, setting.objective, configurations, interval, seconds).reward / decisions
        dropped += interval.dropped
    return CycleTotals(reward, dropped)


class _Measured(NamedTuple):
    """What the observations hold of the last interval, each (E, N)."""

    task_latency: np.ndarray
    ready_throughput: np.ndarray
    queue: np.ndarray
    utilisation: np.ndarray


def _first_observations(pipeline: Pipeline, configurations: np.ndarray) -> _Measured:
    latency, throughput = profiled_service_time(pipeline, configurations), profiled_throughput(pipeline, configurations)
    return _Measured(latency, throughput, np.zeros(latency.shape), np.full(latency.shape, np.nan))


def _measured(pipeline: Pipeline, configurations: np.ndarray, interval: Interval, seconds: int) -> _Measured:
    used = utilisation(pipeline, configurations, interval, seconds)
    return _Measured(interval.task_latency, interval.ready_throughput, interval.queue, used)


def _observations(
    pipeline: Pipeline, configurations: np.ndarray, past: np.ndarray, seconds: int, measured: _Measured
) -> list[Observation]:
    load = past[:, -seconds:].mean(axis=1)
    return [
        Observation(
            history=past[e, -HISTORY_SECONDS:],
            available_cores=float(pipeline.capacity),
            configuration=as_configuration(configurations[e]),
            incoming_load=float(load[e]),
            **{name: figures[e] for name, figures in measured._asdict().items()},
        )
        for e in range(len(load))
    ]
