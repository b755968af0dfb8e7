"""Start and end of a local pipeline: nothing is lost, and nothing is left running."""

import asyncio
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from deadlines import PATIENCE, eventually, terminating, within
from small_pipelines import stages
from tiny_local import BROKEN, FAST, INITIAL, PARAMETERS, SLOW, queue_status, tiny_pipeline

from opd.measurement import SimulationParameters
from opd.serving import local, processes
from opd.serving.client import Client
from opd.serving.contents import payload_request, payloads_of
from opd.serving.local import LocalBackend
from opd.serving.local_gateways import LocalGateways
from opd.serving.local_stage import LocalStage
from opd.serving.monitoring.prometheus import PROMETHEUS_URL_VARIABLE
from opd.serving.monitoring.source import MonitoringError
from opd.serving.processes import StartError, direct_session
from opd.serving.settings import GatewaySettings, GatewayStage

pytestmark = pytest.mark.processes

TESTS = Path(__file__).parents[1]

CONTROLLER = """
import signal, sys, time
sys.path[:0] = [{tests!r}, {tests!r} + "/.."]
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell began in the background
from tiny_local import INITIAL, PARAMETERS, tiny_pipeline
from pathlib import Path
from opd.serving.local import LocalBackend
with LocalBackend(tiny_pipeline(), PARAMETERS, INITIAL, Path({folder!r}), {store!r}) as backend:
    print("up", *[process.pid for process in backend.processes()], flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_its_controller(tmp_path, store, how):
    script = CONTROLLER.format(tests=str(Path(__file__).parent), folder=str(tmp_path), store=store)
    controller = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    with terminating(controller):
        word, *pids = controller.stdout.readline().split()
        assert word == "up" and len(pids) == 3
        family = [psutil.Process(controller.pid), *psutil.Process(controller.pid).children(recursive=True)]
        assert {int(pid) for pid in pids} <= {process.pid for process in family}
        controller.send_signal(how)
        assert psutil.wait_procs(family, timeout=PATIENCE)[1] == []


def test_closing_finishes_running_requests_however_long_that_takes(tmp_path, store, monkeypatch):
    """Three seconds of work at the first stage and some at the second, though an idle server has half a second."""
    monkeypatch.setattr(processes, "STOP_SECONDS", 0.5)
    monkeypatch.setattr(local, "STOP_SECONDS", 0.5)
    parameters = SimulationParameters(interval=2, drop_after=10 * PATIENCE)
    configuration = stages((SLOW, 1, 1), (FAST, 1, 1))
    backend = LocalBackend(tiny_pipeline(), parameters, configuration, tmp_path, store)
    with backend, ThreadPoolExecutor(1) as caller:
        answers = caller.submit(asyncio.run, ask(backend, [b"hello"] * 60))
        eventually(lambda: accepted(backend) == 60)  # a request that comes later is refused
        assert queue_status(backend, 0)["waiting"]
        with within():  # far from the longest that a request may live
            backend.close()
    assert answers.result() == [b"HELLO"] * 60


def accepted(backend):
    """Requests that the gateway has accepted."""
    text = direct_session().get(f"http://{backend.processes()[0].metrics_address}/metrics", timeout=PATIENCE).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("opd_requests_total{"))


async def ask(backend, payloads):
    client = Client(backend.address, "tiny")
    try:
        calls = [client.infer(payload_request([payload]), 0.0, PATIENCE) for payload in payloads]
        return [payload for answer in await asyncio.gather(*calls) for payload in payloads_of(answer)]
    finally:
        await client.close()


def test_nothing_is_started_once_the_backend_closes(tmp_path):
    closing = threading.Event()
    first = tiny_pipeline().tasks[0]
    settings = GatewaySettings(name="tiny", stages=[GatewayStage(task="first")], objective=1.0)
    gateways = LocalGateways(settings, tmp_path)
    gateways.servers[0].kill()
    stage = LocalStage("tiny", first, gateways, "", tmp_path, INITIAL[0], closing=closing)
    closing.set()
    stage.reconcile()
    assert stage.replicas == []
    eventually(gateways.servers[0].ended)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (dict(max_queue=0), r"max_queue\s+Input should be greater than or equal to 1 .*input_value=0"),
        (dict(), "Prometheus server at http://nobody:1 cannot"),
    ],
)
def test_a_start_that_fails_early_leaves_the_folder_to_others(tmp_path, store, monkeypatch, arguments, error):
    monkeypatch.setenv(PROMETHEUS_URL_VARIABLE, "http://nobody:1")
    with pytest.raises((ValueError, MonitoringError), match=error) as caught:  # holds the frames and all in them
        LocalBackend(tiny_pipeline(), PARAMETERS, INITIAL, tmp_path, store, **arguments)
    local._lock(tmp_path, "tiny").close()
    assert caught.value


def test_a_pipeline_that_cannot_start_leaves_nothing_behind(tmp_path, store, no_new_processes):
    with pytest.raises(StartError, match="variant 'broken' of 'first' did not start 2 times"):
        LocalBackend(tiny_pipeline(), PARAMETERS, stages((BROKEN, 1, 1), (FAST, 1, 1)), tmp_path, store)
