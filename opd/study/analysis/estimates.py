"""Confidence intervals of means over seeds and cycles of load, and how they are written.

All seeds of a policy meet the same cycles, and cycles differ far more than seeds. A policy's rows are therefore not
independent, and more seeds do not compensate for few cycles. Seeds and cycles are both resampled; within a resample all
seeds have the same cycles, as in the evaluation. If cycles were resampled separately for every seed, their effects
would cancel in the mean, and with five seeds only six of ten intervals would contain the truth.

:func:`scipy.stats.bootstrap` can resample two such factors, but not with the single seed of a short study.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

Row = Mapping[Hashable, Any]
"""A row of a summary table."""

LEVEL = 0.95
"""Share of the intervals that should contain the truth."""


def seeds_by_cycles(rows: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """(S, C) a quantity of one policy on one pipeline, seeds x cycles; differences of such tables are paired."""
    return rows.pivot(index="seed", columns="cycle", values=quantity)


def resampled_means(values: np.ndarray, samples: int = 2000, seed: int = 0) -> np.ndarray:
    """Compute means of resamples of a table; tables of one shape are resampled alike and can be combined.

    Args:
        values: (S, C), seeds x cycles.
        samples: number of resamples.
        seed: of the draws.

    Returns:
        (samples,) means, in the unit of ``values``.

    Raises:
        ValueError: if ``values`` is not a table, is empty or not finite, or there are no resamples.
    """
    if np.ndim(values) != 2 or not np.size(values) or not np.isfinite(values).all():
        raise ValueError(f"values of shape {np.shape(values)} are not a full table of finite figures, seeds x cycles")
    if samples < 1:
        raise ValueError(f"samples is {samples}, but must be at least 1")
    seeds, cycles = values.shape
    generator = np.random.default_rng(seed)
    drawn_seeds = generator.integers(seeds, size=(samples, seeds))
    drawn_cycles = generator.integers(cycles, size=(samples, cycles))
    return values[drawn_seeds[:, :, None], drawn_cycles[:, None, :]].mean(axis=(1, 2))


def spanned(figures: np.ndarray) -> tuple[float, float]:
    """The ends of the middle 95 % of resampled figures."""
    low, high = np.quantile(figures, [(1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0])
    return float(low), float(high)


def interval(values: np.ndarray, samples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Compute the 95 % interval of a mean by resampling seeds and cycles.

    Args:
        values: (S, C), seeds x cycles.
        samples: number of resamples.
        seed: of the draws.

    Returns:
        Its ends, in the unit of ``values``. With few seeds it is somewhat too narrow where seeds differ more than
        cycles; with a single seed it does not cover other trainings.

    Raises:
        ValueError: if ``values`` is not a table, is empty or not finite, or there are no resamples.
    """
    return spanned(resampled_means(values, samples, seed))


def estimate(name: str, values: np.ndarray | pd.DataFrame) -> dict[str, float]:
    """Compute a mean and the ends of its interval, as entries of a table's row.

    Args:
        name: of the mean; the ends add ``_low`` and ``_high``.
        values: (S, C), seeds x cycles.

    Raises:
        ValueError: as :func:`interval`.
    """
    table = np.asarray(values)
    low, high = interval(table)
    return {name: float(table.mean()), f"{name}_low": low, f"{name}_high": high}


def spread(name: str, of_seeds: Sequence[float] | np.ndarray | pd.Series) -> dict[str, float]:
    """Compute mean, minimum and maximum of seeds, as entries of a table's row, where there are too few to resample.

    Args:
        name: of the mean; the others add ``_min`` and ``_max``.
        of_seeds: (S,); seeds with NaN are ignored, unless all are NaN.
    """
    known = pd.Series(of_seeds, dtype=float)
    return {name: known.mean(), f"{name}_min": known.min(), f"{name}_max": known.max()}


# --------------------------------------------------------------------------------------- in text


def signed(value: float, digits: int = 3) -> str:
    """Format a figure with its sign; without one if it rounds to zero."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0.0 else text.replace("-", "−")


def with_interval(row: Row, quantity: str) -> str:
    """Format a quantity with its interval, as in ``+0.061 [+0.040, +0.083]``."""
    return f"{signed(row[quantity])} [{_end(row[f'{quantity}_low'])}, {_end(row[f'{quantity}_high'])}]"


def _end(value: float) -> str:
    """Format an end of an interval; if it rounds to zero with its first digit, because its sign matters."""
    rounds_to_zero = value != 0.0 and round(value, 3) == 0.0
    return f"{value:+.1g}".replace("-", "−") if rounds_to_zero else signed(value)
