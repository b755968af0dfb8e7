"""Service levels: what is asked, what a row says, and how the agent is put beside the best solver."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from small_pipelines import ocr_pipeline
from small_study import CYCLE, SIMULATION, setting_on, waves

from opd.solvers.service_level import best_for_level, level_options, shortest_latency
from opd.study.analysis.kept_rows import run_missing
from opd.study.analysis.service_levels import (
    COLUMNS,
    beside_best_solver,
    level_cells,
    level_findings,
    plot_levels,
    run_level,
    summarise_levels,
    with_level,
)

SETTING = setting_on(waves(), {})
ASKED = with_level(ocr_pipeline(), SETTING.usual_load, 3.0, 20.0, SIMULATION)
CELLS = level_cells([ASKED], [CYCLE, CYCLE._replace(name="later", start=18_000)], ["greedy", "random"], [0, 1])


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> pd.DataFrame:
    return run_missing(run_level, SETTING, CELLS, COLUMNS, tmp_path_factory.mktemp("kept") / "rows.csv")


def test_the_latency_asked_is_a_multiple_of_the_shortest_that_can_be_planned():
    pipeline, load = ocr_pipeline(), SETTING.usual_load
    fastest, _ = shortest_latency(level_options(pipeline, load, SIMULATION), pipeline.capacity, 95.0, 1.0)
    level = ASKED.service_level
    assert (level.seconds, level.percentile) == (round(3.0 * fastest, 2), 95.0)
    assert (level.accuracy_floor, level.accuracy_weight) == (0.0, 20.0)
    assert best_for_level(ASKED, load, level, SIMULATION)


def test_a_load_beyond_the_device_is_refused_with_both():
    with pytest.raises(ValueError, match=r"pipeline 'ocr': 8 cores do not carry 1e\+05 requests/s"):
        with_level(ocr_pipeline(), 1e5, 2.0, 20.0, SIMULATION)


def test_a_row_a_run(rows):
    assert list(rows.columns) == COLUMNS
    assert rows[["cycle", "policy", "seed"]].to_numpy().tolist() == [
        [cycle, policy, seed] for cycle in ("waves", "later") for policy in ("greedy", "random") for seed in (0, 1)
    ]
    assert (rows["seconds"] == ASKED.service_level.seconds).all() and rows["within"].between(0.0, 1.0).all()
    greedy = rows[rows["policy"] == "greedy"]
    assert (greedy["within"] > 0.5).all() and (greedy["cost"] < ASKED.capacity).all()


def test_finished_runs_are_kept_for_the_same_level_only(rows, tmp_path):
    kept = tmp_path / "rows.csv"
    first = run_missing(run_level, SETTING, CELLS[:1], COLUMNS, kept)
    pd.testing.assert_frame_equal(first, rows[:4], rtol=1e-12)
    written = kept.read_text()
    run_missing(run_level, SETTING, CELLS[:1], COLUMNS, kept)
    assert kept.read_text() == written
    tight = replace(ASKED, service_level=replace(ASKED.service_level, seconds=0.5))
    others = level_cells([tight], [CYCLE], ["greedy"], [0])
    other = run_missing(run_level, SETTING, others, COLUMNS, kept)
    assert other["seconds"].tolist() == [0.5] and len(pd.read_csv(kept)) == 5


def made(policy: str, within: float, cost: float, reward: float, pipeline: str = "p") -> dict[str, object]:
    same = {"pipeline": pipeline, "seconds": 0.5, "cycle": "a", "seed": 0, "accuracy": 0.8, "dropped": 0}
    return same | {"policy": policy, "within": within, "cost": cost, "reward": reward}


def test_the_level_is_kept_in_a_share_of_the_cycles():
    some = pd.DataFrame([made("ipa", within, 4.0, 1.0) for within in (0.95, 0.9499, 1.0, 0.5)])
    assert summarise_levels(some)["kept"].tolist() == [0.5]


@pytest.mark.parametrize(
    ("within", "cost", "met"), [(0.96, 4.0, True), (0.97, 3.0, True), (0.9599, 3.0, False), (0.99, 4.01, False)]
)
def test_the_agent_needs_the_share_of_the_best_solver_and_no_more_cores(within, cost, met):
    some = [made("agent", within, cost, 9.0), made("hpa", 1.0, 1.0, 20.0)]  # the second is no solver
    some += [made("greedy", 1.0, 2.0, 5.0), made("myopic", 0.96, 4.0, 8.0)]
    compared = beside_best_solver(summarise_levels(pd.DataFrame(some)))
    assert compared.loc[0, ["solver", "met"]].tolist() == ["myopic", met]
    assert compared.loc[0, ["within, agent", "cores, solver"]].tolist() == [within, 4.0]


def test_findings_count_the_pipelines_in_which_it_is_met():
    some = [made("agent", 0.97, 4.0, 9.0), made("greedy", 0.96, 4.0, 8.0)]
    some += [made("agent", 0.97, 4.5, 9.0, "q"), made("greedy", 0.96, 4.0, 8.0, "q")]
    found = level_findings(pd.DataFrame(some))
    assert list(found) == [
        "At least the best solver's share in time, with no more cores: 1 of 2 pipelines",
        "p: 95 % within 0.5 s",
        "q: 95 % within 0.5 s",
    ]
    assert "| agent | 0.970 | 4.000 | 0.800 | 9.000 |" in found["p: 95 % within 0.5 s"]


def test_a_panel_a_pipeline_and_a_point_a_policy(rows):
    figure = plot_levels(rows, "waves trace")
    (axes,) = figure.axes
    assert (axes.get_title(), axes.get_xlabel()) == ("ocr", "cores")
    points = [line for line in axes.get_lines() if line.get_linestyle() == "None"]
    expected = summarise_levels(rows).set_index("policy").loc[["random", "greedy"], "cost"]
    np.testing.assert_allclose([line.get_xdata()[0] for line in points], expected)
