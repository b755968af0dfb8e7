"""Control of a deployed pipeline by ``opd run``."""

import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import pytest
import requests
from cli_shell import PIPELINE, ROOT
from deadlines import PATIENCE, eventually, terminating
from emulator.prometheus import Prometheus
from user_projects import user_project

from opd import cli
from opd.profiling.pipelines import load_pipeline


@pytest.mark.parametrize(
    "options, words",
    [
        (["--policy=clairvoyant", "--prometheus=http://127.0.0.1:1"], "policy 'clairvoyant' is not one of"),
        (["--policy=agent-single", "--prometheus=http://127.0.0.1:1"], "file of an agent that was trained"),
        (
            ["--policy=greedy", "--prometheus=http://127.0.0.1:1", "--forecaster=nosuch"],
            "there is no file nosuch; train one",
        ),
        (
            ["--policy=no_such:Mine", "--prometheus=http://127.0.0.1:1"],
            "policy 'no_such:Mine' cannot be imported",
        ),
        (["--policy=greedy", "--decision-share=0"], "Invalid value for '--decision-share'"),
        (["--policy=greedy"], "--prometheus"),
        (["--policy=greedy", "--decisions=0"], "Invalid value for '--decisions'"),
    ],
)
def test_wrong_options_of_a_run_are_refused(shell, monkeypatch, caplog, options, words):
    monkeypatch.delenv("OPD_PROMETHEUS_URL", raising=False)
    assert shell("run", "--image=opd:1", "--store=/models", *options) == cli.REFUSED
    assert words in shell.err + caplog.text and not shell.api.requests


FIRST_LINE = """
import logging, sys
known = []
class Seen(logging.Handler):
    def emit(self, record):
        known.append((record.getMessage(), sorted({"numpy", "numba", "kubernetes"} & sys.modules.keys())))
logging.getLogger().addHandler(Seen())
logging.getLogger().setLevel(logging.INFO)
from opd import cli
cli.main(["run", "nosuch", "--namespace=space", "--image=opd:1", "--store=/models"])
assert known[0] == ("loading what controls nosuch", []), known
"""


@pytest.mark.processes
def test_the_first_line_of_the_log_comes_before_anything_slow_is_loaded():
    done = subprocess.run(
        [sys.executable, "-c", FIRST_LINE], capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def controlled(shell, forecaster):
    """Options that control a deployed pipeline."""
    assert shell.deploy() == cli.DONE
    prometheus = Prometheus(load_pipeline(shell.file), load=30.0)
    yield [
        "--image=opd:1",
        "--store=/models",
        "--policy=greedy",
        f"--forecaster={forecaster}",
        f"--prometheus={prometheus.url}",
        "--interval=0.2",
    ]
    prometheus.close()


@pytest.fixture
def control(shell, controlled):
    """Function that runs the controller of a deployed pipeline in this process."""
    return lambda *options: shell("run", *controlled, *options)


def test_a_run_decides_and_ends(shell, control):
    assert control("--decisions=2", "--port=0") == cli.DONE, shell.err
    assert shell.stage("first") != {"variant": "small", "batch_size": "1"}


def test_a_policy_of_the_project_controls_a_deployed_pipeline(shell, control, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "opd.cluster.record")
    with user_project(tmp_path / "project", monkeypatch):
        given = ["--decisions=1", "--port=0", f"--params={ROOT / 'params.yaml'}"]
        for name in ("Pipelined", "Confused"):
            assert control(*given, f"--policy=policies_of_the_project:{name}") == cli.DONE, shell.err
    own, replaced = [record.fields for record in caplog.records if hasattr(record, "fields")]
    assert {stage["variant"] for stage in own["wanted"].values()} == {"small"}
    assert (own["outcome"], own["reason"], own["by_expert"]) == ("kept", "", False)
    assert (replaced["outcome"], replaced["by_expert"]) == ("refused", True)
    assert replaced["reason"].startswith("policy Confused: the decision None")


def test_a_run_with_a_number_of_decisions_needs_a_deployed_pipeline(shell, control, caplog):
    assert shell("delete") == cli.DONE
    assert control("--decisions=1", "--port=0") == cli.NOT_DEPLOYED
    assert "pipeline 'tiny' is not deployed" in caplog.records[-1].message


def test_a_dry_run_of_control_prints_changes_and_makes_none(shell, control):
    shell.api.requests.clear()
    assert control("--decisions=1", "--port=0", "--dry-run") == cli.DONE, shell.err
    assert re.search(r"^\+\+\+ (ConfigMap|Deployment)/tiny-\S+ then", shell.out, re.MULTILINE)
    assert all("dryRun=All" in target for _, target in shell.writes())
    assert shell.stage("first") == {"variant": "small", "batch_size": "1"}


def test_a_port_in_use_is_an_error(shell, control, caplog):
    port = shell.api.url.rpartition(":")[2]
    assert control("--decisions=1", f"--port={port}") == cli.FAILED
    assert "in use" in caplog.records[-1].message


@pytest.mark.processes
def test_sigterm_ends_a_run_while_it_loads_its_policy(shell):
    started = shell.folder / "started"
    shell.write("numba.py", f"import pathlib, time\npathlib.Path({str(started)!r}).touch()\ntime.sleep(600)\n")
    given = [
        shell.file,
        "--namespace=space",
        "--image=opd:1",
        "--store=/models",
        "--prometheus=http://p",
    ]
    path = os.pathsep.join([str(shell.folder), str(ROOT)])
    command = [sys.executable, "-m", "opd", "run", *given]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
    with terminating(running):
        eventually(started.exists)
        running.send_signal(signal.SIGTERM)
        log = running.communicate(timeout=PATIENCE)[1]  # much less than the import takes
    assert running.returncode == cli.DONE
    assert [json.loads(line)["message"] for line in log.splitlines()] == [f"loading what controls {shell.file}"]


def test_several_pipelines_are_controlled_together_on_the_cores_of_one_device(shell, control, monkeypatch, caplog):
    given = []
    monkeypatch.setattr("opd.cluster.inputs.run_controller", lambda *known: given.append(known) or cli.DONE)
    other = shell.write("other.yaml", PIPELINE.replace("name: tiny", "name: other", 1).replace("cores: 6", "cores: 5"))
    assert control(other) == cli.REFUSED
    assert "different cores (tiny 6, other 5); give --cores" in caplog.text
    assert control(other, "--cores=3") == cli.REFUSED
    assert "the smallest configurations need 4 cores (tiny 2, other 2)" in caplog.text
    assert control(other, "--cores=5", "--record=decisions.jsonl") == cli.REFUSED
    assert "a record is of one pipeline" in caplog.text
    assert control(shell.file, "--cores=5") == cli.REFUSED and "two pipelines have one name" in caplog.text
    assert not given and control(other, "--cores=5") == cli.DONE
    (_, controlled, division, chosen) = given[0]
    assert [(each.pipeline.name, each.pipeline.capacity) for each in controlled] == [("tiny", 5), ("other", 5)]
    assert division.capacity == 5 and chosen.page is None


@pytest.mark.processes
def test_every_line_of_the_log_of_a_run_is_a_json_object(shell, controlled):
    def log(*options):
        place = [shell.file, f"--kubeconfig={shell.config}", "--namespace=space"]
        command = [sys.executable, "-m", "opd", "run", *place, *controlled, *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        return done.returncode, [json.loads(line) for line in done.stderr.splitlines()]

    code, lines = log("--decisions=2", "--port=0")
    assert code == cli.DONE
    assert all({"time", "logger", "level", "message"} <= line.keys() for line in lines)
    first, second = [line for line in lines if line.get("event") == "decision"]
    assert (first["outcome"], second["outcome"]) == ("applied", "kept")
    assert first["state"]["incoming_load"] > 0 and first["message"].startswith("applied: first ")
    code, lines = log("--policy=clairvoyant")
    assert code == cli.REFUSED
    assert [line["level"] for line in lines] == ["INFO", "ERROR"]
    assert "'clairvoyant' is not one of" in lines[1]["message"]


@pytest.mark.processes
def test_a_run_on_a_terminal_shows_the_view_there_and_on_a_page(shell, controlled):
    place = [shell.file, f"--kubeconfig={shell.config}", "--namespace=space", "--port=0", "--view=127.0.0.1:0"]
    command = [sys.executable, "-m", "opd", "run", *place, *controlled]
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    written = bytearray()
    running = subprocess.Popen(command, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    reading = threading.Thread(target=read_all, args=(master, written), daemon=True)
    reading.start()
    with terminating(running):
        url = eventually(lambda: re.search(rb"page +(http://127.0.0.1:\d+/)", written))[1].decode()
        seen = eventually(lambda: (known := requests.get(f"{url}view.json", timeout=PATIENCE).json())["view"] and known)
        eventually(lambda: len(requests.get(f"{url}view.json", timeout=PATIENCE).json()["course"]["end"]) > 1)
        running.send_signal(signal.SIGINT)
        assert running.wait(PATIENCE) == 0
    reading.join(PATIENCE)
    assert seen["view"]["pipeline"] == "tiny"
    text = written.decode()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is back"
    assert '{"time"' not in text and "applied: first 1 x small batch 2" in text, (
        "the log is for people, above the display"
    )
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text[text.rindex("\x1b[1mtiny") :]).splitlines()
    assert max(map(len, last)) <= 80 and re.search(r"state +ended", "\n".join(last))
    assert re.search(r"load +3\d(\.\d+)? requests/s, forecast maximum", "\n".join(last))


def read_all(descriptor, into):
    """Read a terminal until its other side is closed."""
    with suppress(OSError):
        while piece := os.read(descriptor, 65536):
            into += piece
    os.close(descriptor)


@pytest.mark.parametrize("address", ["8090", "host:", ":8090", "127.0.0.1:70000", "127.0.0.1:x"])
def test_a_wrong_address_of_the_page_is_refused(shell, address):
    assert shell("run", f"--view={address}") == cli.REFUSED
    assert "--view" in shell.err and "HOST:PORT" in shell.err and not shell.api.requests


@pytest.mark.parametrize(
    "options, page",
    [([], ("127.0.0.1", 8090)), (["--view=none"], None), (["--view=localhost:0"], ("localhost", 0))],
)
def test_the_page_is_served_on_loopback_elsewhere_or_not_at_all(control, monkeypatch, options, page):
    given = []
    monkeypatch.setattr("opd.cluster.inputs.run_controller", lambda *known: given.append(known[-1]) or cli.DONE)
    assert control(*options) == cli.DONE
    assert given[0].page == page
