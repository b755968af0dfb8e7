"""Two pipelines on one device: an arbiter every interval against the best division that stays as it is.

``python -m opd.study.analysis.sharing`` writes ``reports/sharing.csv``: a row for every pair of the catalogue. Each
pair shares half of the cores that the two have alone. The first meets a fluctuating load, the second a steady high one.
The best static split is known in hindsight: the one with the highest summed reward in the same stretch, under the same
policy, ``myopic-backlog``, and the same requests.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from opd.control.arbiter import Arbiter, limits_on
from opd.control.loop import Step, run
from opd.control.policies import BacklogPolicy, SolverPolicy
from opd.control.sharing import Member, run_together
from opd.host.paths import project_path
from opd.host.progress import progress_bar
from opd.measurement import SimulationParameters
from opd.objective import Weights
from opd.pipeline import Pipeline, used_cores
from opd.profiling.pipelines import load_pipeline
from opd.simulator.backend import SimulatedBackend
from opd.solvers.exact import solver_for
from opd.workload.forecast import HISTORY_SECONDS, RecentMaximum
from opd.workload.trace import TWITTER_CYCLES, Trace, load_trace

CATALOGUE = ("video", "audio-qa", "audio-sentiment", "summarisation-qa", "nlp", "ocr")
_STEADY_LOW, FLUCTUATING, STEADY_HIGH = TWITTER_CYCLES


@dataclass(frozen=True)
class Shared:
    """What all runs have in common.

    Attributes:
        trace: of the loads.
        seconds: length of a run.
        simulation: behaviour of the device.
        weights: of the reward.
        seed: of arrivals and service noise.
    """

    trace: Trace
    seconds: int = 1200
    simulation: SimulationParameters = SimulationParameters()
    weights: Weights = Weights()
    seed: int = 0

    def member(self, pipeline: Pipeline, start: int) -> Member:
        """A pipeline of its own in the simulator, under the load from second ``start`` of the recording on."""
        first = self.trace.position(start)
        counts = self.trace.counts
        history, window = counts[first - HISTORY_SECONDS : first], counts[first : first + self.seconds]
        solve = solver_for(self.weights, self.simulation)
        initial = pipeline.smallest_configuration()
        backend = SimulatedBackend(pipeline, self.simulation, history, window, initial, self.seed)
        policy = BacklogPolicy(SolverPolicy(pipeline, solve), self.simulation.interval)
        return Member(backend, pipeline, policy, RecentMaximum().predict, self.weights)

    @property
    def decisions(self) -> int:
        """Intervals of a run."""
        return self.seconds // self.simulation.interval


class SharedRun(NamedTuple):
    """A run of one pipeline.

    Attributes:
        reward: (K,) of every interval.
        dropped: (K,) requests.
        cores: the most that ran.
    """

    reward: np.ndarray
    dropped: np.ndarray
    cores: int


def course_of(pipeline: Pipeline, steps: Sequence[Step]) -> SharedRun:
    """Reward, dropped requests and largest cost of a run."""
    reward = np.array([step.score.reward[0] for step in steps])
    dropped = np.array([step.interval.dropped[0] for step in steps])
    return SharedRun(reward, dropped, int(max(used_cores(pipeline, step.configuration) for step in steps)))


def static_courses(pipeline: Pipeline, start: int, shared: Shared, most: int) -> dict[int, SharedRun]:
    """The run on every number of cores up to ``most``, by that number, from the smallest configuration's on."""
    smallest, cores = int(used_cores(pipeline, pipeline.smallest_configuration())), most
    courses: dict[int, SharedRun] = {}
    while cores >= smallest:
        limited = replace(pipeline, capacity=cores)
        member = shared.member(limited, start)
        parts = member.backend, limited, member.policy, member.forecast, shared.weights, shared.decisions
        course = course_of(limited, list(run(*parts)))
        # Cores that no decision took make no difference: the solver is exact.
        courses |= dict.fromkeys(range(min(course.cores, cores), cores + 1), course)
        cores = min(course.cores, cores) - 1
    return courses


def best_split(first: Mapping[int, SharedRun], second: Mapping[int, SharedRun], capacity: int) -> tuple[int, int]:
    """The division of the capacity with the highest summed reward."""
    splits = [(cores, capacity - cores) for cores in first if capacity - cores in second]
    return max(splits, key=lambda split: float(first[split[0]].reward.sum() + second[split[1]].reward.sum()))


def shared_courses(pair: Sequence[Pipeline], starts: Sequence[int], shared: Shared, capacity: int) -> list[SharedRun]:
    """The runs of a pair whose cores an arbiter divides every interval."""
    limits = limits_on(pair, capacity)
    limited = [replace(each, capacity=limit) for each, limit in zip(pair, limits, strict=True)]
    arbiter = Arbiter(limited, [shared.weights] * len(pair), shared.simulation, capacity)
    members = [shared.member(each, start) for each, start in zip(limited, starts, strict=True)]
    steps = list(run_together(members, arbiter, shared.decisions))
    return [course_of(each, own) for each, own in zip(limited, zip(*steps, strict=True), strict=True)]


def compare_pairs(
    shared: Shared, names: Sequence[str] = CATALOGUE, load: Callable[[str], Pipeline] = load_pipeline
) -> pd.DataFrame:
    """Compare the arbiter with the best static split for every pair.

    Returns:
        A row for each pair: ``capacity``; ``split`` of the static division; mean summed ``reward`` of an interval, the
        ``worst`` interval's, and requests ``dropped`` in all and at most in one interval, by arbiter and static.
    """
    pipelines = {name: load(name) for name in names}
    pairs = list(itertools.combinations(names, 2))
    rows = []
    for pair in progress_bar(pairs, unit="pair", desc="sharing"):
        both = [pipelines[name] for name in pair]
        capacity = -(-sum(each.capacity for each in both) // 2)
        starts = FLUCTUATING.start, STEADY_HIGH.start
        fixed = [
            _padded(static_courses(each, start, shared, min(each.capacity, capacity)), capacity)
            for each, start in zip(both, starts, strict=True)
        ]
        split = best_split(fixed[0], fixed[1], capacity)
        static = [courses[cores] for courses, cores in zip(fixed, split, strict=True)]
        arbitrated = shared_courses(both, starts, shared, capacity)
        row: dict[str, object] = {"first": pair[0], "second": pair[1], "capacity": capacity, "split": split[0]}
        rows.append(row | _figures("arbiter", arbitrated) | _figures("static", static))
    return pd.DataFrame(rows)


def _padded(courses: Mapping[int, SharedRun], capacity: int) -> dict[int, SharedRun]:
    """Courses for every number of cores up to the capacity; those beyond a pipeline's own change nothing."""
    largest = max(courses)
    return {cores: courses[min(cores, largest)] for cores in range(min(courses), capacity + 1)}


def _figures(name: str, courses: Sequence[SharedRun]) -> dict[str, float]:
    reward = np.sum([course.reward for course in courses], axis=0)
    dropped = np.sum([course.dropped for course in courses], axis=0)
    return {
        f"reward_{name}": float(reward.mean()),
        f"worst_{name}": float(reward.min()),
        f"dropped_{name}": int(dropped.sum()),
        f"most_dropped_{name}": int(dropped.max()),
    }


def main() -> None:
    """Compare all pairs on the bundled trace and write the table."""
    table = compare_pairs(Shared(load_trace("synthetic", damping=8)))
    file = project_path("reports", "sharing.csv")
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(file, index=False, float_format="%.4f")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
