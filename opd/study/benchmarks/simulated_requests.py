"""Simulator benchmark: requests per CPU-second of opd, simpy and ciw.

All simulators get the same arrivals and must give the same answers; different answers are an error. Time is CPU time on
one thread, after everything is compiled. Running a model and reading its results is timed, building it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from time import process_time
from typing import Any

import numpy as np
import pandas as pd

from opd.host.progress import progress_bar
from opd.measurement import Interval, SimulationParameters
from opd.pipeline import Configuration, Pipeline, ServiceLevel, as_array
from opd.profiling.pipelines import load_pipeline
from opd.simulator.simulator import Simulator
from opd.solvers import IpaParameters, greedy, ipa_dynamic_program
from opd.study.benchmarks import DisagreementError
from opd.study.benchmarks.budgets import FULL, SimulatorBudget
from opd.study.benchmarks.peer_queues import ciw_latencies, ciw_simulation, simulate_queues
from opd.study.benchmarks.peer_simpy import ReferenceSimulator

PIPELINES = ("video", "nlp")
"""Two stages and three."""

LOAD = 12
"""Mean requests/s of the workload."""

QUEUES = "queues"
"""Case that all simulators share: batch size 1, one configuration throughout, no request too old."""
WHOLE_MODEL = "whole model"
"""Case with batches, age limit and another configuration, with its start-up times, in every interval."""

TOLERANCE = 1e-6
"""Seconds by which mean latencies of an interval may differ between simulators, through rounding alone."""

REFERENCE = "simpy"
"""The simulator that ratios refer to."""
BATCHED = "opd, batched"
"""Ours as in training, with many episodes together."""


# ------------------------------------------------------------------------------------------------- scenarios


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
    """Make a scenario of a pipeline that ships with the package, with Poisson arrivals.

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
    idle = Pipeline("idle", (replace(task, variants=(variant,)),), variant.cores, 1, largest, ServiceLevel(1.0))
    configuration = as_array(((0, 1, largest),))  # type: ignore[arg-type]
    twin = Simulator(idle, patient, counts.shape[1], int(counts.max()), seed)
    for number, interval_counts in enumerate(counts):
        twin.reset(idle.smallest_configuration())
        twin.step(np.repeat(configuration[None], counts.shape[1], axis=0), interval_counts)
        drawn = twin._state.queue_birth[0, 0, : interval_counts[0].sum()]
        yield drawn + number * parameters.interval


# ------------------------------------------------------------------------------------------------- answers


@dataclass(frozen=True)
class Answer:
    """The answer of a simulator for the first copy, by interval.

    Attributes:
        completed: (I,) requests that left the last stage.
        dropped: (I,) requests dropped for their age.
        latency_mean: (I,) seconds, 0 where nothing completed.
    """

    completed: np.ndarray
    dropped: np.ndarray
    latency_mean: np.ndarray


# ------------------------------------------------------------------------------------------------- simulators


def _opd_single(work: Scenario) -> Callable[[], Answer]:
    simulator = Simulator(work.pipeline, work.parameters, 1, int(work.counts.max()), work.seed)
    simulator.reset(work.configurations[0])
    steps = [(as_array(choice), times) for choice, times in zip(work.configurations, work.arrivals, strict=True)]
    return lambda: _first_copy([simulator.step_arrivals(*step) for step in steps])


def _opd_batched(work: Scenario) -> Callable[[], Answer]:
    copies = work.counts.shape[1]
    simulator = Simulator(work.pipeline, work.parameters, copies, int(work.counts.max()), work.seed)
    simulator.reset(work.configurations[0])
    batches = [np.repeat(as_array(choice)[None], copies, axis=0) for choice in work.configurations]
    steps = list(zip(batches, work.counts, strict=True))
    return lambda: _first_copy([simulator.step(*step) for step in steps])


def _first_copy(measured: Sequence[Interval]) -> Answer:
    completed, dropped, latency_mean = (
        np.array([getattr(interval, name)[0] for interval in measured])
        for name in ("completed", "dropped", "latency_mean")
    )
    return Answer(completed, dropped, latency_mean)


def _simpy(work: Scenario) -> Callable[[], Answer]:
    simulator = ReferenceSimulator(work.pipeline, work.parameters, work.configurations[0])

    def run() -> Answer:
        records = [simulator.step(*each) for each in zip(work.configurations, work.arrivals, strict=True)]
        figures = zip(*((len(each.latencies), each.dropped, each.latency_mean) for each in records), strict=True)
        return Answer(*map(np.array, figures))

    return run


def _simpy_resource(work: Scenario) -> Callable[[], Answer]:
    times = work.times

    def run() -> Answer:
        latencies = simulate_queues(work.pipeline, work.configurations[0], times, work.end)
        through = ~np.isnan(latencies)
        return _by_interval(work, (times + latencies)[through], latencies[through])

    return run


def _ciw(work: Scenario) -> Callable[[], Answer]:
    model = ciw_simulation(work.pipeline, work.configurations[0], work.times)
    stages = len(work.pipeline.tasks)
    return lambda: _by_interval(work, *ciw_latencies(model, stages, work.end))


def _by_interval(work: Scenario, exits: np.ndarray, latencies: np.ndarray) -> Answer:
    """The answer from single requests, for simulators that drop none."""
    intervals = len(work.configurations)
    place = (exits // work.parameters.interval).astype(np.int64)
    completed = np.bincount(place, minlength=intervals)
    total = np.bincount(place, weights=latencies, minlength=intervals)
    return Answer(completed, np.zeros(intervals, dtype=np.int64), total / np.maximum(completed, 1))


@dataclass(frozen=True)
class Contender:
    """A simulator: how it is prepared for a scenario, and what it can express."""

    name: str
    prepare: Callable[[Scenario], Callable[[], Answer]]
    whole_model: bool
    simulates_all_copies: bool = False


CONTENDERS = (
    Contender(BATCHED, _opd_batched, whole_model=True, simulates_all_copies=True),
    Contender("opd, one episode", _opd_single, whole_model=True),
    Contender(REFERENCE, _simpy, whole_model=True),
    Contender("simpy, Resource", _simpy_resource, whole_model=False),
    Contender("ciw", _ciw, whole_model=False),
)
"""Simulators in the order of the table; the answers of all are compared with ours."""


def largest_difference(answer: Answer, expected: Answer, name: str, other: str) -> float:
    """Largest difference of an interval's mean latency, seconds, between two answers that agree.

    Raises:
        DisagreementError: if requests completed or dropped differ, or a latency by more than :data:`TOLERANCE`.
    """
    for field in ("completed", "dropped"):
        one, two = getattr(answer, field), getattr(expected, field)
        if not np.array_equal(one, two):
            place = int(np.argmax(one != two))
            raise DisagreementError(
                f"{name} and {other} disagree: {one[place]} and {two[place]} requests {field} in interval {place}"
            )
    difference = float(np.abs(answer.latency_mean - expected.latency_mean).max())
    if not difference <= TOLERANCE:
        raise DisagreementError(f"{name} and {other} disagree: a mean latency differs by {difference:g} s")
    return difference


# ------------------------------------------------------------------------------------------------- measurement


def measure_requests(budget: SimulatorBudget = FULL.simulator, seed: int = 0) -> pd.DataFrame:
    """Measure requests simulated per CPU-second by opd, simpy and ciw, with the same arrivals and answers.

    Args:
        budget: how much is measured.
        seed: of the arrivals.

    Returns:
        One row for each pipeline, case and simulator that can express it. Columns pipeline, stages, case, simulator,
        requests (simulated in one repetition), completed, dropped and latency_mean (seconds; of the copy that all
        simulate), difference (seconds, largest difference of an interval's mean latency to opd's), cpu_seconds
        (median), requests_per_cpu_second, and ratio (to simpy's).

    Raises:
        DisagreementError: if the simulators do not agree.
    """
    cases = progress_bar(list(product(PIPELINES, (QUEUES, WHOLE_MODEL))), desc="simulated requests", unit="case")
    tables = [_measure_case(scenario(name, case, budget, seed), budget.repetitions) for name, case in cases]
    return pd.concat(tables, ignore_index=True)


def _measure_case(work: Scenario, repetitions: int) -> pd.DataFrame:
    contenders = [contender for contender in CONTENDERS if contender.whole_model or work.case == QUEUES]
    answers: dict[str, Answer] = {}
    seconds = np.zeros((repetitions + 1, len(contenders)))
    # The first round compiles and warms up. Rounds, so that a slow moment of the machine affects all alike.
    for measured in seconds:
        for place, contender in enumerate(contenders):
            run = contender.prepare(work)
            begin = process_time()
            answers[contender.name] = run()
            measured[place] = process_time() - begin
    expected = answers[BATCHED]
    rows: list[dict[str, Any]] = [
        {
            "pipeline": work.pipeline.name,
            "stages": len(work.pipeline.tasks),
            "case": work.case,
            "simulator": contender.name,
            "requests": int(work.counts.sum()) if contender.simulates_all_copies else len(work.times),
            "completed": answer.completed.sum(),
            "dropped": answer.dropped.sum(),
            "latency_mean": (answer.latency_mean * answer.completed).sum() / max(answer.completed.sum(), 1),
            "difference": largest_difference(answer, expected, contender.name, BATCHED),
        }
        for contender, answer in zip(contenders, answers.values(), strict=True)
    ]
    table = pd.DataFrame(rows).assign(cpu_seconds=np.median(seconds[1:], axis=0))
    table["requests_per_cpu_second"] = rates = table["requests"] / table["cpu_seconds"]
    table["ratio"] = rates / rates[table["simulator"] == REFERENCE].item()
    return table
