"""Simulator benchmark: requests per CPU-second of opd, simpy and ciw.

All simulators get the same arrivals and must give the same answers; different answers are an error. Time is CPU time on
one thread, after everything is compiled. Running a model and reading its results is timed, building it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from time import process_time
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from opd.measurement import Interval
from opd.pipeline import as_array
from opd.simulator.simulator import Simulator
from opd.study.benchmarks import DisagreementError
from opd.study.benchmarks.budgets import FULL, SimulatorBudget
from opd.study.benchmarks.peer_ciw import ciw_latencies, ciw_simulation
from opd.study.benchmarks.peer_simpy import ReferenceSimulator, simulate_queues
from opd.study.benchmarks.scenarios import QUEUES, WHOLE_MODEL, Scenario, scenario

PIPELINES = ("video", "nlp")
"""Two stages and three, of the catalogue."""

TOLERANCE = 1e-6
"""Seconds by which mean latencies of an interval may differ between simulators, through rounding alone."""

REFERENCE = "simpy"
"""The simulator that ratios refer to."""
BATCHED = "opd, batched"
"""Ours as in training, with many episodes together."""


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

    def run() -> Answer:
        measured = [simulator.step_arrivals(choice, times) for choice, times in steps]
        return _first_copy(measured)

    return run


def _opd_batched(work: Scenario) -> Callable[[], Answer]:
    copies = work.counts.shape[1]
    simulator = Simulator(work.pipeline, work.parameters, copies, int(work.counts.max()), work.seed)
    simulator.reset(work.configurations[0])
    batches = [np.repeat(as_array(choice)[None], copies, axis=0) for choice in work.configurations]

    def run() -> Answer:
        return _first_copy([simulator.step(batch, each) for batch, each in zip(batches, work.counts, strict=True)])

    return run


def _first_copy(measured: Sequence[Interval]) -> Answer:
    figures = np.array([(each.completed[0], each.dropped[0], each.latency_mean[0]) for each in measured]).T
    return Answer(figures[0].astype(np.int64), figures[1].astype(np.int64), figures[2])


def _simpy(work: Scenario) -> Callable[[], Answer]:
    simulator = ReferenceSimulator(work.pipeline, work.parameters, work.configurations[0])

    def run() -> Answer:
        records = [simulator.step(*each) for each in zip(work.configurations, work.arrivals, strict=True)]
        completed = np.array([len(record.latencies) for record in records])
        dropped = np.array([record.dropped for record in records])
        return Answer(completed, dropped, np.array([record.latency_mean for record in records]))

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
"""Simulators in the order of the table; the answers of all are compared with the first."""


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


def measure_requests(
    budget: SimulatorBudget = FULL.simulator, pipelines: Sequence[str] = PIPELINES, seed: int = 0
) -> pd.DataFrame:
    """Measure requests simulated per CPU-second by opd, simpy and ciw, with the same arrivals and answers.

    Args:
        budget: how much is measured.
        pipelines: names in the catalogue.
        seed: of the arrivals.

    Returns:
        One row for each pipeline, case and simulator that can express it. Columns pipeline, stages, case, simulator,
        requests (simulated in one repetition), completed, dropped and latency_mean (seconds; of the copy that all
        simulate), difference (seconds, largest difference of an interval's mean latency to opd's), cpu_seconds
        (median), requests_per_cpu_second, and ratio (to simpy's).

    Raises:
        DisagreementError: if the simulators do not agree.
    """
    rows = []
    for name, case in tqdm(list(product(pipelines, (QUEUES, WHOLE_MODEL))), unit="case"):
        rows += _measure_case(scenario(name, case, budget, seed), budget.repetitions)
    return pd.DataFrame(rows)


def _measure_case(work: Scenario, repetitions: int) -> list[dict[str, Any]]:
    contenders = [contender for contender in CONTENDERS if contender.whole_model or work.case == QUEUES]
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    answers: dict[str, Answer] = {}
    # The first round compiles and warms up. Rounds, so that a slow moment of the machine affects all alike.
    for repetition in range(repetitions + 1):
        for contender in contenders:
            run = contender.prepare(work)
            begin = process_time()
            answers[contender.name] = run()
            if repetition > 0:
                seconds[contender.name].append(process_time() - begin)
    rates = {
        contender.name: _requests(work, contender) / float(np.median(seconds[contender.name]))
        for contender in contenders
    }
    first = contenders[0].name
    return [
        {
            "pipeline": work.pipeline.name,
            "stages": len(work.pipeline.tasks),
            "case": work.case,
            "simulator": contender.name,
            "requests": _requests(work, contender),
            "completed": int(answers[contender.name].completed.sum()),
            "dropped": int(answers[contender.name].dropped.sum()),
            "latency_mean": _mean_latency(answers[contender.name]),
            "difference": largest_difference(answers[contender.name], answers[first], contender.name, first),
            "cpu_seconds": float(np.median(seconds[contender.name])),
            "requests_per_cpu_second": rates[contender.name],
            "ratio": rates[contender.name] / rates[REFERENCE],
        }
        for contender in contenders
    ]


def _requests(work: Scenario, contender: Contender) -> int:
    return int(work.counts.sum()) if contender.simulates_all_copies else len(work.times)


def _mean_latency(answer: Answer) -> float:
    return float((answer.latency_mean * answer.completed).sum() / max(answer.completed.sum(), 1))
