"""New projects: from the template or an example, inside and outside a Git repository."""

import filecmp
import shutil
import subprocess
import sys

import pytest
import yaml
from deadlines import PATIENCE

from opd.host.paths import package_path
from opd.profiling.pipeline_file import read_pipeline_file
from opd.project.folder import NOTEBOOKS, Project, ProjectError, create, examples
from opd.workload.trace import load_trace

pytestmark = pytest.mark.processes


def output(folder, *command):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=True)
    return done.stdout


def test_a_project_from_the_template_has_all_its_parts(tmp_path):
    folder = tmp_path / "My shop, 2nd"
    project = create(folder)
    assert project.file.name == "my-shop-2nd"
    assert sorted(path.stem for path in (folder / "notebooks").iterdir()) == sorted(NOTEBOOKS)
    for name in NOTEBOOKS:
        assert filecmp.cmp(
            folder / "notebooks" / f"{name}.ipynb", package_path("project", "notebooks", f"{name}.ipynb")
        )
    assert project.simulation().interval == 10
    trace = load_trace(folder / project.parameters()["trace"], project.parameters()["damping"])
    assert trace.is_synthetic  # so its figures say so
    assert (folder / "pipeline.schema.json").is_file() and (folder / ".gitignore").is_file()
    assert "no_scm = true" in (folder / ".dvc" / "config").read_text().lower()


def test_every_stage_of_a_project_is_known_to_dvc_and_reads_files_that_are_there(tmp_path):
    folder = create(tmp_path / "shop").root
    listed = output(folder, sys.executable, "-m", "dvc", "stage", "list", "--name-only").split()
    stages = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    assert listed == list(stages)
    made = {next(iter(each)) if isinstance(each, dict) else each for stage in stages.values() for each in stage["outs"]}
    needed = {each for stage in stages.values() for each in stage["deps"]} - made - {"${trace}"}
    assert all((folder / each).exists() for each in needed)


def test_an_example_brings_its_pipeline_and_builds_its_models(tmp_path):
    folder = create(tmp_path / "shop", "tabular").root
    assert read_pipeline_file(folder) == read_pipeline_file("tabular")
    files = [variant.model for task in read_pipeline_file(folder).tasks for variant in task.variants]
    assert all((folder / file).is_file() for file in files if ":" not in file)
    assert not list(folder.glob("profile.*")), "a profile of another machine"
    assert not (folder / "build.py").exists() and (folder / "acceptance.py").is_file()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_projects_in_a_git_repository(tmp_path):
    output(tmp_path, "git", "init", "-q")
    folder = create(tmp_path / "deep" / "shop").root
    assert "no_scm" not in (folder / ".dvc" / "config").read_text()
    assert output(folder, sys.executable, "-m", "dvc", "root").strip() == "."
    ignored = folder / "models" / "agents" / "agent-0.npz"
    ignored.touch()
    seen = output(tmp_path, "git", "status", "--porcelain", "-uall")
    assert "shop/pipeline.yaml" in seen and "agent-0" not in seen


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_new_repository_can_become_a_project(tmp_path):
    output(tmp_path, "git", "init", "-q", "shop")
    folder = create(tmp_path / "shop").root
    assert output(folder, sys.executable, "-m", "dvc", "root").strip() == "."


def test_folders_in_use_and_unknown_examples_are_refused_before_anything_is_made(tmp_path):
    used = tmp_path / "used"
    used.mkdir()
    (used / "thesis.txt").touch()
    for folder in (used, used / "thesis.txt"):
        with pytest.raises(ProjectError, match="exists and is not empty; name a new folder"):
            create(folder)
    assert [path.name for path in used.iterdir()] == ["thesis.txt"]
    with pytest.raises(ProjectError, match="there is no example 'tabula'; there are .*tabular"):
        create(tmp_path / "shop", "tabula")
    assert not (tmp_path / "shop").exists() and "tabular" in examples()


def test_a_folder_that_is_no_project_is_named_with_what_it_lacks(tmp_path):
    with pytest.raises(ProjectError, match="has no pipeline.yaml; make one with `opd init"):
        Project.at(tmp_path)
    (tmp_path / "pipeline.yaml").touch()
    with pytest.raises(ProjectError, match="has no params.yaml"):
        Project.at(tmp_path)
