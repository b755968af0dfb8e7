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


def a_project(folder, monkeypatch, table: str):
    (folder / "params.yaml").write_text("")
    (folder / "thresholds.csv").write_text(table)
    monkeypatch.chdir(folder)


def test_a_project_has_its_own_thresholds_for_a_pipeline_and_for_all(tmp_path, monkeypatch):
    values = {"upper": 0.5, "lower": 0.25, "load_seconds": 5, "drain_seconds": 4, "hold_seconds": 30}
    names = ("every", 1), ("mine", 2)
    rows = [f"{name},ladder,{key},{value * times}\n" for name, times in names for key, value in values.items()]
    a_project(tmp_path, monkeypatch, HEADER + "".join(rows))
    assert tuned_thresholds("ladder", "other") == LadderThresholds(0.5, 0.25, 5.0, 4.0, 30.0)
    assert tuned_thresholds("ladder", "mine") == LadderThresholds(1.0, 0.5, 10.0, 8.0, 60.0)


@pytest.mark.parametrize("table", ["", HEADER, f"{HEADER}every,hpa,target,0.5\n", f"{HEADER}every,hpa,target,high\n"])
def test_a_table_that_lacks_thresholds_is_named_with_the_remedy(tmp_path, monkeypatch, table):
    a_project(tmp_path, monkeypatch, table)
    with pytest.raises(ValueError, match=r"thresholds.csv: no .* 'hpa' for pipeline 'mine' .*delete it"):
        tuned_thresholds("hpa", "mine")


@pytest.mark.parametrize(
    ("name", "value"), [("upper", 0.0), ("lower", 1.5), ("hold_seconds", -1.0), ("lower", float("nan")), ("uper", 1.0)]
)
def test_a_threshold_out_of_its_range_is_refused(name, value):
    good = {"upper": 0.5, "lower": 0.25, "load_seconds": 5, "drain_seconds": 4.0, "hold_seconds": 30.0}
    with pytest.raises(ValueError, match=name):
        LadderThresholds(**(good | {name: value}))
