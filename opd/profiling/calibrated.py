"""A pipeline with corrected latencies: profiles times the factors that were measured while it ran."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from opd.pipeline import Pipeline, Variant

STEP = 0.01
"""Distance of two factors that are told apart, in logarithms; 1 %."""

SLOPE_STEP = 0.005
"""Distance of two slopes that are told apart: 2 % at a batch of 64."""

KEPT = 64
"""Calibrated pipelines that are kept. Solvers compute tables of a pipeline once, so it pays to meet the same again."""


@dataclass(frozen=True)
class _Profiled:
    """A pipeline that is equal to itself alone: comparing all its profiles would take longer than scaling them."""

    pipeline: Pipeline

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Profiled) and self.pipeline is other.pipeline

    def __hash__(self) -> int:
        return id(self.pipeline)


def calibrated_pipeline(pipeline: Pipeline, factor: np.ndarray, slope: np.ndarray | None = None) -> Pipeline:
    """Scale the latencies of a pipeline: a batch of b requests takes ``factor * b ** slope`` times its profile.

    Factors are rounded to 1 %, so that small changes give the same pipeline again.

    Args:
        pipeline: as profiled, N tasks of at most Z variants.
        factor: (N, Z), positive; those of variants that a task does not have are ignored.
        slope: (N, Z), by default 0.

    Returns:
        the pipeline itself where all factors round to 1 and all slopes to 0.

    Raises:
        ValueError: if a factor is not positive, or a factor or slope is not finite.
    """
    present = np.isfinite(pipeline.tables.cores)
    factors = np.where(present, factor, 1.0)
    slopes = np.zeros_like(factors) if slope is None else np.where(present, slope, 0.0)
    if not (np.isfinite(factors) & (factors > 0.0) & np.isfinite(slopes)).all():
        raise ValueError(f"latency factors {factors.tolist()} and slopes {slopes.tolist()} must be positive and finite")
    steps = np.rint(np.log(factors) / STEP).astype(np.int64)
    slope_steps = np.rint(slopes / SLOPE_STEP).astype(np.int64)
    if not (steps.any() or slope_steps.any()):
        return pipeline
    return _scaled(_Profiled(pipeline), tuple(map(tuple, steps.tolist())), tuple(map(tuple, slope_steps.tolist())))


_Steps = tuple[tuple[int, ...], ...]


@lru_cache(KEPT)
def _scaled(profiled: _Profiled, steps: _Steps, slope_steps: _Steps) -> Pipeline:
    """Scale by factors and slopes that are counted in steps."""
    tasks = tuple(
        replace(
            task,
            variants=tuple(
                _scaled_variant(variant, float(np.exp(STEP * step)), SLOPE_STEP * slope)
                for variant, step, slope in zip(task.variants, row, slopes, strict=False)
            ),
        )
        for task, row, slopes in zip(profiled.pipeline.tasks, steps, slope_steps, strict=True)
    )
    return replace(profiled.pipeline, tasks=tasks)


def _scaled_variant(variant: Variant, factor: float, slope: float) -> Variant:
    latency = {size: seconds * factor * size**slope for size, seconds in variant.latency.items()}
    return replace(variant, latency=latency)
