"""Tasks on a Ray cluster: the results of this machine, also when a node is killed in the middle."""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from deadlines import PATIENCE, eventually
from ray_cluster import add_node, ray_cluster
from ray_jobs import Errand, refuse, square
from small_agents import agent_for
from small_pipelines import ocr_pipeline
from small_study import setting_on, waves
from small_trainings import SHORT, problem_for

from opd.agent.single.deployed import Agent
from opd.agent.single.jobs import Job, run_jobs
from opd.host.parallel import run_tasks
from opd.study.evaluation.cycles import EvaluationCell, evaluate
from opd.workload.trace import Cycle

pytest.importorskip("ray", reason="needs Ray: pip install 'opd[ray]'")

from opd.host.ray_tasks import RayTasksError, _check, _Origin, _software  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.processes]


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """A head and two nodes for tasks."""
    with ray_cluster(workers=2) as running:
        yield running


@contextmanager
def lost_after(cluster, sign: Callable[[], object], node) -> Iterator[None]:
    """Kill all processes of a node as soon as there is a sign; at the end it must be gone."""

    def kill() -> None:
        eventually(sign, 2 * PATIENCE)
        cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    yield
    killer.join(PATIENCE)
    assert not killer.is_alive() and node not in cluster.worker_nodes


def test_a_killed_node_costs_its_task_only(cluster, tmp_path: Path):
    doomed = add_node(cluster, num_cpus=1)
    errand, numbers = Errand(tmp_path, doomed.node_id), list(range(12))
    with lost_after(cluster, lambda: list(tmp_path.glob(f"*-{doomed.node_id}")), doomed):
        found = list(run_tasks(square, errand, numbers, workers=2))

    assert found == [(number**2, os.getcwd(), "1") for number in numbers]
    begun = [path.name.split("-") for path in tmp_path.iterdir()]
    (lost,) = [number for number, node in begun if node == doomed.node_id]
    times = Counter(number for number, _ in begun)
    assert [number for number in times if times[number] > 1] == [lost]
    assert len(times) == len(numbers) and len({node for _, node in begun}) == 3


def jobs_in(folder: Path) -> list[Job]:
    problem = problem_for()
    return [Job("agent-single", seed, problem, SHORT, folder / f"{seed}.npz") for seed in range(3)]


def agents_of(jobs: list[Job]) -> list[Agent]:
    return [Agent.load(job.path, job.problem.pipeline) for job in jobs]


def test_trainings_are_the_same_to_the_last_digit_when_a_node_is_killed(cluster, tmp_path: Path):
    here, there = jobs_in(tmp_path / "here"), jobs_in(tmp_path / "there")
    run_jobs(here, workers=1)

    doomed = add_node(cluster, num_cpus=1)
    with lost_after(cluster, lambda: list(tmp_path.glob("there/runs/*/*")), doomed):
        assert run_jobs(there, workers=2) == [job.path for job in there]

    for one, other in zip(agents_of(here), agents_of(there), strict=True):
        assert one.parameters == other.parameters
        for part, same in zip(one.weights, other.weights, strict=True):
            np.testing.assert_array_equal(same, part)
    for one, other in zip(here, there, strict=True):
        pd.testing.assert_frame_equal(*(pd.read_csv(job.folder / "metrics.csv") for job in (one, other)))


def test_cycles_have_the_same_rows_and_timelines(cluster, tmp_path: Path):
    path = tmp_path / "agent.npz"
    agent_for(ocr_pipeline()).save(path)
    setting = setting_on(waves(), {("ocr", "agent-single", 0): path})
    cycles = [Cycle("early", 18_500), Cycle("late", 20_000)]
    cells = [
        EvaluationCell(ocr_pipeline(), policy, cycle, 0)
        for policy in ("greedy", "myopic", "agent-single")
        for cycle in cycles
    ]
    (rows, steps), (other_rows, other_steps) = (evaluate(cells, setting, workers) for workers in (1, 2))
    pd.testing.assert_frame_equal(*(each.drop(columns="decision_ms_mean") for each in (rows, other_rows)))
    pd.testing.assert_frame_equal(*(each.drop(columns="decision_ms") for each in (steps, other_steps)))


def test_the_error_of_a_task_is_raised_and_tasks_that_have_not_begun_are_left(cluster, tmp_path: Path):
    with pytest.raises(ValueError, match="1 is refused"):
        list(run_tasks(refuse, Errand(tmp_path), list(range(200)), workers=2))
    assert (tmp_path / "1").exists()
    assert list(run_tasks(refuse, Errand(tmp_path), [2, 3], workers=2)) == [2, 3]
    assert len(list(tmp_path.iterdir())) < 200


# --- clusters and nodes that do not fit ------------------------------------------------------------------------------


def test_an_address_where_nothing_listens_is_named_at_once(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{held.getsockname()[1]}"
        for written in (address, f"ray://{address}"):
            monkeypatch.setenv("RAY_ADDRESS", written)
            with pytest.raises(
                RayTasksError, match=rf"no Ray cluster answers at RAY_ADDRESS={written} .*or unset RAY_A"
            ):
                list(run_tasks(refuse, Errand(Path()), [0, 2], workers=2))


def test_a_node_without_the_folder_is_named(tmp_path: Path):
    with pytest.raises(RayTasksError, match=f"does not share the folder {tmp_path}; mount it there"):
        _check(_Origin(tmp_path / "mark", tmp_path, _software()))


def test_a_node_with_other_software_is_named(tmp_path: Path):
    (tmp_path / "mark").touch()
    _check(_Origin(tmp_path / "mark", tmp_path, _software()))
    other = _software() | {"numpy": "1.0", "code of opd": "0"}
    with pytest.raises(RayTasksError, match=rf"other software.*\n- numpy is {np.__version__}, not 1.0\n- code of opd"):
        _check(_Origin(tmp_path / "mark", tmp_path, other))
