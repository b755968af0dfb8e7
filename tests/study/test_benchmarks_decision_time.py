"""Decision times: the solvers find the same optimum, and the figures that are compared follow from what was timed."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from small_pipelines import every_configuration, ocr_pipeline

from opd.control import AGENT, LOOKAHEAD, SINGLE_AGENT
from opd.pipeline import used_cores
from opd.profiling.synthetic import synthetic_pipeline
from opd.solvers import IpaParameters, ipa_dynamic_program, ipa_highs, ipa_objective
from opd.study.benchmarks import DisagreementError, decision_time, peer_gurobi
from opd.study.benchmarks.budgets import DecisionBudget
from opd.study.benchmarks.criteria import decision_criteria
from opd.study.benchmarks.decision_time import GUROBI, growth
from opd.study.benchmarks.peer_gurobi import GurobiUnavailable, ipa_gurobi
from opd.study.benchmarks.plots import plot_decision_times
from opd.study.evaluation.decision_time import Decided
from opd.workload.forecast import RecentMaximum

SIZES = ((2, 5), (3, 6))
DECISIONS = 6
ONE_SIZE = DecisionBudget(sizes=((2, 3),), decisions=2, repetitions=1)


def measure(budget: DecisionBudget, counts: np.ndarray) -> pd.DataFrame:
    return decision_time.compare_decision_times(RecentMaximum(), budget, counts)  # type: ignore[arg-type]


@pytest.fixture
def gurobi():
    """Skips without the package or a licence that still holds."""
    try:
        peer_gurobi._environment()
    except GurobiUnavailable as error:
        pytest.skip(str(error))


def keeps_limits(pipeline, configuration, load):
    """IPA's limits, for a configuration of the enumeration: throughput of every stage, and the latency target."""
    latency = 0.0
    for variant, stage in pipeline.selected(configuration):
        if stage.replicas * variant.throughput(stage.batch_size) < load:
            return False
        latency += variant.service_time(stage.batch_size) + (stage.batch_size - 1) / load
    return latency <= pipeline.service_level.seconds


@pytest.mark.parametrize("load", [1.0, 6.0, 11.0])
def test_gurobi_finds_the_best_of_all_configurations(gurobi, load):
    pipeline, parameters = ocr_pipeline(), IpaParameters()
    allowed = [choice for choice in every_configuration(pipeline) if keeps_limits(pipeline, choice, load)]
    best = max(ipa_objective(pipeline, choice, parameters) for choice in allowed)
    found = ipa_gurobi(pipeline, load, parameters)
    assert found in allowed
    assert ipa_objective(pipeline, found, parameters) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize(("stages", "variants"), [(2, 5), (4, 6), (10, 10)])
@pytest.mark.parametrize("load", [0.0, 12.0, 300.0])
def test_gurobi_highs_and_the_dynamic_programme_agree(gurobi, stages, variants, load):
    """Without load, where batches never fill; with one; and with more than the device can carry."""
    pipeline, parameters = synthetic_pipeline(stages, variants, 1), IpaParameters()
    solved = [solve(pipeline, load, parameters) for solve in (ipa_gurobi, ipa_highs, ipa_dynamic_program)]
    objectives = [ipa_objective(pipeline, configuration, parameters) for configuration in solved]
    assert np.ptp(objectives) <= decision_time.TOLERANCE
    assert all(used_cores(pipeline, configuration) <= pipeline.capacity for configuration in solved)


def test_gurobi_says_when_its_licence_does_not_reach(gurobi):
    with pytest.raises(GurobiUnavailable, match="2400 variables and 32 constraints.*2000 of each"):
        ipa_gurobi(synthetic_pipeline(30, 20, 0), 12.0, IpaParameters())


@pytest.fixture(scope="module")
def times() -> pd.DataFrame:
    counts = np.random.default_rng(0).poisson(12, 120 + 10 * DECISIONS)
    return measure(DecisionBudget(SIZES, DECISIONS, repetitions=2), counts)


def test_every_size_has_the_agent_and_every_solver(times):
    policies = {AGENT, SINGLE_AGENT, LOOKAHEAD, "ipa-highs", "dynamic-program", GUROBI, "myopic"}
    for size in SIZES:
        rows = times[(times["stages"] == size[0]) & (times["variants"] == size[1])]
        assert set(rows["policy"]) == policies
        assert len(rows) == len(policies)


def test_the_solvers_that_are_compared_found_the_same_optimum(times):
    others = times["policy"].isin([AGENT, SINGLE_AGENT, LOOKAHEAD, "myopic"])  # solve no problem of IPA's
    assert (times.loc[~others & (times["skipped"] == ""), "largest_gap"] <= decision_time.TOLERANCE).all()
    assert times.loc[others, "largest_gap"].isna().all()


def test_ratios_are_to_the_agent_of_the_same_size(times):
    measured = times[times["skipped"] == ""]
    for _, rows in measured.groupby(["stages", "variants"]):
        agent = rows[rows["policy"] == AGENT].iloc[0]
        for figure in ("median", "p99", "total", "decision"):
            np.testing.assert_allclose(rows[f"{figure}_ratio"], rows[f"{figure}_ms"] / agent[f"{figure}_ms"])
            assert (rows[f"{figure}_ratio"] > 0).all()
    assert (measured["p99_ms"] >= measured["median_ms"]).all()
    assert (measured["median_ms"] > measured["decision_ms"]).all()
    assert (measured["forecast_ms"] > 0).all()


def test_without_gurobi_the_others_are_measured(monkeypatch):
    def unavailable(*_, **__):
        raise GurobiUnavailable("no licence today")

    monkeypatch.setattr(decision_time, "ipa_gurobi", unavailable)
    table = measure(ONE_SIZE, np.full(150, 5))
    row = table[table["policy"] == GUROBI].iloc[0]
    assert row["skipped"] == "no licence today" and np.isnan(row["median_ms"])
    assert (table.loc[table["policy"] != GUROBI, "skipped"] == "").all()
    figure = plot_decision_times(table)
    assert "IPA (Gurobi)" not in [text.get_text() for text in figure.legends[0].get_texts()]
    plt.close(figure)


def test_a_licence_that_reaches_for_some_loads_only_leaves_a_row_that_says_so(monkeypatch):
    solved = []

    def too_large_at_last(*problem, **parameters):
        if len(solved) == 2:
            raise GurobiUnavailable("too large")
        solved.append(ipa_dynamic_program(*problem, **parameters))
        return solved[-1]

    monkeypatch.setattr(decision_time, "ipa_gurobi", too_large_at_last)
    table = measure(ONE_SIZE, np.full(150, 5))
    assert table.set_index("policy")["skipped"].to_dict()[GUROBI] == "too large"


def test_solvers_that_differ_are_an_error():
    pipeline, parameters = ocr_pipeline(), IpaParameters()
    best = ipa_dynamic_program(pipeline, 3.0, parameters)
    worse = pipeline.smallest_configuration()
    nothing = np.zeros(1)
    one, two = (Decided(nothing, nothing, np.array([3.0]), [choice]) for choice in (worse, best))
    with pytest.raises(DisagreementError, match="other and ipa-highs disagree on pipeline 'ocr' at 3 requests/s"):
        decision_time._largest_gap(pipeline, parameters, one, two, "other")


def test_too_few_counts_are_refused():
    with pytest.raises(ValueError, match="100 s of counts are too few for 2 decisions"):
        measure(ONE_SIZE, np.ones(100, dtype=int))


def written_by_hand() -> pd.DataFrame:
    """Linear growth for one, quadratic for another, which is faster than the agent at first."""
    rows = []
    for stages, variants in ((2, 5), (4, 5), (10, 10)):
        size = stages * variants
        for policy, milliseconds in ((AGENT, 0.1 * size), ("dynamic-program", 0.005 * size**2)):
            figures = dict.fromkeys(("decision_ms", "median_ms", "p99_ms", "total_ms"), milliseconds)
            ratios = {f"{name}_ratio": milliseconds / (0.1 * size) for name in ("decision", "median", "p99", "total")}
            rows.append(
                {"stages": stages, "variants": variants, "policy": policy, "skipped": "", "forecast_ms": 0.03}
                | figures
                | ratios
            )
    return pd.DataFrame(rows)


def test_growth_by_hand():
    """Of the mean, which the median does not follow where decisions have two modes."""
    times = written_by_hand()
    times["total_ms"] = DECISIONS * (times["decision_ms"] + times["forecast_ms"])
    times["decision_ms"] = 7.0
    table = growth(times, DECISIONS).set_index("policy")
    assert table["exponent"].to_dict() == pytest.approx({AGENT: 1.0, "dynamic-program": 2.0})
    smallest_and_largest = table.loc["dynamic-program", ["smallest_mean_ms", "largest_mean_ms"]]
    assert smallest_and_largest.tolist() == pytest.approx([0.5, 50.0])


def test_the_bar_is_met_where_the_agent_is_faster_at_every_size():
    times = written_by_hand()
    (bar,) = decision_criteria(times).to_dict("records")
    assert "dynamic-program" in bar["bar"] and bar["measured"] == pytest.approx(0.5) and not bar["met"]
    larger = times[times["stages"] > 2].copy()
    assert decision_criteria(larger)["measured"].item() == pytest.approx(1.0)
    assert not decision_criteria(larger)["met"].item(), "as fast is not faster"
    larger.loc[larger["policy"] != AGENT, ["decision_ratio", "median_ratio"]] = [[3.0, 1.5], [2.0, 4.0]]
    assert decision_criteria(larger)[["measured", "met"]].to_numpy().tolist() == [[1.5, True]]


def test_the_bar_of_a_solver_without_figures_is_not_met():
    times = pd.concat([written_by_hand(), pd.DataFrame({"policy": [GUROBI], "skipped": ["no licence"]})])
    bar = decision_criteria(times).iloc[-1]
    assert GUROBI in bar["bar"] and np.isnan(bar["measured"]) and not bar["met"]


def test_the_figure_shows_times_and_ratios():
    figure = plot_decision_times(written_by_hand())
    together, alone, ratio = figure.axes
    assert [axes.get_yscale() for axes in figure.axes] == ["log"] * 3
    assert together.get_ylabel() == alone.get_ylabel() == "milliseconds"
    assert [text.get_text() for text in ratio.get_xticklabels()] == ["2×5", "4×5", "10×10"]
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"agent", "IPA (exact dynamic program)", "the forecast alone"} <= labels
    plt.close(figure)
