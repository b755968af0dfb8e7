"""Devices that are not as profiled: slower or faster, with one slow variant, or changing during a cycle."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from opd.control.policies import Policy
from opd.measurement import Calibration, Observation, idle_observation
from opd.pipeline import Configuration, Pipeline, stage_cores
from opd.simulator.backend import Device
from opd.study.evaluation.cycles import Setting
from opd.workload.trace import CYCLE_SECONDS, Cycle, cycle_counts

PROFILE_ERROR = 0.2
"""Share of its profile by which a device is slower or faster."""

SLOW_VARIANT = 1.5
"""Factor on the latencies of a single slow variant."""

DRIFT = 0.4
"""Share of its profile by which a device becomes slower during a cycle."""

Factors = Callable[[float], np.ndarray]
"""(N, Z) factors on the profiled latencies, so many seconds after the first decision of a cycle."""

DrawFactors = Callable[[Setting, Pipeline, Cycle, int], Factors]
"""Makes the factors of a cycle from a setting, the pipeline as profiled, the cycle and the seed."""


def with_latency_factors(pipeline: Pipeline, factors: np.ndarray) -> Pipeline:
    """Multiply the latencies of a pipeline's variants, at every batch size.

    Args:
        pipeline: as profiled, N tasks of at most Z variants.
        factors: (N, Z); those of variants that a task does not have are ignored.
    """
    tasks = tuple(
        replace(
            task,
            variants=tuple(
                replace(variant, latency={size: factor * seconds for size, seconds in variant.latency.items()})
                for variant, factor in zip(task.variants, row, strict=False)
            ),
        )
        for task, row in zip(pipeline.tasks, factors.tolist(), strict=True)
    )
    return replace(pipeline, tasks=tasks)


def with_startup_factor(pipeline: Pipeline, factor: float) -> Pipeline:
    """Multiply the start-up times of all variants; with 0, replicas serve immediately."""
    tasks = tuple(
        replace(task, variants=tuple(replace(each, startup_time=factor * each.startup_time) for each in task.variants))
        for task in pipeline.tasks
    )
    return replace(pipeline, tasks=tasks)


def device_with(pipeline: Pipeline, factors: Factors) -> Device:
    """The device whose latencies are those of the pipeline times factors; equal factors give the same pipeline."""
    known: dict[bytes, Pipeline] = {}

    def device(seconds: float) -> Pipeline:
        present = factors(seconds)
        key = present.tobytes()
        if key not in known:
            known[key] = with_latency_factors(pipeline, present)
        return known[key]

    return device


def rescaled(factor: float, setting: Setting, pipeline: Pipeline, cycle: Cycle, seed: int) -> Factors:
    """``factor`` times every profiled latency."""
    factors = np.full(pipeline.tables.cores.shape, factor)
    return lambda seconds: factors


def random(setting: Setting, pipeline: Pipeline, cycle: Cycle, seed: int) -> Factors:
    """A random factor within 1 ± :data:`PROFILE_ERROR` on the latency of every variant."""
    generator = np.random.default_rng([seed, cycle.start, zlib.crc32(pipeline.name.encode())])
    factors = generator.uniform(1.0 - PROFILE_ERROR, 1.0 + PROFILE_ERROR, pipeline.tables.cores.shape)
    return lambda seconds: factors


def one_slow(setting: Setting, pipeline: Pipeline, cycle: Cycle, seed: int) -> Factors:
    """:data:`SLOW_VARIANT` times the latency of one variant: the myopic choice in the stage with the most cores.

    The choice is that for the mean load of the cycle.
    """
    load = float(cycle_counts(setting.trace, cycle).mean())
    seen = replace(idle_observation(pipeline), predicted_load=load, incoming_load=load)
    chosen = setting.policy("myopic", pipeline, seed).decide(seen)
    stage = int(np.argmax(stage_cores(pipeline, chosen)))
    factors = np.ones(pipeline.tables.cores.shape)
    factors[stage, chosen[stage].variant] = SLOW_VARIANT
    return lambda seconds: factors


def step(setting: Setting, pipeline: Pipeline, cycle: Cycle, seed: int) -> Factors:
    """Every latency :data:`DRIFT` above its profile in the second third of the cycle."""
    shape = pipeline.tables.cores.shape
    return lambda seconds: np.full(shape, 1.0 + DRIFT * (CYCLE_SECONDS <= 3.0 * seconds < 2.0 * CYCLE_SECONDS))


def ramp(setting: Setting, pipeline: Pipeline, cycle: Cycle, seed: int) -> Factors:
    """Every latency rising steadily to :data:`DRIFT` above its profile at the end of the cycle."""
    shape = pipeline.tables.cores.shape
    return lambda seconds: np.full(shape, 1.0 + DRIFT * seconds / CYCLE_SECONDS)


DEVICES: Mapping[str, DrawFactors] = {
    f"{PROFILE_ERROR:.0%} slower".replace("%", " %"): partial(rescaled, 1.0 + PROFILE_ERROR),
    f"{PROFILE_ERROR:.0%} faster".replace("%", " %"): partial(rescaled, 1.0 - PROFILE_ERROR),
    f"each variant ±{PROFILE_ERROR:.0%}".replace("%", " %"): random,
    f"one variant {SLOW_VARIANT - 1.0:.0%} slower".replace("%", " %"): one_slow,
    f"{DRIFT:.0%} slower for a third of the cycle".replace("%", " %"): step,
    f"rising to {DRIFT:.0%} slower".replace("%", " %"): ramp,
}
"""Devices by what is different."""


class InformedPolicy(Policy):
    """A policy that is told the true factors of the device: what a perfect calibration would be worth.

    It must decide once an interval, from the beginning of the cycle.

    Args:
        policy: decides.
        factors: of the device.
        interval: seconds between two decisions.
    """

    def __init__(self, policy: Policy, factors: Factors, interval: float) -> None:
        self._policy, self._factors, self._interval = policy, factors, interval
        self._decisions = 0

    def decide(self, observation: Observation) -> Configuration:
        """The decision of the policy for the true factors."""
        factors = self._factors(self._decisions * self._interval)
        self._decisions += 1
        none = np.zeros_like(factors)
        known = Calibration(factors, none, none, float(np.median(factors)))
        decided = self._policy.decide(replace(observation, calibration=known))
        self.fallback, self.refused = self._policy.fallback, self._policy.refused
        return decided
