"""Plans the transition from one configuration to another within the available cores, as a pure function.

If there are cores for it, all stages change at once and every new variant starts next to the old one. Otherwise the
stages change one after another, beginning with those that give cores back, so the limit holds after each step; a stage
with old and new replicas that do not fit together is replaced in place.
"""

from __future__ import annotations

from typing import NamedTuple

from opd.pipeline import Configuration, Pipeline, StageConfiguration


class Move(NamedTuple):
    """Transition of one stage.

    Attributes:
        stage: its position.
        old: what it runs.
        new: what it is to run.
        kept: replicas of the old variant that go on until the new ones serve.
        first: replicas of the new variant that start next to those; the gateways switch when they are ready.
    """

    stage: int
    old: StageConfiguration
    new: StageConfiguration
    kept: int
    first: int

    @property
    def in_place(self) -> bool:
        """True if fewer replicas than before serve until the new ones do."""
        return self.kept < self.old.replicas and self.old.variant != self.new.variant


Plan = list[list[Move]]
"""Rounds of moves; the moves of a round happen at the same time."""


def plan(pipeline: Pipeline, old: Configuration, new: Configuration, capacity: float) -> Plan:
    """Return the rounds from ``old`` to ``new``, for the stages that differ.

    Args:
        pipeline: its variants define the cores of replicas.
        old: what runs.
        new: what is to run, within ``capacity``.
        capacity: cores that may be in use at any time.
    """
    before, after = _cores(pipeline, old), _cores(pipeline, new)
    changing = [n for n in range(len(old)) if old[n] != new[n]]
    peaks = [_peak(old[n], new[n], before[n], after[n]) if n in changing else before[n] for n in range(len(old))]
    if sum(peaks) <= capacity:
        return [[_surge(n, old[n], new[n]) for n in changing]] if changing else []
    rounds, used = [], sum(before)
    for n in sorted(changing, key=lambda n: after[n] - before[n]):
        budget = capacity - (used - before[n])
        fits = peaks[n] <= budget
        rounds.append([_surge(n, old[n], new[n]) if fits else _in_place(pipeline, n, old[n], new[n], budget)])
        used += after[n] - before[n]
    return rounds


def describe(pipeline: Pipeline, rounds: Plan, capacity: float) -> str:
    """Describe a plan: which of surge and replacement in place was chosen for each stage, and why."""
    moves = [move for each in rounds for move in each]
    names = [pipeline.tasks[move.stage].name for move in moves]
    if not any(move.in_place for move in moves):
        how = "all at once" if len(rounds) == 1 else f"one after another ({', '.join(names)})"
        return f"surge, {how}: old replicas serve until the new ones do, within {capacity:g} cores"
    parts = [
        f"{name} in place ({move.kept} of {move.old.replicas} old replicas next to {move.first} new ones"
        + ("" if move.kept else "; requests wait until those serve")
        + ")"
        if move.in_place
        else f"{name} by surge"
        for name, move in zip(names, moves, strict=True)
    ]
    return f"one after another, as {capacity:g} cores do not hold old and new together: {', '.join(parts)}"


def _cores(pipeline: Pipeline, configuration: Configuration) -> list[int]:
    return [variant.cores * stage.replicas for variant, stage in pipeline.selected(configuration)]


def _peak(old: StageConfiguration, new: StageConfiguration, before: int, after: int) -> int:
    return max(before, after) if old.variant == new.variant else before + after


def _surge(stage: int, old: StageConfiguration, new: StageConfiguration) -> Move:
    return Move(stage, old, new, old.replicas, new.replicas)


def _in_place(pipeline: Pipeline, stage: int, old: StageConfiguration, new: StageConfiguration, budget: float) -> Move:
    """Start as many new replicas as leave room for one old one, if both fit at all, else as many as fit alone."""
    if old.variant == new.variant:  # it shrinks; what runs is above the capacity
        return _surge(stage, old, new)
    variants = pipeline.tasks[stage].variants
    one_old, one_new = variants[old.variant].cores, variants[new.variant].cores
    if one_old + one_new > budget:
        return Move(stage, old, new, 0, min(new.replicas, max(int(budget // one_new), 1)))
    first = min(new.replicas, int((budget - one_old) // one_new))
    return Move(stage, old, new, min(old.replicas, int((budget - first * one_new) // one_old)), first)
