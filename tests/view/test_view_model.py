"""The view model, from known steps of the control loop."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from live_runs import LARGE, SMALL
from small_pipelines import ocr_pipeline
from viewed_steps import known_step, loop_views, view_after

from opd.measurement import Calibration, unmeasured
from opd.serving.emulation.names import emulated_pipeline
from opd.view.model import IntervalView, StageView, View, view_of


def test_a_view_has_the_figures_of_its_step():
    view = view_after(known_step())
    assert view.interval == IntervalView(
        **{"end": 1010.0, "seconds": 10.0, "offered": 40.0, "failed": 0.0, "load": 4.0, "forecast": 4.0},
        # recognition: the tiny variant with 20 requests/s for the 4 s in which the large one starts, then this with 4
        **{"capacity": pytest.approx(10.4), "latency_mean": 0.25, "latency_p99": 0.5},
        **{"within": 0.975, "cores": 8.0},
    )
    assert view.stages == (
        StageView("detection", "large", 2, 2, 3.0, 1.0, pytest.approx(0.11, abs=0.01)),
        StageView("recognition", "large", 1, 1, 0.0, 1.0, pytest.approx(0.11, abs=0.01)),
    )
    assert (view.pipeline, view.address, view.device_cores) == ("ocr", "127.0.0.1:9", 8.0)
    assert view.level == ocr_pipeline().service_level


def test_a_view_says_what_was_changed_and_from_what_it_was_decided():
    decision = view_after(known_step()).decision
    assert (decision.outcome, decision.seconds, decision.remarks) == ("applied", 0.012, ())
    assert decision.changes == (
        "detection small to large, 1 to 2 replicas, batch size 1 to 2",
        "recognition tiny to large",
    )
    assert decision.basis == "load 4, forecast 4 requests/s, 0 waiting"


def test_a_view_says_why_a_decision_was_refused_or_left_to_the_fallback():
    step = replace(known_step(), refused="needs 12 cores", forecast_failure="the forecast failed")
    assert view_after(step).decision.outcome == "refused"
    assert view_after(step).decision.remarks == ("needs 12 cores", "the forecast failed")
    late = replace(known_step(), fallback=True, fallback_reason="late")
    assert view_after(late).decision.remarks == ("the fallback policy decided: late",)
    assert view_after(late).decision.outcome == "applied" and view_after(late).decision.fallback


def test_what_is_kept_has_no_changes():
    step = known_step()
    kept = replace(step, observation=replace(step.observation, configuration=step.configuration))
    assert view_after(kept).decision.outcome == "kept" and view_after(kept).decision.changes == ()


def test_an_idle_pipeline_is_told_from_one_that_cannot_be_observed():
    idle = replace(known_step(), idle=True, observation=None, decided=None)
    assert (view_after(idle).decision.outcome, view_after(idle).decision.basis) == ("idle", "no request had arrived")
    blind = replace(idle, idle=False, refused="no decision: no metrics")
    assert (view_after(blind).decision.outcome, view_after(blind).decision.basis) == ("refused", "")
    assert np.isnan(view_after(blind).stages[0].service_factor)


def test_calibration_is_that_of_the_variants_that_run():
    step, none = known_step(), np.zeros((2, 3))
    known = Calibration(np.array([[1.0, 1.25, 1.0], [1.0, 1.0, 0.8]]), none, np.full((2, 3), 0.1), 1.0)
    stages = view_after(replace(step, observation=replace(step.observation, calibration=known))).stages
    assert [(stage.service_factor, stage.service_deviation) for stage in stages] == [(1.25, 0.1), (0.8, 0.1)]


def test_what_is_emulated_or_assumed_is_said():
    assert not view_after(known_step()).emulated and view_after(known_step()).assumed == ""
    assert view_of(emulated_pipeline(ocr_pipeline()), SMALL).emulated
    first, *others = ocr_pipeline().tasks
    typed = replace(first, variants=(replace(first.variants[0], assumed=True), *first.variants[1:]))
    view = view_of(replace(ocr_pipeline(), tasks=(typed, *others)), SMALL)
    assert view.assumed == f"assumed, not measured: {first.name}/{first.variants[0].name}"


def test_the_view_as_json_has_null_for_what_is_unknown():
    step = known_step()
    facts = json.loads(json.dumps(view_after(step).as_json(), allow_nan=False))
    assert facts["stages"][0]["variant"] == "large" and facts["stages"][0]["replicas"] == 2
    assert facts["interval"]["within"] == 0.975 and facts["level"]["seconds"] == 1.0
    blind = replace(step, interval=unmeasured(ocr_pipeline()), predicted_load=np.nan)
    unknown = view_after(blind).as_json()
    assert [unknown["interval"][name] for name in ("load", "forecast", "latency_mean")] == [None] * 3
    assert unknown["stages"][0]["waiting"] is None
    first = view_of(ocr_pipeline(), SMALL).as_json()
    assert first["interval"] is None and first["decision"] is None and first["stages"][0]["variant"] == "small"


def test_a_view_that_cannot_be_made_is_logged_and_ends_nothing(caplog):
    caplog.set_level(logging.WARNING)
    broken = replace(known_step(), score=None)
    assert view_after(broken) == View("ocr", state="serving", address="127.0.0.1:9")
    assert "the view of ocr could not be made; control goes on" in caplog.text and "AttributeError" in caplog.text


def test_every_step_of_a_loop_has_its_view():
    views = list(loop_views(4))
    assert [view.decision.outcome for view in views] == ["kept", "kept", "applied", "kept"]
    assert [view.interval.end for view in views] == [10.0, 20.0, 30.0, 40.0]
    assert [view.stages[0].variant for view in views] == ["small", "small", "large", "large"]
    assert [view.interval.cores for view in views] == [2.0, 2.0, 8.0, 8.0]
    assert LARGE[0].replicas == views[-1].stages[0].replicas
