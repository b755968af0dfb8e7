"""Tuning of the reactive policies: many cycles at once, successive halving, and the table it writes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import typer
from small_pipelines import ocr_pipeline
from small_study import SIMULATION, WEIGHTS
from small_traces import make_trace

from opd.control.factory import reactive_policy
from opd.control.thresholds import EVERY_PIPELINE, KINDS, LadderThresholds, read_thresholds
from opd.solvers.exact import solver_for
from opd.study.analysis.tuning import (
    DROP_PENALTY,
    ROUNDS,
    Round,
    Search,
    draw_candidates,
    fitting_rounds,
    main,
    tune_all,
    tuning_setting,
    validation_cycles,
    write_candidates,
    write_thresholds,
)
from opd.study.evaluation.batched import run_cycles
from opd.study.evaluation.cycles import cycle_summary, run_cycle
from opd.workload.trace import CYCLE_SECONDS

DAY = 86_400
SMALL = Round(4, 1), Round(2, 2)


def setting():
    seconds = np.arange(DAY)
    counts = np.random.default_rng(0).poisson(8.0 + 5.0 * np.sin(seconds / 120.0))
    return tuning_setting(make_trace(counts), WEIGHTS)


@pytest.mark.parametrize("policy", KINDS)
def test_cycles_that_run_at_once_are_those_of_the_control_loop(policy):
    pipeline, here = ocr_pipeline(), setting()
    cycle = validation_cycles(here.trace, seed=0)[0]
    (thresholds,) = draw_candidates(policy, 1, seed=2)
    policies = [reactive_policy(pipeline, solver_for(WEIGHTS, SIMULATION), 10.0, thresholds) for _ in range(2)]
    alone = cycle_summary(run_cycle(pipeline, policies[0], cycle, 5, here))
    batched = run_cycles(pipeline, policies[1:], [cycle], here, 5)
    assert batched.reward == pytest.approx([alone["reward"]])
    assert batched.dropped.tolist() == [alone["dropped"]]


def test_validation_cycles_are_whole_and_apart_in_the_validation_split():
    raw_index = np.concatenate([np.arange(52_000), np.arange(52_100, DAY + 100)])
    trace = make_trace(np.ones(DAY), raw_index)
    split = trace.split("validation")
    cycles = validation_cycles(trace, seed=0)
    starts = np.sort([trace.position(cycle.start) for cycle in cycles])
    assert len(starts) == 5 and np.diff(starts).min() >= CYCLE_SECONDS
    assert starts[0] - 120 >= split.start and starts[-1] + CYCLE_SECONDS <= split.stop
    assert not any(start - 120 <= 52_000 < start + CYCLE_SECONDS for start in starts)
    assert validation_cycles(trace, seed=0) == cycles != validation_cycles(trace, seed=1)


def test_a_short_recording_has_the_same_rounds_with_fewer_cycles():
    assert fitting_rounds(ROUNDS, 128) == fitting_rounds(ROUNDS, 1000) == list(ROUNDS)
    assert fitting_rounds(ROUNDS, 48) == [Round(64, 3), Round(16, 9), Round(4, 36)]
    assert fitting_rounds(ROUNDS, 16) == [Round(64, 1), Round(16, 3), Round(4, 12)]
    with pytest.raises(ValueError, match="has 15 whole cycles of 1200 s, too few for 3 rounds .*longer recording"):
        fitting_rounds(ROUNDS, 15)


def test_the_budget_is_that_of_an_agent():
    """Every round runs its candidates on further cycles only, 1,280 in all."""
    assert sum(each.candidates * each.cycles for each in ROUNDS) == 1280


def test_the_search_keeps_what_was_best_and_runs_nothing_twice():
    pipeline, search = ocr_pipeline(), Search(setting(), SMALL)
    table = search.tune("ladder", [pipeline])
    drawn = draw_candidates("ladder", 4, search.seed)
    first, *others = validation_cycles(search.setting.trace, search.seed)[:3]
    values = {each: result.value for (_, each, cycle), result in search._done.items() if cycle == first}
    kept = set(sorted(drawn, key=lambda each: values[each])[2:])
    assert set(values) == set(drawn) and set(table["thresholds"]) == kept
    assert {each for _, each, cycle in search._done if cycle in others} == kept
    assert table["value"].is_monotonic_decreasing and set(table["cycles"]) == {3}
    best = [result for (_, each, _), result in search._done.items() if each == table["thresholds"][0]]
    mean = np.mean([each.reward - DROP_PENALTY * each.dropped / 120 for each in best])
    assert table["value"][0] == pytest.approx(mean)
    runs = len(search._done)
    assert runs == 4 * 1 + 2 * 2
    pd.testing.assert_frame_equal(search.tune("ladder", [pipeline]), table)
    assert len(search._done) == runs


def test_the_table_holds_the_best_of_every_pipeline_and_of_all(tmp_path):
    pipelines = [ocr_pipeline(), ocr_pipeline(capacity=12)]
    object.__setattr__(pipelines[1], "name", "roomy")
    found = tune_all(Search(setting(), (Round(2, 1),)), pipelines)
    write_thresholds(found, tmp_path / "thresholds.csv")
    table = read_thresholds(tmp_path / "thresholds.csv")
    assert set(table) == {(name, policy) for name in ("ocr", "roomy", EVERY_PIPELINE) for policy in KINDS}
    rows = found[(found["pipeline"] == "roomy") & (found["policy"] == "ladder")]
    assert LadderThresholds(**table["roomy", "ladder"]) == rows["thresholds"].iloc[0]
    write_candidates(found, tmp_path / "candidates.csv")
    assert len(pd.read_csv(tmp_path / "candidates.csv")) == len(found) == 2 * 9


def test_a_trace_that_is_not_there_is_one_error(tmp_path, capsys):
    with pytest.raises(typer.Exit) as ended:
        main(["ocr"], trace=str(tmp_path / "none.csv"), output=tmp_path / "thresholds.csv")
    assert ended.value.exit_code == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "thresholds.csv").exists()
