"""Worlds that are not the one of the training: what they change, and every policy in each of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from small_pipelines import ocr_pipeline
from small_study import setting_on, waves

from opd.control import AGENT
from opd.measurement import Observation
from opd.study.analysis.devices import (
    DEVICES,
)
from opd.study.analysis.robustness import (
    AS_TRAINED,
    COLUMNS,
    FAILURES,
    FORECASTER_FAILS,
    OTHER_TRACE,
    OVERLOAD,
    POLICIES,
    PROFILES_CALIBRATED,
    PROFILES_KNOWN,
    PROFILES_WRONG,
    BrokenForecaster,
    all_conditions,
    evaluate_robustness,
    failing_forecaster,
    overload,
    scaled_trace,
)
from opd.study.analysis.robustness_findings import (
    KEYS,
    calibration_losses,
    condition_paragraph,
    plot_robustness,
    robustness_findings,
    robustness_overview,
    seeds_by_cycles_mean,
    summarise_robustness,
)
from opd.study.evaluation.cycles import cycle_summary, run_cycle
from opd.workload.forecast import RecentMaximum
from opd.workload.trace import Cycle, cycle_counts

OBSERVATION = Observation(
    np.full(120, 4), 8.0, ocr_pipeline().smallest_configuration(), np.ones(2), np.ones(2), np.zeros(2), 4.0
)
SLOWER = "20 % slower"
CYCLE, LATER = Cycle("waves", 16_000), Cycle("later", 20_000)


class LastCount(RecentMaximum):
    """Another forecaster, so that it can be told which one was asked."""

    def predict(self, history):
        return float(history[-1])


@pytest.fixture(scope="module")
def settings():
    """Two traces, each with a forecaster of its own."""
    home = setting_on(waves("home", 8.0, damping=8), {}, RecentMaximum())
    return home, setting_on(waves("other", 6.0, damping=8), {}, LastCount())


# --- load ------------------------------------------------------------------------------------------------------------


def test_a_scaled_trace_is_whole_requests_and_begins_with_the_history(settings):
    trace = settings[0].trace
    more = scaled_trace(trace, LATER, 1.5)
    first, start = (part.position(LATER.start) for part in (more, trace))
    expected = np.rint(1.5 * trace.counts[start - 120 : start + 1200])
    np.testing.assert_array_equal(more.counts[first - 120 : first + 1200], expected)
    assert more.counts.dtype == np.int64


@pytest.mark.parametrize("start", [0, 60, 16_000, 20_400])
def test_any_cycle_can_be_scaled(settings, start):
    trace = settings[0].trace
    cycle = Cycle("any", start)
    np.testing.assert_array_equal(cycle_counts(scaled_trace(trace, cycle, 2.0), cycle), 2 * cycle_counts(trace, cycle))


@pytest.mark.parametrize("cycle", [CYCLE, LATER])
def test_an_overload_peaks_a_quarter_above_the_training_split(settings, cycle):
    trace = settings[0].trace
    met = overload(settings[0], ocr_pipeline(), cycle, 0)
    peak = trace.counts[trace.split("train")].max()
    assert cycle_counts(met.setting.trace, cycle).max() == np.rint(1.25 * peak)
    assert met.factor == 1.25 * peak / cycle_counts(trace, cycle).max()
    assert met.factors is None


def test_a_cycle_without_a_request_stays_one(settings):
    trace = settings[0].trace
    silent = replace(trace, recorded=np.where(trace.raw_index < 15_000, trace.recorded, 0))
    met = overload(replace(settings[0], trace=silent), ocr_pipeline(), CYCLE, 0)
    assert cycle_counts(met.setting.trace, CYCLE).max() == 0


# --- forecast --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        ("says 0", [5.0, 0.0, 0.0]),
        ("says NaN", [5.0, np.nan, np.nan]),
        ("stuck", [5.0, 5.0, 5.0]),
        ("says twice", [5.0, 14.0, 4.0]),
        ("says half", [5.0, 3.5, 1.0]),
    ],
)
def test_what_a_broken_forecaster_says(failure, expected):
    broken = BrokenForecaster(LastCount(), failure)  # type: ignore[arg-type]
    np.testing.assert_array_equal([broken.predict(np.array([1, last])) for last in (5, 7, 2)], expected)


def test_a_forecaster_is_stuck_for_a_cycle_and_fresh_in_the_next(settings):
    pipeline, home = ocr_pipeline(), settings[0]
    for cycle in (CYCLE, LATER):
        met = failing_forecaster("stuck", home, pipeline, cycle, 0)
        policy = home.policy("greedy", pipeline, 0)
        steps = run_cycle(pipeline, policy, cycle, 0, met.setting)
        first = home.trace.counts[cycle.start - 20 : cycle.start].max()
        assert {step.predicted_load for step in steps} == {first}


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(settings, tmp_path_factory):
    """Every world, with one cycle and one seed; one device for policies that learn or know it."""
    home, other = settings
    conditions = all_conditions(home, [CYCLE], other, [LATER])
    kept = SLOWER, "as profiled"
    short = [one for one in conditions if one.name in (PROFILES_CALIBRATED, PROFILES_KNOWN) and one.variant not in kept]
    some, kept = [one for one in conditions if one not in short], tmp_path_factory.mktemp("kept") / "rows.csv"
    return evaluate_robustness(some, [ocr_pipeline()], [1], kept)


def of(rows, world, variant):
    """The figures of one world by policy."""
    part = rows[(rows["world"] == world) & (rows["variant"] == variant)]
    return part.set_index("policy")[["reward", "qos", "cost", "dropped"]]


def test_there_is_a_row_for_every_policy_in_every_world(rows):
    assert list(rows.columns) == COLUMNS
    counted = rows.groupby(["world", "variant"], sort=False).size()
    assert set(counted) == {len(POLICIES)}
    assert counted.groupby("world", sort=False).size().to_dict() == {
        AS_TRAINED: 2, OTHER_TRACE: 2, OVERLOAD: 1, FORECASTER_FAILS: len(FAILURES),
        PROFILES_WRONG: len(DEVICES), PROFILES_CALIBRATED: 2, PROFILES_KNOWN: 1,
    }  # fmt: skip
    assert np.isfinite(rows[["reward", "qos", "cost", "dropped"]]).all(axis=None)
    assert (rows["refused"] == 0).all()


def test_as_trained_is_what_the_evaluation_has(settings, rows):
    found = of(rows, AS_TRAINED, "home")
    for name in POLICIES:  # IPA by HiGHS here, by dynamic programming there
        policy = settings[0].policy(name, ocr_pipeline(), 1)
        expected = cycle_summary(run_cycle(ocr_pipeline(), policy, CYCLE, 1, settings[0]))
        assert found.loc[name].to_dict() == pytest.approx({key: expected[key] for key in found.columns})


def test_on_another_trace_the_forecaster_is_that_of_its_training(settings, rows):
    home, other = settings
    for variant, brought, there, cycle in (
        ("from other to home", other, home, CYCLE),
        ("from home to other", home, other, LATER),
    ):
        setting = replace(brought, trace=there.trace)
        found = of(rows, OTHER_TRACE, variant)
        for name in (AGENT, "ipa"):
            steps = run_cycle(ocr_pipeline(), setting.policy(name, ocr_pipeline(), 1), cycle, 1, setting)
            assert found.loc[name, "reward"] == pytest.approx(cycle_summary(steps)["reward"])


def test_without_a_forecast_the_recent_maximum_is_used(rows):
    # It is the home forecaster, so that nothing changes but for the count.
    fallbacks = rows.set_index(["world", "variant"])["fallbacks"]
    pd.testing.assert_frame_equal(of(rows, FORECASTER_FAILS, "says NaN"), of(rows, AS_TRAINED, "home"))
    assert (fallbacks.loc[[(FORECASTER_FAILS, "says NaN")]] == 120).all()
    assert fallbacks.sum() == 120 * len(POLICIES)


def test_a_factor_is_reported_where_there_is_one(rows):
    factors = rows.groupby(["world", "variant"])["factor"].unique()
    assert factors[PROFILES_WRONG, "20 % slower"].tolist() == [1.2]
    assert factors[PROFILES_WRONG, "20 % faster"].tolist() == [0.8]
    assert factors[OVERLOAD].iloc[0].tolist()[0] > 1.0
    assert np.isnan(factors[AS_TRAINED, "home"]).all()


def test_decisions_of_the_fallback_are_counted(settings, tmp_path, rows):
    assert (rows["by_expert"] == 0).all()
    busy = setting_on(waves("busy", 40.0, damping=8), {}, RecentMaximum())
    trained = all_conditions(busy, [CYCLE], settings[1], [LATER])[:1]
    tiny = ocr_pipeline(capacity=2)  # carries 12.5 requests/s, so the planner decides for the agent
    counted = evaluate_robustness(trained, [tiny], [0], tmp_path / "rows.csv").set_index("policy")["by_expert"]
    assert counted[AGENT] == 120 and (counted.drop(AGENT) == 0).all()


def test_the_table_is_the_same_for_any_number_of_workers(settings, tmp_path):
    conditions = all_conditions(settings[0], [CYCLE], settings[1], [LATER])
    calibrated = [one for one in conditions if one.name == PROFILES_CALIBRATED][:1]
    files = {workers: tmp_path / f"{workers}.csv" for workers in (1, 2)}
    tables = [evaluate_robustness(calibrated, [ocr_pipeline()], [0, 1], file, each) for each, file in files.items()]
    pd.testing.assert_frame_equal(*tables)


# --- summary ---------------------------------------------------------------------------------------------------------


def known_rows():
    """Two pipelines, seeds and cycles; in the dark every policy loses, the agent least."""
    rewards = {"agent": 5.0, "myopic-backlog": 4.5, "myopic": 4.0, "ipa": 3.0, "greedy": 2.0}
    losses = {"agent": 1.0, "myopic-backlog": 2.0, "myopic": 3.0, "ipa": 0.0, "greedy": 2.0}
    lines = []
    for world in (AS_TRAINED, "dark"):
        for policy, reward in rewards.items():
            for number, pipeline in enumerate(("one", "two")):
                for seed in (0, 1):
                    for place, cycle in enumerate(("calm", "busy")):
                        figure = reward + 10.0 * number + seed + 100.0 * place - (world == "dark") * losses[policy]
                        lines.append(
                            {"world": world, "variant": "here", "trace": "home", "pipeline": pipeline, "cycle": cycle}
                            | {"policy": policy, "seed": seed, "reward": figure, "qos": 2.0 * figure, "cost": 1.0}
                            | {"dropped": 4 * place, "refused": 0, "fallbacks": 120 * (world == "dark")}
                            | {"by_expert": 6 * place * (policy == "agent")}
                        )
    return pd.DataFrame(lines)


def test_seeds_and_cycles_remain_of_a_mean_over_pipelines():
    rows = known_rows()
    part = rows[(rows["world"] == AS_TRAINED) & (rows["policy"] == "agent")].set_index(KEYS)
    np.testing.assert_array_equal(np.sort(seeds_by_cycles_mean(part["reward"])), [[10.0, 110.0], [11.0, 111.0]])


def test_the_summary_of_known_rows():
    # In any order: what is compared is found by its keys.
    table = summarise_robustness(known_rows().sample(frac=1.0, random_state=0)).set_index(["world", "policy"])
    assert len(table) == 10
    agent, myopic, ipa = (table.loc[("dark", policy)] for policy in ("agent", "myopic", "ipa"))
    assert (agent["reward"], agent["qos"]) == (5.0 - 1.0 + 5.0 + 0.5 + 50.0, 2.0 * 59.5)
    assert agent["reward_low"] < agent["reward"] < agent["reward_high"]
    # Differences are the same in every pair, so that their intervals have no width.
    assert [agent[f"reward_loss{end}"] for end in ("", "_low", "_high")] == [1.0] * 3
    assert [myopic[f"qos_loss{end}"] for end in ("", "_low", "_high")] == [6.0] * 3
    assert [myopic[f"lead{end}"] for end in ("", "_low", "_high")] == [3.0] * 3
    assert ipa["lead"] == 1.0 and np.isnan(agent["lead"])
    assert (agent["dropped"], agent["refused"], agent["fallbacks"], agent["by_expert"]) == (2.0, 0.0, 120.0, 3.0)
    assert table.loc[(AS_TRAINED, "greedy"), "reward_loss"] == 0.0


def test_calibration_regains_what_wrong_profiles_cost(rows):
    table = calibration_losses(rows).set_index(["variant", "policy"])
    assert set(table.index.get_level_values("variant")) == {SLOWER}
    slower = table.loc[SLOWER]
    informed = of(rows, PROFILES_KNOWN, SLOWER)["reward"]
    np.testing.assert_allclose(slower["lost"], (informed - of(rows, PROFILES_WRONG, SLOWER)["reward"])[slower.index])
    assert (slower["lost calibrated"] < slower["lost"] / 3)[["myopic", "greedy"]].all()
    unchanged = of(rows, PROFILES_CALIBRATED, "as profiled") - of(rows, AS_TRAINED, "home")
    assert unchanged["reward"].abs().max() < 0.1


def test_sentences_of_known_rows():
    table = summarise_robustness(known_rows())
    assert robustness_overview(table).splitlines()[:2] == [
        "* **myopic with backlog**: the agent is above in 2 of 2, below in 0.",
        "* **myopic (exact)**: the agent is above in 2 of 2, below in 0.",
    ]
    (text,) = condition_paragraph(table, "dark").splitlines()
    changes = [
        *("agent −1.000 [−1.000, −1.000]", "myopic with backlog −2.000 [−2.000, −2.000]"),
        *("myopic (exact) −3.000 [−3.000, −3.000]", "IPA 0.000 [0.000, 0.000]", "greedy −2.000 [−2.000, −2.000]."),
    ]
    assert f"* **here**. Change of reward: {', '.join(changes)}" in text
    assert "over myopic (exact) +3.000 [+3.000, +3.000]" in text
    assert text.endswith("Decisions of the agent's fallback per cycle: 3.0. Decisions without a forecast: 120.")
    (reference,) = condition_paragraph(table, AS_TRAINED).splitlines()
    assert "Change" not in reference and "without a forecast" not in reference
    assert robustness_findings(table) == {"Overview": robustness_overview(table), "As trained": reference, "Dark": text}


def test_the_interval_of_a_change_is_that_of_the_loss_the_other_way_round():
    table = summarise_robustness(known_rows()).assign(reward_loss=1.0, reward_loss_low=-0.5, reward_loss_high=3.0)
    assert "Change of reward: agent −1.000 [−3.000, +0.500], " in condition_paragraph(table, "dark")


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0.0, "0"), (0.003, "less than 0.1"), (0.161, "0.2"), (4.97, "5.0"), (9.96, "10"), (11_595.4, "11,595")],
)
def test_a_few_dropped_requests_are_not_none(number, expected):
    text = condition_paragraph(summarise_robustness(known_rows()).assign(dropped=number), "dark")
    assert f"Dropped requests per cycle: agent {expected}, myopic with backlog {expected}, " in text


def test_a_world_in_which_the_agent_is_below_is_named():
    rows = known_rows()
    rows.loc[(rows["world"] == "dark") & (rows["policy"] == "agent"), "reward"] -= 50.0
    first = robustness_overview(summarise_robustness(rows)).splitlines()[0]
    assert first.endswith("above in 1 of 2, below in 1: dark, here.")


def test_the_figure_has_a_line_for_every_world(rows):
    figure = plot_robustness(summarise_robustness(rows), "made-up traces")
    leads, drops = figure.axes
    labels = [text.get_text() for text in leads.get_yticklabels()]
    assert labels[:4] == [AS_TRAINED, "home", "other", OTHER_TRACE]
    worlds = len(set(rows["world"]) - {PROFILES_KNOWN})
    conditions = rows.loc[rows["world"] != PROFILES_KNOWN, ["world", "variant"]].drop_duplicates()
    assert len(labels) == worlds + len(conditions)
    shown = ["ladder", "myopic (exact)", "myopic with backlog", "lookahead", "agent"]
    assert drops.get_legend_handles_labels()[1] == shown
    assert leads.get_xlabel().endswith("(linear up to ±0.1, logarithmic beyond)")
    assert drops.get_xlabel() == "requests per cycle, mean\n(linear up to 1, logarithmic beyond)"


def test_marks_of_all_policies_are_apart_from_each_other_and_from_the_next_line(rows):
    figure = plot_robustness(summarise_robustness(rows), "made-up traces")
    figure.canvas.draw()
    drops = figure.axes[1]
    marks = [line for line in drops.lines if line.get_label() in drops.get_legend_handles_labels()[1]]
    heights = [line.get_transform().transform(line.get_xydata())[:, 1] for line in marks]
    gaps = np.diff(np.sort(np.concatenate(heights)))
    points = 72.0 / figure.dpi
    assert len(heights) == 5 and points * gaps.min() >= marks[0].get_markersize()
    # Between the last mark of one line and the first of the next there is more than between two of one line.
    of_lines = np.sort(np.array(heights).T, axis=0)
    between = of_lines[1:].min(axis=1) - of_lines[:-1].max(axis=1)
    assert between.min() > 2.0 * gaps.min()
    looks = {(line.get_color(), line.get_marker()) for line in marks}
    assert len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == 5
