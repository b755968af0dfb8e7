"""Generator of the bundled trace, which has the statistics of a public recording of Twitter.

The recording may not be redistributed; the generated trace makes the package work without network access, and every
figure of it says that it is synthetic. Its rate in requests/s is a daily profile times slow and fast random drift,
small bumps and spikes, plus bursts that begin at typical minutes of a half-hour. Counts are drawn around that rate
with slightly more variance than those of a Poisson process.

``python -m opd.workload.synthetic`` writes the bundled file again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from scipy.signal import lfilter

from opd.host.paths import package_path
from opd.workload.trace_files import SYNTHETIC_FILE
from opd.workload.trace_limits import DAY_SECONDS

BUNDLED_FILE = package_path(*SYNTHETIC_FILE)
SECONDS = int(20.5 * DAY_SECONDS)
SEED = 2

_SLOT = 1800
"""Seconds in half an hour, the grid of the daily profile and of the bursts."""
# fmt: off
_BASE_RATE = np.array([
    45.0, 45.4, 45.5, 46.9, 48.0, 51.6, 52.4, 55.3, 56.9, 61.4, 64.1, 67.5, 70.3, 74.0, 75.1, 75.7, 75.2, 80.0, 71.3,
    67.2, 62.8, 59.4, 56.0, 53.2, 51.1, 48.7, 48.0, 48.6, 48.2, 45.9, 45.2, 44.8, 44.2, 45.1, 44.4, 44.8, 45.4, 48.6,
    49.5, 51.0, 51.0, 53.7, 52.5, 50.7, 47.9, 46.7, 45.6, 45.0,
])
"""Requests per second at the start of every half-hour of the day."""
_BURSTS_IN_RECORDING = np.array([
    5, 1, 2, 16, 3, 1, 1, 11, 8, 1, 1, 4, 4, 6, 3, 13, 1, 2, 8, 10, 4, 5, 7, 12, 4, 3, 9, 13, 2, 1, 6, 12, 2, 1, 8, 11,
    1, 2, 2, 17, 3, 0, 0, 17, 4, 1, 0, 0,
])
"""Bursts that began in every half-hour of the day, counted over 20.5 days."""
# fmt: on
_BURST_PROBABILITY = _BURSTS_IN_RECORDING / 20.5
_DAY_DEVIATION = 0.018
_DRIFTS = ((0.040, 5400.0), (0.030, 150.0), (0.036, 8.0))
"""Standard deviation and time constant in seconds of each Ornstein-Uhlenbeck process of the log rate."""
_BUMPS_PER_DAY, _BUMP_HEIGHT, _BUMP_SECONDS = 90, (np.log(0.20), 0.55), (np.log(14.0), 0.9)
_SPIKES_PER_DAY, _SPIKE_HEIGHT = 70, (np.log(0.52), 0.38)
_VARIANCE_TO_MEAN = 1.05


def generate_counts(seconds: int = SECONDS, seed: int = SEED) -> np.ndarray:
    """Generate requests per second.

    Args:
        seconds: length of the trace.
        seed: of the random generator.

    Returns:
        (seconds,) uint16 counts.

    Raises:
        ValueError: if ``seconds`` is not positive.
    """
    if seconds < 1:
        raise ValueError(f"a trace of {seconds} seconds cannot be generated; ask for at least 1")
    rng = np.random.default_rng(seed)
    usual = _daily_profile(seconds, rng) * np.exp(sum(_drift(seconds, *drift, rng) for drift in _DRIFTS))
    rate = usual * (1.0 + _bumps(seconds, rng) + _spikes(seconds, rng)) + _bursts(seconds, rng)
    # Negative binomial with mean m and variance r m: success probability 1 / r, m / (r - 1) failures.
    counts = rng.negative_binomial(rate / (_VARIANCE_TO_MEAN - 1.0), 1.0 / _VARIANCE_TO_MEAN)
    return counts.astype(np.uint16)


def _daily_profile(seconds: int, rng: np.random.Generator) -> np.ndarray:
    """(seconds,) the base rate between its half-hourly knots, scaled a little differently every day."""
    slots = -(-seconds // _SLOT)
    knots = _BASE_RATE[np.arange(slots + 1) % len(_BASE_RATE)]
    days = -(-seconds // DAY_SECONDS)
    scale = np.repeat(rng.normal(1.0, _DAY_DEVIATION, days), DAY_SECONDS)[:seconds]
    return scale * np.interp(np.arange(seconds), _SLOT * np.arange(slots + 1), knots)


def _drift(seconds: int, deviation: float, time_constant: float, rng: np.random.Generator) -> np.ndarray:
    """(seconds,) stationary Ornstein-Uhlenbeck process, sampled every second."""
    memory = np.exp(-1.0 / time_constant)
    steps = rng.normal(0.0, deviation * np.sqrt(1.0 - memory**2), seconds)
    steps[0] = rng.normal(0.0, deviation)
    return lfilter([1.0], [1.0, -memory], steps)


def _bumps(seconds: int, rng: np.random.Generator) -> np.ndarray:
    """(seconds,) relative height of short rises, each constant over its length."""
    number = rng.poisson(_BUMPS_PER_DAY * seconds / DAY_SECONDS)
    starts = rng.integers(0, seconds, number)
    heights = rng.lognormal(*_BUMP_HEIGHT, number)
    ends = np.minimum(starts + np.maximum(rng.lognormal(*_BUMP_SECONDS, number).round(), 1.0), seconds).astype(np.int64)
    changes = np.zeros(seconds + 1)
    np.add.at(changes, starts, heights)
    np.add.at(changes, ends, -heights)
    return np.cumsum(changes[:-1]).clip(min=0.0)


def _spikes(seconds: int, rng: np.random.Generator) -> np.ndarray:
    """(seconds,) relative height of spikes of one or two seconds."""
    number = rng.poisson(_SPIKES_PER_DAY * seconds / DAY_SECONDS)
    starts = rng.integers(0, seconds, number)
    heights = rng.lognormal(*_SPIKE_HEIGHT, number)
    spikes = np.zeros(seconds + 1)
    np.add.at(spikes, starts, heights)
    np.add.at(spikes, starts + 1, heights * rng.integers(0, 2, number))
    return spikes[:-1]


def _bursts(seconds: int, rng: np.random.Generator) -> np.ndarray:
    """(seconds,) requests/s added by bursts; the maximum where two overlap."""
    slots = np.arange(-(-seconds // _SLOT))
    slots = slots[rng.random(len(slots)) < _BURST_PROBABILITY[slots % len(_BURST_PROBABILITY)]]
    early = rng.random(len(slots)) < 0.87
    offsets = np.where(early, rng.normal(128.0, 13.0, len(slots)), rng.normal(313.0, 9.0, len(slots)))
    onsets = (_SLOT * slots + offsets).astype(np.int64)
    added = np.zeros(seconds)
    for onset, gap in zip(onsets, np.diff(onsets, prepend=-7200), strict=True):
        shape = _burst(float(gap), rng)[: max(seconds - onset, 0)]
        during = added[onset : onset + len(shape)]
        np.maximum(during, shape, out=during)
    return added


def _burst(gap: float, rng: np.random.Generator) -> np.ndarray:
    """One burst from its onset until it has decayed; it is longer after a longer ``gap`` (seconds)."""
    if rng.random() < 0.157:
        length = rng.lognormal(np.log(70.0), 0.45)
    else:
        length = np.exp(6.0 + 0.71 * np.log(gap / 7200.0) + 0.34 * rng.normal())
    tail = rng.lognormal(np.log(52.0), 0.9)
    height = rng.normal(169.0, 14.0)
    age = np.arange(1.0, length + 6.0 * tail)
    risen = 1.0 - 0.6 * np.exp(-age / 4.0) - 0.4 * np.exp(-age / 22.0)
    fallen = np.exp(-np.maximum(age - length, 0.0) / tail)
    return height * risen * fallen * np.exp(_drift(len(age), 0.06, 45.0, rng))


def main(
    output: Annotated[Path, typer.Option(help="File to write.")] = BUNDLED_FILE,
    seconds: Annotated[int, typer.Option(help="Length of the trace.")] = SECONDS,
    seed: Annotated[int, typer.Option(help="Seed of the random generator.")] = SEED,
) -> None:
    """Write a generated trace as a CSV file with the single column ``count``, packed if its name ends in ``.gz``."""
    table = pd.DataFrame({"count": generate_counts(seconds, seed)})
    packed = {"method": "gzip", "mtime": 0} if output.suffix == ".gz" else None  # the same bytes at any time
    table.to_csv(output, index=False, compression=packed)
    print(f"wrote {output} ({output.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    typer.run(main)
