"""The whole study with tiny parameters: every stage and notebook, in a copy of the project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from compiling import share_with
from deadlines import PATIENCE

from opd.workload.trace_files import SYNTHETIC_FILE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TINY = {
    "pipelines": ["video", "nlp"],
    "pipeline": "video",
    "profile_seconds": 5.0,
    "forecast": {"epochs": 1, "train_windows": 4000},
    "training": {
        "updates": 2,
        "num_envs": 8,
        "rollout_steps": 32,
        "cloning_steps": 100,
        "validate_every": 1,
        "validation_episodes": 4,
        "validation_decisions": 20,
    },
    "cycles": 0,
    "decisions": 10,
}

HANGING_SECONDS = 3600
"""After this a command hangs; on an idle machine the longest takes two minutes."""

TINY_DAYS = 4
"""What is left of the bundled trace."""


def run(command: str, folder: Path) -> str:
    """Run a command line in the copy; fails with its output."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
    }
    done = subprocess.run(
        command.split(),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANGING_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which the tiny study has run."""
    folder = tmp_path_factory.mktemp("study")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        # Neither results nor their lock: what the study writes must come from this run.
        if name.startswith("reports/") or name == "dvc.lock" or not (ROOT / name).is_file():
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    share_with(folder / "opd")
    parameters = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    (folder / "params.yaml").write_text(yaml.safe_dump(parameters | TINY), encoding="utf-8")
    trace = folder.joinpath("opd", *SYNTHETIC_FILE)
    pd.read_csv(trace).iloc[: TINY_DAYS * 86_400].to_csv(trace, index=False)
    run("git init -q", folder)
    run("git add -A", folder)
    run("git -c user.name=test -c user.email=test@example.org commit -q -m tiny", folder)
    run("dvc repro", folder)
    return folder


def test_every_stage_leaves_its_results(study: Path):
    evaluation = pd.read_csv(study / "reports/evaluation.csv")
    assert set(evaluation["pipeline"]) == {"video", "nlp"}
    assert set(evaluation["policy"]) == {"random", "greedy", "ipa", "myopic", "clairvoyant", "agent", "agent-single"}
    assert len(evaluation) == 2 * 7 * 3
    assert evaluation.notna().all(axis=None)
    times = pd.read_csv(study / "reports/decision_time.csv")
    assert set(zip(times["stages"], times["variants"], strict=True)) == {(2, 5), (3, 5), (4, 6), (6, 8), (10, 10)}
    for result in ("profile/profiles.csv", "forecast.json", "training/nlp/curves.csv", "report.md", "metrics.json"):
        assert (study / "reports" / result).stat().st_size > 0
    for notebook in ("01_profiling", "02_load_forecast", "03_ppo_training-nlp", "04_evaluation", "06_report"):
        assert (study / "reports/notebooks" / f"{notebook}.ipynb").is_file()
    assert "synthetic" in (study / "reports/report.md").read_text(encoding="utf-8")


def test_a_second_run_does_nothing(study: Path):
    lock = (study / "dvc.lock").read_bytes()
    assert "Data and pipelines are up to date" in run("dvc repro", study)
    assert (study / "dvc.lock").read_bytes() == lock


def test_metrics_and_plots_are_shown(study: Path):
    assert "forecast.json" in run("dvc metrics show", study)
    run("dvc plots show --out plots", study)
    assert (study / "plots/index.html").is_file()


def test_an_experiment_with_another_parameter(study: Path):
    run("dvc exp run -S weights.cost_weight=0.3 train@video", study)
    parameters = yaml.safe_load((study / "params.yaml").read_text(encoding="utf-8"))
    assert parameters["weights"]["cost_weight"] == 0.3


MINE = """
class Mine:
    def __init__(self, pipeline):
        self.tasks = len(pipeline.tasks)

    def decide(self, observation):
        return [[0, 1, 1]] * self.tasks
"""


@pytest.fixture(scope="module")
def with_mine(study: Path) -> Path:
    """The project with a policy of its own."""
    (study / "mine.py").write_text(MINE, encoding="utf-8")
    return study


def test_a_policy_of_the_project_is_one_of_those_compared(with_mine: Path):
    command = "python -m opd.study.notebook notebooks/04_evaluation.ipynb --params params.yaml"
    run(f"{command} policies=[greedy,mine:Mine] pipelines=[nlp] pipeline=nlp reports=reports/mine", with_mine)
    rows = pd.read_csv(with_mine / "reports/mine/evaluation.csv")
    assert set(rows["policy"]) == {"greedy", "Mine"} and (rows["refused"] == 0).all()


def test_the_live_notebook_runs_in_the_simulator_and_compares_a_policy_of_the_project(with_mine: Path):
    command = (
        "python -m opd.study.notebook notebooks/05_cluster_evaluation.ipynb --params params.yaml backend=simulated"
    )
    run(f"{command} live_policies=[greedy,ipa,schedule,mine:Mine] live_seconds=60", with_mine)
    results = json.loads((with_mine / "reports/live/summary.json").read_text(encoding="utf-8"))["policies"]
    assert list(results) == ["greedy", "ipa", "schedule", "Mine"] and results["Mine"]["refused"] == []
    assert results["schedule"]["changes"]["reconfigurations"] >= 3
    assert all(result["requests"]["completed"] > 0 for result in results.values())
