"""Comparison of the pipeline that an agent was trained for with the one it is to decide for.

Both are given as JSON values of :class:`~opd.pipeline.Pipeline`. Names, their order, limits and accuracies must agree.
Latencies and start-up times are measured again from time to time, so they may differ a little.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isclose
from typing import Any, NamedTuple

import numpy as np

PROFILE_TOLERANCE = 0.05
"""Largest relative difference of a latency or a start-up time that is no other pipeline."""

_NOT_COMPARED = {"assumed", "description"}
"""Fields that no decision depends on."""


class Difference(NamedTuple):
    """A place where two pipelines differ.

    Attributes:
        text: the place, both values and, of a measured one, by how much they differ.
        small: whether it is within :data:`PROFILE_TOLERANCE`.
    """

    text: str
    small: bool


def pipeline_differences(stored: Any, given: Any, place: str = "pipeline") -> Iterator[Difference]:
    """Yield all differences of two pipelines.

    Args:
        stored: of the checkpoint.
        given: to decide for.
        place: for messages.
    """
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in [each for each in {**stored, **given} if each not in _NOT_COMPARED]:
            inner = f"{place}.{key}"
            if key not in given or key not in stored:
                where = "the checkpoint" if key in stored else "the pipeline given"
                yield Difference(f"{inner} is only in {where}", False)
            elif key == "latency":
                yield from _profile_differences(stored[key], given[key], inner)
            elif key == "startup_time":
                yield from _measured_difference(stored[key], given[key], inner)
            else:
                yield from pipeline_differences(stored[key], given[key], inner)
    elif isinstance(stored, list) and isinstance(given, list):  # of tasks, or of variants
        names, others = ([part["name"] for part in parts] for parts in (stored, given))
        if names != others:
            texts = (", ".join(map(repr, each)) for each in (names, others))
            yield Difference("{} are {} in the checkpoint, {} in the pipeline given".format(place, *texts), False)
        else:
            for name, one, other in zip(names, stored, given, strict=True):
                yield from pipeline_differences(one, other, f"{place}.{name}")
    elif stored != given:
        yield Difference(f"{place} is {stored!r} in the checkpoint, {given!r} in the pipeline given", False)


def _profile_differences(stored: dict[str, float], given: dict[str, float], place: str) -> Iterator[Difference]:
    """Yield the differences of two profiles at the batch sizes that both cover, as they are interpolated."""
    profiles = [{int(size): profile[size] for size in sorted(profile, key=int)} for profile in (stored, given)]
    first, last = max(map(min, profiles)), min(map(max, profiles))
    for size in sorted({*profiles[0], *profiles[1]}):
        if first <= size <= last:
            before, now = (float(np.interp(size, list(each), list(each.values()))) for each in profiles)
            yield from _measured_difference(before, now, f"{place}.{size}")


def _measured_difference(stored: float, given: float, place: str) -> Iterator[Difference]:
    if isclose(stored, given):  # interpolation rounds
        return
    change = given / stored - 1.0 if stored else np.inf
    text = f"{place} is {stored:.4g} s in the checkpoint, {given:.4g} s in the pipeline given ({change:+.1%})"
    yield Difference(text, bool(abs(change) <= PROFILE_TOLERANCE))
