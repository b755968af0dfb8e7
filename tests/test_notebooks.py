"""What every notebook of the project keeps to, so that it reads as prose and runs headless."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import papermill
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
STAGES = ("01_profiling", "02_load_forecast", "03_ppo_training", "04_evaluation", "05_cluster_evaluation", "06_report")

every_notebook = pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def parsed(cell: nbformat.NotebookNode) -> ast.Module:
    """The cell's Python, without the lines that only IPython understands."""
    return ast.parse("\n".join(line for line in cell.source.splitlines() if not line.startswith(("%", "!"))))


def parameter_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_has_its_notebook(name: str):
    assert (NOTEBOOKS / f"{name}.ipynb").is_file()


@every_notebook
def test_format_and_kernel(path: Path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.kernelspec.language == "python"


@every_notebook
def test_begins_with_a_title_and_explains_itself(path: Path):
    cells = read(path).cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    prose = [cell for cell in cells if cell.cell_type == "markdown"]
    assert len(prose) >= 3


@every_notebook
def test_is_committed_without_outputs(path: Path):
    for cell in code_cells(path):
        assert cell.outputs == [] and cell.execution_count is None, cell.source


@every_notebook
def test_declares_typed_and_explained_parameters_once(path: Path):
    (cell,) = parameter_cells(path)
    declared = papermill.inspect_notebook(str(path))
    for statement in parsed(cell).body:
        assert isinstance(statement, ast.AnnAssign), f"no typed default: {ast.unparse(statement)}"
        assert isinstance(statement.target, ast.Name) and statement.value is not None, ast.unparse(statement)
        ast.literal_eval(statement.value)
        name = statement.target.id
        assert name in declared, f"papermill does not see {name}: keep its annotation to names and brackets"
        assert declared[name]["help"], f"parameter {name} has no comment"


@every_notebook
def test_code_is_thin(path: Path):
    for cell in code_cells(path):
        # Parameters are as many lines as there are parameters.
        exempt = "parameters" in cell.metadata.get("tags", [])
        assert exempt or len(cell.source.splitlines()) <= 15, cell.source
        for node in ast.walk(parsed(cell)):
            assert not isinstance(node, ast.ClassDef), cell.source
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < 3, ast.unparse(node)


@every_notebook
def test_has_no_path_hacks(path: Path):
    for cell in code_cells(path):
        for hack in ("sys.path", "os.chdir", "%cd", "/home/", "../"):
            assert hack not in cell.source, cell.source
