"""Records of offered load: one row per request, and their summary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from opd.serving.protocol import COMPLETED, DROPPED, FAILED, REJECTED

NO_ANSWER = "NO_ANSWER"
"""Code of a request that got no answer within its timeout, or before the run was interrupted."""

PAYLOAD = "payload"
"""Column of the payloads in a payload file, and of their index in the records."""

COLUMNS = ("scheduled", "sent", "finished", "outcome", "code", "detail", PAYLOAD, "answer")


def summary(records: pd.DataFrame) -> dict[str, Any]:
    """Summarise a run.

    Latency counts from the scheduled time, so a generator that falls behind cannot make the system look faster.

    Args:
        records: of :func:`opd.live.open_loop.offer`.

    Returns:
        Counts of requests: ``offered``, of these ``completed``, ``rejected``, ``dropped`` and ``failed``, and of the
        failed ``lost``, which got no answer; ``duration`` in seconds and rates in requests/s; latency of completed
        requests and lateness of sending in seconds, None if there are none.
    """
    outcomes = records["outcome"].value_counts()
    completed = records[records["outcome"] == COMPLETED]
    latency = (completed["finished"] - completed["scheduled"]).to_numpy()
    lateness = (records["sent"] - records["scheduled"]).to_numpy()
    duration = float(records.attrs["seconds"])
    return {
        "offered": len(records),
        **{outcome: int(outcomes.get(outcome, 0)) for outcome in (COMPLETED, REJECTED, DROPPED, FAILED)},
        "lost": int((records["code"] == NO_ANSWER).sum()),
        "duration": duration,
        "offered_rate": len(records) / duration if duration else 0.0,
        "completed_rate": len(completed) / duration if duration else 0.0,
        "latency_mean": float(latency.mean()) if len(latency) else None,
        **{f"latency_p{percent}": _percentile(latency, percent) for percent in (50, 95, 99)},
        "lateness_p99": _percentile(lateness, 99),
        "lateness_max": _percentile(lateness, 100),
    }


def _percentile(values: np.ndarray, percent: int) -> float | None:
    return float(np.percentile(values, percent)) if len(values) else None


def unix_times(records: pd.DataFrame, column: str) -> np.ndarray:
    """Convert a column of times to Unix seconds, which line up with scraped metrics.

    Args:
        records: of :func:`opd.live.open_loop.offer`, R rows.
        column: ``scheduled``, ``sent`` or ``finished``.

    Returns:
        (R,) Unix seconds.
    """
    return records.attrs["started"] + records[column].to_numpy()
