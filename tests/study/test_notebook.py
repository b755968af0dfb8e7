"""The stage runner, on real kernels with notebooks of a few cells."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from opd.study import notebook as stage

PARAMETERS = """\
seed: int = 0  # of all random numbers
rate: float = 0.5  # learning rate
names: list[str] = ["a"]  # pipelines
options: dict = {"steps": 1}  # of the training
quick: bool = False  # less work
"""
REPORT = """\
import json, pathlib
print("training")
values = {"seed": seed, "rate": rate, "names": names, "options": options, "quick": quick}
pathlib.Path("values.json").write_text(json.dumps(values));
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own, as working directory, with one notebook in it."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "params.yaml").write_text("seed: 7\noptions: {steps: 2, batch: 8}\nunrelated: 1\n")
    monkeypatch.chdir(tmp_path)
    write_notebook("notebooks/work.ipynb", REPORT)
    return tmp_path


def write_notebook(path: str, *cells: str) -> None:
    parameters = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [new_markdown_cell("# Work"), parameters, *map(new_code_cell, cells)]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def test_a_notebook_gets_its_parameters_from_files_and_overrides(project: Path, capfd: pytest.CaptureFixture[str]):
    (project / "tiny.yaml").write_text("options: {steps: 3}\n")
    source = (project / "notebooks" / "work.ipynb").read_bytes()
    code = stage.main(
        ["notebooks/work.ipynb", "--params", "params.yaml", "tiny.yaml", "rate=1.0e-4", "names=[x, y]", "quick=true"]
    )
    assert code == 0
    assert json.loads((project / "values.json").read_text()) == {
        "seed": 7,
        "rate": 1e-4,
        "names": ["x", "y"],
        "options": {"steps": 3, "batch": 8},
        "quick": True,
    }
    assert "training" in capfd.readouterr().out
    assert [path.name for path in (project / "reports" / "notebooks").iterdir()] == [
        "work-rate=1.0e-4-names=_x_y-quick=true.ipynb"
    ]
    assert (project / "notebooks" / "work.ipynb").read_bytes() == source


def test_an_empty_mapping_empties_one_of_the_files(project: Path):
    notebook = project / "notebooks" / "work.ipynb"
    shared = {"seed": 7, "options": {"steps": 3, "batch": 8}}
    assert stage.select_parameters(notebook, shared, {"options": {}}) == {"seed": 7, "options": {}}
    assert stage.select_parameters(notebook, shared, {"options": {"steps": 1}})["options"] == {"steps": 1, "batch": 8}


def test_two_runs_with_equal_results_write_equal_notebooks(project: Path):
    for name in ("one", "two"):
        assert stage.main(["notebooks/work.ipynb", "--output", f"{name}.ipynb"]) == 0
    assert (project / "one.ipynb").read_bytes() == (project / "two.ipynb").read_bytes()


def test_a_run_from_a_folder_below_works_in_the_projects_root(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(project / "notebooks")
    assert stage.main(["work.ipynb"]) == 0
    assert json.loads((project / "values.json").read_text())["seed"] == 7


def test_a_folder_without_a_parameter_file_is_as_good(project: Path):
    (project / "params.yaml").unlink()
    assert stage.main(["notebooks/work.ipynb", "seed=5"]) == 0
    assert json.loads((project / "values.json").read_text())["seed"] == 5


def test_a_run_with_overrides_leaves_the_copy_of_the_stage_alone(project: Path):
    folder = project / "reports" / "notebooks"
    assert stage.main(["notebooks/work.ipynb"]) == 0
    copy = (folder / "work.ipynb").read_bytes()
    assert stage.main(["notebooks/work.ipynb", "seed=8"]) == 0
    assert (folder / "work.ipynb").read_bytes() == copy
    assert sorted(path.name for path in folder.iterdir()) == ["work-seed=8.ipynb", "work.ipynb"]


@given(st.lists(st.text(min_size=1, max_size=80), max_size=8))
def test_any_override_gives_a_name_of_a_file(overrides: list[str]):
    name = stage.executed_name(Path("notebooks/work.ipynb"), overrides)
    assert re.fullmatch(r"(?a)work[\w.=+-]*\.ipynb", name) and len(name.encode()) < 140


def test_worker_output_and_progress_are_in_the_log_once_and_not_in_the_notebook(
    project: Path, capfd: pytest.CaptureFixture[str]
):
    cell = """\
import subprocess, sys
from opd.host.progress import progress_bar
subprocess.run([sys.executable, "-c", "print('from a ' + 'worker')"])
print("sum", sum(progress_bar([1, 2, 4], desc="add" + "ing")))
"""
    write_notebook("notebooks/busy.ipynb", cell)
    assert stage.main(["notebooks/busy.ipynb"]) == 0
    captured = capfd.readouterr()
    log = captured.out + captured.err
    assert [log.count(text) for text in ("from a worker", "adding: 3 of 3", "sum 7")] == [1, 1, 1]
    executed = (project / "reports" / "notebooks" / "busy.ipynb").read_text()
    assert "sum 7" in executed
    assert "from a worker" not in executed and "adding" not in executed and "widget" not in executed


def test_help_works_anywhere(project: Path, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        stage.main(["--help"])
    assert ended.value.code == 0 and "key=value" in capfd.readouterr().out


def test_a_failing_cell_is_shown_and_the_executed_notebook_kept(project: Path, capfd: pytest.CaptureFixture[str]):
    write_notebook("notebooks/broken.ipynb", "print('so far')", "raise ValueError('capacity 3 is too small')")
    assert stage.main(["notebooks/broken.ipynb", "--output", "executed.ipynb"]) == 1
    message = capfd.readouterr().err
    assert "ValueError: capacity 3 is too small" in message
    assert "    raise ValueError(" in message
    assert "executed.ipynb" in message
    executed = nbformat.read("executed.ipynb", as_version=4)
    assert "so far" in str(executed)
    assert "papermill" not in executed.metadata


def test_a_cell_that_takes_too_long_is_stopped(project: Path, capfd: pytest.CaptureFixture[str]):
    write_notebook("notebooks/slow.ipynb", "import time; time.sleep(60)")
    assert stage.main(["notebooks/slow.ipynb", "--timeout", "1"]) == 1
    assert "longer than 1 s" in capfd.readouterr().err


def test_a_kernel_that_dies_is_reported(project: Path, capfd: pytest.CaptureFixture[str]):
    write_notebook("notebooks/dies.ipynb", "import os; os._exit(1)")
    assert stage.main(["notebooks/dies.ipynb"]) == 1
    assert "the kernel died" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["notebooks/absent.ipynb"], "no notebook notebooks/absent.ipynb"),
        (["notebooks/work.ipynb", "sed=1"], "no parameter sed; it declares seed, rate, names"),
        (["notebooks/work.ipynb", "--params", "params.yaml", "unrelated=1"], "no parameter unrelated"),
        (["notebooks/work.ipynb", "seed"], "cannot read 'seed'"),
        (["notebooks/work.ipynb", "names=[a"], "the value of 'names=[a' is not valid YAML"),
        (["notebooks/work.ipynb", "seed=one"], "parameter seed is 'one', but must be a whole number"),
        (["notebooks/work.ipynb", "seed=true"], "parameter seed is True, but must be a whole number"),
        (["notebooks/work.ipynb", "quick=1"], "parameter quick is 1, but must be true or false"),
        (["notebooks/work.ipynb", "rate=1e-4"], "YAML reads 1e-4 as text"),
        (
            ["notebooks/work.ipynb", "names=a"],
            "notebooks/work.ipynb: parameter names is 'a', but must be a list (list[str])",
        ),
        (["notebooks/work.ipynb", "--params", "absent.yaml"], "no parameter file absent.yaml"),
        (["notebooks/work.ipynb", "--params", "list.yaml"], "list.yaml contains a list; it must map names to values"),
        (["notebooks/work.ipynb", "--params", "broken.yaml"], "broken.yaml is not valid YAML"),
        (["notebooks/work.ipynb", "--output", "notebooks/work.ipynb"], "would overwrite its source"),
    ],
)
def test_bad_input_is_refused_by_name(
    project: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    (project / "list.yaml").write_text("[1, 2]\n")
    (project / "broken.yaml").write_text("a: [1\n")
    assert stage.main(arguments) == 1
    assert message in capfd.readouterr().err
    assert not (project / "values.json").exists()


TREES = st.recursive(
    st.integers(), lambda below: st.dictionaries(st.sampled_from("abc"), below, max_size=3), max_leaves=8
).filter(lambda tree: isinstance(tree, dict))


@given(TREES, TREES)
def test_merge_keeps_every_leaf_of_the_update_and_every_key_of_the_base(base: dict, update: dict):
    merged = stage.merge(base, update)
    assert set(merged) == set(base) | set(update)
    assert stage.merge(merged, update) == merged
    assert stage.merge(base, {}) == base


def test_merge_of_nested_trees():
    assert stage.merge({"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"c": [2]}, "e": 3}) == {
        "a": {"b": 1, "c": [2]},
        "d": 2,
        "e": 3,
    }
