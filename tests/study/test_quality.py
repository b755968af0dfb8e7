"""Tables, sentences and figures of the quality of policies, by hand."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from opd.study.analysis.quality import (
    ALL,
    NO_GAP,
    NOISE,
    comparisons,
    gap_sentence,
    gap_shares,
    gap_table,
    paper_sentence,
    paper_table,
    plot_gap,
    plot_intervals,
    plot_paper,
    quality_table,
    read_evaluation,
    readable,
    verdict,
)
from opd.study.report.results import ReportError


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
    "foresight": [[12.0, 6.0], [12.0, 6.0]],
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
    with pytest.raises(ValueError, match="not a full table"):
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
    assert any(line.startswith(f"* compared with **ipa**: {sure}; QoS ") for line in lines)


def rows_of(evaluation: pd.DataFrame, policy: str = "agent") -> list[dict]:
    """The rows of one policy in the table of gaps."""
    return [row for row in gap_table(evaluation).to_dict("records") if row["policy"] == policy]


def test_the_share_of_the_gap_by_hand():
    (row,) = rows_of(evaluation_of(REWARDS))
    assert [row[name] for name in ("gap", "gap_low", "gap_high")] == [2.0, 2.0, 2.0]
    sentence = gap_sentence(pd.DataFrame([row]))
    assert "significant in 1 of 1 rows. Over video it is +2.000 [+2.000, +2.000]" in sentence
    assert sentence.endswith("the agent gains +1.000 [+1.000, +1.000].")
    assert [row[name] for name in ("share", "share_low", "share_high")] == [0.5, 0.5, 0.5]
    assert row["note"] == ""


def test_numerator_and_denominator_are_resampled_together():
    # The gap is 1 in the one cycle and 3 in the other, and the agent closes all of it in both.
    same = [[11.0, 7.0], [11.0, 7.0]]
    (row,) = rows_of(evaluation_of(REWARDS | {"foresight": same, "agent": same}))
    assert [row[name] for name in ("gap", "gap_low", "gap_high")] == [2.0, 1.0, 3.0]
    assert [row[name] for name in ("share", "share_low", "share_high")] == [1.0, 1.0, 1.0]


def test_a_share_of_a_gap_that_may_be_none_has_no_interval():
    # The gap is 2 in the one cycle and -1 in the other, the agent gains 1 in both.
    (row,) = rows_of(evaluation_of(REWARDS | {"foresight": [[12.0, 3.0]] * 2}))
    assert (row["gap"], row["gain"], row["share"], row["note"]) == (0.5, 1.0, 2.0, NOISE)
    assert np.isnan([row["share_low"], row["share_high"]]).all()


def test_without_a_gap_there_is_no_share():
    (row,) = rows_of(evaluation_of(REWARDS | {"foresight": [[9.0, 3.0]] * 2}))
    assert row["note"] == NO_GAP
    assert np.isnan([row[name] for name in ("share", "share_low", "share_high")]).all()


def test_the_gap_of_all_pipelines_is_their_mean():
    other = evaluation_of(REWARDS | {"foresight": [[10.0, 4.0]] * 2}).assign(pipeline="ocr")
    table = pd.DataFrame(rows_of(pd.concat([evaluation_of(REWARDS), other]))).set_index("pipeline")
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
    assert paper_sentence(table).endswith("where the paper has one: agent in 1 of 3, agent-frugal in 3 of 3.")


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
    assert [label.get_text() for label in axes.get_yticklabels()] == ["IPA", "foresight", "agent"]
    assert "random is far below and not shown" in figure.get_suptitle()


def marks(axes) -> dict[str, list[list[float]]]:
    """What is marked under each label of the legend, as x and y."""
    handles, labels = axes.get_legend_handles_labels()
    lines = [getattr(handle, "lines", [handle])[0] for handle in handles]  # a mark with whiskers is several
    return {label: np.round(line.get_xydata(), 9).tolist() for line, label in zip(lines, labels, strict=True)}


def test_shares_of_all_policies_by_hand():
    """In the one pipeline the gap is 2, in the other 1: of the 3 in sum, the agent closes 2 and the ladder 1."""
    ladder = {"ladder": [[10.0, 4.0]] * 2}
    other = evaluation_of(REWARDS | {"foresight": [[11.0, 5.0]] * 2, "ladder": [[11.0, 5.0]] * 2}, "ocr")
    shares = gap_shares(gap_table(pd.concat([evaluation_of(REWARDS | ladder), other])))
    assert shares["policy"].tolist() == ["agent", "ladder"]  # IPA is below the myopic solver
    assert shares[["video", "ocr", ALL]].to_numpy().round(9).tolist() == [
        [50.0, 100.0, pytest.approx(200 / 3)],
        [0.0, 100.0, pytest.approx(100 / 3)],
    ]


def test_the_figure_of_the_gap_has_all_pipelines_and_hollow_shares_of_what_may_be_none():
    parts = [
        evaluation_of(REWARDS, "video"),
        evaluation_of(REWARDS | {"foresight": [[12.0, 3.0]] * 2}, "nlp"),
        evaluation_of(REWARDS | {"foresight": [[9.0, 3.0]] * 2}, "ocr"),
    ]
    gap = gap_table(pd.concat(parts))
    gains, shares = plot_gap(gap, "waves trace").axes
    assert [label.get_text() for label in gains.get_yticklabels()] == ["video", "nlp", "ocr", ALL]
    assert marks(gains) == {
        "foresight (lookahead that knows the load)": [[2.0, -0.14], [0.5, 0.86], [-1.0, 1.86], [0.5, 2.86]],
        "agent": [[1.0, 0.14], [1.0, 1.14], [1.0, 2.14], [1.0, 3.14]],
    }
    assert marks(shares) == {"share of a gap that is not significant": [[2.0, 1.0], [2.0, 3.0]]}
    assert [container.lines[0].get_xydata().tolist() for container in shares.containers] == [[[0.5, 0.0]]]
    assert [text.get_text() for text in shares.texts] == ["0.50", "2.00", "no gap", "2.00"]


def test_the_figure_of_the_papers_comparisons():
    about = {"policy": ["agent", "agent", "agent-frugal", "agent-frugal"], "cycle": "steady-low", "against": "greedy"}
    figures = {"quantity": ["cost", "qos"] * 2, "paper": [120.0, 36.0] * 2, "mean": [50.0, 10.0, 14.0, 5.0]}
    pipelines = {"video": [40.0, 8.0, 10.0, 4.0], "nlp": [60.0, 12.0, 18.0, 6.0]}
    cost, qos = plot_paper(pd.DataFrame(about | figures | pipelines), "waves trace").axes
    assert [label.get_text() for label in cost.get_yticklabels()] == ["steady-low\nvs greedy"]
    assert marks(cost) == {
        "paper": [[120.0, -0.27]],
        "agent, one pipeline": [[40.0, 0.0], [60.0, 0.0]],
        "agent": [[50.0, 0.0]],
        "agent-frugal, one pipeline": [[10.0, 0.27], [18.0, 0.27]],
        "agent-frugal": [[14.0, 0.27]],
    }
    assert marks(qos)["paper"] == [[36.0, -0.27]] and marks(qos)["agent-frugal"] == [[5.0, 0.27]]
    assert cost.get_xlabel() == "cost relative to the baseline's (%)"
