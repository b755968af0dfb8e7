"""The check of a trace before anything is written: as a function, as a command, and as `make repro TRACE=` uses it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from deadlines import PATIENCE
from typer.testing import CliRunner

from opd.host.paths import package_path
from opd.workload import check_trace as module
from opd.workload.check_trace import BUNDLED_DAMPING, TraceUse, check_trace, summary, write_trace
from opd.workload.trace import load_trace
from opd.workload.trace_files import SYNTHETIC_FILE
from opd.workload.trace_limits import MIN_SECONDS, TraceError

ROOT = Path(__file__).parents[2]
PARAMS = "# mine\ntrace: synthetic  # which\ndamping: 2\ncycles: 0\n"
OWN_PARAMS = PARAMS.replace("synthetic ", "own.csv ").replace("damping: 2", "damping: 1")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with parameters and a usable trace `own.csv`, the working directory."""
    (tmp_path / "params.yaml").write_text(PARAMS, encoding="utf-8")
    seconds = np.delete(np.arange(MIN_SECONDS + 8), [4, 5, 9, *range(20, 25)])
    counts = np.where(seconds < 10, 0, 6)
    pd.DataFrame({"timestamp": seconds, "count": counts}).to_csv(tmp_path / "own.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: object) -> tuple[int, str]:
    app = module.typer.Typer()
    app.command()(module.main)
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    return done.exit_code, done.output


def test_the_summary_of_a_trace(project):
    assert summary(check_trace("own.csv", TraceUse(damping=2, cycles=0))) == {
        "trace": "own.csv",
        "seconds": MIN_SECONDS,
        "missing_seconds": 8,
        "gaps": 3,
        "longest_gap": 5,
        "mean": 5.998,
        "max": 6,
        "zero_seconds": 7,
        "damping": 2,
        "damped_mean": 2.999,
        "damped_max": 3,
    }


def test_cycles_that_do_not_fit_are_found_before_training(project):
    with pytest.raises(TraceError, match="of 9 further cycles fit into the test split"):
        check_trace("own.csv", TraceUse(cycles=9))
    with pytest.raises(TraceError, match="from second 3 needs 120 s of history"):
        check_trace("own.csv", TraceUse(cycles=9, cycle_starts=[3]))
    assert check_trace("own.csv", TraceUse(cycle_starts=[9000]))


def test_a_usable_trace_becomes_the_one_of_the_study(project):
    code, output = command("own.csv", "--params", "params.yaml", "--write", "--output", "reports/trace.json")
    assert code == 0 and "missing seconds: 8" in output
    assert output.endswith("damping is now 1 (before: 2): the counts of own.csv are taken as they are\n")
    assert (project / "params.yaml").read_text(encoding="utf-8") == OWN_PARAMS
    assert json.loads((project / "reports/trace.json").read_text(encoding="utf-8"))["damped_max"] == 6


def test_the_damping_changes_with_the_kind_of_trace_alone(project):
    params = project / "params.yaml"
    shutil.copy(package_path(*SYNTHETIC_FILE), project / "copy.csv.gz")
    shutil.copy("own.csv", "other.csv")

    def after(source: str) -> tuple[int, str]:
        note = write_trace(params, source)
        return yaml.safe_load(params.read_text(encoding="utf-8"))["damping"], note

    assert after("copy.csv.gz") == (2, "")
    assert after("own.csv") == (1, "damping is now 1 (before: 2): the counts of own.csv are taken as they are")
    params.write_text(params.read_text(encoding="utf-8").replace("damping: 1", "damping: 3"), encoding="utf-8")
    before = params.read_bytes()
    assert after("own.csv") == (3, "") and params.read_bytes() == before
    assert after("other.csv") == (3, "")
    assert after("copy.csv.gz") == (8, "damping is now 8 (before: 3): the counts of copy.csv.gz are divided by 8")
    assert after("synthetic") == (8, "")


def test_a_small_load_is_checked_with_the_damping_that_it_gets(project):
    (project / "params.yaml").write_text(PARAMS.replace("damping: 2", "damping: 8"), encoding="utf-8")
    code, output = command("own.csv", "--params", "params.yaml")
    assert code == 0 and "damped max: 6" in output


def test_the_damping_of_study_and_template_is_that_of_bundled_traces():
    for folder in (ROOT, ROOT / "opd" / "project" / "template"):
        assert yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))["damping"] == BUNDLED_DAMPING


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nofile.csv", "--params", "params.yaml", "--write"], "trace 'nofile.csv' is neither synthetic, twitter nor"),
        (["bad.csv", "--params", "params.yaml", "--write"], "trace 'bad.csv' has 2 problems:\n- line 3: count '-5'"),
        (["own.csv", "--params", "other.yaml", "--write"], "other.yaml has 2 problems:\n- damping must be at least 1"),
        (["own.csv", "--params", "absent.yaml", "--write"], "there is no file absent.yaml"),
        (["own.csv", "--write"], "no trace or no parameters are given; name a file, and --params params.yaml"),
        ([], "no trace or no parameters are given"),
    ],
)
def test_a_wrong_trace_changes_nothing(project, arguments, message):
    (project / "bad.csv").write_text("count\n1\n-5\n", encoding="utf-8")
    (project / "other.yaml").write_text("trace: x\ndamping: 0\ncycles: few\n", encoding="utf-8")
    before = sorted((path, path.read_bytes()) for path in project.rglob("*"))
    code, output = command(*arguments, "--output", "reports/trace.json")
    assert code == module.WRONG_INPUT
    assert f"error: {message}" in output and "Traceback" not in output
    assert sorted((path, path.read_bytes()) for path in project.rglob("*")) == before


@pytest.mark.parametrize("name", ["a b.csv", "it's.csv", "x: y #1.csv", "ümlaut.csv", "#'a\"b.csv"])
def test_any_file_name_is_written_so_that_yaml_reads_it(project, name):
    shutil.copy("own.csv", name)
    write_trace(project / "params.yaml", name)
    assert yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))["trace"] == name
    write_trace(project / "params.yaml", "own.csv")
    assert (project / "params.yaml").read_text(encoding="utf-8") == OWN_PARAMS


def test_names_are_written_as_files(project, tmp_path_factory):
    write_trace(project / "params.yaml", "synthetic")
    written = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))["trace"]
    assert Path(written).is_file() and load_trace(written).is_synthetic
    outside = tmp_path_factory.mktemp("elsewhere") / "far.csv"
    shutil.copy("own.csv", outside)
    write_trace(project / "params.yaml", str(outside))
    assert yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))["trace"] == str(outside)


def test_parameters_without_a_trace_are_refused(project):
    (project / "params.yaml").write_text("damping: 2\n", encoding="utf-8")
    with pytest.raises(TraceError, match="params.yaml has no line 'trace:'; add `trace: own.csv`"):
        write_trace(project / "params.yaml", "own.csv")
    (project / "params.yaml").write_text("trace: own.csv\n", encoding="utf-8")
    with pytest.raises(TraceError, match="params.yaml has no line 'damping:'; add `damping: 8`"):
        write_trace(project / "params.yaml", "synthetic")


@pytest.mark.parametrize("step", ["write_text", "replace"])
def test_an_interruption_leaves_the_old_parameters(project, monkeypatch, step):
    def interrupted(path: Path, *_: object, **__: object) -> None:
        if step == "write_text":
            path.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_trace(project / "params.yaml", "own.csv")
    assert (project / "params.yaml").read_text(encoding="utf-8") == PARAMS
    assert sorted(path.name for path in project.iterdir()) == ["own.csv", "params.yaml"]


@pytest.mark.processes
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_repro_checks_the_trace_before_anything_is_written(project):
    shutil.copy(ROOT / "Makefile", project)
    before = sorted(path.name for path in project.iterdir())
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        ["make", "--assume-old", ".venv/.ready", "repro", "TRACE=no file.csv"],
        cwd=project, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "error: trace 'no file.csv' is neither synthetic" in done.stderr and "dvc" not in done.stdout
    assert (project / "params.yaml").read_text(encoding="utf-8") == PARAMS
    assert sorted(path.name for path in project.iterdir()) == before
