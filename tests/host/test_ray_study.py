"""A study on a Ray cluster: the digits of this machine, also when a node and a process are lost in the middle of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from ray_cluster import lost_after
from ray_jobs import Errand
from ray_study import SAVED, run_study
from small_lessons import prepared_in

from opd.study.benchmarks.ray_nodes import add_node, ray_nodes

pytest.importorskip("ray", reason="needs Ray: pip install 'opd[ray]'")

pytestmark = [pytest.mark.slow, pytest.mark.processes]


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of agents, demonstrations, parameters and figures; the same checkpoint is pickled in many ways."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pt"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_study_gives_the_same_digits_where_a_node_and_a_process_are_lost(tmp_path: Path, monkeypatch):
    here, there, notes = tmp_path / "here", tmp_path / "there", tmp_path / "notes"
    for folder in (here, there, notes, tmp_path / "other notes"):
        folder.mkdir()
    monkeypatch.setenv("RAY_ADDRESS", "")
    lesson = prepared_in(tmp_path).lesson
    rows, timelines = run_study(lesson, here, Errand(tmp_path / "other notes"), workers=1)

    with ray_nodes(2) as cluster:
        doomed = add_node(cluster, num_cpus=1)
        with lost_after(cluster, (notes / SAVED).exists, doomed):
            found, steps = run_study(lesson, there, Errand(notes, doomed.node_id), workers=2)

    expected, actual = contents(here), contents(there)
    assert expected.keys() == actual.keys() and len(expected) > 15
    assert [name for name in expected if expected[name] != actual[name]] == []
    # How long a decision took is the only thing that may differ.
    assert found.drop(columns="decision_ms_mean").equals(rows.drop(columns="decision_ms_mean"))
    assert steps.drop(columns="decision_ms").equals(timelines.drop(columns="decision_ms"))

    begun = [path.name.split("_") for path in notes.iterdir() if path.name != SAVED]
    (lost,) = [job for job, _, node in (each for each in begun if len(each) == 3) if node == doomed.node_id]
    assert Counter(job for job, *_ in begun if "single" in job) == {
        f"agent-single-{n}": 1 + (f"agent-single-{n}" == lost) for n in range(4)
    }
    assert [job for job, how, *_ in begun if how == "resumed"] == [lost]
    assert Counter(job for job, *_ in begun if "tuned" in job) == {"agent-tuned-0": 2, "agent-tuned-1": 1}
