"""Tables, paragraphs and the figure of the ablations."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from opd.study.analysis.ablation_findings import (
    ENVIRONMENTS,
    PARTS,
    ablation_findings,
    ablation_verdict,
    forecast_paragraph,
    listed,
    part_paragraph,
    plot_ablations,
    startup_gains,
    startup_paragraph,
    summarise_ablations,
)
from opd.study.analysis.ablations import (
    ABLATIONS,
    COLUMNS,
    VARIANTS,
)
from opd.study.analysis.estimates import signed, with_interval
from opd.study.report.files import write_page

# --- tables ----------------------------------------------------------------------------------------------------------


def known_rows(**above_agent: float) -> pd.DataFrame:
    """Two pipelines, three seeds, four cycles; the reward of each variant is the agent's and so much more."""
    rows = []
    for pipeline in ("video", "nlp"):
        for variant in VARIANTS:
            for seed in range(3):
                for cycle in range(4):
                    reward = 10.0 + seed + 3.0 * cycle + above_agent.get(variant.replace("-", "_"), 0.0)
                    refused = 6 if variant == "independent-heads" else 0
                    figures = [reward, 12.0, 5.0 + (variant == "no-expert"), 2.0, refused]
                    rows.append([pipeline, variant, seed, f"cycle-{cycle}", *figures])
    return pd.DataFrame(rows, columns=COLUMNS)


KNOWN = known_rows(
    **{"myopic": -0.25, "no_startup": 1.0, "myopic_no_startup": 0.875, "plain_features": -0.5, "perfect_forecast": 0.25}
)


def test_the_summary_of_known_rows():
    summary = summarise_ablations(KNOWN).set_index(["pipeline", "variant"])
    assert list(summary.index) == [(pipeline, variant) for pipeline in ("video", "nlp") for variant in VARIANTS]
    agent, plain, instant = (summary.loc[("video", name)] for name in ("agent", "plain-features", "no-startup"))
    assert agent["reward"] == pytest.approx(15.5)
    # Seeds and cycles differ, but every pair by the same: nothing is uncertain.
    ends = ["", "_low", "_high"]
    assert [plain[f"difference{end}"] for end in ends] == pytest.approx([-0.5] * 3)
    assert [plain[f"over_myopic{end}"] for end in ends] == pytest.approx([-0.25] * 3)
    assert [agent[f"over_myopic{end}"] for end in ends] == pytest.approx([0.25] * 3)
    # Of another environment: compared with its own agent and its own solver.
    assert [instant["difference"], instant["over_myopic"]] == pytest.approx([0.0, 0.125])
    assert summary.loc[("nlp", "myopic-no-startup"), "difference"] == pytest.approx(-0.125)
    assert summary.loc[("nlp", "perfect-forecast"), "over_myopic"] == pytest.approx(0.25)
    assert summary.loc[("nlp", "independent-heads"), "refused"] == 6.0
    gains = startup_gains(KNOWN)
    assert list(gains["pipeline"]) == ["video", "nlp"]
    assert gains[["gain", "gain_low", "gain_high"]].to_numpy() == pytest.approx(0.125)


def test_intervals_widen_with_what_differs_from_pair_to_pair():
    noisy = KNOWN.copy()
    noisy["reward"] += np.random.default_rng(0).normal(0.0, 0.1, len(noisy))
    row = summarise_ablations(noisy).set_index(["pipeline", "variant"]).loc[("video", "plain-features")]
    assert row["difference_low"] < row["difference"] < row["difference_high"]
    assert -0.7 < row["difference_low"] < -0.5 < row["difference_high"] < -0.3


def test_sentences_say_what_the_table_does():
    summary = summarise_ablations(KNOWN)
    plain = part_paragraph(summary, "features")
    assert plain.startswith("**Features without shortcuts**: worse on video and nlp. The reward changes by ")
    assert "changes by −0.500 [−0.500, −0.500] (video)" in plain
    assert "per cycle by 0.00 and 0.0 (video)" in plain
    assert "no measurable effect on video and nlp" in part_paragraph(summary, "queues")
    assert "better on video and nlp" in part_paragraph(summary, "forecast")
    assert "by +1.00 and 0.0 (video)" in part_paragraph(summary, "expert")
    assert "Refused decisions per cycle: 6.0 (video) and 6.0 (nlp)." in part_paragraph(summary, "heads")
    assert "+0.250 [+0.250, +0.250] (nlp) with the study's forecaster" in forecast_paragraph(summary)
    startup = startup_paragraph(summary, startup_gains(KNOWN))
    assert "+0.250 [+0.250, +0.250] (nlp) with start-up delays" in startup
    assert "+0.125 [+0.125, +0.125] (nlp) without. Delays increase the difference by +0.125" in startup


def test_the_page_has_a_paragraph_for_every_part(tmp_path):
    summary = summarise_ablations(KNOWN)
    found = ablation_findings(summary, startup_gains(KNOWN))
    assert len(found) == len({ablation.part for ablation in ABLATIONS.values()}) - 1  # all but the full agent
    write_page(tmp_path / "page.md", "Parts", "Made up.", found)
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page.startswith("# Parts\n\nMade up.\n\n## Does the agent need the expert?\n\n**Expert acts")
    assert page.count("\n## ") == len(found) and page.endswith(".\n")


def test_figures_in_sentences():
    assert [signed(value) for value in (0.0614, -0.2, -0.0001)] == ["+0.061", "−0.200", "0.000"]
    just_below = {"difference": -0.018, "difference_low": -0.049342, "difference_high": -0.000235}
    assert (ablation_verdict(just_below), with_interval(just_below, "difference")) == (
        "worse",
        "−0.018 [−0.049, −0.0002]",
    )
    assert with_interval({"gain": 0.0, "gain_low": 0.0, "gain_high": 0.0004}, "gain") == "0.000 [0.000, +0.0004]"
    assert [listed(texts) for texts in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    ends = [(-0.2, -0.1), (0.1, 0.2), (-0.1, 0.1)]
    assert [ablation_verdict({"difference_low": low, "difference_high": high}) for low, high in ends] == [
        *("worse", "better", "no measurable effect")
    ]


@pytest.mark.parametrize(("worst", "scale"), [(-0.5, "linear"), (-40.0, "symlog")])
def test_the_figure_shows_every_variant_and_every_environment(worst, scale):
    noisy = known_rows(independent_heads=worst, myopic=-0.25, no_expert=-0.4, plain_features=-0.3, no_queues=-0.2)
    noisy["reward"] += np.random.default_rng(0).normal(0.0, 0.3, len(noisy))
    figure = plot_ablations(summarise_ablations(noisy), "small trace")
    upper, lower = figure.axes[0], figure.axes[2]
    assert [axes.get_title() for axes in figure.axes[:2]] == ["video", "nlp"]
    labels = [text.get_text() for text in upper.get_yticklabels()]
    ablated = [ablation.label for ablation in ABLATIONS.values() if ablation.part in PARTS]
    assert labels == [*ablated, "myopic (exact)", "clairvoyant (knows the load)"]
    assert len(ablated) == len(ABLATIONS) - 2  # all but the full agent and the one without delays
    assert [text.get_text() for text in lower.get_yticklabels()] == list(ENVIRONMENTS.values())
    assert (upper.get_xscale(), "logarithmic" in upper.get_xlabel()) == (scale, scale == "symlog")
    low, high = upper.get_xlim()
    assert low < worst and high > 0.0
