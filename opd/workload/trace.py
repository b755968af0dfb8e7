"""Traces of requests per second, their splits, and the stretches that forecasts, training and evaluation use.

A :class:`Trace` counts the requests of every second. Seconds that were not recorded are dropped: the counts are one
contiguous array, indexed by *position*. Each entry keeps its *raw index*, the second since the start of the recording,
by which evaluation cycles are named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from opd.workload.forecast import HISTORY_SECONDS, HORIZON_SECONDS, RecentMaximum, future_maximum
from opd.workload.trace_files import read_recording
from opd.workload.trace_limits import DAY_SECONDS, TraceError, damping_problems, recording_problems

CYCLE_SECONDS = 1200
"""Length of one evaluation cycle (Sec. VI-B)."""

Split = Literal["train", "validation", "test"]

Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(M,) forecasts in requests/s, from counts (T,) and the positions (M,) up to which they are known."""


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests per second over days, without recording gaps.

    Attributes:
        name: ``synthetic``, ``twitter`` or the name of the user's file with its suffix.
        recorded: (T,) requests in every recorded second, before damping.
        raw_index: (T,) second since the start of the recording of every entry, increasing.
        damping: divisor of the recorded counts (integer division), to suit a small device.
        is_synthetic: true for a generated trace; figures of it say so.

    Raises:
        TraceError: if a count is negative, the trace too short or too long, a gap too long, too many seconds are
            missing, or all counts are 0, perhaps because of the damping.
    """

    name: str
    recorded: np.ndarray = field(repr=False)
    raw_index: np.ndarray = field(repr=False)
    damping: int = 1
    is_synthetic: bool = False

    def __post_init__(self) -> None:
        problems = recording_problems(
            self.recorded, self.raw_index, lambda position: f"second {self.raw_index[position]}"
        )
        if (self.recorded < 0).any():
            position = int(np.argmax(self.recorded < 0))
            problems.append(
                f"count {self.recorded[position]} at second {self.raw_index[position]} is negative; "
                "counts are requests per second, at least 0"
            )
        problems += damping_problems(int(self.recorded.max(initial=0)), self.damping)
        if problems:
            raise TraceError.of(self.name, problems)

    @cached_property
    def counts(self) -> np.ndarray:
        """(T,) requests per second after damping, int64, by position."""
        return self.recorded // self.damping

    @property
    def label(self) -> str:
        """Name in figures, with the damping; a synthetic trace is marked as such."""
        kind = "synthetic trace (generated)" if self.is_synthetic else f"{self.name} trace"
        return kind if self.damping == 1 else f"{kind}, damping {self.damping}"

    def position(self, raw_index: int) -> int:
        """Position in :attr:`counts` of the second ``raw_index`` of the recording.

        Raises:
            TraceError: if that second was not recorded or lies outside the trace.
        """
        position = int(np.searchsorted(self.raw_index, raw_index))
        if not self.raw_index[0] <= raw_index <= self.raw_index[-1]:
            raise TraceError(
                f"trace {self.name!r}: second {raw_index} lies outside the recording, which spans seconds "
                f"{self.raw_index[0]} to {self.raw_index[-1]}"
            )
        if self.raw_index[position] != raw_index:
            raise TraceError(
                f"trace {self.name!r}: second {raw_index} falls into a recording gap; the nearest recorded seconds "
                f"are {self.raw_index[position - 1]} and {self.raw_index[position]}"
            )
        return position

    def split(self, name: Split) -> slice:
        """Positions of a split; the three splits are disjoint and cover the trace in the order of time.

        The first two thirds of the trace, at most 14 days (14 days of the Twitter trace, as in the paper's predictor
        [13]), are for learning: their last seventh is ``validation``, the rest ``train``. The remainder is ``test``.
        """
        learning = min(14 * DAY_SECONDS, len(self.recorded) * 2 // 3)
        training = learning * 6 // 7
        splits = {
            "train": slice(0, training),
            "validation": slice(training, learning),
            "test": slice(learning, len(self.recorded)),
        }
        if name not in splits:
            raise TraceError(f"split {name!r} is not one of {', '.join(splits)}")
        return splits[name]


def load_trace(source: str | Path, damping: int = 1) -> Trace:
    """Load a trace of requests per second.

    Args:
        source: ``synthetic`` for the bundled generated trace; ``twitter`` for the Twitter trace in
            ``data/twitter_workload.tbz2`` or where the environment variable ``OPD_TWITTER_TRACE`` points; or the
            path of a CSV or Parquet file, with one count per second in the column ``count`` (or its only column)
            and, if seconds are missing, a column ``timestamp`` in seconds or as dates; or with ``timestamp`` alone
            and one row a request (``docs/traces.md``). A relative path is looked up in the working directory, then
            in the project.
        damping: every count is divided by it (integer division).

    Raises:
        TraceError: if the content is not a usable trace.
        FileNotFoundError: if the file is missing.
    """
    name, recorded, raw_index = read_recording(source)
    return Trace(name, recorded, raw_index, damping, is_synthetic=name == "synthetic")


# ---------------------------------------------------------------------------------------- forecasts and decisions


class Windows(NamedTuple):
    """Positions of N forecasts in a trace, and the load that they should have predicted.

    Attributes:
        ends: (N,) positions of the first second that a forecast does not know.
        target: (N,) largest count of the ``HORIZON_SECONDS`` from there on.
    """

    ends: np.ndarray
    target: np.ndarray


def windows(trace: Trace, split: Split, stride: int = 10, last: int = 0) -> Windows:
    """Windows with history and horizon inside a split, every ``stride`` seconds; only the ``last`` ones if positive."""
    positions = trace.split(split)
    ends = np.arange(positions.start + HISTORY_SECONDS, positions.stop - HORIZON_SECONDS + 1, stride)[-last:]
    return Windows(ends, future_maximum(trace.counts, ends))


@dataclass(frozen=True)
class Workload:
    """Counts per second with their forecasts, on the grid of decisions.

    Attributes:
        counts: (T,) requests per second.
        forecasts: (T // interval + 1,) predicted load at second ``interval * j``, requests/s.
        interval: seconds between two decisions.
    """

    counts: np.ndarray
    forecasts: np.ndarray
    interval: int

    @property
    def decisions(self) -> int:
        """Number of whole intervals."""
        return len(self.counts) // self.interval

    @classmethod
    def of(cls, trace: Trace, split: Split, interval: int, predict: Predict) -> Workload:
        """Make the workload of one split of a trace.

        Args:
            trace: counts per second.
            split: ``train``, ``validation`` or ``test``.
            interval: seconds between two decisions.
            predict: makes the forecasts, for instance ``Forecaster.predict_many``.
        """
        counts = trace.counts[trace.split(split)]
        ends = np.arange(0, len(counts) + 1, interval)
        forecasts = np.zeros(len(ends))
        forecasts[1:] = predict(counts, ends[1:])
        return cls(counts, forecasts, interval)

    @classmethod
    def bundled(cls, interval: int) -> Workload:
        """Make the default workload of the environments.

        It is the training split of the bundled synthetic trace at damping 8, with the maximum of the last 20 s as the
        forecast.
        """
        return cls.of(load_trace("synthetic", damping=8), "train", interval, RecentMaximum().predict_many)

    def windows(self, decisions: np.ndarray) -> np.ndarray:
        """(E, interval) counts of the intervals that begin at ``decisions`` (E,)."""
        return self.counts[decisions[:, None] * self.interval + np.arange(self.interval)]

    def perfect_forecasts(self, decisions: np.ndarray) -> np.ndarray:
        """(E,) target of a forecast made at ``decisions`` (E,): the largest load of the next 20 s in requests/s."""
        return future_maximum(self.counts, decisions * self.interval)


# -------------------------------------------------------------------------------------------------- cycles and bursts


class Cycle(NamedTuple):
    """A stretch of :data:`CYCLE_SECONDS` of a trace: its name and the raw index of its first second."""

    name: str
    start: int


TWITTER_CYCLES = (
    Cycle("steady-low", 1_299_600),
    Cycle("fluctuating", 1_301_160),
    Cycle("steady-high", 1_768_260),
)
"""The three workloads of Figs. 4 and 5 on the Twitter trace, all in its test split."""


def cycle_counts(trace: Trace, cycle: Cycle) -> np.ndarray:
    """(1200,) counts of a cycle, after damping."""
    start = trace.position(cycle.start)
    return trace.counts[start : start + CYCLE_SECONDS]


def cycle_from_start(trace: Trace, raw_start: int) -> Cycle:
    """The cycle that starts at second ``raw_start`` of the recording, named after it; recording gaps are skipped.

    Raises:
        TraceError: if that second was not recorded, or 120 s of history or 1200 s of load are missing.
    """
    position = trace.position(raw_start)
    last = len(trace.recorded) - CYCLE_SECONDS
    if not HISTORY_SECONDS <= position <= last:
        raise TraceError(
            f"trace {trace.name!r}: a cycle from second {raw_start} needs {HISTORY_SECONDS} s of history and "
            f"{CYCLE_SECONDS} s of load; start between seconds {trace.raw_index[HISTORY_SECONDS]} and "
            f"{trace.raw_index[last]}"
        )
    return Cycle(f"from-{raw_start}", int(raw_start))


def evaluation_cycles(trace: Trace, extra: int = 9) -> list[Cycle]:
    """The paper's three workloads, then ``extra`` more cycles spread evenly over the test split.

    The three are known for the Twitter trace; :func:`characteristic_cycles` chooses them for any other. No two cycles
    overlap, and no further cycle or its history touches a recording gap. Damping does not matter.

    Raises:
        TraceError: if the test split is too short for so many cycles.
    """
    chosen = list(TWITTER_CYCLES) if trace.name == "twitter" else characteristic_cycles(trace)
    positions = [trace.position(cycle.start) for cycle in chosen]
    candidates = _candidate_positions(trace)
    test = trace.split("test")
    for number in range(extra):
        middle = test.start + (number + 0.5) / extra * (test.stop - test.start) - CYCLE_SECONDS / 2
        free = candidates[_apart(candidates, positions)]
        if not len(free):
            raise TraceError(
                f"trace {trace.name!r}: only {number} of {extra} further cycles fit into the test split of "
                f"{test.stop - test.start} s; lower `cycles` in params.yaml to {number} or provide a longer recording"
            )
        positions.append(int(free[np.abs(free - middle).argmin()]))
        chosen.append(Cycle(f"spread-{number + 1:02d}", int(trace.raw_index[positions[-1]])))
    return chosen


def characteristic_cycles(trace: Trace) -> list[Cycle]:
    """A steady low, a fluctuating and a steady high cycle of the test split, in this order.

    A candidate starts at every minute of the split. Its level is its mean load; its variation is the standard
    deviation of its ten-second means, divided by the level. Steady low varies least among the lowest fifth by level;
    steady high varies least among the highest fiftieth of those that do not overlap it. Fluctuating has the largest
    total movement of one-minute means among the rest: bursts begin and end inside it.

    Raises:
        TraceError: if the test split has no room for three such cycles.
    """
    candidates = _candidate_positions(trace)
    total = np.concatenate([[0], np.cumsum(trace.recorded)])
    edges = candidates[:, None] + np.arange(0, CYCLE_SECONDS + 1, 10)
    tens = np.diff(total[edges], axis=1) / 10.0
    level = tens.mean(axis=1)
    variation = tens.std(axis=1) / np.maximum(level, 1e-9)
    minutes = tens.reshape(len(candidates), -1, 6).mean(axis=2)
    movement = np.abs(np.diff(minutes, axis=1)).sum(axis=1)

    chosen: dict[str, int] = {}
    for name, rank, share, penalty in (
        ("steady-low", level, 0.20, variation),
        ("steady-high", -level, 0.02, variation),
        ("fluctuating", level, 1.0, -movement),
    ):
        free = _apart(candidates, list(chosen.values()))
        if not free.any():
            raise TraceError(
                f"trace {trace.name!r}: the test split has no {name} cycle of {CYCLE_SECONDS} s apart from the others; "
                "provide a longer recording or give the start of every cycle"
            )
        eligible = free & (rank <= np.quantile(rank[free], share))
        chosen[name] = int(candidates[np.where(eligible, penalty, np.inf).argmin()])
    order = ("steady-low", "fluctuating", "steady-high")
    return [Cycle(name, int(trace.raw_index[chosen[name]])) for name in order]


def _candidate_positions(trace: Trace) -> np.ndarray:
    """Positions, a minute apart, where a cycle and its history fit into the test split without a gap."""
    test = trace.split("test")
    starts = np.arange(test.start + HISTORY_SECONDS, test.stop - CYCLE_SECONDS + 1, 60)
    span = trace.raw_index[starts + CYCLE_SECONDS - 1] - trace.raw_index[starts - HISTORY_SECONDS]
    return starts[span == CYCLE_SECONDS + HISTORY_SECONDS - 1]


def _apart(candidates: np.ndarray, taken: list[int]) -> np.ndarray:
    """(P,) true for candidate positions where a cycle overlaps none of those that start at ``taken``."""
    distance = np.abs(candidates[:, None] - np.array(taken, dtype=np.int64)[None, :])
    return np.all(distance >= CYCLE_SECONDS, axis=1)


def burst_starts(trace: Trace, split: Split, rise: float = 0.6) -> np.ndarray:
    """Onsets of bursts, which training samples more often than they occur.

    The load is averaged over ten seconds. A burst begins where it exceeds the median of the preceding five minutes by
    more than the fraction ``rise`` and stays above that threshold for a minute. It ends, and another can begin, when
    the load is back below the threshold. Jumps across a recording gap do not count.

    Args:
        trace: the trace; its damping does not matter.
        split: ``train``, ``validation`` or ``test``.
        rise: relative rise that makes a burst.

    Returns:
        (B,) positions of the onsets, increasing; each has 300 s before and 60 s after it in the split.
    """
    positions = trace.split(split)
    counts = trace.recorded[positions]
    tens = pd.Series(counts[: len(counts) // 10 * 10].reshape(-1, 10).mean(axis=1))
    usual = tens.rolling(30).median().shift(1)
    sustained = tens[::-1].rolling(6).min()[::-1]
    high = (sustained > (1.0 + rise) * np.maximum(usual, 0.5)).to_numpy()
    onsets = positions.start + 10 * (np.flatnonzero(high[1:] & ~high[:-1]) + 1)
    span = trace.raw_index[onsets + 59] - trace.raw_index[onsets - 300]
    return onsets[span == 359]
