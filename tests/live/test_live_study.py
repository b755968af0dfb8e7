"""The live study: stretches of load, its rows and their comparison, and runs that really take place."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import matplotlib.image
import numpy as np
import pandas as pd
import psutil
import pytest
from live_runs import SMALL, requests, run_of
from small_pipelines import ocr_pipeline
from small_study import WEIGHTS, setting_on, waves

from opd.live import plots
from opd.live.runs import EMULATED, LiveSite, run_policies
from opd.live.study import (
    ALONE,
    BESIDE,
    COLUMNS,
    STUDY,
    LiveCell,
    evaluate_alone_and_beside,
    evaluate_live,
    latency_quantile,
    live_cells,
    live_stretches,
    read_timelines,
    run_figures,
    runs_beside,
    service_factor,
    study_table,
)
from opd.live.study_findings import describe_study, disturbance_found, live_findings, same_order
from opd.live.traffic import Traffic
from opd.measurement import SimulationParameters
from opd.pipeline import Pipeline, ServiceLevel, Task, Variant
from opd.study.plots.evaluation import plot_loads, plot_timelines
from opd.workload.trace import CYCLE_SECONDS, Cycle, Trace

# Stretches


def stepped(rise: int) -> Trace:
    """Three requests a second, and nine from ``rise`` seconds after second 10,000 on, for five minutes."""
    counts = np.full(6 * 3600, 3)
    counts[10_000 + rise : 10_000 + rise + 300] = 9
    return Trace("stepped", counts, np.arange(len(counts)))


@pytest.mark.parametrize("rise", [0, 400, 900])
def test_a_stretch_of_a_cycle_has_its_burst(rise: int):
    trace, cycle = stepped(rise), Cycle("fluctuating", 10_000)
    (found,) = live_stretches(trace, [cycle], 120, 30, 10)
    assert found.name == "fluctuating" and cycle.start <= found.start <= cycle.start + CYCLE_SECONDS - 120
    assert set(trace.counts[found.start : found.start + 120]) == ({3, 9} if rise else {9, 3})


def test_the_longest_stretch_is_the_cycle():
    cycle = Cycle("waves", 10_000)
    assert live_stretches(waves(), [cycle], CYCLE_SECONDS, 30, 10) == [cycle]


@pytest.mark.parametrize("seconds", [0, 125, CYCLE_SECONDS + 10])
def test_an_impossible_length_is_refused(seconds: int):
    with pytest.raises(ValueError, match=f"a stretch of {seconds} s must be a multiple of the interval of 10 s"):
        live_stretches(waves(), [Cycle("waves", 10_000)], seconds, 30, 10)


# Rows


def test_requests_are_completed_failed_or_lost():
    records = requests([0.5, 3.0, 11.0, 12.0, 13.0, 14.0, 15.0], 0.3)
    records["outcome"] = ["completed", "completed", "rejected", "dropped", "failed", "failed", "completed"]
    records["code"] = ["OK", "OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "NO_ANSWER", "INTERNAL", "OK"]
    run = run_of([SMALL, SMALL], records)
    found = run_figures(ocr_pipeline(), run, run_of([SMALL, SMALL]))
    assert [found[name] for name in ("offered", "completed", "failed", "lost")] == [7, 3, 3, 1]
    assert found["cost"] == found["predicted_cost"] == 2.0 and found["reconfigurations"] == 0
    assert found["decision_time"] == pytest.approx(sum(step.decision_seconds for step in run.steps))
    assert found["predicted_dropped"] == 0 and found["latency_p95"] == pytest.approx(0.3)


def test_latency_is_that_of_requests_since_the_first_decision():
    records = requests([1.0, 2.0, 11.0, 12.0], 0.3)
    records["finished"] += [5.0, 5.0, 0.0, 0.0]
    run = run_of([SMALL, SMALL], records)._replace(begin=records.attrs["started"] + 10.0)
    assert latency_quantile(run, 0.95) == pytest.approx(0.3)
    assert np.isnan(latency_quantile(run._replace(begin=2000.0), 0.95))


def test_the_simulator_serves_as_fast_as_the_profile():
    run = run_of([SMALL, SMALL])
    assert service_factor(ocr_pipeline(), run.steps) == pytest.approx(1.0, abs=0.1)
    slow = [replace(step, interval=step.interval._replace(busy=2.0 * step.interval.busy)) for step in run.steps]
    assert service_factor(ocr_pipeline(), slow) == pytest.approx(2.0 * service_factor(ocr_pipeline(), run.steps))
    assert np.isnan(service_factor(ocr_pipeline(), []))


def test_company_is_counted_from_the_times_of_the_runs():
    rows = pd.DataFrame({"began": [0.0, 0.0, 10.0, 50.0], "ended": [20.0, 10.0, 20.0, 60.0]})
    assert runs_beside(rows).tolist() == [1.0, 1.0, 1.0, 0.0]
    assert len(runs_beside(rows[:0])) == 0


def test_another_profile_or_lead_is_another_problem(tmp_path):
    (cell,) = live_cells([ocr_pipeline()], WEIGHTS, [Cycle("waves", 9)], 20, 10, (tmp_path, tmp_path), ["greedy"])
    again = cell._replace(pipeline=ocr_pipeline())
    others = [cell._replace(pipeline=ocr_pipeline(capacity=9)), cell._replace(lead=20), cell._replace(purpose=ALONE)]
    assert cell.key == again.key and len({tuple(each.key.values()) for each in (cell, *others)}) == 4
    assert cell.purpose == STUDY and " " not in cell._replace(purpose=BESIDE).name("a:Mine", 0)


# Findings


def table_of(policies=("greedy", "ipa", "agent"), loads=("steady-low", "fluctuating")) -> pd.DataFrame:
    """Rows with rewards that grow with the place of the policy, predicted in the same order."""
    rows = []
    for load in loads:
        for place, policy in enumerate(policies):
            row = dict.fromkeys(COLUMNS, 0) | {"pipeline": "video", "load": load, "policy": policy}
            row |= {"qos": 10.0 + place, "cost": 4.0, "reward": 9.0 + place, "latency_p95": 0.5}
            row |= {"predicted_qos": 10.0, "predicted_cost": 5.0, "predicted_reward": 9.0 + place}
            row |= {"offered": 100, "completed": 100, "decision_time": 0.2, "seconds": 60, "replicas": "emulated"}
            rows.append(row | {"predicted_latency_p95": 0.4, "predicted_reconfigurations": 1})
    return pd.DataFrame(rows)[COLUMNS]


def repeated_rows() -> pd.DataFrame:
    one = table_of(("lookahead",), ("steady-high",)).assign(began=0.0, ended=1.0)
    parts = [
        one.assign(purpose=purpose, seed=seed, qos=10.0 + seed + difference)
        for purpose, difference in ((ALONE, 0.0), (BESIDE, 0.5))
        for seed in (0, 1)
    ]
    return pd.concat(parts, ignore_index=True)


def test_the_order_of_rewards_is_compared_with_its_prediction():
    table = table_of()
    assert same_order(table) == (6, 6)
    table.loc[0, "predicted_reward"] = 99.0
    assert same_order(table) == (4, 6)


def test_findings_count_compare_and_say_that_replicas_are_emulated():
    found = live_findings(table_of(), repeated_rows())
    assert list(found) == ["Requests", "Policies", "Predicted and measured", "Decision time", "Runs side by side"]
    assert (
        "6 runs with emulated replicas: 600 requests were offered, 600 completed, 0 failed and 0 lost"
        in (found["Requests"])
    )
    assert "agent has the highest reward" in found["Policies"]
    assert "+2.000 QoS, 0.000 cores and +2.000 reward compared with greedy" in found["Policies"]
    assert "cost (cores) 20.0% (at worst 20.0%)" in found["Predicted and measured"]
    assert "| QoS | 10.500 | 11.000 | 0.500 | 0.500 | 0.500 | 0.500 |" in found["Runs side by side"]
    assert "Runs side by side" not in live_findings(table_of(), pd.DataFrame())
    assert "replicas are emulated" in describe_study("a trace", table_of(), 2)


def test_runs_in_which_something_went_wrong_are_listed():
    table = table_of()
    table.loc[1, ["completed", "lost"]] = [99, 1]
    assert "| video | steady-low | ipa | 0 | 1 | 0 | 0 | 0 |" in live_findings(table, pd.DataFrame())["Requests"]


def test_figures_are_drawn(tmp_path):
    table = table_of()
    plots.plot_predicted(table, "emulated", tmp_path / "predicted.png")
    plots.plot_decision_seconds(table, "emulated", tmp_path / "time.png")
    for name in ("predicted", "time"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.0


# Runs that take place


def quick_pipeline() -> Pipeline:
    variants = Variant("small", 0.5, 1, {1: 0.05, 2: 0.08}, 0.2), Variant("large", 0.7, 2, {1: 0.06, 2: 0.1}, 0.2)
    return Pipeline("quick", (Task("first", variants), Task("second", variants)), 12, 3, 2, ServiceLevel(1.0))


def quick_cells(folder, policies=("greedy",)) -> list[LiveCell]:
    places = folder / "timelines", folder / "work"
    return live_cells([quick_pipeline()], WEIGHTS, [Cycle("waves", 20_000)], 4, 3, places, policies)


SETTING = replace(setting_on(waves(), {}), simulation=SimulationParameters(interval=2, batch_timeout=0.05))


def serving_processes():
    """Command lines of servers that this process, or one of its children, still runs."""
    commands = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended
            commands.append(" ".join(child.cmdline()))
    return [command for command in commands if "opd.serving" in command]


@pytest.mark.processes
@pytest.mark.slow
def test_runs_take_place_side_by_side_and_are_kept(tmp_path):
    cells = quick_cells(tmp_path, ("greedy", "lookahead"))
    rows = evaluate_live(SETTING, cells, tmp_path, side_by_side=2)
    table = study_table(rows)
    assert list(table) == COLUMNS and set(table["replicas"]) == {"emulated"}
    assert table["policy"].tolist() == ["greedy", "lookahead"]
    assert (table["lost"] == 0).all() and (table["completed"] == table["offered"]).all()
    assert (table["offered"] > 0).all() and (table["beside"] > 0.0).all()
    figures = table[["qos", "cost", "latency_p95", "predicted_qos", "predicted_latency_p95", "service_factor"]]
    assert np.isfinite(figures.to_numpy(float)).all()
    timelines = read_timelines(cells)
    assert set(timelines["kind"]) == {"measured", "predicted"} and len(timelines) == 2 * 2 * 2
    shown = timelines[timelines["kind"] == "measured"]
    label = "waves, emulated replicas"
    plot_timelines(shown, "quick", label, tmp_path / "time.png", WEIGHTS, ["lookahead"])
    plot_loads(table.rename(columns={"load": "cycle"}), "quick", label, tmp_path / "loads.png", WEIGHTS, ["lookahead"])

    again = evaluate_live(SETTING, cells, tmp_path, side_by_side=2)
    assert again["began"].tolist() == rows["began"].tolist()  # nothing ran again
    assert not serving_processes()
    (tmp_path / "timelines" / f"{cells[0].name('greedy', 0)}.csv").unlink()
    with pytest.raises(FileNotFoundError, match="is missing, although its run is kept; delete rows.csv"):
        read_timelines(cells)


@pytest.mark.processes
@pytest.mark.slow
def test_a_run_is_repeated_alone_and_beside_others(tmp_path):
    (cell,) = quick_cells(tmp_path)
    rows = evaluate_alone_and_beside(SETTING, cell, tmp_path, side_by_side=2)
    assert rows["purpose"].tolist() == [ALONE, ALONE, BESIDE, BESIDE] and rows["seed"].tolist() == [0, 1, 0, 1]
    beside = study_table(rows)["beside"]
    assert (beside[:2] == 0.0).all() and (beside[2:] > 0.0).all()
    assert "2 times with other requests" in disturbance_found(rows)
    assert evaluate_alone_and_beside(SETTING, cell, tmp_path, side_by_side=1).empty


@pytest.mark.processes
@pytest.mark.slow
def test_the_first_decision_comes_when_the_lead_of_the_load_is_over(tmp_path):
    """However long the load generator takes to start, decisions are in step with the load."""
    site, pipeline = LiveSite(EMULATED, tmp_path), quick_pipeline()
    traffic = Traffic(np.full(5, 6), 3, site.samples("quick"), 0)
    initial = pipeline.smallest_configuration()
    policies = {"greedy": SETTING.policy("greedy", pipeline, 0, simulated=False)}
    runs, _ = run_policies(site, pipeline, initial, policies, SETTING, traffic)
    run = runs["greedy"]
    assert len(run.steps) == 1 and run.begin - run.records.attrs["started"] >= traffic.lead
