"""The part of an objective that cannot be reached, the stage that binds, and what is nearest: by prediction.

The parts are checked in the order in which they make sense: a load that nothing carries has no latency.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from opd.measurement import SimulationParameters
from opd.pipeline import Configuration, Pipeline, ServiceLevel, configuration_text
from opd.profiling.attainable import attainable_load
from opd.solvers.knapsack import best_by_cores, pareto_front
from opd.solvers.latency import deviations
from opd.solvers.options import stage_options
from opd.solvers.service_level import LevelOptions, fronts, level_options, shortest_latency, tails_of

ROUNDING = 1e-9
"""By how much a figure may miss what is asked through rounding alone."""


@dataclass(frozen=True)
class Limit:
    """A part of an objective that cannot be reached.

    Attributes:
        quantity: what cannot be reached; ``accuracy and latency`` where each can, but not both together.
        asked: requests/s, accuracy (a fraction) or seconds.
        nearest: what can be reached, in the same unit.
        cores: cores that would be enough; None where no number of cores is.
        stage: the stage that binds: it has too little throughput or accuracy or takes too long, or needs most cores.
        text: all of this in one sentence.
    """

    quantity: Literal["load", "accuracy", "latency", "accuracy and latency"]
    asked: float
    nearest: float
    cores: int | None
    stage: str
    text: str


class Nearest(NamedTuple):
    """The fastest configuration known that keeps the accuracy floor, or the fastest of all if none does."""

    seconds: float
    configuration: Configuration


class _Case(NamedTuple):
    """What is asked, and the options on a device with cores for everything."""

    pipeline: Pipeline
    load: float
    level: ServiceLevel
    options: LevelOptions
    all_cores: int

    @property
    def asked_latency(self) -> str:
        level = self.level
        return f"{level.seconds:g} s for {level.percentile:g} % of the requests at {self.load:g} requests/s"

    def cores_for(self, score: np.ndarray, least: float) -> int | None:
        """Fewest cores with which the stages' scores (N, M) add up to ``least``; None if nothing does."""
        enough = best_by_cores(self.options.cores, score, self.all_cores)[0][0] >= least - ROUNDING
        return int(np.argmax(enough)) if enough.any() else None

    def most_cores(self) -> tuple[str, int]:
        """The stage that needs the most cores to carry the load, and how many."""
        least = self.options.cores.min(axis=1)
        return self.pipeline.tasks[int(np.argmax(least))].name, int(least.max())

    def variant(self, stage: int, option: int) -> str:
        """Name of the variant of an option."""
        return self.pipeline.tasks[stage].variants[self.options.stages[option, 0]].name


def binding_limits(
    pipeline: Pipeline, load: float, level: ServiceLevel, simulation: SimulationParameters, nearest: Nearest | None
) -> list[Limit]:
    """Find what makes an objective unreachable.

    Args:
        pipeline: the pipeline, with the cores of its device.
        load: requests/s.
        level: the objective.
        simulation: batch timeout and noise of the service times.
        nearest: the configuration that comes closest to the latency; None if nothing carries the load.

    Returns:
        The parts that cannot be reached; empty if all can, as far as predictions say.
    """
    tables = pipeline.tables
    widest = np.where(np.isfinite(tables.cores), tables.cores, 0.0).max(axis=1)
    all_cores = max(pipeline.capacity, int(pipeline.max_replicas * widest.sum()))
    options = level_options(replace(pipeline, capacity=all_cores), load, simulation)
    case = _Case(pipeline, load, level, options, all_cores)
    if limit := _load_limit(case):
        return [limit]
    if nearest is None:
        return []
    found = [each for each in (_accuracy_limit(case), _latency_limit(case, nearest)) if each]
    return found or [each for each in (_joint_limit(case, nearest),) if each]


def _load_limit(case: _Case) -> Limit | None:
    pipeline, load = case.pipeline, case.load
    cores = case.cores_for(np.zeros(case.options.cores.shape), 0.0)
    if cores is not None and cores <= pipeline.capacity:
        return None
    nearest = attainable_load(pipeline, load)
    if cores is None:
        options = stage_options(pipeline)
        most = pipeline.max_replicas * options.throughput
        n = int(np.argmin(most.max(axis=1)))
        best = int(np.argmax(most[n]))
        stage, variant = pipeline.tasks[n].name, pipeline.tasks[n].variants[options.variant[best]].name
        reason = (
            f"cannot be carried: stage {stage} carries {most[n, best]:.3g} requests/s at most, with "
            f"{pipeline.max_replicas} replicas of variant {variant} in batches of {options.batch_size[best]}"
        )
    else:
        stage, least = case.most_cores()
        reason = f"need at least {cores} cores, {least} of them in stage {stage}; the device has {pipeline.capacity}"
    text = f"{load:g} requests/s {reason}; nearest: {nearest:.3g} requests/s"
    return Limit("load", load, nearest, cores, stage, text)


def _accuracy_limit(case: _Case) -> Limit | None:
    pipeline, floor, tasks = case.pipeline, case.level.accuracy_floor, len(case.pipeline.tasks)
    accuracy = case.options.accuracy
    nearest = best_by_cores(case.options.cores, accuracy, pipeline.capacity)[0][0, pipeline.capacity] / tasks
    if nearest >= floor - ROUNDING:
        return None
    cores = case.cores_for(accuracy, floor * tasks)
    if cores is None:
        usable = np.where(case.options.cores <= case.all_cores, accuracy, -np.inf)
        n = int(np.argmin(usable.max(axis=1)))
        stage, variant = pipeline.tasks[n].name, case.variant(n, int(np.argmax(usable[n])))
        reason = (
            f"cannot be reached at {case.load:g} requests/s: stage {stage} has {usable[n].max():.3g} at most, with "
            f"variant {variant}"
        )
    else:
        stage, least = case.most_cores()
        reason = (
            f"needs at least {cores} cores at {case.load:g} requests/s; the device has {pipeline.capacity}, of which "
            f"stage {stage} needs at least {least}"
        )
    text = f"a mean accuracy of {floor:g} {reason}; nearest: {nearest:.3g}"
    return Limit("accuracy", floor, float(nearest), cores, stage, text)


def _latency_limit(case: _Case, nearest: Nearest) -> Limit | None:
    pipeline, level, options = case.pipeline, case.level, case.options
    if shortest_latency(options, pipeline.capacity, level.percentile, level.seconds)[0] <= level.seconds:
        return None
    enough = [
        case.cores_for(-options.planned(level.percentile, tail), 0.5 * tail - level.seconds)
        for tail in tails_of(level.seconds)
    ]
    cores = min((each for each in enough if each is not None), default=None)
    with np.errstate(invalid="ignore"):
        own = options.mean + deviations(level.percentile) * np.sqrt(options.variance)
    n = int(np.argmax(own.min(axis=1)))
    stage, variant = pipeline.tasks[n].name, case.variant(n, int(np.argmin(own[n])))
    slowest = f"stage {stage} needs at least {own[n].min():.3g} s, with variant {variant}"
    if cores is None:
        reason = f"cannot be reached: {slowest}"
    else:
        reason = f"needs at least {cores} cores, the device has {pipeline.capacity}; {slowest}"
    text = f"{case.asked_latency} {reason}; {_nearest_text(pipeline, nearest)}"
    return Limit("latency", level.seconds, nearest.seconds, cores, stage, text)


def _joint_limit(case: _Case, nearest: Nearest) -> Limit | None:
    pipeline, level, options, tasks = case.pipeline, case.level, case.options, len(case.pipeline.tasks)
    found = fronts(options, pipeline.capacity, level.percentile, level.seconds)
    reached = max((float(front[2].max()) for front in found if len(front[0])), default=-np.inf) / tasks
    if reached >= level.accuracy_floor - ROUNDING:
        return None
    enough = [_cores_for_both(case, tail) for tail in tails_of(level.seconds)]
    cores = min((each for each in enough if each is not None), default=None)
    accurate = np.where(options.accuracy >= level.accuracy_floor, options.mean, np.inf)
    n = int(np.argmax(accurate.min(axis=1)))
    needed = "" if cores is None else f", which needs at least {cores} cores (the device has {pipeline.capacity})"
    text = (
        f"a mean accuracy of {level.accuracy_floor:g} cannot be reached within {case.asked_latency}{needed}; nearest: "
        f"{reached:.3g} within that latency, or with that accuracy {_nearest_text(pipeline, nearest)}"
    )
    return Limit("accuracy and latency", level.accuracy_floor, reached, cores, pipeline.tasks[n].name, text)


def _cores_for_both(case: _Case, tail: float) -> int | None:
    """Fewest cores that keep the accuracy floor and, at t = ``tail``, the latency; None if nothing does."""
    level, options = case.level, case.options
    latency = options.planned(level.percentile, tail)
    limit = level.seconds - 0.5 * tail
    cores, _, accuracy, _ = pareto_front(options.cores, latency, options.accuracy, case.all_cores, limit)
    enough = cores[accuracy >= level.accuracy_floor * len(case.pipeline.tasks) - ROUNDING]
    return int(enough.min()) if len(enough) else None


def _nearest_text(pipeline: Pipeline, nearest: Nearest) -> str:
    return f"nearest: {nearest.seconds:.3g} s with {configuration_text(pipeline, nearest.configuration)}"
