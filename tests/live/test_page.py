"""The report page and the figures of a live evaluation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from live_runs import LARGE, SMALL, requests, run_of
from PIL import Image
from small_pipelines import ocr_pipeline

from opd.host.paths import project_path
from opd.live import plots
from opd.live.fidelity import relative_errors
from opd.live.page import NOTEBOOK, write_page
from opd.live.runs import live_timeline, summarise_run


def fidelity_table():
    row = {"configuration": "a x1 b1 + b x1 b1", "load": 5.0, "utilisation": 0.3, "offered": 50, "completed": 50}
    figures = {"throughput": 5.0, "latency_mean": 0.1, "latency_p95": 0.2}
    for kind, factor in (("profiled", 0.8), ("predicted", 1.0), ("measured", 1.1)):
        row |= {f"{name}_{kind}": factor * value for name, value in figures.items()}
    return pd.DataFrame([row, row | {"load": 12.0, "utilisation": 0.7, "latency_mean_measured": 0.05}])


def summary_of(records):
    return {
        "pipeline": "ocr",
        "backend": "local",
        "monitoring": "x",
        "assumed": "",
        "traffic": "y",
        "hardware": {"processor": "p", "cores": 2},
        "policies": {"agent": summarise_run(run_of([SMALL], records))},
    }


def replay_table(**figures):
    figures = {"measured": [0.1, 0.2], "profiled": [0.2, 0.2]} | figures
    return pd.DataFrame({"time": [0, 13], "seconds": [10, 7], "policy": "agent", **figures})


def test_errors_are_relative_to_the_prediction():
    errors = relative_errors(fidelity_table())
    assert errors["latency_mean"].tolist() == pytest.approx([0.1, -0.5])
    assert errors["throughput"].tolist() == pytest.approx([0.1, 0.1])


def test_refused_decisions_are_counted_if_there_are_any(tmp_path):
    summary = summary_of(requests([0.5], 0.3))
    pages = []
    for reasons in ([], ["policy Mine has not decided within 5 s"] * 3):
        summary["policies"]["agent"]["refused"] = reasons
        pages.append(write_page(tmp_path / "page.md", summary, {}, pd.DataFrame(), pd.DataFrame()))
    assert ["| policy | refused |" in page for page in pages] == [False, True]
    assert "| agent | 3 |" in pages[1]


def test_the_page_shows_the_share_within_the_level_and_says_what_is_assumed(tmp_path):
    summary = summary_of(requests([0.5], 0.3))
    summary["policies"]["agent"]["within"] = 0.9725
    page = lambda: write_page(tmp_path / "page.md", summary, {}, pd.DataFrame(), pd.DataFrame())  # noqa: E731
    assert "| within the level (%) |" in page() and "| 97.25 |" in page() and "assumed" not in page()
    summary["assumed"] = "assumed, not measured: first/small"
    assert "Profile: assumed, not measured: first/small." in page()


def test_the_page_names_the_worst_errors_and_missed_criteria(tmp_path):
    summary = summary_of(requests([0.5], 0.3))
    spread = {"mean": 4.0, "p50": 3.0, "p95": 6.0}
    overhead = {"requests": 9, "cpu_ms": 2.5, "direct_ms": spread, "routed_ms": spread, "added_ms": spread}
    text = write_page(tmp_path / "page.md", summary, overhead, fidelity_table(), replay_table(calibrated=[0.08, 0.16]))
    where = "(a x1 b1 + b x1 b1 at {} requests/s)"
    assert f"mean latency -50% {where.format(12)}, p95 latency +10% {where.format(5)}" in text
    assert "| 12.00 | 0.70 | 0.10 | -0.50 | 0.10 |" in text
    assert "| 0.70 | 0.10 | -0.50 | 0.10 |" in text
    assert "the median absolute errors are 37.5%, 37.5% and 37.5%" in text
    assert "NOT within the acceptance criteria of 5% for throughput and 15% for mean latency" in text
    assert NOTEBOOK in text and "Command" not in text
    assert (project_path() / NOTEBOOK).is_file()
    assert "2.5 ms of CPU time per request" in text
    assert "| policy | calibrated, median | calibrated, worst | profiled, median | profiled, worst |" in text
    assert "| agent | 0.25 | 0.25 | 0.25 | 0.50 |" in text
    assert text.split("\n\n")[1] == "Every request was answered." and "Warnings" not in text
    assert (tmp_path / "page.md").read_text() == text


def test_the_page_of_runs_that_were_cut_short_lists_their_warnings(tmp_path):
    summary = summary_of(requests([0.5], 0.3))
    summary["policies"]["agent"]["warnings"] = ["stage first: replica first-1 died: killed by SIGKILL"]
    text = write_page(tmp_path / "page.md", summary, {}, pd.DataFrame(), pd.DataFrame())
    assert "- agent: stage first: replica first-1 died: killed by SIGKILL" in text and "closed loop" not in text


def test_the_page_shows_a_run_without_completed_requests(tmp_path):
    records = requests([0.5], 0.3).assign(outcome="dropped")
    records.attrs = {"started": 1000.0, "seconds": 20.0}
    summary = summary_of(records)
    assert summary["policies"]["agent"]["requests"]["latency_p99"] is None
    text = write_page(tmp_path / "page.md", summary, {}, pd.DataFrame(), replay_table(measured=[np.nan, np.nan]))
    assert "| agent | 1 | 0 | 0 | 1 | 0 | 0 | nan | nan | nan | nan |" in text
    first, what = text.split("\n\n")[1:3]
    assert first == "**Requests failed.**"
    assert what.splitlines() == [
        "- **agent: this run is useless: none of 1 requests was completed.**",
        "- agent: 1 of 1 requests (100.0%) got no answer. Most frequent reason (1 requests): dropped, OK: ",
    ]
    assert "| policy | profiled, median | profiled, worst |" in text


def test_figures_show_every_run_and_configuration(tmp_path):
    run = run_of([SMALL, LARGE], requests([1.0, 12.0], 0.2))
    timelines = live_timeline(ocr_pipeline(), run).assign(policy="agent")
    drawn = [
        plots.plot_live_timelines(timelines, ["detection", "recognition"], "a title", tmp_path / "course.png"),
        plots.plot_replay(replay_table(calibrated=[0.1, 0.2]), tmp_path / "replay.png"),
        plots.plot_fidelity(fidelity_table(), tmp_path / "fidelity.png"),
    ]
    words = ["\n".join(a.get_text() for a in f.findobj(lambda a: hasattr(a, "get_text"))) for f in drawn]
    assert all(word in words[0] for word in ("agent", "tiny", "b2", "cost (CPU cores)", "load\n(requests/s)"))
    assert all(
        word in words[1] for word in ("measured", "predicted, calibrated", "predicted, profiled", "latency (ms)")
    )
    assert "a x1 b1 + b x1 b1" in words[2] and "70% utilisation" in words[2]
    for name in ("course", "replay", "fidelity"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.width > 400
