"""Conditions of a run that change along four axes, each in one thing and for all policies alike.

* **start-up**: all start-up times times one factor, so that the slowest variant takes so many seconds;
* **forecast**: from none, over the forecaster's, to the truth. Forecast, futures and their quantiles are mixed alike;
* **capacity**: the load times a factor, so that the busiest interval of the cycle is so large a share of the largest
  load that the device carries;
* **bursts**: what the load departs from its moving mean by, times a factor; the mean of the cycle stays.

What to know when reading results: the forecaster learned from loads whose bursts nobody changed; and the objective
stays, also where more or less load makes its parts weigh more or less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from opd.control.loop import Step
from opd.control.policies import Policy
from opd.measurement import Observation
from opd.pipeline import Configuration, Pipeline
from opd.profiling.attainable import attainable_load
from opd.study.analysis.devices import with_startup_factor
from opd.study.evaluation.cycles import Setting, run_cycle
from opd.workload.forecast_network import BIN_SECONDS, INTERVALS
from opd.workload.futures import rounded
from opd.workload.quantile_futures import futures_of
from opd.workload.rescaled import RescaledForecaster
from opd.workload.trace import CYCLE_SECONDS, Cycle, Trace, cycle_counts

NO_FORECAST = -0.5
"""Value on the axis of forecasts where there is none."""

SMOOTHED_SECONDS = 600
"""Length of the moving mean that bursts depart from."""


class Case(NamedTuple):
    """A pipeline, its load and what else holds in a run; ``truth`` is the share of the coming load in the forecast."""

    setting: Setting
    pipeline: Pipeline
    cycle: Cycle
    truth: float = 0.0


# ---------------------------------------------------------------------------------------------------------------- axes


def with_startup(case: Case, seconds: float) -> Case:
    """All start-up times times one factor, so that the slowest variant takes ``seconds``."""
    slowest = max(variant.startup_time for task in case.pipeline.tasks for variant in task.variants)
    return case._replace(pipeline=with_startup_factor(case.pipeline, seconds / slowest))


def with_forecast(case: Case, truth: float) -> Case:
    """A forecast of which the share ``truth`` is the load that comes; below 0 none but the last interval's mean."""
    if truth < 0.0:
        return case._replace(setting=replace(case.setting, forecaster=LastInterval()))  # type: ignore[arg-type]
    return case._replace(truth=truth)


def with_peak(case: Case, share: float) -> Case:
    """A load whose busiest interval in the cycle is ``share`` of the largest load that the device carries."""
    setting, seconds = case.setting, case.setting.simulation.interval
    counts = cycle_counts(setting.trace, case.cycle)
    busiest = counts[: len(counts) // seconds * seconds].reshape(-1, seconds).mean(axis=1).max()
    factor = share * attainable_load(case.pipeline, np.finfo(float).max) / max(float(busiest), 1.0 / seconds)
    trace = with_counts(setting.trace, whole_counts(factor * setting.trace.counts))
    forecaster: Any = RescaledForecaster(setting.forecaster, 1.0 / factor)
    return case._replace(setting=replace(setting, trace=trace, forecaster=forecaster))


def with_bursts(case: Case, factor: float) -> Case:
    """A load that departs from its moving mean by ``factor`` times as much; the mean of the cycle stays."""
    trace = case.setting.trace
    start = trace.position(case.cycle.start)
    counts = amplified_counts(trace.counts, factor, slice(start, start + CYCLE_SECONDS))
    return case._replace(setting=replace(case.setting, trace=with_counts(trace, counts)))


def with_counts(trace: Trace, counts: np.ndarray) -> Trace:
    """The same trace with other counts (T,), which need no damping any more."""
    return replace(trace, recorded=counts, damping=1)


def amplified_counts(counts: np.ndarray, factor: float, kept: slice) -> np.ndarray:
    """Amplify or damp what counts (T,) depart from their moving mean by, and keep the mean of a stretch of them.

    Where that gives less than no requests, none remain; all counts are then lowered in proportion.
    """
    level = moving_mean(counts, SMOOTHED_SECONDS)
    rates = np.maximum(level + factor * (counts - level), 0.0)
    return whole_counts(rates * (counts[kept].mean() / max(rates[kept].mean(), 1e-9)))


def moving_mean(values: np.ndarray, seconds: int) -> np.ndarray:
    """(T,) mean of the ``seconds`` around each of the values (T,); of fewer at both ends."""
    total, place = np.concatenate([[0.0], np.cumsum(values)]), np.arange(len(values))
    first, last = np.maximum(place - seconds // 2, 0), np.minimum(place + seconds // 2 + 1, len(values))
    return (total[last] - total[first]) / (last - first)


def whole_counts(rates: np.ndarray) -> np.ndarray:
    """(T,) whole requests of every second whose sum up to any second is that of the rates (T,), rounded."""
    return np.diff(np.rint(np.cumsum(rates)), prepend=0.0).astype(np.int64)


class LastInterval:
    """Forecaster that expects the mean of the last interval, and knows no futures but the last two minutes."""

    def predict(self, history: np.ndarray) -> float:
        """Requests/s; 0 for an empty history."""
        return float(history[-BIN_SECONDS:].mean()) if len(history) else 0.0


class PartlyTrue:
    """A forecaster with futures of which a share is the load that comes.

    Args:
        forecaster: makes the rest; its own :meth:`predict` is that of the control loop.
        share: 0..1.
    """

    def __init__(self, forecaster: Any, share: float) -> None:
        self.predict, self._futures, self.share = forecaster.predict, futures_of(forecaster), share
        self.coming = np.zeros(1)

    @property
    def futures(self) -> PartlyTrue:
        """Itself, where futures are looked for."""
        return self

    def mixed(self, guess: Any, truth: Any) -> Any:
        """A guess moved towards the truth."""
        return (1.0 - self.share) * guess + self.share * truth

    def sample(
        self, history: np.ndarray, predicted_load: float, paths: int, seconds: int, generator: np.random.Generator
    ) -> np.ndarray:
        """See :meth:`opd.workload.futures.Futures.sample`."""
        drawn = self._futures.sample(history, predicted_load, paths, seconds, generator)
        return rounded(self.mixed(drawn, self._coming(seconds)), generator)

    def quantiles(self, history: np.ndarray, predicted_load: float) -> np.ndarray:
        """See :meth:`opd.workload.futures.Futures.quantiles`."""
        true = self._coming(INTERVALS * BIN_SECONDS).reshape(INTERVALS, BIN_SECONDS).mean(axis=1)
        return self.mixed(self._futures.quantiles(history, predicted_load), true[:, None])

    def _coming(self, seconds: int) -> np.ndarray:
        """The next seconds; after the end of the workload those of its last one."""
        known = self.coming[:seconds]
        return np.pad(known, (0, seconds - len(known)), mode="edge")


class ToldPolicy(Policy):
    """A policy that decides with a :class:`PartlyTrue` forecast, whose truth only the simulator knows."""

    def __init__(self, policy: Policy, forecaster: PartlyTrue) -> None:
        self._policy, self._forecaster = policy, forecaster

    def decide(self, observation: Observation) -> Configuration:
        """The decision of the policy for the forecast nearer to the truth."""
        assert observation.coming_counts is not None  # the simulated backend tells it
        self._forecaster.coming = observation.coming_counts
        load = self._forecaster.mixed(observation.predicted_load, observation.coming_load)
        decided = self._policy.decide(replace(observation, predicted_load=load))
        self.fallback = self._policy.fallback
        return decided


# ---------------------------------------------------------------------------------------------------------------- axes


class Axis(NamedTuple):
    """One thing that changes.

    Attributes:
        title: what it is.
        label: of its values.
        change: leads from the conditions of a pipeline, its peak among them, to those of a value.
        usual: value that changes nothing.
        logarithmic: whether a figure shows ratios of its values.
        names: of values that are better known by one.
    """

    title: str
    label: str
    change: Callable[[Case, float], Case] = lambda case, value: case
    usual: float | None = None
    logarithmic: bool = False
    names: Mapping[float, str] = {}

    def name(self, value: float) -> str:
        """A value in words."""
        return self.names.get(value, f"{value:g}")


CAPACITY = "capacity"
"""Name of the axis whose values are the peak of the load itself, :func:`with_peak`."""

AXES: Mapping[str, Axis] = {
    "start-up": Axis("Start-up time", "start-up time of the slowest variant, s", with_startup, logarithmic=True),
    "forecast": Axis(
        "Forecast",
        "share of the truth in the forecast",
        with_forecast,
        usual=0.0,
        names={NO_FORECAST: "none", 0.0: "0 (LSTM)", 1.0: "1 (truth)"},
    ),
    CAPACITY: Axis("Capacity", "busiest interval, share of what the device carries"),
    "bursts": Axis("Bursts", "departures from the moving mean, times", with_bursts, usual=1.0),
}
"""By name, the column ``axis`` of results."""


# ---------------------------------------------------------------------------------------------------------------- runs


def run_case(case: Case, policy: str, seed: int) -> list[Step]:
    """Run a policy through the cycle of a case."""
    setting, pipeline, cycle, truth = case
    if not truth:
        return run_cycle(pipeline, setting.policy(policy, pipeline, seed), cycle, seed, setting)
    forecaster: Any = PartlyTrue(setting.forecaster, truth)
    told = replace(setting, forecaster=forecaster)
    return run_cycle(pipeline, ToldPolicy(told.policy(policy, pipeline, seed), forecaster), cycle, seed, told)


def forecast_error(steps: Sequence[Step]) -> float:
    """Mean absolute error of the loop's forecast in percent of the mean of what it should have been.

    Where the forecast is mixed with the truth, the error that is left is the other share of this.
    """
    seen = [step.observation for step in steps if step.observation is not None]
    coming = np.array([each.coming_load for each in seen])
    predicted = np.array([each.predicted_load for each in seen])
    return 100.0 * float(np.abs(predicted - coming).mean() / max(coming.mean(), 1e-9))
