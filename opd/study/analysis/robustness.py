"""Policies outside the training distribution: another trace, overload, wrong forecasts, wrong profiles.

A condition departs from the study in one thing, for all policies alike: they plan with the same forecasts, know the
same profiles, and meet the same requests on the same device for one cycle and seed.

What to know when reading the results:

* On another trace all policies use the forecaster that learned from the first one. They bring nothing else, so their
  loss there is the cost of a foreign forecaster.
* A forecaster that fails does so after its first forecast in a cycle, which chooses the initial configuration.
* Where every variant is wrong by its own factor, the device differs between cycles and seeds.
* No policy is trained here: the seed is that of the requests.
* Greedy, IPA and myopic plan for the forecast alone. The agent also sees the queues, and so does the second myopic
  policy, which plans for the load and the backlog.
* Lookahead draws its futures from the forecaster; where that fails, from the last two minutes. The ladder takes no
  forecast.
* The agent is the deployed one. Outside the distribution of its training the planner decides for it; these decisions
  are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import pandas as pd

from opd.control import AGENT
from opd.pipeline import Pipeline
from opd.study.analysis.devices import DEVICES, DrawFactors, Factors, InformedPolicy, device_with, rescaled
from opd.study.analysis.kept_rows import run_missing, setting_conditions
from opd.study.evaluation.cycles import Setting, cycle_summary, run_cycle
from opd.workload.forecast import HISTORY_SECONDS, Forecaster
from opd.workload.trace import CYCLE_SECONDS, Cycle, Trace, cycle_counts
from opd.workload.trace_limits import MIN_SECONDS

POLICIES = (AGENT, "lookahead", "ladder", "myopic-backlog", "myopic", "ipa", "greedy")

AS_TRAINED = "as trained"
OTHER_TRACE = "other trace"
OVERLOAD = "overload"
FORECASTER_FAILS = "forecaster fails"
PROFILES_WRONG = "profiles wrong"
PROFILES_CALIBRATED = "profiles wrong, calibrated"
PROFILES_KNOWN = "profiles wrong, device known"

PEAK_FACTOR = 1.25
"""Peak of an overloaded cycle relative to the largest load of the training split."""


class CycleConditions(NamedTuple):
    """The conditions of one cycle.

    Attributes:
        setting: trace and forecaster, and what all runs share.
        factor: on the load or on every latency; NaN if there is none.
        factors: true latencies relative to the profiles; None if they are equal.
        informed: whether the policies are told these factors.
    """

    setting: Setting
    factor: float = np.nan
    factors: Factors | None = None
    informed: bool = False


MakeConditions = Callable[[Setting, Pipeline, Cycle, int], CycleConditions]
"""Makes the conditions of a cycle from a setting, the pipeline as profiled, the cycle and the seed."""


def as_trained(setting: Setting, pipeline: Pipeline, cycle: Cycle, seed: int) -> CycleConditions:
    """The conditions of the setting itself."""
    return CycleConditions(setting)


@dataclass(frozen=True)
class Condition:
    """One way in which things are other than in training.

    Attributes:
        name: what is different; the column ``world`` of the results.
        variant: in which way.
        setting: trace and forecaster before the change.
        cycles: of that trace.
        change: makes the conditions of a cycle.
    """

    name: str
    variant: str
    setting: Setting
    cycles: Sequence[Cycle]
    change: MakeConditions = as_trained


def all_conditions(
    home: Setting, home_cycles: Sequence[Cycle], other: Setting, other_cycles: Sequence[Cycle]
) -> list[Condition]:
    """Make all conditions, those of the training first.

    Args:
        home: the trace of all conditions, with the forecaster that learned from it.
        home_cycles: of its trace.
        other: another trace, with the forecaster that learned from that one.
        other_cycles: of its trace.
    """
    here, there = home.trace.name, other.trace.name
    changes: list[tuple[str, str, MakeConditions]] = [
        (OVERLOAD, f"peak {100 * PEAK_FACTOR:.0f} % of training", overload),
        *((FORECASTER_FAILS, failure, partial(failing_forecaster, failure)) for failure in FAILURES),
        *((PROFILES_WRONG, name, partial(other_device, draw)) for name, draw in DEVICES.items()),
        (PROFILES_CALIBRATED, "as profiled", partial(calibrated_device, partial(rescaled, 1.0))),
        *((PROFILES_CALIBRATED, name, partial(calibrated_device, draw)) for name, draw in DEVICES.items()),
        *((PROFILES_KNOWN, name, partial(known_device, draw)) for name, draw in DEVICES.items()),
    ]
    return [
        Condition(AS_TRAINED, here, home, home_cycles),
        Condition(AS_TRAINED, there, other, other_cycles),
        Condition(OTHER_TRACE, f"from {there} to {here}", replace(other, trace=home.trace), home_cycles),
        Condition(OTHER_TRACE, f"from {here} to {there}", replace(home, trace=other.trace), other_cycles),
        *(Condition(name, variant, home, home_cycles, change) for name, variant, change in changes),
    ]


# -------------------------------------------------------------------------------------------------------- load


def scaled_trace(trace: Trace, cycle: Cycle, factor: float) -> Trace:
    """The part of a trace around a cycle with ``factor`` times the counts, rounded to whole requests."""
    first = min(max(trace.position(cycle.start) - HISTORY_SECONDS, 0), len(trace.counts) - MIN_SECONDS)
    part = slice(first, first + MIN_SECONDS)
    counts = np.rint(factor * trace.counts[part]).astype(np.int64)
    return replace(trace, recorded=counts, raw_index=trace.raw_index[part], damping=1)


def overload(setting: Setting, pipeline: Pipeline, cycle: Cycle, seed: int) -> CycleConditions:
    """More load than in training: the cycle's peak is :data:`PEAK_FACTOR` times that of the training split."""
    trace = setting.trace
    largest = trace.counts[trace.split("train")].max()
    factor = float(PEAK_FACTOR * largest / max(cycle_counts(trace, cycle).max(), 1))
    return CycleConditions(replace(setting, trace=scaled_trace(trace, cycle, factor)), factor)


# ---------------------------------------------------------------------------------------------------- forecast


FAILURES: Mapping[str, Callable[[float, float], float]] = {
    "says 0": lambda forecast, first: 0.0,
    "says NaN": lambda forecast, first: np.nan,
    "stuck": lambda forecast, first: first,
    "says twice": lambda forecast, first: 2.0 * forecast,
    "says half": lambda forecast, first: 0.5 * forecast,
}
"""Output of a failed forecaster (requests/s), from its true forecast and the first one of the cycle.

An error is not among them: the control loop treats it like NaN.
"""


class BrokenForecaster:
    """A forecaster that works once and then fails.

    Args:
        forecaster: the working one.
        failure: one of :data:`FAILURES`.
    """

    def __init__(self, forecaster: Forecaster, failure: str) -> None:
        self._forecaster, self._failure = forecaster, FAILURES[failure]
        self._first: float | None = None

    def predict(self, history: np.ndarray) -> float:
        """The forecast (requests/s) the first time, then the output of the failure."""
        forecast = self._forecaster.predict(history)
        if self._first is None:
            self._first = forecast
            return forecast
        return self._failure(forecast, self._first)


def failing_forecaster(failure: str, setting: Setting, pipeline: Pipeline, cycle: Cycle, seed: int) -> CycleConditions:
    """A forecaster that fails in one of the ways of :data:`FAILURES`, a new one in every cycle."""
    broken = BrokenForecaster(setting.forecaster, failure)
    return CycleConditions(replace(setting, forecaster=broken))  # type: ignore[arg-type]  # only predicts


# ---------------------------------------------------------------------------------------------------- profiles


def other_device(draw: DrawFactors, setting: Setting, pipeline: Pipeline, cycle: Cycle, seed: int) -> CycleConditions:
    """A device with other latencies than profiled."""
    factors = draw(setting, pipeline, cycle, seed)
    return CycleConditions(setting, _common(factors), factors)


def calibrated_device(
    draw: DrawFactors, setting: Setting, pipeline: Pipeline, cycle: Cycle, seed: int
) -> CycleConditions:
    """The same device, for policies that are told what the measured service times say of the profiles."""
    return other_device(draw, replace(setting, calibration=True), pipeline, cycle, seed)


def known_device(draw: DrawFactors, setting: Setting, pipeline: Pipeline, cycle: Cycle, seed: int) -> CycleConditions:
    """The same device, for policies that are told its latencies."""
    return other_device(draw, setting, pipeline, cycle, seed)._replace(informed=True)


def _common(factors: Factors) -> float:
    """The factor if it is one for all variants and all the time, else NaN."""
    met = np.unique([factors(seconds) for seconds in (0.0, 0.5 * CYCLE_SECONDS, CYCLE_SECONDS)])
    return float(met[0]) if len(met) == 1 else np.nan


# ---------------------------------------------------------------------------------------------------------------- runs


COLUMNS = [
    *("world", "variant", "trace", "pipeline", "cycle", "policy", "seed", "factor"),
    *("reward", "qos", "cost", "dropped", "refused", "fallbacks", "by_expert"),
]


class RobustnessCell(NamedTuple):
    """A cycle to run: the number of the condition and its names, pipeline, cycle, and the policies and seeds."""

    condition: int
    world: str
    variant: str
    pipeline: Pipeline
    cycle: Cycle
    runs: tuple[tuple[str, int], ...]

    @property
    def key(self) -> dict[str, str]:
        """World, variant, pipeline and cycle."""
        names = {"pipeline": self.pipeline.name, "cycle": self.cycle.name}
        return {"world": self.world, "variant": self.variant} | names


def evaluate_robustness(
    conditions: Sequence[Condition], pipelines: Sequence[Pipeline], seeds: Sequence[int], kept: Path, workers: int = 1
) -> pd.DataFrame:
    """Run every policy on every pipeline and seed through all cycles of every condition, less what is finished.

    Args:
        conditions: in which everything runs.
        pipelines: the pipelines to configure.
        seeds: of the requests.
        kept: file of finished runs, see :func:`opd.study.analysis.kept_rows.run_missing`.
        workers: cycles simulated at the same time.

    Returns:
        A row a cycle with the columns of :data:`COLUMNS`: ``reward`` and ``qos`` (Eqs. 7 and 3) and ``cost`` (cores)
        are means over its decisions. ``dropped`` counts requests, ``refused`` decisions, ``fallbacks`` decisions
        without a forecast, for which the control loop took the largest load of the last 20 s, and ``by_expert``
        decisions of an agent's fallback policy.
    """
    runs = tuple(product(POLICIES, seeds))
    cells = [
        RobustnessCell(number, condition.name, condition.variant, pipeline, cycle, runs)
        for number, condition in enumerate(conditions)
        for pipeline, cycle in product(pipelines, condition.cycles)
    ]
    return run_missing(run_cell, conditions, cells, COLUMNS, kept, workers, _all_conditions_of)


def _all_conditions_of(conditions: Sequence[Condition], policy: str) -> int:
    """One number for all settings, see :func:`opd.study.analysis.kept_rows.run_missing`."""
    settings = {id(each.setting): each.setting for each in conditions}
    return crc32(repr([setting_conditions(setting, policy) for setting in settings.values()]).encode())


def run_cell(conditions: Sequence[Condition], cell: RobustnessCell) -> list[dict[str, Any]]:
    """Run all policies through a cycle; return rows of :data:`COLUMNS`."""
    condition, pipeline, cycle, rows = conditions[cell.condition], cell.pipeline, cell.cycle, []
    for name, seed in cell.runs:
        setting, factor, factors, informed = condition.change(condition.setting, pipeline, cycle, seed)
        solver = "dynamic-program" if name == "ipa" else name  # the optimum of HiGHS in a fraction of its time
        policy, device = setting.policy(solver, pipeline, seed), factors and device_with(pipeline, factors)
        if factors and informed:
            policy = InformedPolicy(policy, factors, setting.simulation.interval)
        steps = run_cycle(pipeline, policy, cycle, seed, setting, device)
        run = {"trace": condition.setting.trace.name, "policy": name, "seed": seed, "factor": factor}
        run["fallbacks"] = sum(bool(step.forecast_failure) for step in steps)
        rows.append(cell.key | run | cycle_summary(steps))
    return rows
