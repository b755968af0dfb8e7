"""Thresholds of the reactive policies: the table that ships, and what a table may hold."""

from __future__ import annotations

import pytest

from opd.control import REACTIVE_POLICIES
from opd.control.thresholds import KINDS, LadderThresholds, tuned_thresholds
from opd.profiling.pipeline_file import shipped_pipelines

HEADER = "pipeline,policy,threshold,value\n"


def test_every_reactive_policy_has_thresholds_for_any_pipeline():
    assert tuple(KINDS) == REACTIVE_POLICIES
    for name in (*shipped_pipelines(), "of my own"):
        for policy, kind in KINDS.items():
            assert isinstance(tuned_thresholds(policy, name), kind)


def test_a_pipeline_has_its_own_thresholds_or_those_of_all(tmp_path):
    path = tmp_path / "table.csv"
    values = {"upper": 0.5, "lower": 0.25, "drain_seconds": 4, "hold_seconds": 30}
    rows = [f"{name},ladder,{key},{value * times}\n" for name, times in (("every", 1), ("mine", 2)) for key, value in
            values.items()]  # fmt: skip
    path.write_text(HEADER + "".join(rows))
    assert tuned_thresholds("ladder", "other", path) == LadderThresholds(0.5, 0.25, 4.0, 30.0)
    assert tuned_thresholds("ladder", "mine", path) == LadderThresholds(1.0, 0.5, 8.0, 60.0)


@pytest.mark.parametrize(
    ("name", "value"), [("upper", 0.0), ("lower", 1.5), ("hold_seconds", -1.0), ("lower", float("nan")), ("uper", 1.0)]
)
def test_a_threshold_out_of_its_range_is_refused(name, value):
    good = {"upper": 0.5, "lower": 0.25, "drain_seconds": 4.0, "hold_seconds": 30.0}
    with pytest.raises(ValueError, match=name):
        LadderThresholds(**(good | {name: value}))
