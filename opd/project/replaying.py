"""Replays for a project: its policies under a record, or under a stretch of a trace."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from opd.control import DEPLOYABLE_POLICIES, POLICIES, policy_label
from opd.control.policies import Policy
from opd.control.record import is_record, read_record
from opd.live.replay import Replayed, ReplayedPolicy, ReplayLoad, replay_policies
from opd.pipeline import Pipeline
from opd.project.folder import Project, ProjectError
from opd.project.running import decider, load_counts
from opd.solvers import greedy
from opd.workload.forecast import HISTORY_SECONDS


def contenders(project: Project, pipeline: Pipeline, names: Sequence[str]) -> tuple[list[ReplayedPolicy], list[str]]:
    """The policies of these names, and notes on how they were trained.

    Raises:
        ProjectError: if a policy would have to know the coming load.
        ValueError: if there is no such policy, or it has not been trained.
    """
    found, notes = [], []
    for name in names:
        if name in POLICIES and name not in DEPLOYABLE_POLICIES:
            raise ProjectError(
                f"policy {name!r} needs to know the coming load, and a replay tells it to nobody; choose among "
                f"{', '.join(DEPLOYABLE_POLICIES)}, or module:Class"
            )
        chosen = decider(project, pipeline, name, simulated=True)

        def make(seed: int, name: str = name) -> Policy:
            return decider(project, pipeline, name, seed, simulated=True).policy

        found.append(ReplayedPolicy(policy_label(name), make, chosen.forecast))
        notes += [note for note in chosen.notes if note not in notes]
    return found, notes


def load_of(
    project: Project, pipeline: Pipeline, source: str, first: ReplayedPolicy, start: int, seconds: int
) -> ReplayLoad:
    """Read the load of a record, or of a stretch of a trace.

    A trace begins with the cheapest configuration for the first forecast.

    Args:
        project: the project.
        pipeline: its pipeline.
        source: file of a record, the log of a controller, or a trace.
        first: whose forecast is the first one.
        start: first second of a trace; negative for the begin of its test split.
        seconds: of a trace.

    Raises:
        RecordError: if a record cannot be used.
        ProjectError: if the trace ends before.
    """
    if Path(source).is_file() and is_record(Path(source)):
        return ReplayLoad.recorded(read_record(Path(source), pipeline))
    counts = load_counts(project, source, start, seconds)
    lead = min(HISTORY_SECONDS, seconds // 2)
    return ReplayLoad(counts[:lead], counts[lead:], greedy(pipeline, first.forecast(counts[:lead])))


def replay_project(
    project: Project, source: str, names: Sequence[str], seeds: int, start: int = -1, seconds: int = 1200
) -> tuple[Replayed, float, list[str]]:
    """Replay policies of a project; see :func:`contenders` and :func:`load_of`.

    Returns:
        The replay, Unix seconds of the first decision, 0 if unknown, and notes on the policies.
    """
    pipeline = project.pipeline()
    policies, notes = contenders(project, pipeline, names)
    load = load_of(project, pipeline, source, policies[0], start, seconds)
    begin = load.record.begin if load.record else 0.0
    common = pipeline, project.objective, project.simulation(), load, policies
    return replay_policies(*common, range(seeds)), begin, notes
