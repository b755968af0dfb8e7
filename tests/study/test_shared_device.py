"""Pairs of pipelines on one device: which divisions run, what a static split is, and what is made of the rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import typer
from small_pipelines import ocr_pipeline
from small_study import CYCLE, SIMULATION, WEIGHTS, setting_on, waves

from opd.control.policies import BacklogPolicy, SolverPolicy
from opd.control.sharing import Member, StaticSplit, run_together
from opd.pipeline import used_cores
from opd.simulator.backend import SimulatedBackend
from opd.solvers.exact import solver_for
from opd.study.analysis.kept_rows import run_missing
from opd.study.analysis.shared_device import (
    ARBITER,
    COLUMNS,
    beside_best_split,
    main,
    run_shared,
    shared_capacity,
    shared_cells,
    shared_findings,
)
from opd.workload.trace import cycle_counts

SETTING = setting_on(waves(), {})
ONE, OTHER = ocr_pipeline(), replace(ocr_pipeline(6), name="narrow")
CYCLES = [CYCLE, CYCLE._replace(name="early", start=16_000)]
CELLS = shared_cells([ONE, OTHER], CYCLES, [0.5], ["myopic-backlog"], [0])


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> pd.DataFrame:
    return run_missing(run_shared, SETTING, CELLS[:1], COLUMNS, tmp_path_factory.mktemp("kept") / "rows.csv")


def test_every_pipeline_has_a_load_of_its_own():
    assert [cell.cycles for cell in CELLS] == [tuple(CYCLES), tuple(reversed(CYCLES))]
    with pytest.raises(ValueError, match="1 cycles are too few for 2 pipelines"):
        shared_cells([ONE, OTHER], CYCLES[:1], [0.5], ["myopic"], [0])


def test_a_device_has_a_share_of_both_and_room_for_the_smallest_configurations():
    assert shared_capacity([ONE, OTHER], 0.5) == 7
    assert shared_capacity([ONE, OTHER], 0.1) == 4


def test_the_arbiter_and_every_static_split_run(rows):
    assert list(rows.columns) == COLUMNS
    assert list(rows["division"]) == [ARBITER, "2 + 5", "3 + 4", "4 + 3", "5 + 2"]


def test_a_static_split_is_the_sum_of_runs_that_know_nothing_of_each_other(rows):
    def member(pipeline, cycle):
        start = SETTING.trace.position(cycle.start)
        history, counts = SETTING.trace.counts[start - 120 : start], cycle_counts(SETTING.trace, cycle)
        first = pipeline.smallest_configuration()
        backend = SimulatedBackend(pipeline, SIMULATION, history, counts, first, 0)
        policy = BacklogPolicy(SolverPolicy(pipeline, solver_for(WEIGHTS, SIMULATION)), SIMULATION.interval)
        return Member(backend, pipeline, policy, SETTING.forecaster.predict, WEIGHTS)

    members = [member(ONE, CYCLES[0]), member(OTHER, CYCLES[1])]
    steps = list(run_together(members, StaticSplit((4, 3)), 120, calibrate=False))
    reward = np.array([sum(step.score.reward[0] for step in both) for both in steps])
    row = rows[rows["division"] == "4 + 3"].iloc[0]
    assert row["reward"] == pytest.approx(reward.mean()) and row["worst"] == pytest.approx(reward.min())
    assert row["dropped"] == sum(step.interval.dropped[0] for both in steps for step in both)
    assert all(used_cores(ONE, first.configuration) <= 4 for first, _ in steps)


def test_the_arbiter_is_put_beside_the_split_that_is_best_over_all_cycles():
    figures = [  # in the first cycle another split is best
        ("a", ARBITER, 10.0, 4.0, 1, 1), ("a", "2 + 5", 11.0, 2.0, 6, 5), ("a", "3 + 4", 9.0, 3.0, 0, 0),
        ("b", ARBITER, 12.0, 5.0, 3, 0), ("b", "2 + 5", 7.0, 2.5, 2, 0), ("b", "3 + 4", 11.0, 6.0, 4, 2),
    ]  # fmt: skip
    made = pd.DataFrame(figures, columns=["cycle", "division", "reward", "worst", "dropped", "dropped_in_worst"])
    made = made.assign(share=0.5, policy="myopic", seed=0, first="one", second="other")
    (row,) = beside_best_split(made).to_dict("records")
    assert (row["split"], row["reward_split"], row["reward_arbiter"]) == ("3 + 4", 10.0, 11.0)
    assert row["lead"] == pytest.approx(10.0) and row["lead_each"] == pytest.approx(0.0)
    assert (row["dropped_arbiter"], row["worst_arbiter"], row["dropped_in_worst_arbiter"]) == (2.0, 4.0, 1)
    assert (row["dropped_split"], row["worst_split"], row["dropped_in_worst_split"]) == (2.0, 3.0, 0)
    (heading,) = shared_findings(beside_best_split(made))
    assert heading == "myopic, 50% of both devices: the best split reached in 1 of 1 pairs"


def test_a_forecaster_that_is_not_there_is_one_error(tmp_path, capsys):
    with pytest.raises(typer.Exit) as ended:
        main(["ocr"], forecaster=tmp_path / "none.npz", trace="synthetic", kept=tmp_path / "rows.csv")
    assert ended.value.exit_code == 2
    assert capsys.readouterr().err.startswith("error: ")
