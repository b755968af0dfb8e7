"""A pipeline served in the terminal: its status, and its end without a lost request."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import psutil
import pytest
from deadlines import PATIENCE, terminating
from live_runs import LARGE, SMALL, run_of
from rich.console import Console
from small_pipelines import ocr_pipeline
from tiny_local import Load, fill_store, outcomes

from opd.cli.command import plain_data
from opd.live.serve import ServingStatus, render, status_facts
from opd.measurement import Calibration, unmeasured

# --- the status ------------------------------------------------------------------------------------------------------


def drawn(status):
    console = Console(file=StringIO(), width=120)
    console.print(render(status))
    return console.file.getvalue()


def status_after(step):
    return ServingStatus(ocr_pipeline(), "127.0.0.1:9", step.configuration, step=step)


@pytest.fixture
def step():
    """4 requests/s that met what was forecast, served by a configuration that has just been chosen."""
    step = run_of([LARGE]).steps[0]
    latency = {"latency_mean": np.array([0.25]), "latency_p99": np.array([0.5])}
    measured = step.interval._replace(**latency, queue=np.array([[3, 0]]))
    return replace(step, interval=measured, score=step.score._replace(within=np.array([0.975])), decision_seconds=0.012)


def test_the_status_says_which_figures_are_assumed(step):
    first, *others = ocr_pipeline().tasks
    typed = replace(first, variants=(replace(first.variants[0], assumed=True), *first.variants[1:]))
    status = replace(status_after(step), pipeline=replace(ocr_pipeline(), tasks=(typed, *others)))
    note = f"assumed, not measured: {first.name}/{first.variants[0].name}"
    assert note in drawn(status) and "assumed" not in drawn(status_after(step))


def test_the_status_shows_load_latency_decision_and_stages(step):
    text = drawn(status_after(step))
    assert "ocr at 127.0.0.1:9" in text
    assert "load       4 requests/s, forecast maximum 4 requests/s\n" in text
    level = ocr_pipeline().service_level
    assert f"mean 250 ms, p99 500 ms; 97.5% within {level.seconds:g} s, objective {level.percentile:g}%" in text
    assert "decision   12 ms, configuration changed" in text
    rows = [line.split() for line in text.splitlines() if "detection" in line or "recognition" in line]
    assert [[cell for cell in row if cell != "│"][:5] for row in rows] == [
        ["detection", "large", "2", "2", "3"],
        ["recognition", "large", "1", "1", "0"],
    ]


def test_the_status_shows_how_service_times_compare_with_the_profiles(step):
    factor, none = np.array([[1.0, 1.25, 1.0], [1.0, 1.0, 0.8]]), np.zeros((2, 3))
    known = Calibration(factor, none, np.full((2, 3), 0.1), 1.0)
    status = status_after(replace(step, observation=replace(step.observation, calibration=known)))
    assert "1.25 ± 0.12" in drawn(status) and "0.80 ± 0.08" in drawn(status)
    stages = plain_data(status_facts(status))["stages"]
    assert [(stage["service_factor"], stage["service_deviation"]) for stage in stages] == [(1.25, 0.1), (0.8, 0.1)]


def test_the_status_names_failures_refusals_and_fallbacks(step):
    failed = step.interval._replace(failed=np.array([7.0]))
    text = drawn(
        status_after(replace(step, interval=failed, refused="needs 12 cores", fallback=True, fallback_reason="late"))
    )
    assert "7 of 40 requests got no answer" in text
    assert "by the fallback policy (late), not applied: needs 12 cores" in text


def test_before_the_first_request_the_status_is_calm(step):
    nothing = step.interval._replace(offered=np.array([0.0]))
    waiting = status_after(replace(step, idle=True, interval=nothing, observation=None, decided=None))
    text = drawn(waiting)
    assert "no requests yet; the configuration stays until the first one arrives" in text
    assert "latency" not in text and "refused" not in text and "not applied" not in text
    assert plain_data(status_facts(waiting))["idle"] and not plain_data(status_facts(status_after(step)))["idle"]
    came = drawn(status_after(replace(step, idle=True, observation=None, decided=None)))
    assert "load       4 requests/s" in came and "decision   none before the first request" in came


def test_before_the_first_decision_and_without_measurements_nothing_is_invented(step):
    first = drawn(ServingStatus(ocr_pipeline(), "127.0.0.1:9", SMALL, "trained for every pipeline"))
    assert "agent      trained for every pipeline" in first
    assert "warming up for the first decision" in first and "?" in first
    score = step.score._replace(within=np.full(1, np.nan))
    blind = replace(step, interval=unmeasured(ocr_pipeline()), predicted_load=np.nan, score=score)
    text = drawn(status_after(blind))
    assert "load       ?, forecast maximum ?" in text and "unknown share" in text and "nan" not in text


def test_the_status_for_programs_is_json(step):
    facts = plain_data(status_facts(status_after(step)))
    assert facts["stages"][0] == {
        **{"task": "detection", "variant": "large", "replicas": 2, "batch_size": 2},
        **{"service_factor": 1.0, "service_deviation": pytest.approx(0.11, abs=0.01)},
    }
    assert (facts["offered"], facts["failed"], facts["within"], facts["latency_mean"]) == (40, 0, 0.975, 0.25)
    blind = replace(step, interval=unmeasured(ocr_pipeline()))
    assert plain_data(status_facts(status_after(blind)))["offered"] is None
    first = ServingStatus(ocr_pipeline(), "127.0.0.1:9", SMALL, warnings=("a replica ended",))
    assert plain_data(status_facts(first)).keys() == {"pipeline", "address", "agent", "stages", "warnings"}


# --- the end ---------------------------------------------------------------------------------------------------------

SERVING = """
import sys
from pathlib import Path
from tiny_local import PARAMETERS, tiny_pipeline
from opd.control.policies import GreedyPolicy
from opd.live.serve import serve, show
from opd.objective import Weights
pipeline = tiny_pipeline()
statuses = serve(pipeline, GreedyPolicy(pipeline), max, Weights(), PARAMETERS, Path({folder!r}), store={store!r})
show(statuses)
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
        address = next(line for line in serving.stdout if line.startswith("tiny at ")).split()[-1]
        servers = {each.cmdline()[-1]: each for each in psutil.Process(serving.pid).children()}
        servers[str(tmp_path / "live" / "first-0.json")].kill()
        assert "killed by SIGKILL after" in next(line for line in serving.stdout if "replica first-0 died" in line)
        traffic = Load(type("Served", (), {"address": address}), tmp_path, [5] * 12)
        # The replacement serves once requests are answered.
        assert next(line for line in serving.stdout if re.match(r"latency    mean [1-9]", line))
        family = [psutil.Process(serving.pid), *psutil.Process(serving.pid).children(recursive=True)]
        serving.terminate()
        assert "running requests were answered" in serving.communicate(timeout=PATIENCE)[0]
        assert serving.returncode == 0
        assert psutil.wait_procs(family, timeout=PATIENCE)[1] == []
    records = traffic.records()
    assert "completed" in outcomes(records)
    assert set(records["code"]) <= {"OK", "UNAVAILABLE"}, "later requests are refused; none is left without an answer"
