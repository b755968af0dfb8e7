"""Thresholds of the reactive policies, and the tuned ones that ship with the package.

A table has the columns ``pipeline,policy,threshold,value``: what :mod:`opd.study.analysis.tuning` found for each of
some pipelines, and for all of them together; those of all together are for every other pipeline. The table is
``thresholds.csv`` in the project, or the one beside this module, of the pipelines that ship with the package.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from opd.host.errors import reason_of
from opd.host.paths import package_path, project_path

_CONFIG = {"extra": "forbid", "allow_inf_nan": False}
_Positive = Annotated[float, Field(gt=0.0)]
_Seconds = Annotated[float, Field(ge=0.0)]

EVERY_PIPELINE = "every"
"""Name in the table for pipelines that have no thresholds of their own."""

FILE_NAME = "thresholds.csv"


@dataclass(frozen=True, config=_CONFIG)  # type: ignore[call-overload]
class HpaThresholds:
    """Settings of the Horizontal Pod Autoscaler of every stage.

    Attributes:
        headroom: multiple of the usual load for which variants and batch sizes are chosen.
        target: utilisation of a ready replica that the autoscaler aims at, 0..1.
        window: seconds of stabilisation before it scales down.
    """

    headroom: _Positive
    target: Annotated[float, Field(gt=0.0, le=1.0)]
    window: _Seconds = 300.0


@dataclass(frozen=True, config=_CONFIG)  # type: ignore[call-overload]
class QueueThresholds:
    """Settings of the queue trigger of every stage.

    Attributes:
        headroom: multiple of the usual load for which variants and batch sizes are chosen.
        requests_per_replica: requests in the stage, waiting or served, for each replica.
        window: seconds of stabilisation before it scales down.
    """

    headroom: _Positive
    requests_per_replica: _Positive
    window: _Seconds = 300.0


@dataclass(frozen=True, config=_CONFIG)  # type: ignore[call-overload]
class LadderThresholds:
    """Hysteresis of the ladder.

    Attributes:
        upper: share of a rung's throughput above which the demand asks for a higher one.
        lower: part of ``upper``, 0..1, below which the demand allows a lower rung.
        load_seconds: the load is the mean of the last so many seconds.
        drain_seconds: the demand is the load and what serves the waiting requests in so many seconds.
        hold_seconds: time for which the demand must have allowed a lower rung.
    """

    upper: _Positive
    lower: Annotated[float, Field(gt=0.0, le=1.0)]
    load_seconds: Annotated[float, Field(ge=1.0)]
    drain_seconds: _Positive
    hold_seconds: _Seconds


Thresholds = HpaThresholds | QueueThresholds | LadderThresholds

KINDS: dict[str, type[HpaThresholds] | type[QueueThresholds] | type[LadderThresholds]] = {
    "hpa": HpaThresholds,
    "queue-threshold": QueueThresholds,
    "ladder": LadderThresholds,
}
"""The thresholds of each reactive policy."""


def read_thresholds(path: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Read a table of thresholds: by pipeline and policy, the value of each threshold.

    Raises:
        KeyError: if it lacks a column.
        ValueError: if a value is not a number.
    """
    table: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            table[row["pipeline"], row["policy"]][row["threshold"]] = float(row["value"])
    return dict(table)


def tuned_thresholds(policy: str, pipeline: str) -> Thresholds:
    """Thresholds of a reactive policy: those tuned for a pipeline, otherwise those tuned for all.

    Args:
        policy: ``hpa``, ``queue-threshold`` or ``ladder``.
        pipeline: name of the pipeline.

    Raises:
        ValueError: if the table of the project lacks thresholds or has others, or one is out of its range.
    """
    own = project_path(FILE_NAME)
    path = own if own.is_file() else package_path("control", FILE_NAME)
    try:
        table = read_thresholds(path)
        return KINDS[policy](**(table.get((pipeline, policy)) or table[EVERY_PIPELINE, policy]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: no thresholds of policy {policy!r} for pipeline {pipeline!r} ({reason_of(error)}); write the "
            "table with `python -m opd.study.analysis.tuning`, or delete it"
        ) from error
