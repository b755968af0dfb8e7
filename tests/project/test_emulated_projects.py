"""Pipelines that are emulated: which they can be, and how their traffic is told from that of real ones."""

from __future__ import annotations

import numpy as np
import pytest
from deadlines import PATIENCE, eventually
from viewed_steps import loop_views

from opd import cli
from opd.profiling.pipeline_file import shipped_pipelines
from opd.project import running
from opd.project.folder import Project, ProjectError
from opd.project.running import decider, send_load, serve_project, served_address, served_name, serving_folder


def test_a_shipped_pipeline_needs_no_project(tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    project = Project.to_emulate(Path("video"))
    assert project.emulated and project.root == tmp_path and served_name(project) == "video-emulated"
    assert project.pipeline().name == "video" and project.simulation().interval == 10
    assert serving_folder(project) == tmp_path / ".cache" / "serving" / "video-emulated"
    with pytest.raises(ProjectError, match="start `opd serve video --emulated`"):
        served_address(project)


def test_what_is_neither_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["serve", "nosuch", "--emulated"]) == cli.REFUSED
    error = capsys.readouterr().err
    assert "nosuch is no project" in error and all(name in error for name in shipped_pipelines())


def test_a_disk_that_fills_up_while_a_project_is_served_ends_nothing(tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "serve", lambda *given, **known: loop_views(3))
    project = Project.to_emulate(Path("video"))
    pipeline = project.pipeline()
    views = serve_project(project, pipeline, decider(project, pipeline, "greedy"))
    next(views)
    address = serving_folder(project) / running.ADDRESS_FILE
    address.unlink()
    address.symlink_to("/dev/full")
    assert len(list(views)) == 2 and not address.is_symlink()


@pytest.mark.processes
def test_a_shipped_pipeline_is_served_and_loaded_under_its_emulated_name(tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    project = Project.to_emulate(Path("video"))
    pipeline = project.pipeline()
    views = serve_project(project, pipeline, decider(project, pipeline, "greedy"))
    try:
        view = next(views)
        assert view.pipeline == "video-emulated" and view.emulated and served_address(project) == view.address
        records = send_load(project, view.address, np.array([2, 2]), tmp_path / "load.parquet")
    finally:
        views.close()
    assert records["outcome"].tolist() == ["completed"] * 4
    # 0.22 s in both stages of the smallest variants, and no more accuracy than an echo has
    assert records["answer"].str.startswith("emulated request").all()
    eventually(lambda: not (serving_folder(project) / "address.json").exists(), PATIENCE)
