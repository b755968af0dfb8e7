"""The quality part of the benchmarks: intervals, tables and hypervolumes by hand, and a tiny frontier in full."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_pipelines import ocr_pipeline

from opd.agent import jobs as jobs_module
from opd.agent.jobs import Job, run_job
from opd.agent.parameters import TrainingParameters
from opd.agent.problem import expert_table
from opd.objective import Weights
from opd.simulator.parameters import SimulationParameters
from opd.solvers import IpaParameters
from opd.study.analysis import frontier
from opd.study.analysis.estimates import interval, resampled_means
from opd.study.analysis.frontier import (
    ANY,
    SERVED,
    dominated_points,
    dominations,
    drops,
    findings,
    frontier_jobs,
    hypervolume,
    hypervolumes,
    measure_frontier,
    non_dominated,
    priced_setting,
    times_of_the_agent,
)
from opd.study.analysis.plots_frontier import plot_frontier
from opd.study.analysis.plots_quality import plot_gap, plot_intervals, plot_paper
from opd.study.analysis.quality import (
    ALL,
    NO_GAP,
    NOISE,
    comparisons,
    gap_sentence,
    gap_table,
    paper_sentence,
    paper_table,
    quality_table,
    read_evaluation,
    readable,
    verdict,
)
from opd.study.benchmarks.budgets import SMOKE_TRAINING
from opd.study.evaluation.cycles import Setting, run_cycle
from opd.study.report.results import ReportError
from opd.workload.cycles import Cycle
from opd.workload.load import RecentMaximum
from opd.workload.trace import Trace

PARAMETERS = TrainingParameters(**SMOKE_TRAINING)


# --- intervals -------------------------------------------------------------------------------------------------------


def test_constant_values_are_sure():
    assert interval(np.full((3, 4), 2.5)) == (2.5, 2.5)


def test_values_that_differ_by_seed_alone():
    # The mean of two seeds drawn out of two is 1, 2 or 3, one time in four, two and four.
    values = np.array([[1.0] * 5, [3.0] * 5])
    assert interval(values) == (1.0, 3.0)
    assert set(resampled_means(values)) == {1.0, 2.0, 3.0}
    assert np.mean(resampled_means(values) == 2.0) == pytest.approx(0.5, abs=0.05)


def test_values_that_differ_by_cycle_alone_do_not_get_surer_by_more_seeds():
    cycles = np.random.default_rng(0).normal(size=12)
    few, many = (interval(np.tile(cycles, (seeds, 1))) for seeds in (1, 50))
    expected = 2 * 1.96 * cycles.std() / np.sqrt(12)
    for low, high in (few, many):
        assert high - low == pytest.approx(expected, rel=0.1)


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    held = 0
    for number in range(400):
        # As in the evaluation: seeds differ little, cycles a lot.
        values = (
            0.1 * generator.normal(size=(5, 1)) + generator.normal(size=(1, 20)) + 0.3 * generator.normal(size=(5, 20))
        )
        low, high = interval(values, samples=500, seed=number)
        held += low <= 0.0 <= high
    assert 0.90 <= held / 400 <= 0.98


def test_tables_of_one_shape_are_resampled_alike():
    one, other = np.random.default_rng(0).normal(size=(2, 3, 4))
    np.testing.assert_allclose(resampled_means(one + other), resampled_means(one) + resampled_means(other), atol=1e-12)
    assert interval(one, seed=1) == interval(one, seed=1) != interval(one, seed=2)


@pytest.mark.parametrize(
    "values", [np.zeros(3), np.zeros((0, 3)), np.array([[1.0, np.nan]])], ids=["row", "empty", "nan"]
)
def test_what_is_no_full_table_is_refused(values):
    with pytest.raises(ValueError, match="no full table of finite figures"):
        interval(values)


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="samples is 0"):
        interval(np.zeros((2, 2)), samples=0)


# --- tables ----------------------------------------------------------------------------------------------------------


def evaluation_of(rewards, pipeline="video") -> pd.DataFrame:
    """Rows of policies whose reward in two cycles and two seeds is given; QoS is 1 more, cost 2, nothing dropped."""
    rows = [
        {"pipeline": pipeline, "cycle": f"c{cycle}", "policy": policy, "seed": seed, "reward": reward}
        for policy, table in rewards.items()
        for seed, of_seed in enumerate(table)
        for cycle, reward in enumerate(of_seed)
    ]
    return pd.DataFrame(rows).assign(qos=lambda rows: rows["reward"] + 1.0, cost=2.0, dropped=0)


REWARDS = {
    "random": [[-9.0, -9.0], [-9.0, -9.0]],
    "ipa": [[9.0, 1.0], [9.0, 1.0]],
    "myopic": [[10.0, 4.0], [10.0, 4.0]],
    "clairvoyant": [[12.0, 6.0], [12.0, 6.0]],
    "agent": [[11.0, 5.0], [11.0, 5.0]],
}


def test_means_and_paired_differences_by_hand():
    # Shuffled: pairs are found by seed and cycle, not by position.
    table = quality_table(evaluation_of(REWARDS).sample(frac=1.0, random_state=0)).set_index("policy")
    assert sorted(table.index) == sorted(REWARDS)
    ipa = table.loc["ipa"]
    assert [ipa[name] for name in ("reward", "reward_low", "reward_high")] == [5.0, 1.0, 9.0]
    assert [ipa[name] for name in ("cost", "cost_low", "cost_high", "dropped", "qos")] == [2.0, 2.0, 2.0, 0.0, 6.0]
    # The agent is ahead of IPA by 2 in the one cycle and by 4 in the other, of the solver by 1 in both.
    names = [f"agent_more_reward{end}" for end in ("", "_low", "_high")]
    assert ipa[names].tolist() == [3.0, 2.0, 4.0]
    assert table.loc["myopic", names].tolist() == [1.0, 1.0, 1.0]
    assert table.loc["agent", names].tolist() == [0.0, 0.0, 0.0]
    assert ipa[[name.replace("reward", "cost") for name in names]].tolist() == [0.0, 0.0, 0.0]
    names = [f"more_reward_than_myopic{end}" for end in ("", "_low", "_high")]
    assert ipa[names].tolist() == [-2.0, -3.0, -1.0]


def test_a_policy_that_lacks_a_cycle_cannot_be_paired():
    rows = evaluation_of(REWARDS)
    with pytest.raises(ValueError, match="no full table"):
        quality_table(rows[(rows["policy"] != "ipa") | (rows["cycle"] != "c1")])


def test_the_verdict_counts_pipelines_in_which_the_sign_is_sure():
    undecided = REWARDS | {"agent": [[8.0, 2.0], [8.0, 2.0]]}
    behind = REWARDS | {"agent": [[8.0, 0.0], [8.0, 0.0]]}
    parts = [evaluation_of(REWARDS, "video"), evaluation_of(undecided, "nlp"), evaluation_of(behind, "ocr")]
    table = quality_table(pd.concat(parts))
    assert verdict(table, "ipa", "reward") == "higher in 1 of 3 pipelines, lower in 1"
    assert verdict(table, "ipa", "cost") == "higher in 0 of 3 pipelines, lower in 0"
    lines = comparisons(table).splitlines()
    assert len(lines) == len(REWARDS) - 1
    sure = "reward higher in 1 of 3 pipelines, lower in 1"
    assert any(line.startswith(f"* against **ipa**: {sure}; QoS ") for line in lines)


def test_the_share_of_the_gap_by_hand():
    (row,) = gap_table(evaluation_of(REWARDS)).to_dict("records")
    assert [row[name] for name in ("gap", "gap_low", "gap_high")] == [2.0, 2.0, 2.0]
    sentence = gap_sentence(pd.DataFrame([row]))
    assert "beyond doubt in 1 of 1 rows. Over video it is +2.000 [+2.000, +2.000]" in sentence
    assert sentence.endswith("the agent gains +1.000 [+1.000, +1.000].")
    assert [row[name] for name in ("share", "share_low", "share_high")] == [0.5, 0.5, 0.5]
    assert row["note"] == ""


def test_numerator_and_denominator_are_resampled_together():
    # The gap is 1 in the one cycle and 3 in the other, and the agent closes all of it in both.
    same = [[11.0, 7.0], [11.0, 7.0]]
    (row,) = gap_table(evaluation_of(REWARDS | {"clairvoyant": same, "agent": same})).to_dict("records")
    assert [row[name] for name in ("gap", "gap_low", "gap_high")] == [2.0, 1.0, 3.0]
    assert [row[name] for name in ("share", "share_low", "share_high")] == [1.0, 1.0, 1.0]


def test_a_share_of_a_gap_that_may_be_none_has_no_interval():
    # The gap is 2 in the one cycle and -1 in the other, the agent gains 1 in both.
    (row,) = gap_table(evaluation_of(REWARDS | {"clairvoyant": [[12.0, 3.0]] * 2})).to_dict("records")
    assert (row["gap"], row["gain"], row["share"], row["note"]) == (0.5, 1.0, 2.0, NOISE)
    assert np.isnan([row["share_low"], row["share_high"]]).all()


def test_without_a_gap_there_is_no_share():
    (row,) = gap_table(evaluation_of(REWARDS | {"clairvoyant": [[9.0, 3.0]] * 2})).to_dict("records")
    assert row["note"] == NO_GAP
    assert np.isnan([row[name] for name in ("share", "share_low", "share_high")]).all()


def test_the_gap_of_all_pipelines_is_their_mean():
    other = evaluation_of(REWARDS | {"clairvoyant": [[10.0, 4.0]] * 2}).assign(pipeline="ocr")
    table = gap_table(pd.concat([evaluation_of(REWARDS), other])).set_index("pipeline")
    assert list(table.index) == ["video", "ocr", ALL]
    assert table["gap"].tolist() == [2.0, 0.0, 1.0]
    assert table.loc[ALL, ["gain", "share", "share_low", "share_high"]].tolist() == [1.0, 1.0, 1.0, 1.0]


def test_the_papers_comparisons_of_both_agents():
    rows = evaluation_of({name: [[10.0], [10.0]] for name in ("greedy", "agent", "agent-frugal")})
    rows = rows.assign(cycle="steady-low")
    rows.loc[rows["policy"] == "agent", "cost"] = 3.0
    rows.loc[rows["policy"] == "agent-frugal", "qos"] = 5.5
    table = paper_table(rows).set_index(["policy", "cycle", "against", "quantity"])
    assert list(table.columns) == ["paper", "mean", "video"]
    assert table.loc[("agent", "steady-low", "greedy", "cost")].tolist() == [120.0, 50.0, 50.0]
    assert table.loc[("agent-frugal", "steady-low", "greedy", "qos")].tolist() == [36.0, -50.0, -50.0]


def test_signs_that_are_the_papers_are_counted_where_it_gives_one():
    table = pd.DataFrame(
        {"policy": ["agent"] * 4 + ["agent-frugal"] * 4, "paper": [120.0, -16.0, -3.0, 0.0] * 2}
        | {"mean": [50.0, 8.0, 0.0, 1.0, 14.0, -18.0, -0.1, 1.0]}
    )
    assert paper_sentence(table).endswith("where that gives one: agent in 1 of 3, agent-frugal in 3 of 3.")


def test_a_figure_and_its_interval_share_a_cell():
    table = pd.DataFrame(
        {"pipeline": ["a", "b", "c"], "gap": [1.0, np.nan, 2.0], "gap_low": [0.5, np.nan, np.nan], "gap_high": 1.5}
    )
    assert readable(table, 1)["gap"].tolist() == ["1.0 (0.5 to 1.5)", "", "2.0"]


def test_an_evaluation_is_read_with_care(tmp_path):
    with pytest.raises(ReportError, match=r"no evaluation\.csv .* notebook 04_evaluation writes it"):
        read_evaluation(tmp_path, "waves trace")
    rows = evaluation_of(REWARDS)
    rows.to_csv(tmp_path / "evaluation.csv", index=False)
    (tmp_path / "evaluation.json").write_text(json.dumps({"trace": "waves trace"}))
    assert read_evaluation(tmp_path, "waves trace").equals(rows)
    with pytest.raises(ReportError, match=r"is of the waves trace, not of the twitter trace"):
        read_evaluation(tmp_path, "twitter trace")
    rows[rows["policy"] != "myopic"].to_csv(tmp_path / "evaluation.csv", index=False)
    with pytest.raises(ReportError, match="lacks myopic"):
        read_evaluation(tmp_path, "waves trace")


def test_the_figure_of_intervals_leaves_random_and_the_reference_out():
    figure = plot_intervals(quality_table(evaluation_of(REWARDS)), "waves trace")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["IPA", "clairvoyant", "agent"]
    assert "random, far below, is left out" in figure.get_suptitle()


def marks(axes) -> dict[str, list[list[float]]]:
    """What is marked under each label of the legend, as x and y."""
    handles, labels = axes.get_legend_handles_labels()
    lines = [getattr(handle, "lines", [handle])[0] for handle in handles]  # a mark with whiskers is several
    return {label: np.round(line.get_xydata(), 9).tolist() for line, label in zip(lines, labels, strict=True)}


def test_the_figure_of_the_gap_has_all_pipelines_and_hollow_shares_of_what_may_be_none():
    parts = [
        evaluation_of(REWARDS, "video"),
        evaluation_of(REWARDS | {"clairvoyant": [[12.0, 3.0]] * 2}, "nlp"),
        evaluation_of(REWARDS | {"clairvoyant": [[9.0, 3.0]] * 2}, "ocr"),
    ]
    gap = gap_table(pd.concat(parts))
    gains, shares = plot_gap(gap, "waves trace").axes
    assert [label.get_text() for label in gains.get_yticklabels()] == ["video", "nlp", "ocr", ALL]
    assert marks(gains) == {
        "clairvoyant (knows the load)": [[2.0, -0.14], [0.5, 0.86], [-1.0, 1.86], [0.5, 2.86]],
        "agent": [[1.0, 0.14], [1.0, 1.14], [1.0, 2.14], [1.0, 3.14]],
    }
    assert marks(shares) == {"share of a gap that may be none": [[2.0, 1.0], [2.0, 3.0]]}
    assert [container.lines[0].get_xydata().tolist() for container in shares.containers] == [[[0.5, 0.0]]]
    assert [text.get_text() for text in shares.texts] == ["0.50", "2.00", "no gap", "2.00"]


def test_the_figure_of_the_papers_comparisons():
    about = {"policy": ["agent", "agent", "agent-frugal", "agent-frugal"], "cycle": "steady-low", "against": "greedy"}
    figures = {"quantity": ["cost", "qos"] * 2, "paper": [120.0, 36.0] * 2, "mean": [50.0, 10.0, 14.0, 5.0]}
    pipelines = {"video": [40.0, 8.0, 10.0, 4.0], "nlp": [60.0, 12.0, 18.0, 6.0]}
    cost, qos = plot_paper(pd.DataFrame(about | figures | pipelines), "waves trace").axes
    assert [label.get_text() for label in cost.get_yticklabels()] == ["steady-low\nagainst greedy"]
    assert marks(cost) == {
        "paper": [[120.0, -0.27]],
        "agent, one pipeline": [[40.0, 0.0], [60.0, 0.0]],
        "agent": [[50.0, 0.0]],
        "agent-frugal, one pipeline": [[10.0, 0.27], [18.0, 0.27]],
        "agent-frugal": [[14.0, 0.27]],
    }
    assert marks(qos)["paper"] == [[36.0, -0.27]] and marks(qos)["agent-frugal"] == [[5.0, 0.27]]
    assert cost.get_xlabel() == "cost relative to the rival's (%)"


# --- hypervolume -----------------------------------------------------------------------------------------------------


def test_the_area_of_two_points_by_hand():
    # From 2 to 4 cores it is 3 - 1 high, from 4 to 10 cores 6 - 1.
    assert hypervolume(np.array([[4.0, 6.0], [2.0, 3.0]]), (10.0, 1.0)) == 2 * 2 + 6 * 5


@pytest.mark.parametrize(
    "dominated",
    [[5.0, 5.0], [4.0, 5.0], [5.0, 6.0], [4.0, 6.0], [2.0, 2.0]],
    ids=["dearer and worse", "worse", "dearer", "the same", "between"],
)
def test_a_dominated_point_changes_nothing(dominated):
    points = np.array([[4.0, 6.0], [2.0, 3.0]])
    more = np.vstack([points, dominated])
    assert non_dominated(more).tolist() == [[2.0, 3.0], [4.0, 6.0]]
    assert hypervolume(more, (10.0, 1.0)) == hypervolume(points, (10.0, 1.0))


def test_beyond_the_reference_there_is_no_area():
    assert hypervolume(np.array([[12.0, 6.0], [2.0, 0.5]]), (10.0, 1.0)) == 0.0
    assert hypervolume(np.array([[10.0, 6.0], [2.0, 1.0]]), (10.0, 1.0)) == 0.0


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=8))
def test_the_area_is_that_of_all_unit_squares_below_a_point(points):
    squares = sum(any(cost <= x and qos > y for cost, qos in points) for x in range(7) for y in range(1, 7))
    assert hypervolume(np.array(points, dtype=float), (7.0, 1.0)) == squares


def points_of(**policies) -> pd.DataFrame:
    """One row for every price and seed of a policy, given as {seed: [(cost, qos), ...]}."""
    rows = [
        {"pipeline": "video", "policy": policy, "cost_weight": 0.1 * (n + 1), "seed": seed, "cost": cost, "qos": qos}
        for policy, seeds in policies.items()
        for seed, points in seeds.items()
        for n, (cost, qos) in enumerate(points)
    ]
    return pd.DataFrame(rows).assign(dropped=0.0)


POINTS = points_of(
    ipa={0: [(6.0, 5.0), (4.0, 3.0)], 1: [(6.0, 5.0), (4.0, 3.0)]},
    myopic={0: [(4.0, 5.0), (2.0, 1.0)], 1: [(4.0, 5.0), (2.0, 1.0)]},
    agent={0: [(4.0, 6.0), (2.0, 2.0)], 1: [(4.0, 5.0), (2.0, 2.0)]},
)


def test_hypervolumes_and_ratios_by_hand():
    table = hypervolumes(POINTS, {"video": 10}).set_index(["reference", "policy"])
    assert set(table["reference_cost"]) == {10.0}
    # Above 1, the lowest of myopic: 2 x 2 + 4 x 4 and 6 x 4, and the agent's 2 x 1 + 6 x 5 and 2 x 1 + 6 x 4.
    wanted = ["reference_qos", "hypervolume", "agent_times", "agent_times_min", "agent_times_max"]
    assert table.loc[(ANY, "ipa"), wanted].tolist() == pytest.approx([1.0, 20.0, 29 / 20, 26 / 20, 32 / 20])
    assert table.loc[(ANY, "myopic"), wanted].tolist() == pytest.approx([1.0, 24.0, 29 / 24, 26 / 24, 32 / 24])
    assert table.loc[(ANY, "agent"), wanted].tolist() == [1.0, 29.0, 1.0, 1.0, 1.0]
    # Above 3, the lowest of IPA: 4 x 2, 6 x 2, and the agent's 6 x 3 and 6 x 2.
    assert table.loc[(SERVED, "ipa"), wanted].tolist() == pytest.approx([3.0, 8.0, 15 / 8, 12 / 8, 18 / 8])
    assert table.loc[(SERVED, "myopic"), wanted].tolist() == pytest.approx([3.0, 12.0, 15 / 12, 1.0, 18 / 12])


def test_the_agents_areas_in_words():
    lines = times_of_the_agent(hypervolumes(POINTS, {"video": 10})).splitlines()
    extent = "in 1 of 1 pipelines that have an area, 1.450 to 1.450 times"
    assert lines[0] == f"* reference lowest of any policy: at least as large as ipa's {extent}"
    assert len(lines) == 4


def test_pipelines_in_which_the_agents_area_is_the_smaller_are_named():
    worse = POINTS.assign(pipeline="nlp", qos=POINTS["qos"] - 2.0 * (POINTS["policy"] == "agent"))
    lines = times_of_the_agent(hypervolumes(pd.concat([POINTS, worse]), {"video": 10, "nlp": 10})).splitlines()
    # Above 0 the agent's are 6 x 4 and 6 x 3, against IPA's 2 x 3 + 4 x 5 and the myopic solver's 2 x 1 + 6 x 5.
    assert lines[0].startswith("* reference lowest of any policy: at least as large as ipa's in 1 of 2 pipelines")
    assert lines[0].endswith("0.808 to 1.450 times; below 1: nlp 0.808")
    assert lines[1].endswith("; below 1: nlp 0.656")


LOSING = pd.concat(
    [
        points_of(
            ipa={0: [(6.0, 5.0), (3.0, 4.0)], 1: [(6.0, 5.0), (3.0, 4.0)]},
            myopic={0: [(3.0, 4.0), (1.0, 1.0)], 1: [(3.0, 4.0), (1.0, 1.0)]},
            agent={0: [(4.0, 4.0), (1.0, 1.0)], 1: [(5.0, 3.0), (1.0, 1.0)]},
        ).assign(dropped=[8.0, 0.0, 4.0, 0.0, 0.0, 1200.0, 0.0, 1800.0, 0.0, 0.0, 0.0, 0.5]),
        POINTS.assign(pipeline="ocr"),
    ]
)
"""On video both others dominate the agent's first point; its second is the myopic solver's, too. On ocr none is."""


def test_a_point_is_dominated_by_what_is_better_and_in_nothing_worse():
    beaten = dominated_points(LOSING)
    assert beaten[["pipeline", "cost_weight", "by"]].to_numpy().tolist() == [
        ["video", 0.1, "ipa"], ["video", 0.1, "myopic"],
    ]  # fmt: skip
    assert beaten.loc[0, ["cost", "qos", "dropped"]].tolist() == [4.5, 3.5, 0.0]
    assert beaten.loc[0, ["by_cost_weight", "by_cost", "by_qos", "by_dropped"]].tolist() == [0.2, 3.0, 4.0, 0.0]
    text, _, *items = dominations(LOSING).splitlines()
    assert text.startswith("Points of other policies dominate 1 of the agent's 4, ")
    own = "* video at 0.1 (4.50 cores, QoS 3.500, 0.0 requests dropped in a cycle): "
    other = "(3.00 cores, QoS 4.000, 0.0 requests dropped in a cycle)"
    assert items == [f"{own}ipa at 0.2 {other}", f"{own}myopic at 0.1 {other}"]
    assert dominations(POINTS) == "Points of other policies dominate none of the agent's 2, all means of the seeds."


def test_prices_at_which_requests_are_dropped():
    assert drops(LOSING).splitlines() == [
        "* ipa: video only at 0.1 (6.0); none at any price on ocr",
        "* myopic: video from 0.2 on (1,500.0); none at any price on ocr",
        "* agent: video from 0.2 on (0.2); none at any price on ocr",
    ]
    more = LOSING.assign(dropped=LOSING["cost_weight"] * 100.0)
    assert drops(more).splitlines()[2] == "* agent: video from 0.1 on (10.0 to 20.0); ocr from 0.1 on (10.0 to 20.0)"


def test_the_sweep_in_words_says_where_the_agent_loses():
    areas = hypervolumes(LOSING, {"video": 10, "ocr": 10})
    text = findings(LOSING, areas)
    assert all(part in text for part in (times_of_the_agent(areas), dominations(LOSING), drops(LOSING)))


def test_nothing_is_a_multiple_of_no_area():
    flat = POINTS.assign(qos=5.0)
    table = hypervolumes(flat, {"video": 10})
    assert (table["hypervolume"] == 0.0).all() and table["agent_times"].isna().all()


def test_the_figure_of_the_frontier_names_ratios_and_what_lies_outside():
    figure = plot_frontier(POINTS, hypervolumes(POINTS, {"video": 10}), "waves trace")
    (axes,) = figure.axes
    assert axes.get_title().splitlines() == [
        "video",
        "hypervolume: 1.450 × IPA, 1.208 × myopic",
        "above IPA's lowest QoS: 1.875 × IPA, 1.250 × myopic",
    ]
    assert [text.get_text().splitlines() for text in axes.texts] == [
        ["myopic: 1 further down, to QoS 1", "agent: 1 further down, to QoS 2"]
    ]
    (steps,) = [line for line in axes.lines if line.get_drawstyle() == "steps-post" and line.get_color() == "#0173b2"]
    assert steps.get_xydata().tolist() == [[2.0, 2.0], [4.0, 5.5]]


# --- frontier --------------------------------------------------------------------------------------------------------

CYCLE = Cycle("waves", 20_000)
PRICES, SEEDS = (0.15, 2.0), (0, 1)


@pytest.fixture(scope="module")
def setting() -> Setting:
    seconds = np.arange(6 * 3600)
    counts = np.random.default_rng(0).poisson(8.0 + 5.0 * np.sin(seconds / 120.0))
    trace = Trace("waves", counts, seconds)
    return Setting(trace, RecentMaximum(), Weights(), SimulationParameters(), IpaParameters(), {})  # type: ignore[arg-type]


def swept(setting, folder, prices=PRICES) -> pd.DataFrame:
    return measure_frontier([ocr_pipeline()], [CYCLE], setting, PARAMETERS, prices, SEEDS, folder)


@pytest.fixture(scope="module")
def finished(setting, tmp_path_factory):
    """A folder of agents and the points that they and the solvers reach."""
    folder = tmp_path_factory.mktemp("frontier")
    return folder, swept(setting, folder)


@pytest.fixture
def trainings(monkeypatch) -> list[str]:
    """The titles of all trainings that are begun."""
    begun: list[str] = []
    train = jobs_module.train

    def listed(problem, parameters, seed, folder, title):
        begun.append(title)
        return train(problem, parameters, seed, folder, title)

    monkeypatch.setattr(jobs_module, "train", listed)
    return begun


def test_a_point_is_the_mean_of_the_cycles_of_the_evaluation(setting, finished):
    folder, points = finished
    assert list(points.columns) == ["pipeline", "policy", "cost_weight", "seed", "cost", "qos", "dropped"]
    assert len(points) == 3 * len(PRICES) * len(SEEDS)
    table = points.set_index(["policy", "cost_weight", "seed"]).sort_index()
    pipeline = ocr_pipeline()
    agents = {("ocr", 2.0, 1): folder / "ocr" / "2-1.npz"}
    own = priced_setting(setting, 2.0, agents)
    assert own.ipa == IpaParameters(10.0, 2.0, 0.02) and own.weights == Weights(cost_weight=2.0)
    for policy in ("ipa", "myopic", "agent"):
        steps = run_cycle(pipeline, own.policy(policy, pipeline, 1), CYCLE, 1, own)
        expected = [np.mean([getattr(step.score, name)[0] for step in steps]) for name in ("cost", "qos")]
        assert table.loc[(policy, 2.0, 1), ["cost", "qos"]].tolist() == pytest.approx(expected)
    for solver in ("ipa", "myopic"):
        assert (table.loc[(solver, 2.0), "cost"] < table.loc[(solver, 0.15), "cost"]).all()


def test_every_agent_has_its_own_price_and_imitates_the_myopic_solver(setting, tmp_path):
    parameters = replace(PARAMETERS, expert="ipa")
    jobs = frontier_jobs([ocr_pipeline()], setting, parameters, PRICES, SEEDS, tmp_path)
    assert list(jobs) == [("ocr", price, seed) for price in PRICES for seed in SEEDS]
    for (_, price, seed), job in jobs.items():
        problem, weights = job.problem, Weights(cost_weight=price)
        assert (problem.weights, job.parameters.expert, job.seed) == (weights, "myopic", seed)
        table = expert_table(problem.pipeline, weights, problem.simulation, "myopic", len(problem.expert) - 1)
        assert np.array_equal(problem.expert, table)
    assert len({job.folder for job in jobs.values()}) == len({job.path for job in jobs.values()}) == 4


def test_what_is_finished_is_not_trained_again(setting, finished, trainings):
    folder, points = finished
    assert swept(setting, folder).equals(points)
    assert trainings == []


def test_an_interrupted_sweep_goes_on(setting, finished, trainings, tmp_path, monkeypatch):
    def interrupted(job):
        if job.path.name == "2-0.npz":
            raise KeyboardInterrupt
        return run_job(job)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(jobs_module, "run_job", interrupted)
        swept(setting, tmp_path)
    assert trainings == ["ocr agent-0.15 0", "ocr agent-0.15 1"]
    assert swept(setting, tmp_path).equals(finished[1])
    assert trainings[2:] == ["ocr agent-2 0", "ocr agent-2 1"]


def test_an_agent_of_the_study_takes_the_place_of_a_training(setting, trainings, tmp_path):
    job = frontier_jobs([ocr_pipeline()], setting, PARAMETERS, [0.15], [0], tmp_path)["ocr", 0.15, 0]
    studied = Job("agent", 0, job.problem, job.parameters, tmp_path / "studied" / "agent-0.npz")
    run_job(studied)
    known = replace(setting, agents={("ocr", "agent", 0): studied.path, ("ocr", "agent", 1): tmp_path / "none.npz"})
    jobs = frontier_jobs([ocr_pipeline()], known, PARAMETERS, PRICES, SEEDS, tmp_path)
    assert [job.path.name for job in jobs.values()] == ["agent-0.npz", "0.15-1.npz", "2-0.npz", "2-1.npz"]
    other = replace(PARAMETERS, width=8)
    jobs = frontier_jobs([ocr_pipeline()], known, other, [0.15], [0], tmp_path)
    assert [job.path.name for job in jobs.values()] == ["0.15-0.npz"]
    assert trainings == ["ocr agent 0"]


def test_the_frontier_is_drawn(finished):
    points = finished[1]
    areas = hypervolumes(points, {"ocr": ocr_pipeline().capacity})
    assert list(areas["policy"]) == [*frontier.POLICIES, *frontier.POLICIES]
    figure = plot_frontier(points, areas, "waves trace")
    assert "0.15, 2" in figure.get_suptitle()
