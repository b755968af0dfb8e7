"""Stretches without a single request: nothing divides by zero, and numbers stay finite where they should."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from small_pipelines import ocr_pipeline
from small_study import setting_on

from opd.study.evaluation.cycles import EvaluationCell, evaluate
from opd.workload.check_trace import check_splits
from opd.workload.forecast import ForecastParameters
from opd.workload.forecast_comparison import compare_forecasts
from opd.workload.forecast_training import train_forecaster
from opd.workload.trace import Trace, burst_starts, cycle_from_start, evaluation_cycles
from opd.workload.trace_limits import MIN_SECONDS, TraceError

SECONDS = np.arange(MIN_SECONDS)
POLICIES = ("random", "greedy", "ipa", "myopic", "clairvoyant")


def quiet(where: np.ndarray) -> Trace:
    """Six requests/s, and none where ``where`` is true."""
    counts = np.random.default_rng(0).poisson(6.0, MIN_SECONDS)
    return Trace("quiet", np.where(where, 0, counts), SECONDS)


HALF_HOURS = quiet(SECONDS // 1800 % 2 == 0)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.filterwarnings("error", category=RuntimeWarning)
        yield


@pytest.mark.parametrize("where", [SECONDS // 1800 % 2 == 0, SECONDS < 12_000, SECONDS > 15_000, SECONDS != 20_000])
def test_forecasts_and_cycles(where):
    trace = quiet(where)
    assert len(evaluation_cycles(trace, extra=1)) == 4
    for split in ("train", "validation", "test"):
        burst_starts(trace, split)
    forecaster = train_forecaster(trace, ForecastParameters(epochs=1, train_windows=300))
    assert 0.0 <= forecaster.predict(np.zeros(120)) < 1.5
    comparison = compare_forecasts(forecaster, trace)
    assert np.isfinite(comparison.errors["smape"]).all()


def test_policies_run_a_cycle_without_load():
    setting = setting_on(HALF_HOURS, {})
    cycle = cycle_from_start(HALF_HOURS, 14_520)
    rows, steps = evaluate([EvaluationCell(ocr_pipeline(), policy, cycle, 0) for policy in POLICIES], setting)
    assert (rows[["dropped", "refused"]] == 0).all(axis=None)
    assert np.isfinite(rows[["reward", "qos", "cost", "accuracy", "within"]]).all(axis=None)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (SECONDS < 12_400, "no request comes in the train split, seconds 0 to 12341, but agent and forecaster learn"),
        (SECONDS > 14_000, "no request comes in the test split, seconds 14400 to 21599"),
    ],
)
def test_a_split_without_load_is_refused(where, message):
    with pytest.raises(TraceError, match=message):
        check_splits(quiet(where))
