"""What the figures show: values, labels and how a policy looks; the results shown are written by hand here."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from opd.control import BASELINES
from opd.objective import Weights
from opd.pipeline import ServiceLevel
from opd.study.evaluation.cycles import LOADS
from opd.study.evaluation.training import plot_training
from opd.study.plots import evaluation as plots
from opd.study.plots.style import PALETTE, ordered, policy_style, save_figure, variant_colours

LEVEL = ServiceLevel(0.5, 95.0)
LABEL = "synthetic trace (generated), damping 8"
POLICIES = ("random", "greedy", "ipa", "myopic", "agent")


def evaluation(seeds: int = 1) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"pipeline": pipeline, "cycle": cycle, "policy": policy, "seed": seed}
            | {"cost": 1.0 + p + c + seed, "qos": 10.0 + p, "reward": 8.0 + p - c, "within": 0.9 + p / 50}
            for pipeline in ("ocr", "other")
            for c, cycle in enumerate(LOADS)
            for p, policy in enumerate(POLICIES)
            for seed in range(seeds)
        ]
    )


def timelines() -> pd.DataFrame:
    times = pd.DataFrame({"time": [0.0, 10.0, 20.0]})
    rows = evaluation()[["pipeline", "cycle", "policy", "seed"]].merge(times, "cross")
    return rows.assign(load=5.0, predicted_load=7.0, cost=2.0 + rows["time"] / 10.0, qos=9.0, within=0.98)


def texts(figure: Figure) -> str:
    found = figure.findobj(lambda artist: hasattr(artist, "get_text"))
    return "\n".join(artist.get_text() for artist in found)


def check_written(path: Path) -> None:
    with Image.open(path) as image:
        assert image.width > 400 and len(image.convert("L").getcolors()) > 2


@pytest.fixture(autouse=True)
def closes_figures():
    yield
    assert plt.get_fignums() == []


def test_policies_have_different_styles():
    styles = [policy_style(policy) for policy in (*BASELINES, "agent", "agent-frugal")]
    for looks in zip(*styles, strict=True):
        assert len(set(looks)) == len(styles)


def test_at_most_five_policies_have_strong_colours():
    known = [policy_style(policy).colour for policy in (*BASELINES, "agent", "agent-frugal")]
    assert sum(colour in PALETTE for colour in known) == 5


@given(st.text(min_size=1), st.integers(1, 12))
def test_neither_variants_nor_policies_of_users_have_the_colour_of_a_policy(name: str, variants: int):
    known = {policy_style(policy).colour for policy in (*BASELINES, "agent", "agent-frugal")} | set(PALETTE)
    colours = variant_colours(variants)
    assert len(set(colours)) == variants and not known & set(colours)
    if policy_style(name).label == name and name not in (*BASELINES, "agent", "agent-frugal"):
        assert policy_style(name).colour not in known


@given(st.text(min_size=1))
def test_any_policy_has_a_style_of_its_name(name: str):
    assert policy_style(name) == policy_style(name)
    if name not in (*BASELINES, "agent", "agent-frugal", "ipa-highs", "dynamic-program"):
        assert policy_style(name).label == name


@given(st.lists(st.sampled_from([*POLICIES, "agent-frugal", "mine", "another"])))
def test_order_does_not_depend_on_the_input(policies: list[str]):
    assert ordered(policies) == ordered(sorted(policies))
    assert sorted(ordered(policies)) == sorted(set(policies))


def test_order_ends_with_the_agents():
    names = ["mine", "agent-frugal", "agent", "another", "greedy", "random"]
    assert ordered(names) == ["random", "greedy", "agent", "agent-frugal", "another", "mine"]


def test_save_makes_the_folder(tmp_path: Path):
    figure, axes = plt.subplots()
    axes.plot([1, 2], [3, 4])
    assert save_figure(figure, tmp_path / "new" / "figure.png") is figure
    check_written(tmp_path / "new" / "figure.png")


def test_a_figure_is_saved_as_the_same_vectors_every_time(tmp_path: Path):
    def saved(folder: str) -> bytes:
        figure, axes = plt.subplots()
        axes.plot([1, 2], [3, 4], label="line", marker="o")
        axes.legend()
        save_figure(figure, tmp_path / folder / "figure.png")
        return (tmp_path / folder / "figure.svg").read_bytes()

    assert b"<svg" in saved("one") and saved("one") == saved("two")


def test_loads_show_mean_values_and_their_spread(tmp_path: Path):
    figure = plots.plot_loads(evaluation(seeds=2), "ocr", LABEL, tmp_path / "loads.png", Weights())
    check_written(tmp_path / "loads.png")
    cost = figure.axes[0]
    # steady-low: random, greedy, ipa, agent; the mean of seeds 0 and 1; no yardsticks of ours
    assert [bar.get_height() for bar in cost.patches] == [1.5, 2.5, 3.5, 5.5]
    assert "5.50" in texts(figure) and LABEL in texts(figure) and "CPU cores" in cost.get_ylabel()
    whisker = cost.collections[0].get_segments()[0]
    assert whisker[:, 1].tolist() == [1.0, 2.0]


def test_loads_of_one_seed_have_no_whiskers(tmp_path: Path):
    figure = plots.plot_loads(evaluation(), "ocr", LABEL, tmp_path / "loads.png", Weights())
    assert all(not axes.collections for axes in figure.axes)


def test_timelines_show_every_policy_in_every_load(tmp_path: Path):
    extra = "agent", "not-there"
    figure = plots.plot_timelines(timelines(), "ocr", LABEL, tmp_path / "timelines.png", Weights(), extra)
    check_written(tmp_path / "timelines.png")
    assert len(figure.axes) == 9
    assert [axes.get_title() for axes in figure.axes[:3]] == list(LOADS)
    cost = figure.axes[3]
    assert [line.get_label() for line in cost.lines] == ["greedy", "IPA", "agent"]
    assert all(line.get_ydata().tolist() == [2.0, 3.0, 4.0] for line in cost.lines)
    assert figure.axes[0].get_ylim()[1] > 7.0


def test_without_an_agent_the_references_are_shown(tmp_path: Path):
    rest = timelines().query("policy != 'agent'")
    figure = plots.plot_timelines(rest, "ocr", LABEL, tmp_path / "timelines.png", Weights(), ("agent", "not-there"))
    assert [line.get_label() for line in figure.axes[3].lines] == ["greedy", "IPA", policy_style("myopic").label]
    figure = plots.plot_loads(evaluation().query("policy != 'agent'"), "ocr", LABEL, tmp_path / "loads.png", Weights())
    assert [bar.get_height() for bar in figure.axes[0].patches] == [1.0, 2.0, 3.0, 4.0]


def test_timelines_of_a_single_cycle(tmp_path: Path):
    one = timelines().query("cycle == 'fluctuating'").assign(cycle="from-1200")
    figure = plots.plot_timelines(one, "other", LABEL, tmp_path / "one.png", Weights())
    assert [axes.get_title() for axes in figure.axes] == ["from-1200", "", ""]


def test_plane_places_policies_and_names_random(tmp_path: Path):
    figure = plots.plot_plane(evaluation(), LABEL, tmp_path / "plane.png", Weights())
    check_written(tmp_path / "plane.png")
    assert [axes.get_title() for axes in figure.axes] == ["ocr", "other"]
    places = {points.get_label(): points.get_offsets().tolist() for points in figure.axes[0].collections}
    assert [note.get_text() for note in figure.axes[0].texts] == ["agent", "greedy", "IPA", "myopic"]
    assert places == {
        "greedy": [[3.0, 11.0]],
        "IPA": [[4.0, 12.0]],
        "myopic (exact)": [[5.0, 13.0]],
        "agent": [[6.0, 14.0]],
    }
    assert "random, not shown: 2.0 cores, QoS 10.0" in texts(figure)


def test_policies_that_coincide_are_all_visible(tmp_path: Path):
    same = evaluation().query("policy != 'random'").assign(cost=2.0, qos=9.0)
    plots.plot_plane(same, LABEL, tmp_path / "plane.png", Weights())
    with Image.open(tmp_path / "plane.png") as image:
        shown = {f"#{r:02x}{g:02x}{b:02x}" for _, (r, g, b) in image.convert("RGB").getcolors(1 << 24)}
    assert {policy_style(policy).colour for policy in POLICIES[1:]} <= shown


def test_timelines_that_coincide_are_all_visible(tmp_path: Path):
    plots.plot_timelines(timelines(), "ocr", LABEL, tmp_path / "timelines.png", Weights())
    with Image.open(tmp_path / "timelines.png") as image:
        steps = image.convert("RGB").crop((0, image.height // 4, image.width, int(0.94 * image.height)))  # no legend
    shown = {f"#{r:02x}{g:02x}{b:02x}" for _, (r, g, b) in steps.getcolors(1 << 24)}
    assert {policy_style(policy).colour for policy in ("greedy", "ipa", "agent")} <= shown


def test_equal_costs_have_plain_numbers_on_their_axis(tmp_path: Path):
    rows = timelines().assign(cost=2.0 + 1e-12)
    figure = plots.plot_timelines(rows, "ocr", LABEL, tmp_path / "timelines.png", Weights())
    figure.draw_without_rendering()
    cost = figure.axes[3]
    assert cost.yaxis.get_offset_text().get_text() == ""
    assert cost.get_ylim() == pytest.approx((1.98, 2.02))


def test_differences_pair_the_same_cycles_and_seeds(tmp_path: Path):
    rows = evaluation(seeds=2).sample(frac=1.0, random_state=0).sort_values("pipeline", kind="stable")
    figure = plots.plot_differences(rows, LABEL, tmp_path / "differences.png", Weights())
    check_written(tmp_path / "differences.png")
    points, mean = figure.axes[0].collections[:2]
    assert points.get_offsets()[:, 0].tolist() == [1.0] * 6
    assert mean.get_offsets()[0, 0] == 1.0


def test_under_a_service_level_figures_show_the_share_in_time_beside_the_goal(tmp_path: Path):
    path = tmp_path / "figure.png"
    figure = plots.plot_timelines(timelines(), "ocr", LABEL, path, LEVEL)
    service = figure.axes[6]
    assert service.get_ylabel() == "share within 500 ms (%)\nobjective: 95 %"
    shares = {line.get_label(): line.get_ydata() for line in service.lines}
    assert list(shares.pop("objective")) == [95.0, 95.0]
    assert "objective" in [label.get_text() for label in figure.legends[0].texts]
    assert all(share == pytest.approx([98.0] * 3) for share in shares.values())
    low, high = service.get_ylim()
    assert low < 95.0 < 98.0 < high
    shown = texts(figure)

    figure = plots.plot_loads(evaluation(), "ocr", LABEL, path, LEVEL)
    assert [bar.get_height() for bar in figure.axes[3].patches] == pytest.approx([90.0, 92.0, 94.0, 98.0])
    shown += texts(figure)
    figure = plots.plot_plane(evaluation(), LABEL, path, LEVEL)
    places = {points.get_label(): points.get_offsets().tolist()[0] for points in figure.axes[0].collections}
    assert places["IPA"] == pytest.approx([4.0, 94.0])
    assert "random, not shown: 2.0 cores, 90.0 % within" in texts(figure)
    shown += texts(figure)
    figure = plots.plot_differences(evaluation(), LABEL, path, LEVEL)
    assert "mean reward (cores) per decision" in figure.axes[0].get_xlabel()
    assert "QoS" not in shown + texts(figure) and "Eq. 3" not in shown and "within the objective" in shown


def test_decision_time_is_logarithmic_from_median_to_p99(tmp_path: Path):
    times = pd.DataFrame(
        [
            (2, 5, "agent", 0.5, 1.0),
            (2, 5, "ipa-highs", 2.0, 3.0),
            (4, 6, "agent", 0.5, 1.5),
            (4, 6, "ipa-highs", 8.0, 9.0),
        ],
        columns=["stages", "variants", "policy", "median_ms", "p99_ms"],
    )
    figure = plots.plot_decision_time(times, tmp_path / "time.png")
    check_written(tmp_path / "time.png")
    (axes,) = figure.axes
    assert axes.get_yscale() == "log" and "ms" in axes.get_ylabel()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2×5", "4×6"]
    highs, agent = axes.containers
    assert highs.get_label() == "IPA (HiGHS)" and agent.get_label() == "agent"
    assert agent.lines[0].get_ydata().tolist() == [0.5, 0.5]
    assert np.allclose([segment[:, 1] for segment in agent.lines[2][0].get_segments()], [[0.5, 1.0], [0.5, 1.5]])


def test_training_shows_curves_beside_the_references(tmp_path: Path):
    update = np.arange(1, 7)
    curves = pd.concat(
        pd.DataFrame(
            {
                "policy": policy,
                "seed": seed,
                "update": update,
                "train/loss": 10.0 / update,
                "train/value_loss": 5.0 / update,
                "rollout/reward": 1.0 * update,
                "validation/reward": np.where(update % 2 == 0, 8.0 + update, np.nan),
                "validation/dropped": np.where(update % 2 == 0, 0.0, np.nan),
                "validation/selection": np.where(update % 2 == 0, -abs(update - 4.0), np.nan),
            }
        )
        for policy in ("agent", "mine")
        for seed in (0, 1)
    )
    references = {
        policy: {"myopic": {"reward": 9.5, "dropped": 1.0}, "ipa": {"reward": 9.0, "dropped": 2.0}}
        for policy in ("agent", "mine")
    }
    figure = plot_training(curves, references, f"Training: {LABEL}", tmp_path / "training.png")
    check_written(tmp_path / "training.png")
    assert len(figure.axes) == 10 and LABEL in texts(figure)
    loss, _, _, reward, dropped = figure.axes[:5]
    assert [len(line.get_xdata()) for line in loss.lines] == [6, 6]
    assert reward.lines[0].get_xdata().tolist() == [2, 4, 6]
    assert (reward.lines[1].get_xdata().tolist(), reward.lines[1].get_ydata().tolist()) == ([4], [12.0])  # the ring
    levels = {line.get_label(): line.get_ydata()[0] for line in reward.lines if line.get_linestyle() == "--"}
    assert levels == {"myopic (exact)": 9.5, "IPA": 9.0}
    assert [line.get_ydata()[0] for line in dropped.lines if line.get_linestyle() == "--"] == [1.0, 2.0]
