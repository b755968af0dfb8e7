"""The record of a run: a line of JSON for every pass of the control loop, written as it goes on and read again.

``opd run`` logs these lines, so its log is a record; ``opd run --record`` and ``opd serve --record`` write them alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from opd.control.loop import Step
from opd.host.errors import reason_of
from opd.pipeline import Configuration, Pipeline, StageConfiguration, Task, check_stage
from opd.workload.forecast import HISTORY_SECONDS

logger = logging.getLogger(__name__)

STATE = ("available_cores", "incoming_load", "task_latency", "ready_throughput", "queue", "history")
"""Fields of an observation that an entry has."""

MEASURED = ("offered", "completed", "within", "dropped", "latency_mean", "latency_p99")
"""Fields of an interval that an entry has."""


class RecordError(ValueError):
    """A file is no record, or not one of this pipeline."""


def step_entry(pipeline: Pipeline, step: Step) -> dict[str, Any]:
    """Return a step as plain data; unknown figures are null."""
    return {
        "event": "decision",
        "pipeline": pipeline.name,
        "span": [float(step.span.begin), float(step.span.end)],
        "outcome": step.outcome,
        "reason": step.refused,
        "state": {name: _plain(getattr(step.observation, name)) for name in STATE if step.observation},
        "calibration": _calibration(pipeline, step),
        "forecast": _plain(step.predicted_load),
        "forecast_failure": step.forecast_failure,
        "wanted": None if step.decided is None else _stages(pipeline, step.decided),
        "configuration": _stages(pipeline, step.configuration),
        "by_expert": step.fallback,
        "fallback_reason": step.fallback_reason,
        "decision_seconds": step.decision_seconds,
        "measured": {name: _plain(getattr(step.interval, name)[0]) for name in MEASURED},
        "score": {name: _plain(value[0]) for name, value in step.score._asdict().items()},
    }


def append_entry(file: Path | None, entry: Mapping[str, Any]) -> None:
    """Append an entry to a record, if there is one; a failure is logged, because control must go on."""
    if file is None:
        return
    try:
        with file.open("a", encoding="utf-8") as record:
            record.write(json.dumps(entry) + "\n")
    except OSError as error:
        logger.warning("a decision is missing in %s: %s", file, reason_of(error))


def _stages(pipeline: Pipeline, configuration: Configuration) -> dict[str, Any]:
    """The stages by task; a variant that the task does not have, which a policy may want, as a number."""
    return {
        task.name: {
            "variant": _variant_name(task, stage.variant),
            "replicas": int(stage.replicas),
            "batch_size": int(stage.batch_size),
        }
        for task, stage in zip(pipeline.tasks, configuration, strict=True)
    }


def _variant_name(task: Task, index: int) -> str | int:
    return task.variants[index].name if 0 <= index < len(task.variants) else int(index)


def _calibration(pipeline: Pipeline, step: Step) -> dict[str, dict[str, Any]]:
    """How service times compare with the profiles, by task: of the variant that ran before, and of all of them."""
    if step.observation is None or step.observation.calibration is None:
        return {}
    known, running = step.observation.calibration, step.observation.configuration
    of_running = zip(pipeline.selected(running), known.of_variants(running), strict=True)
    return {
        task.name: {
            "variant": variant.name,
            "factor": _plain(factor),
            "deviation": _plain(deviation),
            "factors": _plain(known.factor[n, : len(task.variants)]),
            "slopes": _plain(known.slope[n, : len(task.variants)]),
        }
        for n, (task, ((variant, _), (factor, deviation))) in enumerate(zip(pipeline.tasks, of_running, strict=True))
    }


def _plain(value: float | np.ndarray) -> Any:
    """Return a number, or the numbers of a vector, as JSON has them; null if not finite."""
    if np.ndim(value):
        return [_plain(each) for each in np.asarray(value)]
    return round(float(value), 6) if np.isfinite(value) else None


@dataclass(frozen=True)
class Record:
    """What a pipeline was offered, what ran, and what was measured, in K intervals.

    The last entry of a file only ends the record: when requests arrived is known from the decision that follows.

    Attributes:
        interval: seconds between two decisions, in the median.
        begin: Unix seconds of the first decision; 0 in the simulator.
        history: (H,) requests in each second before it.
        counts: (T,) requests in each second from then on.
        edges: (K + 1,) seconds after the first decision between which the intervals lie.
        configurations: (K, N, 3) what ran.
        wanted: intervals for which the policy wanted something else than what ran.
        measured: K rows, columns of :data:`MEASURED`; NaN where nothing was measured.
        calibration: factor and slope of :class:`opd.measurement.Calibration` at the end, (N, Z); None if unknown.
        filled: seconds of ``counts`` that nothing tells; they are interpolated.
        left_out: decisions before a gap in the file that is longer than the load a decision knows.
    """

    interval: int
    begin: float
    history: np.ndarray
    counts: np.ndarray
    edges: np.ndarray
    configurations: np.ndarray
    wanted: int
    measured: pd.DataFrame
    calibration: tuple[np.ndarray, np.ndarray] | None
    filled: int
    left_out: int


def read_record(file: Path, pipeline: Pipeline) -> Record:
    """Read a record, or the log of a controller.

    Args:
        file: a JSON object a line; lines that are no decision are skipped.
        pipeline: that it is of.

    Raises:
        RecordError: if it has fewer than two decisions with a history, or other stages, variants or limits.
        OSError: if it cannot be read.
    """
    kept: list[dict[str, Any]] = []
    left_out = 0
    for entry in _decisions(file):
        seen = entry["state"].get("history")
        if kept and entry["span"][0] - kept[-1]["span"][1] > HISTORY_SECONDS and seen:
            left_out, kept = left_out + len(kept), []  # nothing tells the load in between
        # It begins with the first observation; a clock that was set back would repeat time.
        if entry["span"][1] > kept[-1]["span"][1] if kept else seen:
            kept.append(entry)
    if len(kept) < 2:
        raise RecordError(
            f"{file} has {len(kept)} decisions with the load before them, and 2 are needed; a record is what "
            "`opd run --record`, `opd serve --record` or the log of `opd run` wrote"
        )
    spans = np.array([entry["span"] for entry in kept])
    times = _decision_times(spans)
    edges = times - times[0]
    counts, filled = _counts(kept, edges)
    shown = kept[:-1]
    configurations = np.array([_configuration(file, pipeline, entry) for entry in shown])
    return Record(
        interval=max(round(float(np.median(np.diff(edges)))), 1),
        begin=float(times[0]),
        history=_whole(kept[0]["state"]["history"]),
        counts=counts,
        edges=edges,
        configurations=configurations,
        wanted=sum(entry["wanted"] not in (None, entry["configuration"]) for entry in shown),
        measured=pd.DataFrame([entry["measured"] for entry in shown], columns=list(MEASURED), dtype=float),
        calibration=_factors(pipeline, kept),
        filled=filled,
        left_out=left_out,
    )


def is_record(file: Path) -> bool:
    """Whether a file has JSON objects, as a record or a log has, and no table of counts."""
    with file.open("rb") as opened:
        return opened.read(1) == b"{"


def _decisions(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:  # such as half a line at the end of a log
                continue
            if isinstance(entry, dict) and entry.get("event") == "decision" and "span" in entry:
                yield entry


def _decision_times(spans: np.ndarray) -> np.ndarray:
    """(K,) times of the decisions for (K, 2) measured spans, which begin after a change only.

    A decision follows at once on the interval before, unless lines are missing.
    """
    times, ends = spans[:, 0].copy(), spans[:-1, 1]
    follows = times[1:] - ends < np.median(np.diff(spans[:, 1]))
    times[1:] = np.where(follows, ends, times[1:])
    return times


def _counts(entries: list[dict[str, Any]], edges: np.ndarray) -> tuple[np.ndarray, int]:
    """(T,) requests of every second until the last decision, and how many of them no entry tells."""
    counts = np.full(max(round(edges[-1]), 1), np.nan)
    for entry, end in zip(entries, np.rint(edges).astype(int), strict=True):
        history = entry["state"].get("history") or []
        first = max(end - len(history), 0)
        counts[first:end] = history[len(history) - (end - first) :]
    unknown = np.isnan(counts)
    known = np.flatnonzero(~unknown)
    if unknown.any():
        counts[unknown] = np.interp(np.flatnonzero(unknown), known, counts[known]) if len(known) else 0.0
    return _whole(counts), int(unknown.sum())


def _whole(counts: Any) -> np.ndarray:
    """Counts that were read from metrics as integers: the increase between two scrapes may be a fraction."""
    return np.rint(np.asarray(counts, dtype=float)).astype(np.int64)


def _configuration(file: Path, pipeline: Pipeline, entry: Mapping[str, Any]) -> Configuration:
    stages = entry["configuration"]
    names = [task.name for task in pipeline.tasks]
    if list(stages) != names:
        raise RecordError(
            f"{file} is of pipeline {entry['pipeline']!r} with stages {', '.join(stages)}; {pipeline.name!r} has "
            f"{', '.join(names)}: name the pipeline that was recorded"
        )
    try:
        chosen = [
            StageConfiguration(task.variant_index(stage["variant"]), stage["replicas"], stage["batch_size"])
            for task, stage in zip(pipeline.tasks, stages.values(), strict=True)
        ]
        for task, stage in zip(pipeline.tasks, chosen, strict=True):
            check_stage(pipeline, task, stage)
    except (KeyError, ValueError) as error:
        raise RecordError(f"{file}: {error.args[0]}; the pipeline file is not that of the record") from error
    return tuple(chosen)


def _factors(pipeline: Pipeline, entries: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray] | None:
    """The last calibration of a record, in the shape of the pipeline's tables."""
    known = next((entry["calibration"] for entry in reversed(entries) if entry["calibration"]), None)
    if known is None:
        return None
    factor, slope = np.ones(pipeline.tables.accuracy.shape), np.zeros(pipeline.tables.accuracy.shape)
    for n, task in enumerate(pipeline.tasks):
        factor[n, : len(task.variants)] = known[task.name]["factors"]
        slope[n, : len(task.variants)] = known[task.name]["slopes"]
    return factor, slope
