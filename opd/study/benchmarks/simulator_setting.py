"""What both measurements of the simulator share: load, configurations that take turns, and how much is measured."""

from __future__ import annotations

from dataclasses import dataclass

from opd.pipeline import Configuration, Pipeline
from opd.solvers import IpaParameters, greedy, ipa_dynamic_program

LOAD = 12
"""Mean requests/s of the workload."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        intervals: decisions of 10 s that every simulator of requests runs.
        copies: episodes that opd simulates together beside simpy and ciw.
        batches: numbers of episodes stepped together, for environment steps.
        steps: environment steps in one measurement, over all episodes.
        single_steps: the same where episodes are not stepped together.
        repetitions: of every measurement, of which the median counts.
    """

    intervals: int
    copies: int
    batches: tuple[int, ...]
    steps: int
    single_steps: int
    repetitions: int


FULL = Size(
    intervals=120, copies=256, batches=(1, 4, 16, 64, 256, 1024), steps=20_480, single_steps=1200, repetitions=7
)
SMOKE = Size(intervals=6, copies=8, batches=(1, 16), steps=64, single_steps=16, repetitions=2)


def varied_configurations(pipeline: Pipeline) -> list[Configuration]:
    """Configurations that a policy may run in turn: frugal ones and accurate ones, for the load and for more."""
    loads = [factor * LOAD for factor in (1.25, 1.5)]
    return [
        choice
        for load in loads
        for choice in (greedy(pipeline, load), ipa_dynamic_program(pipeline, load, IpaParameters()))
    ]
