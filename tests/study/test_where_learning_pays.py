"""Where learning pays: cells, rows of a whole run, and what is made of the rows, by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from small_study import CYCLE, setting_on, waves

from opd.agent.description import core_price
from opd.objective import Weights
from opd.profiling.generated import FIRST_UNSEEN, generate_pipeline
from opd.study.analysis.conditions import CAPACITY, Case, with_peak
from opd.study.analysis.generated_pipelines import own_setting
from opd.study.analysis.where_learning_pays import (
    COLUMNS,
    LARGEST,
    axis_cells,
    axis_findings,
    enough,
    evaluate_axes,
    headline,
    plot_axes,
    summarise_axes,
)
from opd.study.evaluation.cycles import cycle_summary, run_cycle

SETTING = setting_on(waves(), {})
VALUES = {"start-up": [2.0, 30.0], CAPACITY: [0.4]}
CYCLES = [CYCLE, CYCLE._replace(name="earlier", start=16_000)]
POLICIES = ["myopic-backlog", "ladder", "agent"]


# ---------------------------------------------------------------------------------------------------------------- runs


def test_cells_are_pipelines_with_weights_that_training_leaves_out():
    cells = axis_cells(VALUES, 3, CYCLES, POLICIES, [0, 1], 0.6)
    assert len(cells) == 3 * 3
    assert [(cell.axis, cell.value, cell.peak) for cell in cells[:3]] == [
        ("start-up", 2.0, 0.6),
        ("start-up", 30.0, 0.6),
        (CAPACITY, 0.4, 0.4),
    ]
    assert [cell.cycle for cell in cells[::3]] == [CYCLES[0], CYCLES[1], CYCLES[0]]
    numbers = [cell.number for cell in cells[::3]]
    assert numbers == sorted(set(numbers)) and numbers[0] >= FIRST_UNSEEN
    assert all(isinstance(generate_pipeline(number).objective, Weights) for number in numbers)
    assert cells[0].runs == tuple((policy, seed) for policy in POLICIES for seed in (0, 1))
    assert len({tuple(cell.key.values()) for cell in cells}) == len(cells)


def test_conditions_that_are_the_same_run_once():
    values = {"start-up": [2.0], "forecast": [0.0, 1.0], CAPACITY: [0.6, 0.4], "bursts": [1.0, 3.0]}
    cells = axis_cells(values, 2, CYCLES, POLICIES, [0], 0.6)
    alike = [(cell.alike.axis, cell.alike.value) for cell in cells[:7]]
    usual = (CAPACITY, 0.6)
    assert alike == [("start-up", 2.0), usual, ("forecast", 1.0), usual, (CAPACITY, 0.4), usual, ("bursts", 3.0)]
    assert cells[1].alike == cells[3] and cells[1].alike != cells[8].alike


def test_slow_policies_run_on_the_first_pipelines():
    cells = axis_cells({CAPACITY: [0.6]}, 3, CYCLES, [*POLICIES, "lookahead"], [0], 0.6, {"lookahead": 2})
    assert [("lookahead", 0) in cell.runs for cell in cells] == [True, True, False]
    assert all(cell.runs[:3] == cells[0].runs[:3] for cell in cells)


def test_an_unknown_axis_and_a_missing_reference_are_refused():
    with pytest.raises(ValueError, match="axis colour is not one of start-up, forecast, capacity, bursts"):
        axis_cells({"colour": [1.0]}, 1, CYCLES, POLICIES, [0], 0.6)
    with pytest.raises(ValueError, match="policies are agent, but leads count in the cores of myopic-backlog; add it"):
        axis_cells(VALUES, 1, CYCLES, ["agent"], [0], 0.6)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> pd.DataFrame:
    values = {"start-up": [30.0], "forecast": [-0.5, 0.0, 0.5], CAPACITY: [0.4], "bursts": [2.0]}
    cells = axis_cells(values, 2, CYCLES, POLICIES, [0], 0.4, {"agent": 1})
    return evaluate_axes(SETTING, cells, tmp_path_factory.mktemp("kept") / "rows.csv")


def test_a_whole_run(rows, tmp_path):
    """From cells to page and figure."""
    assert list(rows.columns) == COLUMNS and len(rows) == 6 * (2 * len(POLICIES) - 1)
    assert np.isfinite(rows[["worth", "cores", "forecast_error"]]).all(axis=None)
    assert (rows["cores"] > 0.0).all() and (rows["dropped"] >= 0).all()
    errors = rows.drop_duplicates(["axis", "value", "pipeline"])["forecast_error"]
    assert ((errors > 0.0) & (errors < 200.0)).all()
    summary = summarise_axes(rows)
    assert len(summary) == 6 * len(POLICIES) * (len(POLICIES) - 1)
    assert (summary["pipelines"] == 2 - (summary[["policy", "over"]] == "agent").any(axis=1)).all()
    usual = [
        rows[(rows["axis"] == axis) & (rows["value"] == value)] for axis, value in (("forecast", 0.0), (CAPACITY, 0.4))
    ]
    pd.testing.assert_frame_equal(*(part.drop(columns=["axis", "value"]).reset_index(drop=True) for part in usual))
    assert (summary["lead_low"] <= summary["lead"]).all() and (summary["lead"] <= summary["lead_high"]).all()
    assert list(axis_findings(summary))[:4] == ["Start-up time", "Forecast", "Capacity", "Bursts"]
    plot_axes(summary, "waves").savefig(tmp_path / "figure.png")


def test_a_row_says_what_its_run_gave(rows):
    """Run again by hand: the ladder under a load that is 0.4 of what the device carries."""
    cell = axis_cells({CAPACITY: [0.4]}, 1, CYCLES, POLICIES, [0], 0.6)[0]
    row = rows[(rows["axis"] == CAPACITY) & (rows["value"] == 0.4) & (rows["policy"] == "ladder")].iloc[0]
    own, pipeline = own_setting(SETTING, cell.number, "inside")
    setting = with_peak(Case(own, pipeline, CYCLE), 0.4).setting
    summary = cycle_summary(run_cycle(pipeline, setting.policy("ladder", pipeline, 0), CYCLE, 0, setting))
    assert row["pipeline"] == pipeline.name
    assert row["worth"] == pytest.approx(summary["reward"] / core_price(own.objective))
    assert row["cores"] == pytest.approx(summary["cost"])
    assert row["dropped"] == summary["dropped"]


# ------------------------------------------------------------------------------------------------------------ findings


def made_rows(worths: dict[str, list[float]], axis: str = "start-up", value: float = 2.0) -> pd.DataFrame:
    """Rewards in cores of some policies on pipelines a, b, ..., on which the reference runs 10 cores."""
    lines = [
        (
            axis,
            value,
            chr(97 + n),
            "cycle",
            0.6,
            policy,
            0,
            worth,
            10.0 if policy == "myopic-backlog" else 7.0,
            n,
            0,
            9.0,
        )
        for policy, each in worths.items()
        for n, worth in enumerate(each)
    ]
    return pd.DataFrame(lines, columns=COLUMNS)


def test_leads_by_hand():
    rows = made_rows({"myopic-backlog": [5.0, 20.0], "ladder": [4.0, 19.0], "agent": [6.0, 18.0]})
    summary = summarise_axes(rows).set_index(["policy", "over"])
    agent = summary.loc[("agent", "myopic-backlog")]
    assert agent["lead"] == pytest.approx(100.0 * (1.0 - 2.0) / 2 / 10.0)
    assert agent["worst"] == pytest.approx(-20.0)
    assert (agent["dropped"], agent["by_expert"], agent["forecast_error"]) == (0.5, 0.0, 9.0)
    assert (agent["lead_low"], agent["lead_high"]) == pytest.approx((-20.0, 10.0))
    assert summary.loc[("agent", "ladder"), "lead"] == pytest.approx(100.0 * (2.0 - 1.0) / 2 / 10.0)
    assert summary.loc[("myopic-backlog", "agent"), "lead"] == pytest.approx(-agent["lead"])


def test_no_pipeline_decides_for_all():
    rows = made_rows({"myopic-backlog": [0.0, 0.0], "agent": [-900.0, 1.0]})
    agent = summarise_axes(rows).set_index("policy").loc["agent"]
    assert agent["lead"] == pytest.approx((-LARGEST + 10.0) / 2)
    assert agent["worst"] == pytest.approx(-9000.0)


def test_the_simplest_policy_that_none_is_surely_ahead_of_is_enough():
    everywhere, here_and_there = [1.0] * 6, [1.0, -1.0] * 3
    backlog, nothing = [0.0] * 6, [0.0] * 6
    cases = [
        ({"ladder": nothing, "myopic-backlog": backlog, "agent": here_and_there}, "ladder"),
        ({"ladder": [-3.0] * 6, "myopic-backlog": backlog, "agent": here_and_there}, "myopic-backlog"),
        ({"ladder": nothing, "myopic-backlog": backlog, "agent": everywhere}, "agent"),
        ({"agent": everywhere, "lookahead": everywhere, "myopic-backlog": backlog}, "lookahead"),
    ]
    for worths, expected in cases:
        assert enough(summarise_axes(made_rows(worths))) == expected
        few = {policy: each[:5] for policy, each in worths.items()}
        assert enough(summarise_axes(made_rows(few))) == "unknown"


def test_the_page_by_hand():
    worths = {"myopic-backlog": [5.0] * 6, "ladder": [4.5] * 6, "agent": [6.0] * 6, "lookahead": [6.0] * 3}
    rows = pd.concat([made_rows(worths), made_rows(worths, "forecast", -0.5)])
    findings = axis_findings(summarise_axes(rows))
    ahead = "+10.0 [+10.0, +10.0]"
    line = f"| 2 | 9 | −5.0 [−5.0, −5.0] | {ahead} | {ahead} | +15.0 [+15.0, +15.0] | 0.0 [0.0, 0.0] | agent |"
    assert findings["Start-up time"].startswith(
        "| start-up time of the slowest variant, s | forecast error, % | ladder | lookahead (3 pipelines) | agent | "
        "agent over ladder | agent over lookahead (3 pipelines) | enough |"
    )
    assert findings["Start-up time"].splitlines()[2] == line
    assert findings["Forecast"].splitlines()[2] == line.replace("| 2 |", "| none |")
    worst = findings["Lowest lead of a pipeline, %"].splitlines()
    assert worst[0] == "| condition | ladder | lookahead (3 pipelines) | agent |"
    assert worst[2:] == ["| Start-up time 2 | -5.0 | 10.0 | 10.0 |", "| Forecast none | -5.0 | 10.0 | 10.0 |"]


def test_titles_say_where_the_agent_is_ahead():
    ahead, behind = {"myopic-backlog": [0.0] * 6, "agent": [1.0] * 6}, {"myopic-backlog": [1.0] * 6, "agent": [0.0] * 6}
    rows = pd.concat([made_rows(ahead, value=10.0), made_rows(behind, value=2.0), made_rows(ahead, "forecast", 1.0)])
    rows = pd.concat([rows, made_rows({"myopic-backlog": [0.0, 1.0] * 3, "agent": [1.0, 0.0] * 3}, "bursts")])
    summary = summarise_axes(rows)
    expected = "The agent is surely ahead of myopic with backlog in 2 of 4 conditions, behind in 1"
    assert headline(summary) == expected
    figure = plot_axes(summary, "waves")
    assert figure.get_suptitle().startswith(expected)
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == [
        "Start-up time: agent ahead at 10 and behind at 2",
        "Forecast: agent ahead at 1 (truth)",
        "Bursts: agent nowhere surely ahead or behind",
    ]
    names = {text.get_text() for text in figure.axes[0].texts}
    assert names == {"agent"}
