"""The comparison of two folders of results."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from opd.host.paths import project_path

SPEC = importlib.util.spec_from_file_location("same_results", project_path("tools", "same_results.py"))
assert SPEC and SPEC.loader
same_results = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(same_results)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with the same results."""
    for name in ("old", "new"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "evaluation.csv").write_text("policy,reward,decision_ms_mean\nipa,1.50,3\nagent,1.75,4\n")
        (folder / "about.json").write_text(json.dumps({"weights": {"alpha": 10.0}, "runs": [{"seed": 0}, {"seed": 1}]}))
    return tmp_path / "old", tmp_path / "new"


def test_the_same_results_are_the_same_whatever_the_times(folders, capsys):
    old, new = folders
    (new / "evaluation.csv").write_text("policy,reward,decision_ms_mean\nipa,1.50,7\nagent,1.75,8\n")
    assert same_results.main(list(map(str, folders))) == 0
    assert capsys.readouterr().out == "2 files compared, 0 differ\n"


def test_added_columns_and_keys_are_listed_and_no_difference(folders, capsys):
    old, new = folders
    (new / "evaluation.csv").write_text("policy,reward,within,decision_ms_mean\nipa,1.50,0.9,3\nagent,1.75,1.0,4\n")
    about = {"weights": {"alpha": 10.0}, "runs": [{"seed": 0, "level": 1.0}, {"seed": 1, "level": 2.0}]}
    (new / "about.json").write_text(json.dumps(about))
    assert same_results.main(list(map(str, folders))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["about.json: added runs.level", "evaluation.csv: added within"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("policy,reward\nipa,1.5\nagent,1.75\n", "row 1: reward: 1.50 became 1.5"),
        ("policy\nipa\nagent\n", "row 1: reward: 1.50 became missing"),
        ("policy,reward\nipa,1.50\nagent,1.75\nmyopic,1.8\n", "row 3: reward: missing became 1.8"),
    ],
)
def test_other_values_lost_columns_and_more_rows_are_differences(folders, capsys, content, message):
    (folders[1] / "evaluation.csv").write_text(content)
    assert same_results.main(list(map(str, folders))) == 1
    assert message in capsys.readouterr().out
