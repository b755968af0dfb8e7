"""The benchmarks' notebook from end to end, with next to nothing measured: what it leaves, and that its parts agree."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from opd.host.machine import hardware
from opd.study import notebook as stage
from opd.study.benchmarks import criteria
from opd.study.benchmarks.criteria import PACKAGES
from opd.study.benchmarks.training import METHODS, MYOPIC
from opd.workload.forecast import ForecastParameters
from opd.workload.forecast_training import train_forecaster
from opd.workload.trace import load_trace

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the notebook left its results; a clone has no forecaster yet, so it gets a hasty one."""
    folder = tmp_path_factory.mktemp("benchmarks")
    hasty = ForecastParameters(epochs=1, train_windows=512)
    train_forecaster(load_trace("synthetic", damping=8), hasty).save(folder / "forecaster.npz")
    notebook = str(ROOT / "notebooks" / "07_benchmarks.ipynb")
    given = ["smoke=true", f"reports={folder}", f"forecaster={folder / 'forecaster.npz'}"]
    assert stage.main([notebook, "--output", str(folder / "executed.ipynb"), *given]) == 0
    return folder


def outs() -> list[str]:
    """What the stage of ``make bench`` says that it writes."""
    stages = yaml.safe_load((ROOT / "benchmarks" / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    declared = stages["measure"]["outs"]
    assert all(settings == {"cache": False} for out in declared for settings in out.values())
    return [path for out in declared for path in out]


def test_it_writes_what_its_stage_declares_and_nothing_else(results):
    assert {Path(path).parent for path in outs()} == {Path("reports/benchmarks")}
    written = {path.name for path in results.iterdir()} - {"forecaster.npz", "executed.ipynb"}
    assert written == {Path(path).name for path in outs()}


def test_every_table_and_figure_has_content(results):
    for path in results.glob("*.csv"):
        assert len(pd.read_csv(path)) > 0, path.name
    for path in results.glob("*.png"):
        assert path.stat().st_size > 10_000, path.name


def test_the_criteria_follow_from_the_tables_that_are_kept(results):
    tables = {path.stem: pd.read_csv(path) for path in results.glob("*.csv")}
    again = pd.concat(
        [
            criteria.simulator_criteria(tables["simulator_requests"], tables["simulator_steps"]),
            criteria.training_criteria(tables["training"]),
            criteria.decision_criteria(tables["decision_time"]),
        ],
        ignore_index=True,
    )
    kept = tables["bars"]
    pd.testing.assert_frame_equal(kept.drop(columns="part"), again, rtol=1e-3, check_dtype=False)
    assert kept["part"].unique().tolist() == ["simulator", "training", "decision time"]


def test_all_methods_are_in_the_tables_of_training(results):
    assert pd.read_csv(results / "training.csv")["method"].tolist() == [*METHODS, MYOPIC]
    assert pd.read_csv(results / "training_curves.csv")["method"].unique().tolist() == list(METHODS)


def test_the_machine_and_the_versions_are_kept(results):
    kept = json.loads((results / "hardware.json").read_text(encoding="utf-8"))
    assert kept["processor"] and kept["cores"] > 0
    assert all(kept[package] for package in PACKAGES)


def test_a_missing_package_has_no_version():
    described = hardware(("simpy", "no-such-package"))
    assert described["simpy"] and described["no-such-package"] is None


def test_the_executed_copy_shows_figures_progress_and_criteria(results):
    executed = nbformat.read(results / "executed.ipynb", as_version=4)
    outputs = {cell.id: cell.get("outputs", []) for cell in executed.cells}
    for name in ("simulator", "training", "decision"):
        assert any("image/png" in output.get("data", {}) for output in outputs[f"{name}-figure"]), name
    printed = "".join(output.get("text", "") for output in outputs["training"])
    assert all(f"{method}, seed 0:" in printed for method in METHODS)
    assert "criteria are met" in "".join(output.get("text", "") for output in outputs["bars"])
