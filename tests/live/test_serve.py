"""A pipeline served in the terminal: what is shown, and its end without a lost request."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import psutil
import pytest
import requests
from deadlines import PATIENCE, eventually, terminating
from rich.console import Console
from tiny_local import Load, fill_store, outcomes
from viewed_steps import loop_views

from opd.live.serve import show, show_as_json
from opd.view.terminal import line

FREE = ("127.0.0.1", 0)


def test_terminal_and_page_show_the_same_views():
    console, views, seen = Console(file=StringIO(), width=80), list(loop_views(3)), []

    def watched():
        for view in views:
            yield view
            url = eventually(lambda: re.search(r"page at (\S+)", console.file.getvalue()))[1]
            seen.append(requests.get(f"{url}view.json", timeout=PATIENCE).json()["view"])

    show(watched(), FREE, console)
    assert seen == [view.as_json() for view in views]
    first, *lines, end = console.file.getvalue().splitlines()
    assert first.startswith("page at http://127.0.0.1:") and lines == [line(view) for view in views]
    assert end == "stopped: running requests were answered, and every process has ended"


def test_programs_get_every_view_as_a_line_of_json_with_the_warnings_since(capsys):
    def warned():
        for view in loop_views(2):
            yield view
            logging.getLogger("opd.anything").warning("a replica ended")

    show_as_json(warned())
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["warnings"], second["warnings"]) == ([], ["a replica ended"])
    assert first["interval"]["offered"] == 40.0 and first["page"] == "" and first["pipeline"] == "ocr"
    assert second.keys() == next(loop_views(1)).as_json().keys() | {"page", "warnings"}


def test_ctrl_c_ends_the_views_and_is_no_error(capsys):
    def interrupted():
        try:
            yield from loop_views(1)
            raise KeyboardInterrupt
        finally:
            print("drained")

    show(interrupted(), None, Console(file=StringIO()))
    assert capsys.readouterr().out == "drained\n"


SERVING = """
import sys
from pathlib import Path
from tiny_local import PARAMETERS, tiny_pipeline
from opd.control.policies import SolverPolicy
from opd.control.sharing import StaticSplit
from opd.live.serve import Served, serve, show
from opd.objective import Weights
from opd.solvers import greedy
pipeline = tiny_pipeline()
policy = SolverPolicy(pipeline, greedy)
served = Served(pipeline, policy, max, Weights(), PARAMETERS, Path({folder!r}), {store!r})
show(serve([served], StaticSplit((pipeline.capacity,))))
"""


@pytest.mark.processes
@pytest.mark.slow
def test_a_served_pipeline_reports_a_dead_replica_and_once_stopped_answers_what_it_has_begun(tmp_path, monkeypatch):
    """SIGTERM is handled like Ctrl-C."""
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[1]}:{Path(__file__).parents[2]}")
    store = tmp_path / "store"
    fill_store(store)
    script = SERVING.format(folder=str(tmp_path / "live"), store=str(store))
    serving = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    with terminating(serving):
        address = next(found[1] for line in serving.stdout if (found := re.search(r" tiny at (\S+:\d+): ", line)))
        servers = {each.cmdline()[-1]: each for each in psutil.Process(serving.pid).children()}
        servers[str(tmp_path / "live" / "first-0.json")].kill()
        assert "killed by SIGKILL after" in next(line for line in serving.stdout if "replica first-0 died" in line)
        traffic = Load(type("Served", (), {"address": address}), tmp_path, [5] * 12)
        # The replacement serves once requests are answered.
        assert next(line for line in serving.stdout if re.search(r"latency mean [1-9]", line))
        family = [psutil.Process(serving.pid), *psutil.Process(serving.pid).children(recursive=True)]
        serving.terminate()
        end = serving.communicate(timeout=PATIENCE)[0]
        assert "stopping: running requests are answered" in end and "stopped: running requests were answered" in end
        assert serving.returncode == 0
        assert psutil.wait_procs(family, timeout=PATIENCE)[1] == []
    records = traffic.records()
    assert "completed" in outcomes(records)
    assert set(records["code"]) <= {"OK", "UNAVAILABLE"}, "later requests are refused; none is left without an answer"
