"""Tasks in processes of this machine, and where they go when RAY_ADDRESS is set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from deadlines import eventually, terminating
from process_family import ended, family
from ray_jobs import Errand, refuse, square

from opd.host.parallel import run_tasks


def place(word: str, number: int) -> tuple[str, int, int]:
    return word, number, os.getpid()


def test_one_worker_stays_in_this_process_wherever_ray_is(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "nowhere:1")
    assert list(run_tasks(place, "a", [3, 1, 2], workers=1)) == [("a", number, os.getpid()) for number in (3, 1, 2)]


@pytest.mark.processes
def test_results_are_in_the_order_of_the_tasks(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("RAY_ADDRESS", "")
    found = list(run_tasks(place, "a", list(range(9)), workers=2))
    assert [each[:2] for each in found] == [("a", number) for number in range(9)]
    assert os.getpid() not in {pid for *_, pid in found}
    squares = run_tasks(square, Errand(tmp_path), [3, 1, 2], workers=2)
    assert list(squares) == [(number**2, os.getcwd(), os.environ["OMP_NUM_THREADS"]) for number in (3, 1, 2)]


@pytest.mark.processes
def test_the_error_of_a_task_is_raised(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("RAY_ADDRESS", "")
    with pytest.raises(ValueError, match="1 is refused"):
        list(run_tasks(refuse, Errand(tmp_path), [0, 1, 2], workers=2))


ASKS = """
import time
from opd.host.parallel import run_tasks

if __name__ == "__main__":
    for _ in run_tasks(max, 0, [1, 2, 3], workers=2):
        print("begun", flush=True)
        time.sleep(3600)
"""


@pytest.mark.processes
def test_no_process_outlives_the_one_that_asks_and_is_killed(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("RAY_ADDRESS", "")
    (tmp_path / "asks.py").write_text(ASKS)
    asks = subprocess.Popen([sys.executable, tmp_path / "asks.py"], stdout=subprocess.PIPE, text=True)
    with terminating(asks, 0):
        assert asks.stdout is not None and asks.stdout.readline() == "begun\n"
        processes = family(asks.pid)
        assert len(processes) >= 3
    eventually(lambda: all(ended(process) for process in processes))


def test_a_missing_ray_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "opd.host.ray_tasks", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'opd\[ray\]'.*or unset RAY_ADDRESS"):
        list(run_tasks(place, "a", [1, 2], workers=2))
