"""Measure how long calls and starts of the variants take, in the columns of :mod:`opd.profiling.profiles`.

Measurements have to survive a machine that does other work at the same time. A call of a network with random weights
is therefore timed by the CPU time of the calling thread, which does not count while it is preempted. On one core that
is the whole inference. On more, the calling thread does all the serial work and its even share of the parallel work,
and sleeps (``OMP_WAIT_POLICY=PASSIVE``) while the others finish theirs; the time to wake them is not in the figure.
Other programs that use caches and memory can still slow a run but never speed it up, hence the mean of the faster half.
Models are measured in wall-clock time as they are served, on an idle machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import pandas as pd

from opd.profiling.profiles import COLUMNS

LONG_CALL = 2.0
"""Seconds from which a first call counts as a run and not as a warm-up."""

LONG_CALL_RUNS = 3
"""Sufficient runs of such a call."""

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is first imported, which measuring does


class Measurable(Protocol):
    """Something that can be measured for a variant: an architecture with random weights, or a model as it is served."""

    @property
    def max_cores(self) -> int:
        """Cores that it can use."""

    @property
    def pause(self) -> float:
        """Seconds to sleep before each call."""

    def fingerprint(self) -> str:
        """What identifies the model and its inputs: measurements of another fingerprint are not kept."""

    def clock(self) -> float:
        """Seconds of the clock by which a call is timed."""

    def loaded(self, seed: int) -> AbstractContextManager[tuple[Any, float]]:
        """The model, and the seconds that it took to start."""

    def threads(self, count: int) -> AbstractContextManager[None]:
        """Use ``count`` threads within the block."""

    def inputs(self, batch_size: int) -> Any:
        """Inputs of calls with ``batch_size`` requests."""

    def infer(self, model: Any, inputs: Any) -> Any:
        """Make one call of the model."""

    def memory_mb(self, model: Any) -> float | None:
        """Memory of the process that serves the model in MB; None if it is not served."""


@dataclass(frozen=True)
class Effort:
    """Time and runs spent on one cell: one core count and batch size.

    Attributes:
        seconds: budget, after which no further run starts once there are ``min_runs``.
        min_runs: runs at least, however long they take.
        max_runs: runs at most.
    """

    seconds: float = 2.0
    min_runs: int = 5
    max_runs: int = 20


# ------------------------------------------------------------------------------------------------ one variant


def time_calls(
    call: Callable[[], Any], effort: Effort, clock: Callable[[], float] = time.thread_time, pause: float = 0.0
) -> np.ndarray:
    """Time repeated calls, by default in CPU seconds of the calling thread.

    The first call is a warm-up and not counted, unless it takes :data:`LONG_CALL`: then the share of the warm-up is
    negligible, so it counts, and :data:`LONG_CALL_RUNS` are enough.

    Args:
        call: what to time.
        effort: budget and number of runs.
        clock: returns seconds.
        pause: seconds to sleep before each call.

    Returns:
        (runs,) seconds.
    """

    def run() -> float:
        time.sleep(pause)
        start = clock()
        call()
        return clock() - start

    deadline = time.perf_counter() + effort.seconds
    first = run()
    durations = [first] if first >= LONG_CALL else []
    needed = min(effort.min_runs, LONG_CALL_RUNS) if first >= LONG_CALL else effort.min_runs
    while len(durations) < needed or (len(durations) < effort.max_runs and time.perf_counter() < deadline):
        durations.append(run())
    return np.array(durations)


def measured_rows(
    task: str,
    variant: str,
    measurable: Measurable,
    cells: Sequence[tuple[int, int]],
    effort: Effort = Effort(),
    *,
    seed: int = 0,
) -> Iterator[list[Any]]:
    """Measure one variant cell by cell.

    Args:
        task: name of the task, for the table.
        variant: name of the variant, for the table.
        measurable: the variant.
        cells: numbers of cores, at most the machine's, and batch sizes.
        effort: budget and number of runs of each cell.
        seed: of random weights and inputs.

    Yields:
        A row in the columns :data:`opd.profiling.profiles.COLUMNS` for each cell.

    Raises:
        ValueError: if the machine has fewer cores.
    """
    available = os.cpu_count() or 1
    most = max(cores for cores, _ in cells)
    if most > available:
        raise ValueError(
            f"cannot measure on {most} cores: this machine has {available}; measure on fewer and extrapolate"
        )
    with measurable.loaded(seed) as (model, startup_seconds):
        for cores, batch_size in cells:
            with measurable.threads(cores):
                call = partial(measurable.infer, model, measurable.inputs(batch_size))
                seconds = time_calls(call, effort, measurable.clock, measurable.pause)
            faster_half = np.sort(seconds)[: (len(seconds) + 1) // 2]
            mean, p99 = float(faster_half.mean()), float(np.quantile(seconds, 0.99))
            memory = measurable.memory_mb(model)
            yield [task, variant, cores, batch_size, mean, p99, len(seconds), "measured", startup_seconds, memory]


def as_table(rows: Iterator[list[Any]] | Sequence[list[Any]]) -> pd.DataFrame:
    """Make a profile of rows as :func:`measured_rows` gives them."""
    return pd.DataFrame(rows, columns=COLUMNS).astype({"latency_p99": float, "memory_mb": float})
