"""Cycles on which policies are compared (Sec. VI-A), and bursts that training samples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from opd.workload.load import HISTORY_SECONDS
from opd.workload.trace import Split, Trace, TraceError

CYCLE_SECONDS = 1200
"""Length of one evaluation cycle (Sec. VI-B)."""


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
    overlap, and no further cycle or its history touches a recording gap. The damping makes no difference.

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
                f"{test.stop - test.start} s; lower their number to {number} or provide a longer recording"
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
    """(P,) true for candidate positions whose cycle overlaps none of those that start at ``taken``."""
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
