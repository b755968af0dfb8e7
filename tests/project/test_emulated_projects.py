"""Pipelines that are emulated: which they can be, and how their traffic is told from that of real ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from deadlines import PATIENCE, eventually
from viewed_steps import loop_views

from opd import cli
from opd.profiling.pipeline_file import shipped_pipelines
from opd.project import running
from opd.project.folder import Project, ProjectError
from opd.project.running import (
    division_of_projects,
    placed_together,
    send_load,
    serve_projects,
    served_address,
    served_name,
    serving_folder,
)


def served(*projects, cores=None, policy="greedy"):
    placed = placed_together(projects, policy, cores)
    return serve_projects(placed, division_of_projects(placed))


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
    of_video = (replace(view, pipeline="video-emulated") for view in loop_views(3))
    monkeypatch.setattr(running, "serve", lambda *given, **known: of_video)
    project = Project.to_emulate(Path("video"))
    views = served(project)
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
    views = served(project)
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


def test_pipelines_that_cannot_share_a_device_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    together = ["serve", "video", "audio-qa", "--emulated", "--policy", "greedy"]
    assert cli.main(together) == cli.REFUSED
    assert "different cores (video 20, audio-qa 8); give --cores" in capsys.readouterr().err
    assert cli.main([*together, "--cores", "3"]) == cli.REFUSED
    assert "the smallest configurations need 4 cores (video 2, audio-qa 2)" in capsys.readouterr().err
    assert cli.main([*together, "--cores", "10", "--record", "decisions.jsonl"]) == cli.REFUSED
    assert "a record is of one pipeline" in capsys.readouterr().err


@pytest.mark.processes
def test_two_pipelines_share_the_cores_of_a_device(tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("simulation: {interval: 2}\n")
    projects = [Project.to_emulate(Path(name)) for name in ("video", "audio-qa")]
    views = served(*projects, cores=5, policy="myopic-backlog")
    last = {}
    try:
        for project, view in zip(projects, (next(views), next(views)), strict=True):
            assert view.pipeline == served_name(project) and view.device_cores == 5.0
            assert served_address(project) == view.address
            records = send_load(project, view.address, np.array([3, 3]), tmp_path / "load.parquet")
            assert records["outcome"].tolist() == ["completed"] * 6
        for first, second in zip(views, views, strict=True):
            last = {each.pipeline: each for each in (first, second)}
            assert first.interval.cores + second.interval.cores <= 5.0
            if all(each.decision.outcome in ("applied", "kept") for each in last.values()):
                break
    finally:
        views.close()
    assert set(last) == {"video-emulated", "audio-qa-emulated"}
