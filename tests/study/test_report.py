"""Tables, criteria and the page of the report; the results they are made of are written by hand here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_pipelines import varying_workload

from opd.agent.single.problem import Problem, TrainingParameters
from opd.measurement import SimulationParameters
from opd.objective import Weights
from opd.pipeline import Pipeline, ServiceLevel, Task, Variant
from opd.study.evaluation.cycles import COLUMNS, LOADS, shown_cycles
from opd.study.evaluation.training import training_summary, validation_references
from opd.study.report.files import markdown_table, write_json
from opd.study.report.page import (
    criteria,
    cycles_with_more_drops,
    decision_table,
    flat_metrics,
    forecast_table,
    write_report,
)
from opd.study.report.results import (
    ReportError,
    drops_table,
    paper_comparison,
    policy_summary,
    read_results,
    readable_summary,
)


def evaluation(**policies: dict[str, list[float]]) -> pd.DataFrame:
    """One pipeline, one seed; for each policy the figures of each of the paper's cycles, 1 where none are given."""
    rows = [
        dict.fromkeys(COLUMNS, 1.0)
        | {"pipeline": "ocr", "cycle": cycle, "policy": policy.replace("_", "-"), "seed": 0, "dropped": 0, "refused": 0}
        | {name: values[number] for name, values in figures.items()}
        for policy, figures in policies.items()
        for number, cycle in enumerate(LOADS)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


GOOD = evaluation(
    greedy={"reward": [7.0, 8.0, 9.0], "qos": [10.0, 10.0, 10.0], "cost": [2.0, 4.0, 8.0]},
    ipa={"reward": [8.0, 9.0, 10.0], "qos": [12.0, 12.0, 12.0], "cost": [4.0, 8.0, 8.0], "dropped": [0, 6, 3]},
    myopic={"reward": [9.0, 9.0, 9.0]},
    agent={"reward": [9.0, 8.0, 10.0], "qos": [15.0, 11.0, 10.0], "cost": [3.0, 8.0, 8.0], "dropped": [0, 6, 0]},
    agent_frugal={"qos": [12.0, 12.0, 12.0], "cost": [3.0, 6.0, 8.0]},
)

TIMES = pd.DataFrame(
    [
        (2, 5, "agent", 0.5, 1.0, 60.0),
        (2, 5, "ipa-highs", 2.0, 3.0, 240.0),
        (10, 10, "agent", 1.0, 1.5, 120.0),
        (10, 10, "ipa-highs", 10.0, 12.0, 1200.0),
    ],
    columns=["stages", "variants", "policy", "median_ms", "p99_ms", "total_ms"],
)

FORECAST = {
    "damping_8": {
        "trace": "synthetic",
        "synthetic": True,
        "damping": 8,
        "seed": 0,
        "smape": {"lstm": 6.5, "max_20": 9.0},
        "under_prediction_rate": {"lstm": 0.25, "max_20": 0.5},
        "latency_ms_median": 0.125,
    }
}

ABOUT = {
    "trace": "synthetic trace (generated), damping 8",
    "cycles": dict(zip(LOADS, (100, 200, 300), strict=True)),
    "policies": ["greedy", "ipa", "myopic", "agent", "agent-frugal"],
    "pipelines": {"ocr": {"stages": 2, "variants": [2, 3], "capacity": 8}},
    "weights": {"alpha": 10.0, "cost_weight": 0.15},
    "simulation": {"interval": 10},
    "ipa": {},
    "hardware": {"processor": "a processor", "cores": 2, "python": "3.12", "torch": "2.13"},
}

TRAINING = {
    "seconds": 61.0,
    "runs": [{"policy": "agent", "seed": 0, "update": 8, "reward": 9.5, "dropped": 3.0, "selection": 9.25}],
    "references": {"agent": {"myopic": {"reward": 9.0, "dropped": 5.0}, "ipa": {"reward": 8.0, "dropped": 4.0}}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of results as the stages leave it."""
    GOOD.to_csv(tmp_path / "evaluation.csv", index=False)
    TIMES.to_csv(tmp_path / "decision_time.csv", index=False)
    write_json(tmp_path / "evaluation.json", ABOUT)
    write_json(tmp_path / "forecast.json", FORECAST)
    write_json(tmp_path / "training" / "ocr" / "summary.json", TRAINING)
    return tmp_path


def test_summary_has_mean_and_worst_cycle():
    row = policy_summary(GOOD).set_index("policy").loc["agent"]
    assert row[["reward", "qos", "cost", "dropped"]].tolist() == [9.0, 12.0, 19.0 / 3.0, 2.0]
    assert row[["reward_worst", "qos_worst", "dropped_worst", "cycle_worst"]].tolist() == [8.0, 10.0, 6, "fluctuating"]


def test_summary_shows_refused_decisions_if_there_are_any():
    assert "refused" not in policy_summary(GOOD)
    summary = policy_summary(GOOD.assign(refused=[120 * (policy == "ipa") for policy in GOOD["policy"]]))
    assert summary.set_index("policy")["refused"].to_dict() == {
        policy: 120.0 * (policy == "ipa") for policy in GOOD["policy"]
    }


def test_a_user_reads_the_mean_accuracy_and_qos_only_where_weights_define_it():
    rows = GOOD.assign(accuracy=1.5)
    found, plain = readable_summary(rows, ABOUT), policy_summary(rows)
    assert found["mean_accuracy"].tolist() == [0.75] * 5 and "accuracy" not in found  # of two stages
    pd.testing.assert_frame_equal(found.drop(columns="mean_accuracy"), plain.drop(columns="accuracy"))
    level = {key: value for key, value in ABOUT.items() if key != "weights"} | {"service_level": {"seconds": 0.5}}
    assert set(found) - set(readable_summary(rows, level)) == {"qos", "qos_worst"}


def test_criteria_are_met_at_equality():
    assert [(c.policy, c.quantity, c.reference, c.value, c.bound) for c in criteria(GOOD)] == [
        ("agent", "reward", "myopic", 9.0, 9.0),
        ("agent", "qos", "ipa", 12.0, 12.0),
        ("agent", "cycles with more drops", "ipa", 0.0, 0.0),
        ("agent-frugal", "qos", "ipa", 12.0, 12.0),
        ("agent-frugal", "cost", "ipa", 17.0 / 3.0, 20.0 / 3.0),
    ]
    assert all(c.met for c in criteria(GOOD))


def test_criteria_fall_short():
    poor = evaluation(
        ipa={"qos": [12.0] * 3, "cost": [4.0] * 3, "dropped": [0, 100, 3]},
        myopic={"reward": [9.0] * 3},
        agent={"reward": [8.9] * 3, "qos": [11.9] * 3, "dropped": [1, 0, 4]},
        agent_frugal={"qos": [12.5] * 3, "cost": [4.1] * 3},
    )
    assert {c.quantity: c.met for c in criteria(poor) if c.policy == "agent-frugal"} == {"qos": True, "cost": False}
    assert [c.met for c in criteria(poor) if c.policy == "agent"] == [False] * 3
    # Fewer drops in one cycle make up for more in none of the others.
    assert cycles_with_more_drops(poor, "agent", "ipa").to_numpy().tolist() == [
        ["steady-high", 0, 4, 3],
        ["steady-low", 0, 1, 0],
    ]


def test_criteria_leave_out_what_was_not_run():
    assert criteria(GOOD[GOOD["policy"].isin(["agent", "greedy"])]) == []
    assert [c.quantity for c in criteria(GOOD[GOOD["policy"].isin(["agent", "myopic"])])] == ["reward"]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=3, max_size=3))
def test_drops_are_compared_cycle_by_cycle(dropped: list[tuple[int, int]]):
    ours, theirs = zip(*dropped, strict=True)
    rows = evaluation(ipa={"dropped": list(theirs)}, agent={"dropped": list(ours)})
    (demand,) = (c for c in criteria(rows) if c.quantity == "cycles with more drops")
    assert demand.value == sum(a > b for a, b in dropped)
    assert demand.met == all(a <= b for a, b in dropped)


def test_comparison_with_the_paper():
    table = paper_comparison(GOOD, "agent").set_index(["cycle", "against", "quantity"])
    assert len(table) == 12
    assert table.loc[("steady-low", "greedy", "cost")].tolist() == [120.0, 50.0, 50.0]  # paper, mean, ocr
    assert table.loc[("steady-low", "greedy", "qos")].tolist() == [36.0, 50.0, 50.0]
    assert table.loc[("steady-low", "ipa", "cost")].tolist() == [-16.0, -25.0, -25.0]
    assert table.loc[("fluctuating", "ipa", "qos"), "paper"] == -3.0
    assert table.loc[("steady-high", "greedy", "cost"), "mean"] == 0.0
    assert paper_comparison(GOOD[GOOD["policy"] != "agent"], "agent").empty


def test_comparison_averages_over_pipelines():
    other = GOOD.assign(pipeline="other", cost=GOOD["cost"] * np.where(GOOD["policy"] == "agent", 2.0, 1.0))
    table = paper_comparison(pd.concat([GOOD, other]), "agent").set_index(["cycle", "against", "quantity"])
    row = table.loc[("steady-low", "greedy", "cost")]
    assert row[["ocr", "other", "mean"]].tolist() == [50.0, 200.0, 125.0]


def test_shown_cycles():
    assert shown_cycles(GOOD.iloc[::-1]) == list(LOADS)
    assert shown_cycles(pd.DataFrame({"cycle": ["from-9", "from-9", "from-1", "from-2", "from-3"]})) == [
        "from-9",
        "from-1",
        "from-2",
    ]


def test_drops_table():
    table = drops_table(GOOD)
    assert table.loc["ocr", ("mean of a cycle", "ipa")] == 3.0
    assert table.loc["ocr", ("worst cycle", "ipa")] == 6


def test_decision_table_has_ratios_to_the_agent():
    table = decision_table(TIMES).set_index("size")
    assert table["ipa-highs.ratio"].to_dict() == {"2×5": 4.0, "10×10": 10.0}
    assert table.loc["10×10", "agent.total_ms"] == 120.0
    assert "agent.ratio" not in table


def test_forecast_table_in_percent():
    table = forecast_table(FORECAST).set_index("model")
    assert table.loc["lstm"].tolist() == [6.5, 25.0]


def test_markdown_table():
    frame = pd.DataFrame({"name": ["a", "b", "c"], "share": [0.125, 2.0, -0.001], "count": [3, 40, 0]})
    assert markdown_table(frame).splitlines() == [
        "| name | share | count |",
        "| --- | ---: | ---: |",
        "| a | 0.12 | 3 |",
        "| b | 2.00 | 40 |",
        "| c | 0.00 | 0 |",
    ]


def test_report_says_what_was_found(folder: Path):
    page = write_report(folder)
    assert (folder / "report.md").read_text(encoding="utf-8") == page
    assert "Workload: **synthetic trace (generated), damping 8**" in page
    assert "5 of 5 criteria are met" in page and "not met" not in page
    assert "| agent | 9.00 | 12.00 | 6.33 | 2.00 | 8.00 | 10.00 | 6 | fluctuating |" in page
    assert "| steady-low | greedy | cost | 120.0 | 50.0 | 50.0 |" in page
    assert "| lstm | 6.50 | 25.00 |" in page
    assert "| 10×10 | 1.000 | 1.500 | 120.000 | 10.000 | 12.000 | 1200.000 | 10.000 |" in page
    assert "| ocr | agent | 0 | 8 | 9.50 | 9.00 | 8.00 | 3 | 4 |" in page
    summary = pd.read_csv(folder / "summary.csv")
    assert set(summary["policy"]) == set(GOOD["policy"])


def test_report_says_plainly_what_falls_short(folder: Path):
    worse = GOOD.copy()
    worse.loc[worse["policy"] == "agent", "dropped"] = [0, 7, 0]
    worse.loc[worse["policy"] == "agent-frugal", "cost"] += 2.0
    worse.to_csv(folder / "evaluation.csv", index=False)
    page = write_report(folder)
    assert "3 of 5 criteria are met" in page
    assert "- **ocr**: agent drops more requests than IPA in fluctuating seed 0 (7 compared with 6)." in page
    assert "agent-frugal misses cost ≤ IPA's by 1.000 (7.667 instead of 6.667, 15.0 %)" in page


def test_report_without_agents_of_that_kind(folder: Path):
    GOOD[GOOD["policy"] != "agent-frugal"].to_csv(folder / "evaluation.csv", index=False)
    assert "Not run, or without a baseline for comparison: agent-frugal." in write_report(folder)
    GOOD[GOOD["policy"] == "ipa"].to_csv(folder / "evaluation.csv", index=False)
    page = write_report(folder)
    assert "None of these policies was run" in page and "None of the paper's three loads" in page


def test_metrics_are_flat_numbers(folder: Path):
    write_report(folder)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics == flat_metrics(read_results(folder))
    assert all(isinstance(value, int | float) for value in metrics.values())
    assert metrics["ocr.agent.qos_minus_ipa"] == 0.0
    assert metrics["ocr.agent-frugal.cost_minus_ipa"] == pytest.approx(-1.0)
    assert metrics["decision_ms.10x10.agent"] == 1.0
    assert metrics["forecast.damping_8.smape"] == 6.5
    assert (metrics["criteria.met"], metrics["criteria.all"]) == (5, 5)


@pytest.mark.parametrize(
    ("name", "notebook"),
    [
        ("forecast.json", "02_load_forecast"),
        ("evaluation.csv", "04_evaluation"),
        ("evaluation.json", "04_evaluation"),
        ("decision_time.csv", "04_evaluation"),
    ],
)
def test_missing_result_names_the_notebook_that_writes_it(folder: Path, name: str, notebook: str):
    (folder / name).unlink()
    with pytest.raises(ReportError, match=f"no {name} in .*; notebook {notebook} writes it"):
        read_results(folder)


def test_results_of_another_shape_are_refused(folder: Path):
    GOOD.drop(columns="qos").to_csv(folder / "evaluation.csv", index=False)
    with pytest.raises(ReportError, match="lacks the columns qos; run notebook 04_evaluation again"):
        read_results(folder)


def test_training_summary_names_the_checkpoint_that_was_kept():
    curve = pd.DataFrame({"update": [1, 2, 3, 4, 5, 6], "train/loss": 1.0})
    curve.loc[1::2, "validation/reward"] = [1.0, 3.0, 2.0]
    curve["validation/dropped"] = 2.0
    curve["validation/selection"] = curve["validation/reward"] - 0.1
    twice = pd.concat([curve.assign(policy="agent", seed=seed) for seed in (0, 1)])
    kept = {"update": 4, "reward": 3.0, "dropped": 2.0, "selection": 2.9}
    assert training_summary(twice) == [{"policy": "agent", "seed": seed} | kept for seed in (0, 1)]


def test_references_agree_where_there_is_nothing_to_choose():
    task = Task("only", (Variant("one", 0.75, 1, {1: 0.1}, 1.0),))
    pipeline = Pipeline("fixed", (task,), capacity=1, max_replicas=1, max_batch_size=1, service_level=ServiceLevel(1.0))
    workload, bursts = varying_workload(), np.array([50, 100])
    only = np.tile([0, 1, 1], (20, 1, 1))
    problem = Problem(
        pipeline, Weights(), SimulationParameters(), workload, workload, bursts, bursts, expert=only, reference=only
    )
    parameters = TrainingParameters(validation_episodes=4, validation_decisions=20)
    references = validation_references(problem, parameters)
    assert references["myopic"] == references["ipa"]
    # Load of 8 requests/s on average, at most 10 served: accuracy counts 7.5, throughput 0.2, cost and batch 0.17.
    assert references["ipa"].reward < 7.5 + 0.2 - 0.17
