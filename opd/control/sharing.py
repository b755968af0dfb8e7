"""Several pipelines on one device: the control loop of each, with an arbiter between observing and deciding.

Every interval, all pipelines are observed and their loads forecast; the arbiter divides the cores; each policy decides
within its share, and the guard admits no more. Pipelines that give cores back change first, and none may take cores
that another still has: where that one could not change, the other keeps what it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from opd.control.arbiter import Arbiter, CoreValues
from opd.control.calibration import CalibrationFilter
from opd.control.loop import Backend, Decision, Guard, Step, apply, decide, finish, look
from opd.control.policies import Policy
from opd.measurement import SimulationParameters
from opd.objective import Objective, check_objective
from opd.pipeline import Configuration, Pipeline, used_cores
from opd.workload.futures import Futures

SomeBackend = TypeVar("SomeBackend", bound=Backend, covariant=True)


@dataclass(frozen=True)
class Member(Generic[SomeBackend]):
    """One of the pipelines on a device.

    Attributes:
        backend: where it runs.
        pipeline: its definition.
        policy: decides within its share.
        forecast: predicted maximum load (requests/s) for a history of per-second counts.
        objective: of its reward.
    """

    backend: SomeBackend
    pipeline: Pipeline
    policy: Policy
    forecast: Callable[[np.ndarray], float]
    objective: Objective


class StaticSplit(NamedTuple):
    """A division that stays as it is; an :class:`~opd.control.arbiter.Arbiter` makes a new one every interval.

    Attributes:
        shares: cores of each pipeline.
    """

    shares: tuple[int, ...]

    @property
    def capacity(self) -> int:
        """Cores of the device."""
        return sum(self.shares)

    def warm_up(self) -> None:
        """Nothing needs to be compiled."""

    def divide(self, observations: Sequence[object], used: Sequence[int]) -> list[int]:
        """The shares."""
        return list(self.shares)


class Shared(NamedTuple):
    """A pipeline on a device that others may share.

    Attributes:
        pipeline: its capacity is that of the device.
        objective: of its reward.
        simulation: behaviour of the device, and the interval between two decisions.
        futures: source of loads that may come.
    """

    pipeline: Pipeline
    objective: Objective
    simulation: SimulationParameters
    futures: Futures


def division_of(shared: Sequence[Shared]) -> Arbiter | StaticSplit:
    """What divides the cores of a device among pipelines; a single one has them all.

    Raises:
        ValueError: if they state different devices, or cannot be decided about together.
        InfeasibleError: if the smallest configurations together do not fit.
    """
    pipelines = [each.pipeline for each in shared]
    if len({pipeline.capacity for pipeline in pipelines}) > 1:
        stated = ", ".join(f"{pipeline.name} {pipeline.capacity}" for pipeline in pipelines)
        raise ValueError(f"the pipelines state devices with different cores ({stated}); give --cores")
    if len({pipeline.name for pipeline in pipelines}) < len(pipelines):
        raise ValueError(f"two pipelines have one name ({', '.join(sorted(p.name for p in pipelines))}); rename one")
    if len({type(each.objective) for each in shared}) > 1:
        raise ValueError(
            "rewards by weights and by service levels cannot be added up; give `weights` in every pipeline file or none"
        )
    if len({each.simulation.interval for each in shared}) > 1:
        raise ValueError("the pipelines are decided together; give the same simulation.interval in every params.yaml")
    cores = pipelines[0].capacity
    if len(shared) == 1:
        return StaticSplit((cores,))
    return Arbiter([CoreValues(*each, seed) for seed, each in enumerate(shared)], cores)


def run_together(
    members: Sequence[Member[Backend]], arbiter: Arbiter | StaticSplit, decisions: int, calibrate: bool = True
) -> Iterator[tuple[Step, ...]]:
    """Run the control loops of several pipelines in step; yields the steps of all of them after each interval.

    Failures are handled as in :func:`opd.control.loop.run`. A pipeline that cannot be observed keeps its cores.

    Args:
        members: the pipelines.
        arbiter: divides the cores.
        decisions: number of steps.
        calibrate: whether policies and arbiter are told what the measured service times say of the profiles.
    """
    for member in members:
        check_objective(member.pipeline, member.objective)
    guards = [Guard(member.pipeline, member.backend.configuration) for member in members]
    filters = [CalibrationFilter(member.pipeline) if calibrate else None for member in members]
    for _ in range(decisions):
        known = [None if each is None else each.calibration() for each in filters]
        seen = [look(m.backend, m.forecast, calibration) for m, calibration in zip(members, known, strict=True)]
        used = [cores_of(m.pipeline, m.backend.configuration) for m in members]
        shares = arbiter.divide([each.observation for each in seen], used)
        decided = [
            decide(m.pipeline, m.policy, within(decision, share))
            for m, decision, share in zip(members, seen, shares, strict=True)
        ]
        decided = apply_within(members, guards, decided, arbiter.capacity)
        steps = []
        for member, decision, estimate in zip(members, decided, filters, strict=True):
            step = finish(member.backend, member.pipeline, member.objective, decision)
            if estimate is not None:
                estimate.update(step.interval, step.span.seconds)
            steps.append(step)
        yield tuple(steps)


def cores_of(pipeline: Pipeline, configuration: Configuration) -> int:
    """Cores of a configuration, which are whole."""
    return int(used_cores(pipeline, configuration))


def within(seen: Decision, cores: float) -> Decision:
    """What was observed, with so many cores or those that were available if they are fewer."""
    if seen.observation is None:
        return seen
    available = min(seen.observation.available_cores, float(cores))  # in this order, nan stays for the guard
    return seen._replace(observation=replace(seen.observation, available_cores=available))


def apply_within(
    members: Sequence[Member[Backend]], guards: Sequence[Guard], decided: Sequence[Decision], capacity: int
) -> list[Decision]:
    """Apply decisions, those that give cores back first; each may take what the others then leave."""
    used = [cores_of(m.pipeline, m.backend.configuration) for m in members]

    def growth(n: int) -> int:
        wanted = decided[n].decided
        try:
            return 0 if wanted is None else cores_of(members[n].pipeline, wanted) - used[n]
        except IndexError:  # a variant that there is not, which the guard refuses
            return 0

    applied = list(decided)
    for n in sorted(range(len(members)), key=growth):
        free = capacity - sum(used) + used[n]
        limited = within(decided[n], free)
        refused = apply(members[n].backend, guards[n], limited)
        applied[n] = limited._replace(refused=refused)
        used[n] = cores_of(members[n].pipeline, members[n].backend.configuration)
    return applied
