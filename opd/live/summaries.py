"""Summaries of live runs: requests, reconfigurations and scores, and the timeline of their intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from opd.live.records import summary
from opd.live.runs import LiveRun
from opd.pipeline import Pipeline
from opd.study.evaluation.cycles import timeline


def count_changes(run: LiveRun) -> dict[str, int]:
    """Count the reconfigurations of a run, and those that changed the variant, replicas or batch size of a stage."""
    configurations = np.array([run.initial, *(step.configuration for step in run.steps)])
    differs = np.diff(configurations, axis=0) != 0
    by_field = differs.any(axis=1).sum(axis=0)
    return {
        "reconfigurations": int(differs.any(axis=(1, 2)).sum()),
        **{name: int(count) for name, count in zip(("variant", "replicas", "batch_size"), by_field, strict=True)},
    }


def summarise_run(run: LiveRun) -> dict[str, Any]:
    """Summarise a run: requests by outcome, latencies, reconfigurations, and mean scores."""
    if run.records is None:
        requests = {
            name: int(sum(getattr(step.interval, name)[0] for step in run.steps))
            for name in ("offered", "completed", "dropped")
        }
    else:
        requests = summary(run.records)
    scores = {
        name: float(np.nanmean([getattr(step.score, name)[0] for step in run.steps]))
        for name in ("reward", "qos", "cost", "accuracy")
    }
    return {
        "requests": requests,
        "decisions": len(run.steps),
        "refused": [step.refused for step in run.steps if step.refused],
        "changes": count_changes(run),
        "by_expert": sum(step.fallback for step in run.steps),
        "decision_ms_mean": 1e3 * float(np.mean([step.decision_seconds for step in run.steps])),
        **scores,
    }


def live_timeline(pipeline: Pipeline, run: LiveRun, interval: int) -> pd.DataFrame:
    """Tabulate a run: one row per interval with load, scores, measured latencies and the configuration.

    Args:
        pipeline: names tasks and variants.
        run: to tabulate.
        interval: seconds.

    Returns:
        The columns of :func:`opd.study.evaluation.cycles.timeline`, ``latency_mean`` and ``latency_p99`` in seconds,
        and ``<task>.variant``, ``<task>.replicas`` and ``<task>.batch_size`` of every task.
    """
    table = timeline(run.steps, interval)
    table["latency_mean"] = [float(step.interval.latency_mean[0]) for step in run.steps]
    table["latency_p99"] = [float(step.interval.latency_p99[0]) for step in run.steps]
    for position, task in enumerate(pipeline.tasks):
        stages = [step.configuration[position] for step in run.steps]
        table[f"{task.name}.variant"] = [task.variants[stage.variant].name for stage in stages]
        table[f"{task.name}.replicas"] = [stage.replicas for stage in stages]
        table[f"{task.name}.batch_size"] = [stage.batch_size for stage in stages]
    return table
