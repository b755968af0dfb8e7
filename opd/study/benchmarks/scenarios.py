"""The scenarios that simulators of requests are compared on: pipelines, configurations and arrivals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from opd.measurement import SimulationParameters
from opd.pipeline import Configuration, Pipeline, as_array
from opd.profiling.catalogue import load_pipeline
from opd.simulator.simulator import Simulator
from opd.solvers import IpaParameters, greedy, ipa_dynamic_program
from opd.study.benchmarks.budgets import SimulatorBudget

LOAD = 12
"""Mean requests/s of the workload."""

QUEUES = "queues"
"""Case that all simulators share: batch size 1, one configuration throughout, no request too old."""
WHOLE_MODEL = "whole model"
"""Case with batches, age limit and another configuration, with its start-up times, in every interval."""


def varied_configurations(pipeline: Pipeline) -> list[Configuration]:
    """Configurations for the load and for more, cheap and accurate ones, to run in turn."""
    loads = [factor * LOAD for factor in (1.25, 1.5)]
    return [
        choice
        for load in loads
        for choice in (greedy(pipeline, load), ipa_dynamic_program(pipeline, load, IpaParameters()))
    ]


@dataclass(frozen=True)
class Scenario:
    """The work of all simulators.

    Attributes:
        pipeline: the pipeline.
        case: :data:`QUEUES` or :data:`WHOLE_MODEL`.
        parameters: without service noise, so that answers can be compared.
        configurations: one for every interval, I of them.
        counts: (I, E, interval) requests of each second, of every copy.
        seed: of opd's generators, which spread the counts over their seconds.
        arrivals: I arrays, the seconds at which requests of the first copy arrive.
    """

    pipeline: Pipeline
    case: str
    parameters: SimulationParameters
    configurations: tuple[Configuration, ...]
    counts: np.ndarray
    seed: int
    arrivals: tuple[np.ndarray, ...]

    @property
    def times(self) -> np.ndarray:
        """(M,) all arrivals of the first copy."""
        return np.concatenate(self.arrivals)

    @property
    def end(self) -> float:
        """Seconds at which the last interval ends."""
        return float(len(self.configurations) * self.parameters.interval)


def scenario(name: str, case: str, budget: SimulatorBudget, seed: int) -> Scenario:
    """Make a scenario of a pipeline of the catalogue with Poisson arrivals.

    Args:
        name: of the pipeline.
        case: :data:`QUEUES` or :data:`WHOLE_MODEL`.
        budget: intervals and copies.
        seed: of counts and arrivals.
    """
    pipeline = load_pipeline(name)
    parameters = SimulationParameters(service_noise=0.0)
    if case == QUEUES:
        pipeline = replace(pipeline, max_batch_size=1)
        cycle = [greedy(pipeline, 1.25 * LOAD)]
    else:
        # One is much too small for the load, so that requests reach the age limit.
        cycle = [*varied_configurations(pipeline), greedy(pipeline, 0.25 * LOAD)]
        parameters = replace(parameters, drop_after=5.0)
    counts = np.random.default_rng(seed).poisson(LOAD, (budget.intervals, budget.copies, parameters.interval))
    return Scenario(
        pipeline,
        case,
        parameters,
        tuple(cycle[k % len(cycle)] for k in range(budget.intervals)),
        counts,
        seed,
        tuple(drawn_arrivals(pipeline, parameters, counts, seed)),
    )


def drawn_arrivals(
    pipeline: Pipeline, parameters: SimulationParameters, counts: np.ndarray, seed: int
) -> Iterator[np.ndarray]:
    """Read the arrivals that opd's simulator draws for its first copy, for the other simulators.

    They are read from the queue of a twin with batches that never fill, so nothing leaves it.

    Args:
        pipeline: the pipeline.
        parameters: of the simulation.
        counts: (I, E, interval) requests of each second.
        seed: of the simulator.

    Yields:
        Ascending seconds since the start, for every interval.
    """
    patient = replace(parameters, batch_timeout=1e6, drop_after=2.0 * parameters.interval)
    largest = 1 << int(counts.sum(axis=2).max() + 1).bit_length()
    task = pipeline.tasks[0]
    variant = replace(task.variants[0], latency={1: 1.0, largest: 1.0})
    idle = Pipeline("idle", (replace(task, variants=(variant,)),), variant.cores, 1, largest, 1.0)
    configuration = as_array(((0, 1, largest),))  # type: ignore[arg-type]
    twin = Simulator(idle, patient, counts.shape[1], int(counts.max()), seed)
    for number, interval_counts in enumerate(counts):
        twin.reset(idle.smallest_configuration())
        twin.step(np.repeat(configuration[None], counts.shape[1], axis=0), interval_counts)
        drawn = twin._state.queue_birth[0, 0, : interval_counts[0].sum()]
        yield drawn + number * parameters.interval
