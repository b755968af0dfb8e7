"""Tasks on Ray nodes: what the table says and what is projected from it, and that the measurement runs."""

from __future__ import annotations

import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import papermill
import pytest
import yaml

from opd.host.paths import project_path
from opd.study.analysis.ablations import ABLATIONS
from opd.study.benchmarks import DisagreementError, ray_scaling
from opd.study.benchmarks.ray_report import (
    CYCLES,
    PROCESSES,
    RAY,
    TRAININGS,
    WAYS,
    TrainingCost,
    cost_times,
    plot_scaling,
    projected_seconds,
    scaling_findings,
    training_cost,
)
from opd.study.benchmarks.ray_scaling import SMOKE, RayBudget, Work, measure_scaling


def row(kind, place, workers, wall, cpu, **figures):
    usual = dict(tasks=4, start_seconds=2.0, gap_ms=10.0, task_cpu_seconds=60.0)
    usual |= dict(wall_seconds=wall, cpu_seconds=cpu, overhead_cpu_seconds=0.5, task_megabytes=3.0)
    return dict(kind=kind, place=place, workers=workers) | usual | figures


@pytest.fixture
def table() -> pd.DataFrame:
    rows = []
    for kind in (TRAININGS, CYCLES):
        rows += [row(kind, PROCESSES, 1, 40.0, 40.0), row(kind, PROCESSES, 2, 20.0, 50.0)]
        rows += [row(kind, RAY, nodes, 40.0, 60.0 + 10.0 * nodes, start_seconds=nodes) for nodes in (1, 2, 4)]
    return pd.DataFrame(rows)


def test_costs_are_times_those_of_one_process(table):
    np.testing.assert_allclose(cost_times(table), 2 * [1.0, 1.25, 1.75, 2.0, 2.5])


def test_a_projection_by_hand(table):
    cost = training_cost(table)
    assert cost == TrainingCost(training=60.0, gap=0.01, start=2.0)
    assert projected_seconds(cost, [64], 64) == pytest.approx(2.0 + 60.01)
    assert projected_seconds(cost, [65], 64) == pytest.approx(2.0 + 2 * 60.01)
    assert projected_seconds(cost, [10, 130], 64) == pytest.approx(2 * 2.0 + (1 + 3) * 60.01)
    assert projected_seconds(cost, [195], 1) == pytest.approx(2.0 + 195 * 60.01)


def test_the_projection_is_that_of_the_study():
    stage = yaml.safe_load(project_path("study", "dvc.yaml").read_text(encoding="utf-8"))["stages"]["train"]
    given = yaml.safe_load(project_path("study", "params.yaml").read_text(encoding="utf-8"))
    single = [agent for agent in given["agents"].values() if agent.get("kind", "single") == "single"]
    train = [len(single) * len(given["seeds"])] * len(stage["matrix"]["pipeline"])
    declared = papermill.inspect_notebook(str(project_path("notebooks", "09_ablations.ipynb")))
    pipelines, seeds = (yaml.safe_load(declared[f"ablation_{name}"]["default"]) for name in ("pipelines", "seeds"))
    ablations = len(ABLATIONS) * len(pipelines) * len(seeds)
    assert list(WAYS.values()) == [(*train, ablations), (sum(train), ablations), (sum(train) + ablations,)]


def test_a_table_where_no_process_had_two_trainings_has_no_gap(table):
    assert training_cost(table.assign(gap_ms=np.nan)).gap == 0.0


def test_the_page_shows_the_arithmetic_and_says_that_it_is_a_projection(table):
    found = scaling_findings(table, 2)
    assert sum(line.startswith("|") for line in found["Measured"].splitlines()) == 2 + 10
    text = found["Projection"]
    assert text.startswith("This was not measured") and "195 trainings" in text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")][2:]
    # 7 * 2.0 s + 9 * 60.01 s, 2 * 2.0 s + 4 * 60.01 s, 2.0 s + 4 * 60.01 s; on two cores 98 rounds always.
    assert [(calls, most, fewest) for _, calls, _, most, fewest in rows] == [
        ("7", "9.2", "98.2"),
        ("2", "4.1", "98.1"),
        ("1", "4.0", "98.0"),
    ]
    assert [each[2] for each in rows[:2]] == ["6 × ⌈10 / 64⌉ + ⌈135 / 64⌉ = 9", "⌈60 / 64⌉ + ⌈135 / 64⌉ = 4"]


def test_the_figure_stacks_what_is_within_tasks_and_what_is_not(table):
    for axes in plot_scaling(table, 2).axes:
        within, outside = ([bar.get_height() for bar in bars] for bars in axes.containers)
        assert within == [39.5, 49.5, 69.5, 79.5, 99.5] and outside == [0.5] * 5
        assert [label.get_text() for label in axes.get_xticklabels()] == [
            "1 local",
            "2 local",
            "1 Ray",
            "2 Ray",
            "4 Ray",
        ]
    plt.close("all")


def where(_: None, task: int) -> int:
    return os.getpid()


@pytest.mark.processes
def test_another_result_in_another_place_is_an_error(monkeypatch):
    work = Work(where, None, [1, 2])
    monkeypatch.setattr(ray_scaling, "study_work", lambda *given: dict.fromkeys((TRAININGS, CYCLES), work))
    with pytest.raises(DisagreementError, match="trainings give other results in 2 processes"):
        measure_scaling(RayBudget(nodes=()))


@pytest.mark.slow
@pytest.mark.processes
def test_tasks_of_the_study_are_the_same_on_ray():
    pytest.importorskip("ray", reason="needs Ray: pip install 'opd[ray]'")
    rows = measure_scaling(SMOKE).set_index(["kind", "place", "workers"])
    assert rows.index.tolist() == [
        (kind, *place) for kind in (TRAININGS, CYCLES) for place in ((PROCESSES, 1), (PROCESSES, 2), (RAY, 2))
    ]
    assert (rows[["wall_seconds", "start_seconds", "task_cpu_seconds", "task_megabytes"]] > 0.0).all(None)
    # What other processes computed is counted, to a hundredth of a second each.
    assert (rows["cpu_seconds"] + 0.1 >= rows["tasks"] * rows["task_cpu_seconds"]).all()
