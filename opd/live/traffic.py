"""Traffic of a live run: a stretch of a trace, and the requests of the pipeline's samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from opd.host.documents import DocumentError
from opd.profiling.pipeline_file import pipeline_path, read_pipeline_file
from opd.workload.trace import Trace

STRIDE_SECONDS = 5
"""Distance between two candidate stretches of a trace."""


@dataclass(frozen=True)
class Traffic:
    """Requests that are sent to a pipeline.

    Attributes:
        counts: (T,) requests in each second, including those before the first decision.
        lead: seconds of load before the first decision; the first forecast is based on them.
        samples: file of requests to draw from, see :mod:`opd.serving.samples`.
        seed: of arrival times and of the draw.
    """

    counts: np.ndarray
    lead: int
    samples: Path
    seed: int


def most_varied_window(counts: np.ndarray, lead: int, seconds: int, least: int, most: int, interval: int) -> int:
    """Find the stretch of load that varies most (standard deviation over intervals) while staying within bounds.

    Args:
        counts: (T,) requests in each second.
        lead: seconds at the start of a stretch, before the first decision; the bounds do not apply to them.
        seconds: length of the stretch from the first decision on, a multiple of ``interval``.
        least: lower bound in requests/s of the mean of every interval.
        most: upper bound, likewise.
        interval: seconds.

    Returns:
        Index in ``counts`` of the first second of the stretch.

    Raises:
        ValueError: if no stretch stays within the bounds.
    """
    windows = np.lib.stride_tricks.sliding_window_view(counts[lead:], seconds)[::STRIDE_SECONDS]
    means = windows.reshape(len(windows), -1, interval).mean(axis=2)
    within = (means.min(axis=1) >= least) & (means.max(axis=1) <= most)
    if not within.any():
        raise ValueError(
            f"no {seconds} s of the load stay within {least} and {most} requests/s; widen the bounds or change the "
            "damping"
        )
    return STRIDE_SECONDS * int(np.argmax(np.where(within, means.std(axis=1), -1.0)))


def scaled_stretch(trace: Trace, lead: int, seconds: int, peak: float, interval: int) -> tuple[Trace, int]:
    """Find the stretch of the test split that varies most, and the trace that is damped to the load a pipeline carries.

    Args:
        trace: its own damping does not matter.
        lead: seconds at the start of the stretch, before the first decision.
        seconds: length of the stretch from the first decision on, a multiple of ``interval``.
        peak: requests/s, positive; no interval has a higher mean, unless the recording itself has.
        interval: seconds.

    Returns:
        The trace with the smallest such damping, and the index of the stretch's first second in its test split.
    """
    recorded = trace.recorded[trace.split("test")]
    start = most_varied_window(recorded, lead, seconds, 0, int(recorded.max()), interval)
    means = recorded[start + lead : start + lead + seconds].reshape(-1, interval).mean(axis=1)
    return replace(trace, damping=max(int(np.ceil(means.max() / peak)), 1)), start


def samples_path(source: str | Path) -> Path:
    """Find the file of requests that a pipeline is loaded with.

    Args:
        source: name of a pipeline that ships with the package, the folder of a pipeline, or its YAML file.

    Raises:
        FileNotFoundError: if there is no such pipeline, or its samples are missing.
        DocumentError: if its file is malformed, or names no samples.
    """
    file = pipeline_path(source)
    samples = read_pipeline_file(file).samples
    if samples is None:
        raise DocumentError(
            f"{file} names no samples, so there are no requests to send; add `samples:` with a file of requests"
        )
    path = file.parent / samples
    if not path.is_file():
        raise FileNotFoundError(f"{file}: the samples {path} do not exist; correct `samples:`, or write that file")
    return path
