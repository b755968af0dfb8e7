"""Evaluation: cycles through the control loop, and the rows made of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pipeline_folders import write_pipeline
from small_agents import agent_for
from small_pipelines import ocr_pipeline
from small_study import CYCLE, setting_on, waves
from user_projects import user_project

from opd.control import READY_POLICIES
from opd.profiling.pipelines import common_objective, load_pipeline
from opd.solvers import greedy
from opd.study.evaluation.cycles import (
    COLUMNS,
    SCORES,
    EvaluationCell,
    cycle_summary,
    describe_run,
    evaluate,
    run_cycle,
    timeline,
)
from opd.workload.trace import cycle_from_start, load_trace
from opd.workload.trace_limits import MIN_SECONDS


def cycle_of(policy, seed, setting):
    pipeline = ocr_pipeline()
    return run_cycle(pipeline, setting.policy(policy, pipeline, seed), CYCLE, seed, setting)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    path = tmp_path_factory.mktemp("agents") / "agent.npz"
    agent_for(ocr_pipeline()).save(path)
    return setting_on(waves(), {("ocr", "agent-single", 3): path})


def test_a_cycle_is_every_interval_of_its_1200_seconds(setting):
    steps = cycle_of("greedy", 0, setting)
    counts = setting.trace.counts[20_000:21_200]
    assert [step.interval.offered[0] for step in steps] == counts.reshape(120, 10).sum(axis=1).tolist()
    for number, step in enumerate(steps):
        now = 20_000 + 10 * number
        assert step.predicted_load == setting.trace.counts[now - 20 : now].max()
        assert step.configuration == greedy(ocr_pipeline(), step.predicted_load)
        assert step.refused == ""


@pytest.mark.parametrize("policy", [*READY_POLICIES, "agent-single"])
def test_every_policy_meets_the_same_load_and_keeps_the_limits(setting, policy):
    steps = cycle_of(policy, 3, setting)
    assert len(steps) == 120
    assert all(step.refused == "" for step in steps)
    assert sum(step.interval.offered[0] for step in steps) == setting.trace.counts[20_000:21_200].sum()
    assert max(step.score.cost[0] for step in steps) <= ocr_pipeline().capacity


def test_a_device_that_is_slower_than_its_profiles_surprises_the_policy(setting):
    pipeline = ocr_pipeline()
    slower = [
        tuple(replace(variant, latency={b: 1.5 * t for b, t in variant.latency.items()}) for variant in task.variants)
        for task in pipeline.tasks
    ]
    tasks = tuple(replace(task, variants=each) for task, each in zip(pipeline.tasks, slower, strict=True))
    slow = replace(pipeline, tasks=tasks)
    believed = cycle_of("greedy", 0, setting)
    found = run_cycle(pipeline, setting.policy("greedy", pipeline, 0), CYCLE, 0, setting, device=lambda seconds: slow)
    assert [step.configuration for step in found] == [step.configuration for step in believed]
    ready = [np.mean([step.interval.ready_throughput for step in steps], axis=(0, 1)) for steps in (believed, found)]
    np.testing.assert_allclose(ready[0] / ready[1], 1.5)
    assert cycle_summary(found)["latency_mean"] > cycle_summary(believed)["latency_mean"]


def test_a_row_by_hand(setting):
    steps = cycle_of("greedy", 0, setting)
    row = cycle_summary(steps)
    completed = np.array([step.interval.completed[0] for step in steps])
    means = np.array([step.interval.latency_mean[0] for step in steps])
    assert row["latency_mean"] == pytest.approx((completed * means).sum() / completed.sum())
    assert means.mean() < row["latency_p99"] <= max(step.interval.latency_p99[0] for step in steps)
    assert row["reward"] == pytest.approx(sum(step.score.reward[0] for step in steps) / 120)
    assert row["cost"] == pytest.approx(sum(step.score.cost[0] for step in steps) / 120)
    assert row["dropped"] == sum(step.interval.dropped[0] for step in steps)
    assert row["decision_ms_mean"] == pytest.approx(1e3 * sum(step.decision_seconds for step in steps) / 120)


def test_a_timeline_has_a_row_an_interval(setting):
    steps = cycle_of("myopic", 0, setting)
    table = timeline(steps)
    assert table["time"].tolist() == [10.0 * number for number in range(120)]
    assert (10 * table["load"]).round().tolist() == [step.interval.offered[0] for step in steps]
    np.testing.assert_allclose(table["excess_load"], table["load"] - table["throughput"], atol=1e-9)


def test_the_table_is_the_same_for_any_number_of_workers(setting):
    cells = [EvaluationCell(ocr_pipeline(), policy, CYCLE, seed) for policy in ("random", "myopic") for seed in (0, 1)]
    (one, one_steps), (two, two_steps) = (evaluate(cells, setting, workers) for workers in (1, 2))
    assert list(one.columns) == list(COLUMNS)
    assert one[["policy", "seed"]].to_numpy().tolist() == [["random", 0], ["random", 1], ["myopic", 0], ["myopic", 1]]
    assert one.drop(columns="decision_ms_mean").equals(two.drop(columns="decision_ms_mean"))
    assert one_steps.drop(columns="decision_ms").equals(two_steps.drop(columns="decision_ms"))
    assert len(one_steps) == 4 * 120
    assert one["reward"].nunique() == 4
    assert one["bound"].nunique() == 1
    assert (one["reward"] < one["bound"]).all()


def test_a_service_level_has_no_bound(setting):
    level = replace(setting, objective=ocr_pipeline().service_level)
    rows, _ = evaluate([EvaluationCell(ocr_pipeline(), "greedy", CYCLE, 0)], level)
    assert rows["bound"].isna().all()


def test_a_policy_of_a_user_is_evaluated_under_the_name_of_its_class(setting, tmp_path, monkeypatch):
    with user_project(tmp_path, monkeypatch):
        names = [f"policies_of_the_project:{name}" for name in ("Nothing", "Confused")]
        cells = [EvaluationCell(ocr_pipeline(), name, CYCLE, 0) for name in (*names, "myopic-backlog")]
        rows, steps = evaluate(cells, setting)
    rows = rows.set_index("policy")
    assert list(rows.index) == ["Nothing", "Confused", "myopic-backlog"]
    assert rows[["refused", "by_expert"]].to_numpy().tolist() == [[0, 0], [120, 120], [0, 0]]
    assert rows.loc["Nothing", "cost"] == 2.0
    assert rows.loc["Confused", list(SCORES)].equals(rows.loc["myopic-backlog", list(SCORES)])
    assert set(steps["policy"]) == set(rows.index)


def test_two_policies_of_one_name_are_refused(setting):
    cells = [EvaluationCell(ocr_pipeline(), name, CYCLE, 0) for name in ("one:Mine", "another:Mine")]
    with pytest.raises(ValueError, match="2 policies are called 'Mine' in the tables; rename the class of one"):
        evaluate(cells, setting)


@pytest.mark.parametrize(("policy", "seed"), [("oracle", 3), ("agent-single", 4)])
def test_an_unknown_policy_is_answered_with_those_there_are(setting, policy, seed):
    with pytest.raises(
        ValueError, match=rf"no policy '{policy}' for pipeline 'ocr' and seed {seed}.*myopic.*agent, agent-single"
    ):
        setting.policy(policy, ocr_pipeline(), seed)


def test_outside_the_simulator_nothing_knows_the_coming_load(setting):
    assert setting.policy("foresight", ocr_pipeline(), 0)
    with pytest.raises(ValueError, match="outside the simulator nothing knows the coming load"):
        setting.policy("foresight", ocr_pipeline(), 0, simulated=False)


def test_the_description_of_a_run_names_assumed_variants():
    first, second = (pipeline := ocr_pipeline()).tasks
    typed = replace(first, variants=(replace(first.variants[0], assumed=True), *first.variants[1:]))
    about = describe_run(setting_on(waves(), {}), [pipeline], [CYCLE], ["ipa"])
    assert about["pipelines"][pipeline.name]["assumed"] == []
    about = describe_run(setting_on(waves(), {}), [replace(pipeline, tasks=(typed, second))], [CYCLE], ["ipa"])
    assert about["pipelines"][pipeline.name]["assumed"] == [f"{first.name}/{first.variants[0].name}"]


def test_any_pipeline_file_runs_on_any_trace_from_any_second_with_its_own_objective(tmp_path):
    file = write_pipeline(tmp_path / "shop") / "pipeline.yaml"
    counts = np.random.default_rng(0).poisson(40, MIN_SECONDS)
    pd.DataFrame({"count": counts}).to_csv(tmp_path / "load.csv", index=False)
    trace = load_trace(tmp_path / "load.csv", damping=8)
    pipeline, objective = load_pipeline(file), common_objective([file])
    assert objective == pipeline.service_level
    cycles = [cycle_from_start(trace, start) for start in (15_000, 17_003)]
    cells = [EvaluationCell(pipeline, "myopic", cycle, 0) for cycle in cycles]
    rows, steps = evaluate(cells, replace(setting_on(trace, {}), objective=objective))
    assert rows["cycle"].tolist() == ["from-15000", "from-17003"]
    assert (rows["within"] > 0.95).all()
    offered = steps[steps["cycle"] == "from-17003"]["load"].sum() * 10
    assert offered == pytest.approx((counts[17_003:18_203] // 8).sum())
