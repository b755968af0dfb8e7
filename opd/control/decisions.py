"""Decisions of any policy, made into configurations."""

from __future__ import annotations

import operator
from collections.abc import Sized
from itertools import islice
from reprlib import Repr
from typing import Any

from opd.pipeline import Configuration, InfeasibleError, Pipeline, StageConfiguration

_shown = Repr()
_shown.maxother = _shown.maxstring = 80


class DecisionError(InfeasibleError):
    """A policy answered with something that is not a configuration."""


def as_decision(pipeline: Pipeline, answer: Any) -> Configuration:
    """Convert the answer of a policy to a configuration; its limits are not checked.

    Args:
        pipeline: the pipeline, N tasks.
        answer: (N, 3) integers: a configuration, or tuples, lists or an array of variant, replicas and batch size.

    Raises:
        DecisionError: if it is anything else, with what it is and what is expected.
    """
    rows = _parts(answer, len(pipeline.tasks))
    stages = None if rows is None else [_parts(row, len(StageConfiguration._fields)) for row in rows]
    if stages is None or None in stages:
        raise DecisionError(
            f"the decision {shown(answer)} is not a configuration: for each of the {len(pipeline.tasks)} tasks of "
            f"pipeline {pipeline.name!r} a triple of variant, replicas and batch size"
        )
    try:
        return tuple(StageConfiguration(*map(operator.index, stage)) for stage in stages if stage is not None)
    except TypeError as error:
        raise DecisionError(f"the decision {shown(answer)} has entries that are not whole numbers") from error


def _parts(value: Any, number: int) -> list[Any] | None:
    """The parts of a sequence with that many of them; None if it is something else."""
    if not isinstance(value, Sized) or isinstance(value, str | bytes | dict | set | frozenset):
        return None
    try:
        parts = list(islice(iter(value), number)) if len(value) == number else []  # type: ignore[call-overload]
    except TypeError:
        return None
    return parts if len(parts) == number else None


def shown(value: object) -> str:
    """A short text of any object, in one line, even if its own conversion to text fails."""
    try:
        return " ".join(_shown.repr(value).split())
    except Exception:
        return f"of type {type(value).__name__}"
