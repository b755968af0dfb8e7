"""Configurations for runs without a policy: as given, or a few of a pipeline that differ in everything."""

from __future__ import annotations

from collections.abc import Sequence

from opd.control.policies import Policy
from opd.measurement import Observation
from opd.pipeline import Configuration, InfeasibleError, Pipeline, StageConfiguration, check_feasible


class SchedulePolicy(Policy):
    """A fixed sequence of configurations, which exercises every kind of change.

    Args:
        configurations: in order, each held for the same number of decisions.
        decisions: number of decisions in total.
    """

    def __init__(self, configurations: Sequence[Configuration], decisions: int) -> None:
        held = -(-decisions // len(configurations))
        self._remaining = (configuration for configuration in configurations for _ in range(held))

    def decide(self, observation: Observation) -> Configuration:
        """Return the next configuration of the sequence; after its end, the running one."""
        return next(self._remaining, observation.configuration)


def configurations_from(nested: Sequence[Sequence[Sequence[int]]]) -> list[Configuration]:
    """Convert nested lists to configurations: for each stage variant, replicas and batch size."""
    return [tuple(StageConfiguration(*stage) for stage in configuration) for configuration in nested]


def given_or_varied(nested: Sequence[Sequence[Sequence[int]]], pipeline: Pipeline, count: int) -> list[Configuration]:
    """Convert the given configurations; if there are none, choose ``count`` varied ones of the pipeline."""
    return configurations_from(nested) or varied_configurations(pipeline, count)


def varied_configurations(pipeline: Pipeline, count: int) -> list[Configuration]:
    """Choose up to ``count`` different configurations of a pipeline, to try every kind of change.

    Variants go through those of each task, in neighbouring stages in opposite directions. Every third configuration has
    more replicas, and every third larger batches, as far as the limits allow it.
    """
    chosen: list[Configuration] = []
    for number in range(count):
        stages = []
        for position, task in enumerate(pipeline.tasks):
            place = number % len(task.variants)
            variant = place if position % 2 == 0 else len(task.variants) - 1 - place
            replicas = min(2 if number % 3 == 1 else 1, pipeline.max_replicas)
            batch_size = min(2 if number % 3 == 2 else 1, pipeline.max_batch_size)
            stages.append(StageConfiguration(variant, replicas, batch_size))
        for configuration in (tuple(stages), tuple(stage._replace(replicas=1) for stage in stages)):
            if configuration not in chosen and _fits(pipeline, configuration):
                chosen.append(configuration)
                break
    return chosen or [pipeline.smallest_configuration()]


def _fits(pipeline: Pipeline, configuration: Configuration) -> bool:
    try:
        check_feasible(pipeline, configuration)
    except InfeasibleError:
        return False
    return True
