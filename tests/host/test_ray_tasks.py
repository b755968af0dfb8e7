"""Tasks on a Ray cluster: the results of this machine, also when a node is killed in the middle."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ray_cluster import lost_after
from ray_jobs import Errand, refuse, square

from opd.host.parallel import run_tasks
from opd.study.benchmarks.ray_nodes import add_node, ray_nodes

pytest.importorskip("ray", reason="needs Ray: pip install 'opd[ray]'")

from opd.host.ray_tasks import RayTasksError, _check, _Origin, _software  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.processes]


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """A head and two nodes for tasks."""
    with ray_nodes(2) as running:
        yield running


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


def test_the_error_of_a_task_is_raised_and_tasks_that_have_not_begun_are_left(cluster, tmp_path: Path):
    with pytest.raises(ValueError, match="1 is refused"):
        list(run_tasks(refuse, Errand(tmp_path), list(range(200)), workers=2))
    assert (tmp_path / "1").exists()
    (tmp_path / "done").touch()
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
