"""What would have happened: policies in the simulator under the load of a record, beside what ran.

A policy is told what a live backend would tell it, no more: the requests that have arrived, and queues, latencies and
service times as they follow from its own decisions. The device is that of the record: the profile as the record's own
calibration had corrected it in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from opd.control.loop import Step, run
from opd.control.policies import Policy
from opd.control.record import Record
from opd.control.warm_up import warm_up
from opd.host.progress import progress_bar
from opd.measurement import Observation, SimulationParameters
from opd.objective import Objective, accuracy, share_within
from opd.pipeline import Configuration, Pipeline, as_array, as_configuration, used_cores
from opd.profiling.calibrated import calibrated_pipeline
from opd.simulator.backend import SimulatedBackend
from opd.simulator.simulator import Simulator

RAN = "what ran"
"""Name of the course that a record tells."""


class ReplayBackend(SimulatedBackend):
    """The simulator as a backend that tells a policy no more than a live one could."""

    def observe(self) -> Observation:
        """State of the simulated device without the coming load, and without what no metric shows."""
        return replace(super().observe(), coming_load=None, coming_counts=None, stages=())


class ReplayedPolicy(NamedTuple):
    """A policy whose decisions are replayed.

    Attributes:
        name: of the policy.
        make: makes a new one, by seed.
        forecast: predicted maximum load (requests/s) for a history of per-second counts.
    """

    name: str
    make: Callable[[int], Policy]
    forecast: Callable[[np.ndarray], float]


@dataclass(frozen=True)
class ReplayLoad:
    """What is replayed.

    Attributes:
        history: (H,) requests in each second before the first decision.
        counts: (T,) requests in each second from then on.
        initial: configuration that runs at the first decision.
        record: of what ran; None if nothing did.
    """

    history: np.ndarray
    counts: np.ndarray
    initial: Configuration
    record: Record | None = None

    @classmethod
    def recorded(cls, record: Record) -> ReplayLoad:
        """The load of a record, which begins with what ran first."""
        return cls(record.history, record.counts, as_configuration(record.configurations[0]), record)


class Course(NamedTuple):
    """One way in which the pipeline ran or would have run.

    Attributes:
        name: of the policy, or :data:`RAN`.
        measured: whether the figures were measured; else they are simulated.
        table: a row an interval, in order: ``begin`` and ``seconds``, ``load`` in requests/s, ``cores``, ``accuracy``
            (mean over the tasks), ``completed``, ``within`` and ``dropped`` requests, ``latency_mean`` and
            ``latency_p99`` in seconds; NaN where nothing was measured.
        reconfigurations: changes of the configuration.
        steps: of the control loop; empty where none ran.
    """

    name: str
    measured: bool
    table: pd.DataFrame
    reconfigurations: int
    steps: tuple[Step, ...] = ()


class Figures(NamedTuple):
    """A course in numbers: means over the time, shares of all requests.

    Attributes:
        cores: mean.
        within: share of the requests that were answered within the latency of the service level.
        accuracy: mean over tasks and time.
        lost: share of the requests that came to nothing.
        latency_mean: seconds.
        latency_p99: seconds, mean over the intervals.
        reconfigurations: changes of the configuration.
    """

    cores: float
    within: float
    accuracy: float
    lost: float
    latency_mean: float
    latency_p99: float
    reconfigurations: float


def figures(course: Course) -> Figures:
    """Compute the figures of a course; NaN where nothing was measured."""
    table = course.table
    known = table[table["completed"].notna()]
    ended = float((known["completed"] + known["dropped"]).sum())
    return Figures(
        cores=float(np.average(table["cores"], weights=table["seconds"])),
        within=float(share_within(known["within"].sum(), ended)) if len(known) else np.nan,
        accuracy=float(np.average(table["accuracy"], weights=table["seconds"])),
        lost=float(known["dropped"].sum() / ended) if ended else 0.0 if len(known) else np.nan,
        latency_mean=_weighted(known["latency_mean"], known["completed"]),
        latency_p99=_weighted(known["latency_p99"], known["completed"]),
        reconfigurations=float(course.reconfigurations),
    )


def _weighted(values: pd.Series, weights: pd.Series) -> float:
    return float(np.average(values, weights=weights)) if weights.sum() else np.nan


class SimulatorError(NamedTuple):
    """Simulated minus measured, for what really ran, over the intervals that were measured.

    Attributes:
        intervals: number of them.
        within: of the share within the service level.
        lost: of the share of requests that came to nothing.
        latency: of the mean latency of an interval, absolute and relative to the measured one: the median.
        latency_worst: the largest of these.
    """

    intervals: int
    within: float
    lost: float
    latency: float
    latency_worst: float


class Outcome(NamedTuple):
    """A course in several simulations, whose arrivals and service times differ.

    Attributes:
        courses: one for each seed.
        figures: of each of them.
    """

    courses: tuple[Course, ...]
    figures: tuple[Figures, ...]

    @classmethod
    def of(cls, courses: Sequence[Course]) -> Outcome:
        """The outcome of these courses."""
        return cls(tuple(courses), tuple(map(figures, courses)))

    @property
    def name(self) -> str:
        """Of the courses."""
        return self.courses[0].name

    @property
    def mean(self) -> Figures:
        """Means over the seeds."""
        return Figures(*np.mean(self.figures, axis=0).tolist())

    def spread(self, name: str) -> float:
        """Largest minus smallest of a figure over the seeds."""
        return float(np.ptp([getattr(each, name) for each in self.figures]))


class Replayed(NamedTuple):
    """A replay.

    Attributes:
        pipeline: as profiled.
        simulation: behaviour of the simulated device.
        seconds: of load.
        requests: in them.
        record: of what ran; None for a load with which nothing ran.
        measured: what ran, as measured; None likewise.
        baseline: what ran, simulated; None likewise.
        error: of the simulator; None if nothing was measured.
        outcomes: of each policy.
        notes: what a reader must know of the record.
    """

    pipeline: Pipeline
    simulation: SimulationParameters
    seconds: int
    requests: int
    record: Record | None
    measured: Course | None
    baseline: Outcome | None
    error: SimulatorError | None
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...]


def replay_policies(
    pipeline: Pipeline,
    objective: Objective,
    simulation: SimulationParameters,
    load: ReplayLoad,
    contenders: Sequence[ReplayedPolicy],
    seeds: Sequence[int],
) -> Replayed:
    """Simulate every policy, and what ran, under a load.

    Args:
        pipeline: as profiled; what the policies know of the device.
        objective: of the reward.
        simulation: behaviour of the device; its interval is that of the record where there is one.
        load: what is replayed.
        contenders: the policies.
        seeds: of arrivals within a second, service times and policies; a simulation each.
    """
    record = load.record
    parameters = simulation if record is None else replace(simulation, interval=record.interval)
    known = None if record is None else record.calibration
    device = pipeline if known is None else calibrated_pipeline(pipeline, *known)
    courses = [
        _simulated_course(pipeline, device, objective, parameters, load, contender, seed)
        for contender in contenders
        for seed in progress_bar(seeds, unit="simulation", desc=contender.name, leave=False)
    ]
    per = len(seeds)
    outcomes = tuple(Outcome.of(courses[k : k + per]) for k in range(0, len(courses), per))
    common = pipeline, parameters, len(load.counts), int(load.counts.sum()), record
    if record is None:
        return Replayed(*common, None, None, None, outcomes, ())
    measured = _measured_course(pipeline, record)
    ran = [_course_that_ran(device, parameters, record, seed) for seed in seeds]
    return Replayed(*common, measured, Outcome.of(ran), simulator_error(measured, ran), outcomes, _notes(record))


def _simulated_course(
    pipeline: Pipeline,
    device: Pipeline,
    objective: Objective,
    parameters: SimulationParameters,
    load: ReplayLoad,
    contender: ReplayedPolicy,
    seed: int,
) -> Course:
    policy = contender.make(seed)
    warm_up(pipeline, policy, contender.forecast)
    backend = ReplayBackend(
        pipeline, parameters, load.history, load.counts, load.initial, seed, device=lambda _: device
    )
    decisions = len(load.counts) // parameters.interval
    steps = tuple(run(backend, pipeline, policy, contender.forecast, objective, decisions))
    intervals = [step.interval for step in steps]
    rows = np.array([step.configuration for step in steps])
    table = _table(pipeline, rows, np.array([step.span for step in steps]), load.counts)
    for name in ("completed", "within", "dropped", "latency_mean", "latency_p99"):
        table[name] = [float(getattr(interval, name)[0]) for interval in intervals]
    return Course(contender.name, False, table, changes(np.concatenate([[as_array(load.initial)], rows])), steps)


def _measured_course(pipeline: Pipeline, record: Record) -> Course:
    table = _table(pipeline, record.configurations, _spans(record), record.counts)
    shown = record.measured.drop(columns="offered")
    return Course(RAN, True, pd.concat([table, shown], axis=1), changes(record.configurations))


def _course_that_ran(device: Pipeline, parameters: SimulationParameters, record: Record, seed: int) -> Course:
    """Simulate the configurations of a record, second by second: its intervals need not be equally long."""
    counts, rows = record.counts, record.configurations
    largest = int(counts.max(initial=1))
    simulator = Simulator(device, replace(parameters, interval=1), 1, largest, seed, record_latencies=True)
    simulator.reset(as_configuration(rows[0]))
    which = np.searchsorted(record.edges[1:-1], np.arange(len(counts)) + 0.5)
    seconds = [simulator.step(rows[k][None], counts[s : s + 1][None]) for s, k in enumerate(which)]
    table = _table(device, rows, _spans(record), counts)
    for name in ("completed", "within", "dropped"):
        table[name] = np.bincount(which, [getattr(each, name)[0] for each in seconds], minlength=len(rows))
    done = np.concatenate([each.latencies[0, : each.completed[0]] for each in seconds])
    latencies = np.split(done, np.cumsum(table["completed"].astype(int))[:-1])
    table["latency_mean"] = [float(each.mean()) if len(each) else 0.0 for each in latencies]
    table["latency_p99"] = [float(np.quantile(each, 0.99)) if len(each) else 0.0 for each in latencies]
    return Course(RAN, False, table, changes(rows))


def _spans(record: Record) -> np.ndarray:
    """(K, 2) begin and end of every interval."""
    return np.stack([record.edges[:-1], record.edges[1:]], axis=1)


def _table(pipeline: Pipeline, rows: np.ndarray, spans: np.ndarray, counts: np.ndarray) -> pd.DataFrame:
    """The columns of a course that follow from configurations (K, N, 3), spans (K, 2) and load."""
    total = np.concatenate([[0], np.cumsum(counts)])
    begin, end = np.minimum(np.rint(spans).astype(int), len(counts)).T
    seconds = spans[:, 1] - spans[:, 0]
    return pd.DataFrame(
        {
            "begin": spans[:, 0],
            "seconds": seconds,
            "load": (total[end] - total[begin]) / seconds,
            "cores": used_cores(pipeline, rows),
            "accuracy": accuracy(pipeline, rows) / len(pipeline.tasks),
        }
    )


def changes(rows: np.ndarray) -> int:
    """Count the changes in consecutive configurations (K, N, 3)."""
    return int((np.diff(rows, axis=0) != 0).any(axis=(1, 2)).sum())


def simulator_error(measured: Course, simulated: Sequence[Course]) -> SimulatorError | None:
    """Compare what ran as measured with its simulations, the mean of them; None if nothing was measured."""
    known = measured.table["completed"].notna().to_numpy()
    if not known.any():
        return None
    of = Outcome.of([course._replace(table=course.table[known]) for course in simulated])
    truth, guess = figures(measured), of.mean
    answered = (measured.table["latency_mean"] > 0.0).to_numpy()
    predicted = np.mean([course.table["latency_mean"][answered] for course in simulated], axis=0)
    latency = np.abs(predicted / measured.table["latency_mean"][answered].to_numpy() - 1.0)
    middle, worst = (float(np.median(latency)), float(latency.max())) if len(latency) else (np.nan, np.nan)
    return SimulatorError(int(known.sum()), guess.within - truth.within, guess.lost - truth.lost, middle, worst)


def _notes(record: Record) -> tuple[str, ...]:
    notes = []
    if record.filled:
        notes.append(f"The load of {record.filled} of {len(record.counts)} s is missing in the record; interpolated.")
    if record.left_out:
        notes.append(f"The record has a gap; the {record.left_out} decisions before it are left out.")
    if unmeasured := int(record.measured["completed"].isna().sum()):
        notes.append(f"{unmeasured} of {len(record.measured)} intervals were not measured.")
    if record.calibration is None:
        notes.append("The record has no calibration, so the simulated device is as profiled.")
    if record.wanted:
        number = f"{record.wanted} of {len(record.measured)}"
        notes.append(f"In {number} intervals the policy that wrote the record wanted something else than what ran.")
    return tuple(notes)


def verdicts(replayed: Replayed) -> list[str]:
    """State each policy beside what ran, or beside the first policy where nothing did."""
    others = replayed.outcomes if replayed.baseline else replayed.outcomes[1:]
    return [_verdict(replayed, each, replayed.baseline or replayed.outcomes[0]) for each in others]


def _verdict(replayed: Replayed, outcome: Outcome, baseline: Outcome) -> str:
    mine, other = outcome.mean, baseline.mean
    share = mine.cores / other.cores - 1.0
    saved = "as many" if abs(share) < 0.0005 else f"{abs(share):.1%} {'less' if share < 0 else 'more'}"
    seconds = f"{replayed.pipeline.service_level.seconds:.3g} s"
    return (
        f"{outcome.name}: {mine.cores:.2f} cores instead of {other.cores:.2f} of {baseline.name} ({saved}); "
        f"{mine.within:.2%} of the requests within {seconds} instead of {other.within:.2%}, "
        f"{_told(replayed, outcome, baseline)}; lost {mine.lost:.2%} instead of {other.lost:.2%}; accuracy "
        f"{mine.accuracy:.3f} instead of {other.accuracy:.3f}; {mine.reconfigurations:.0f} reconfigurations instead "
        f"of {other.reconfigurations:.0f}"
    )


def _told(replayed: Replayed, outcome: Outcome, baseline: Outcome) -> str:
    """Whether the difference in the service level is larger than what is not known of it."""
    difference = abs(outcome.mean.within - baseline.mean.within)
    unknown = abs(replayed.error.within) if replayed.error else 0.0
    unknown += max(outcome.spread("within"), baseline.spread("within"))
    what = "the simulator's error and spread" if replayed.error else "the spread of the simulations"
    return f"a difference {'above' if difference > unknown else 'within'} {what} of {100 * unknown:.2f} points"
