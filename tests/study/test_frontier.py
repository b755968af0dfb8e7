"""The cost sweep: hypervolumes by hand, and a tiny sweep in full."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_pipelines import ocr_pipeline
from small_study import CYCLE, setting_on, waves

from opd.objective import Weights
from opd.solvers import IpaParameters
from opd.study.analysis import frontier
from opd.study.analysis.frontier import (
    ANY,
    SERVED,
    dominated_points,
    dominations,
    drops,
    findings,
    hypervolume,
    hypervolumes,
    measure_frontier,
    non_dominated,
    plot_frontier,
    priced_setting,
    times_of_the_agent,
)
from opd.study.evaluation.cycles import Setting, run_cycle
from opd.study.plots.style import policy_style

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
        {
            "pipeline": "video",
            "policy": policy.replace("_", "-"),
            "cost_weight": 0.1 * (n + 1),
            "seed": seed,
            "cost": cost,
            "qos": qos,
        }
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
    extent = "in 1 of 1 pipelines with an area, 1.450 to 1.450 times"
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
    assert text.startswith("Points of other policies dominate 1 of the agent's 4 points ")
    own = "* video at 0.1 (4.50 cores, QoS 3.500, 0.0 dropped requests per cycle): "
    other = "(3.00 cores, QoS 4.000, 0.0 dropped requests per cycle)"
    assert items == [f"{own}ipa at 0.2 {other}", f"{own}myopic at 0.1 {other}"]
    assert dominations(POINTS) == "Points of other policies dominate none of the agent's 2 points (means of the seeds)."


def test_prices_at_which_requests_are_dropped():
    assert drops(LOSING).splitlines() == [
        "* ipa: video only at 0.1 (6.0); none at any price on ocr",
        "* myopic: video from 0.2 up (1,500.0); none at any price on ocr",
        "* agent: video from 0.2 up (0.2); none at any price on ocr",
    ]
    more = LOSING.assign(dropped=LOSING["cost_weight"] * 100.0)
    assert drops(more).splitlines()[2] == "* agent: video from 0.1 up (10.0 to 20.0); ocr from 0.1 up (10.0 to 20.0)"


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
        ["myopic: 1 below, down to QoS 1", "agent: 1 below, down to QoS 2"]
    ]
    colour = policy_style("agent").colour
    (steps,) = [line for line in axes.lines if line.get_drawstyle() == "steps-post" and line.get_color() == colour]
    assert steps.get_xydata().tolist() == [[2.0, 2.0], [4.0, 5.5]]


# --- frontier --------------------------------------------------------------------------------------------------------

PRICES, SEEDS = (0.15, 2.0), (0, 1)


@pytest.fixture(scope="module")
def setting() -> Setting:
    return setting_on(waves(), {})


@pytest.fixture(scope="module")
def points(setting) -> pd.DataFrame:
    """The points that all policies reach."""
    return measure_frontier([ocr_pipeline()], [CYCLE], setting, PRICES, SEEDS)


def test_a_point_is_the_mean_of_the_cycles_of_the_evaluation(setting, points):
    assert list(points.columns) == ["pipeline", "policy", "cost_weight", "seed", "cost", "qos", "dropped"]
    assert len(points) == 3 * len(PRICES) * len(SEEDS)
    table = points.set_index(["policy", "cost_weight", "seed"]).sort_index()
    pipeline = ocr_pipeline()
    own = priced_setting(setting, 2.0)
    assert own.ipa == IpaParameters(10.0, 2.0, 0.02) and own.objective == Weights(cost_weight=2.0)
    for policy in ("ipa", "myopic", "agent"):
        steps = run_cycle(pipeline, own.policy(policy, pipeline, 1), CYCLE, 1, own)
        expected = [np.mean([getattr(step.score, name)[0] for step in steps]) for name in ("cost", "qos")]
        assert table.loc[(policy, 2.0, 1), ["cost", "qos"]].tolist() == pytest.approx(expected)
        assert (table.loc[(policy, 2.0), "cost"] < table.loc[(policy, 0.15), "cost"]).all()


def test_the_frontier_is_drawn(points):
    areas = hypervolumes(points, {"ocr": ocr_pipeline().capacity})
    assert list(areas["policy"]) == [*frontier.POLICIES, *frontier.POLICIES]
    figure = plot_frontier(points, areas, "waves trace")
    assert "0.15, 2" in figure.get_suptitle()
