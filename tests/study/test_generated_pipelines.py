"""Evaluation on generated pipelines: what a row says, that finished runs are kept, and what is made of the rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from small_study import CYCLE, setting_on, waves

from opd.objective import Weights
from opd.profiling.generated import FIRST_UNSEEN, generate_pipeline
from opd.study.analysis.generated_pipelines import (
    COLUMNS,
    generated_cells,
    generated_findings,
    leads,
    own_setting,
    plot_leads,
    run_generated,
    summarise_generated,
)
from opd.study.analysis.kept_rows import run_missing

SETTING = setting_on(waves(), {})
CELLS = generated_cells(
    {"inside": 2, "outside": 1}, [CYCLE, CYCLE._replace(start=16_000)], ["greedy", "random"], [0, 1]
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> pd.DataFrame:
    return run_missing(run_generated, SETTING, CELLS, COLUMNS, tmp_path_factory.mktemp("kept") / "rows.csv")


def test_cells_take_turns_with_the_cycles_and_seeds_that_training_leaves_out():
    assert [(cell.number - FIRST_UNSEEN, cell.range, cell.cycle.start) for cell in CELLS] == [
        (0, "inside", 20_000), (1, "inside", 16_000), (0, "outside", 20_000)
    ]  # fmt: skip
    assert CELLS[0].runs == (("greedy", 0), ("greedy", 1), ("random", 0), ("random", 1))


def test_every_pipeline_has_its_own_load_and_objective():
    own, pipeline = own_setting(SETTING, FIRST_UNSEEN, "inside")
    generated = generate_pipeline(FIRST_UNSEEN)
    trace = SETTING.trace
    assert pipeline.name == generated.pipeline.name
    assert own.objective == generated.objective
    assert own.trace.damping == max(1, round(trace.recorded[trace.split("train")].max() / generated.peak_load))


def test_a_row_a_run(rows):
    assert list(rows.columns) == COLUMNS
    assert len(rows) == 3 * 2 * 2
    pipeline = generate_pipeline(FIRST_UNSEEN, "outside").pipeline
    last = rows.iloc[-1]
    assert (last["pipeline"], last["range"], last["policy"], last["seed"]) == (pipeline.name, "outside", "random", 1)
    assert last["stages"] == len(pipeline.tasks)
    assert last["variants"] == max(len(task.variants) for task in pipeline.tasks)
    bounded = rows[rows["bound"].notna()]
    assert (bounded["reward"] < bounded["bound"]).all()
    for name, part in rows.groupby("pipeline"):
        where, number = str(name).split("-")[1:]
        weights = isinstance(generate_pipeline(int(number), where).objective, Weights)
        assert part["bound"].notna().all() == weights


def test_finished_runs_are_kept(rows, tmp_path):
    kept, ran = tmp_path / "folder" / "rows.csv", []

    def noting(setting, cell):
        ran.append((cell.number - FIRST_UNSEEN, cell.range, cell.runs))
        return run_generated(setting, cell)

    half = [cell._replace(runs=cell.runs[:2]) for cell in CELLS[:1]]
    run_missing(noting, SETTING, half, COLUMNS, kept)
    again = run_missing(noting, SETTING, CELLS, COLUMNS, kept)
    assert ran == [(0, "inside", CELLS[0].runs[:2]), (0, "inside", CELLS[0].runs[2:]), (1, "inside", CELLS[1].runs)] + [
        (0, "outside", CELLS[2].runs)
    ]
    pd.testing.assert_frame_equal(again, rows, rtol=1e-12)


def made_rows() -> pd.DataFrame:
    """Two pipelines inside, one outside; ``new`` is above the reference in one of the two."""
    figures = [
        ("a", "inside", "myopic-backlog", 10.0, 12.5, 0),
        ("a", "inside", "new", 11.0, 12.5, 2),
        ("b", "inside", "myopic-backlog", -4.0, np.nan, 0),
        ("b", "inside", "new", -5.0, np.nan, 4),
        ("c", "outside", "myopic-backlog", 8.0, 16.0, 0),
        ("c", "outside", "new", 8.0, 16.0, 0),
    ]
    table = pd.DataFrame(figures, columns=["pipeline", "range", "policy", "reward", "bound", "dropped"])
    return table.assign(stages=2, variants=3, seed=0)[COLUMNS]


def test_leads_by_hand():
    table = leads(made_rows())
    assert table.loc[table["policy"] == "new", "lead"].tolist() == pytest.approx([0.1, -0.25, 0.0])
    assert (table.loc[table["policy"] == "myopic-backlog", "lead"] == 0.0).all()


def test_the_summary_by_hand():
    summary = summarise_generated(made_rows()).set_index(["range", "policy"])
    new = summary.loc[("inside", "new")]
    assert new.to_dict() == pytest.approx(
        {"pipelines": 2, "at or above": 0.5, "lead": -7.5, "worst": -25.0, "of bound": 88.0, "dropped": 3.0}
    )
    assert summary.loc[("outside", "new"), "at or above"] == 1.0
    assert summary.loc[("outside", "new"), "of bound"] == 50.0


def test_findings_and_figure_show_both_ranges():
    findings = generated_findings(made_rows())
    assert list(findings) == ["Inside of what training draws from", "Outside of what training draws from"]
    assert "| new | 2 | 0.50 | -7.50 | -25.00 | 88.00 | 3.00 |" in findings["Inside of what training draws from"]
    figure = plot_leads(made_rows(), "waves")
    assert [axes.get_title() for axes in figure.axes] == ["inside: 2 pipelines", "outside: 1 pipelines"]
