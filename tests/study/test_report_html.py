"""The page of an evaluation in HTML, and its findings; the results are written by hand here."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from opd.study.report.files import write_json
from opd.study.report.findings import evaluation_findings, forecast_finding, training_findings
from opd.study.report.html import write_html_report
from opd.study.report.results import ReportError

ABOUT = {
    "trace": "trace of my shop",
    "pipelines": {"shop": {"stages": 2, "variants": [2, 3], "capacity": 8}},
    "service_level": {"seconds": 0.5, "percentile": 95.0, "accuracy_floor": 0.8, "accuracy_weight": 0.0},
    "cycles": {"morning": 0, "evening": 7200},
    "hardware": {"processor": "two <slow> cores", "python": "3.11", "onnxruntime": None},
}
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def evaluation(**policies: dict[str, float]) -> pd.DataFrame:
    """Two cycles of one pipeline; the second has 1 less reward."""
    usual = {"reward": 5.0, "qos": 9.0, "cost": 4.0, "within": 0.99, "latency_mean": 0.2, "latency_p99": 0.4}
    usual |= {"dropped": 0, "refused": 0, "decision_ms_mean": 1.0}
    return pd.DataFrame(
        [
            usual | figures | {"pipeline": "shop", "cycle": cycle, "policy": name.replace("_", "-"), "seed": 0}
            | {"reward": figures.get("reward", 5.0) - number}
            for name, figures in policies.items()
            for number, cycle in enumerate(ABOUT["cycles"])
        ]
    )  # fmt: skip


def test_policies_of_equal_reward_are_called_equal():
    rows = evaluation(ipa={}, greedy={}, random={"reward": 1.0})
    texts = [finding.text for finding in evaluation_findings(rows, ABOUT)]
    assert texts[-1] == "Best by mean reward: ipa with 4.500 cores at 4.00 cores; equal to greedy."


class Page(HTMLParser):
    """The texts of a page by the element that they stand in; every element must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.links: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attributes if name in ("src", "href") and value]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data.strip())


def texts(rows: pd.DataFrame, **about: object) -> list[str]:
    return [finding.text for finding in evaluation_findings(rows, ABOUT | about)]


def test_the_best_policy_is_named_with_its_lead():
    rows = evaluation(greedy={"reward": 4.0}, agent={"reward": 5.5, "cost": 3.0}, clairvoyant={"reward": 9.0})
    best = "Best by mean reward: agent with 5.000 cores at 3.00 cores, 1.500 above greedy and better in 2 of 2 runs."
    assert texts(rows)[-1] == best


def test_what_went_wrong_comes_first():
    rows = evaluation(mine={"dropped": 3, "refused": 120}, greedy={"dropped": 1}, random={"dropped": 500})
    assert texts(rows)[:2] == ["Requests dropped: mine 6, greedy 2.", "Decisions refused: mine 240."]
    assert [finding.trouble for finding in evaluation_findings(rows, ABOUT)] == [True, True, False, False]


def test_assumed_profiles_are_named_before_what_is_found_with_them():
    shop = ABOUT["pipelines"]["shop"] | {"assumed": ["detect/large", "read/small"]}
    found = texts(evaluation(greedy={}), pipelines={"shop": shop})
    assert found[0] == "Profiles that are assumed, not measured: detect/large, read/small."
    assert texts(evaluation(greedy={}), pipelines={"shop": shop | {"assumed": []}}) == found[1:]


def test_policies_that_reach_the_service_level_are_named_from_the_cheapest():
    rows = evaluation(ipa={"cost": 6.0}, greedy={"cost": 2.0, "within": 0.90}, agent={"cost": 3.0, "within": 0.95})
    assert texts(rows)[0] == (
        "95 % of the requests within 500 ms are reached by agent (95.00%, 3.00 cores), ipa (99.00%, 6.00 cores)."
    )


def test_a_service_level_that_nothing_reaches_is_trouble():
    rows = evaluation(greedy={"within": 0.5}, agent={"within": 0.9})
    first = evaluation_findings(rows, ABOUT)[0]
    assert first.trouble
    assert first.text == "No policy reaches 95 % of the requests within 500 ms; nearest is agent with 90.00%."


def test_results_without_the_newer_columns_are_as_good():
    rows = evaluation(greedy={}, agent={"reward": 6.0}).drop(columns=["within", "refused"])
    assert texts(rows, service_level=None)[0].startswith("Best by mean reward: agent")


def test_several_pipelines_are_told_apart():
    rows = evaluation(greedy={})
    both = pd.concat([rows, rows.assign(pipeline="other")])
    assert [text.split(":")[0] for text in texts(both, service_level=None)] == ["shop", "other"]


def test_the_network_is_compared_with_the_best_and_with_the_safest_simpler_forecast():
    errors = pd.DataFrame(
        [(8, "lstm", 6.84, 0.25), (8, "ridge", 7.3, 0.24), (8, "max_120", 14.3, 0.07), (1, "ridge", 1.0, 0.0)],
        columns=["damping", "model", "smape", "under_prediction_rate"],
    )
    assert forecast_finding(errors, 8) == (
        "At damping 8 the SMAPE of the LSTM is 6.8 %, that of the best simpler forecast (`ridge`) 7.3 %. 25.0 % of "
        "the LSTM's forecasts are too low; of the simpler ones `max_120` is too low least often, in 7.0 %, with an "
        "SMAPE of 14.3 %."
    )


def test_trainings_are_compared_with_the_solvers():
    runs = [
        {"policy": "agent", "seed": seed, "update": 4, "reward": reward, "dropped": dropped, "selection": 0.0}
        for seed, (reward, dropped) in enumerate([(3.0, 0.0), (5.0, 2.0)])
    ]
    references = {"agent": {"myopic": {"reward": 4.0, "dropped": 0.0}, "ipa": {"reward": 2.0, "dropped": 1.0}}}
    assert training_findings(runs, references) == [
        "agent: mean reward 4.000 in validation, the myopic solver 4.000; above it in 1 of 2 trainings. "
        "More requests dropped than by IPA in 1 of 2."
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    evaluation(greedy={"reward": 4.0}, agent={"dropped": 2}).to_csv(tmp_path / "evaluation.csv", index=False)
    write_json(tmp_path / "evaluation.json", ABOUT)
    (tmp_path / "evaluation").mkdir()
    for name in ("timeline-shop", "plane", "unknown"):
        (tmp_path / "evaluation" / f"{name}.png").write_bytes(PIXEL)
    return tmp_path


def test_the_page_has_findings_tables_figures_and_setting(folder: Path):
    path = write_html_report(folder)
    assert path == folder / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.texts["h1"] == ["Evaluation of shop"]
    assert page.texts["h2"] == ["Findings", "Policies", "Mean reward (cores) of each cycle", "Figures", "Setting"]
    assert page.texts["li"][0] == "Requests dropped: agent 4."
    assert page.texts["figcaption"] == [
        "Mean share within the objective and cost of every policy",
        "Load, cost and share within the objective over time: shop",
    ]
    cells = page.texts["td"]
    assert cells[:3] == ["agent", "4.500", "99.00"] and "evening" in cells and "two <slow> cores" in cells
    assert "not installed" in cells and "Service level" in page.texts["h3"]
    assert "dropped" in page.texts["th"] and "decisions refused" not in page.texts["th"], "none was refused"


def test_the_accuracy_of_a_policy_is_the_mean_of_its_stages(folder: Path):
    pd.read_csv(folder / "evaluation.csv").assign(accuracy=1.7).to_csv(folder / "evaluation.csv", index=False)
    page = Page(write_html_report(folder).read_text(encoding="utf-8"))
    heads = page.texts["th"][: page.texts["th"].index("in cycle")]
    assert dict(zip(heads, page.texts["td"], strict=False))["mean accuracy"] == "0.850"


def test_qos_is_shown_where_weights_are_the_objective_and_nowhere_else(folder: Path):
    heads = Page(write_html_report(folder).read_text(encoding="utf-8")).texts["th"]
    assert "reward (cores)" in heads and "QoS" not in heads
    about = {key: value for key, value in ABOUT.items() if key != "service_level"}
    write_json(folder / "evaluation.json", about | {"weights": {"alpha": 10.0}})
    page = Page(write_html_report(folder).read_text(encoding="utf-8"))
    assert {"reward", "QoS"} <= set(page.texts["th"]) and "Mean reward of each cycle" in page.texts["h2"]
    assert page.texts["figcaption"] == ["Mean QoS and cost of every policy", "Load, cost and QoS over time: shop"]


def test_the_setting_names_assumed_profiles(folder: Path):
    shop = ABOUT["pipelines"]["shop"]
    pipelines = {"shop": shop | {"assumed": ["detect/large"]}, "other": shop}
    write_json(folder / "evaluation.json", ABOUT | {"pipelines": pipelines})
    page = Page(write_html_report(folder).read_text(encoding="utf-8"))
    assert "assumed profiles" in page.texts["th"]
    own, other = (page.texts["td"].index(name) + 4 for name in ("shop", "other"))
    assert [page.texts["td"][place] for place in (own, other)] == ["detect/large", "none"]


def test_the_page_needs_no_other_file(folder: Path):
    page = Page(write_html_report(folder, folder / "deep" / "page.html", "My shop").read_text(encoding="utf-8"))
    assert page.texts["title"] == ["My shop"]
    assert len(page.links) == 2 and all(link.startswith("data:image/png;base64,") for link in page.links)


def test_a_missing_result_is_named(tmp_path: Path):
    with pytest.raises(ReportError, match="no evaluation.csv .* notebook 04_evaluation writes it"):
        write_html_report(tmp_path)
