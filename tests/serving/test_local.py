"""A live pipeline of real processes, with tiny models, under load and under every fault it must survive."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from deadlines import PATIENCE, eventually, within

from opd.control.loop import ApplyError
from opd.live.load import start_load
from opd.pipeline import Pipeline, StageConfiguration, Task, Variant
from opd.serving import backoff, local, local_stage, processes
from opd.serving.client import Client
from opd.serving.local import AlreadyControlledError, LocalBackend
from opd.serving.local_stage import LocalStage
from opd.serving.monitoring import URL_VARIABLE, MonitoringError
from opd.serving.processes import ServerProcess, StartError
from opd.serving.server import ServerSettings
from opd.serving.stage_queue import StageSettings
from opd.serving.store import ModelStore
from opd.simulator.parameters import SimulationParameters

TESTS = Path(__file__).parents[1]
PARAMETERS = SimulationParameters(interval=2)
FAST, SLOW, BROKEN = 0, 1, 2
SECONDS = {"fast": 0.005, "slow": 0.05}


def tiny_pipeline():
    profile = dict.fromkeys((1, 2, 4), 0.05)
    variants = tuple(Variant(name, 0.5, 1, profile, 2.0) for name in ("fast", "slow", "broken"))
    tasks = (Task("first", variants), Task("second", variants))
    return Pipeline("tiny", tasks, capacity=6, max_replicas=3, max_batch_size=4, latency_sla=1.0)


def stages(*triples):
    return tuple(StageConfiguration(*triple) for triple in triples)


INITIAL = stages((FAST, 1, 1), (FAST, 1, 1))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    for task in ("first", "second"):
        for variant in ("fast", "slow", "broken"):
            source = tmp_path_factory.mktemp("variant")
            settings = {"seconds": SECONDS[variant]} if variant in SECONDS else {}
            name = "Upper" if variant in SECONDS else "Broken"
            manifest = {"class": f"serving_models:{name}", "settings": settings, "files": {}}
            (source / "manifest.json").write_text(json.dumps(manifest))
            ModelStore(str(folder)).push(source, task, variant)
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def models_importable():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
        yield


@pytest.fixture(scope="module")
def running(tmp_path_factory, store):
    folder = tmp_path_factory.mktemp("live")
    with LocalBackend(tiny_pipeline(), PARAMETERS, INITIAL, folder, store, max_queue=40, spares=1) as backend:
        yield backend


@pytest.fixture
def backend(running):
    """The running pipeline, back in its first configuration."""
    running.apply(INITIAL)
    yield running


class Load:
    """Texts sent by the real generator while a test does something else."""

    def __init__(self, backend, tmp_path, counts, texts=("hello",)):
        payloads = tmp_path / "payloads.parquet"
        pd.DataFrame({"payload": [text.encode() for text in texts]}).to_parquet(payloads)
        self._process = start_load(backend.address, "tiny", counts, payloads, 0, tmp_path / "requests.parquet")

    def records(self):
        return self._process.finish(60)


def outcomes(records):
    return records["outcome"].value_counts().to_dict()


def queue_of(backend, position):
    return backend.stages[position].queue.http("GET", "/stage")


# --- reconfiguration -------------------------------------------------------------------------------------------------


def test_variant_replicas_and_batch_change_under_load_without_losing_a_request(backend, tmp_path):
    traffic = Load(backend, tmp_path, [20] * 9)
    for wanted in (
        stages((FAST, 2, 1), (SLOW, 1, 2)),
        stages((SLOW, 2, 4), (SLOW, 2, 2)),
        stages((FAST, 1, 1), (FAST, 1, 1)),
    ):
        backend.apply(wanted)
        for position, stage in enumerate(wanted):
            status = queue_of(backend, position)
            serving = [replica for replica in status["replicas"] if not replica["retired"]]
            assert status["batch_size"] == stage.batch_size
            assert [replica["variant"] for replica in serving] == [("fast", "slow")[stage.variant]] * stage.replicas
    records = traffic.records()
    assert outcomes(records) == {"completed": 180}
    assert set(records["answer"]) == {"HELLO"}
    eventually(lambda: sum(len(stage.replicas) for stage in backend.stages) == 2)


def test_a_variant_that_does_not_load_is_taken_back_with_its_reason(backend):
    with pytest.raises(ApplyError, match="variant 'broken' of 'second' did not start 2 times"):
        backend.apply(stages((SLOW, 1, 1), (BROKEN, 1, 1)))
    assert backend.configuration == INITIAL
    eventually(lambda: all(stage.settled for stage in backend.stages))
    assert [replica["variant"] for replica in queue_of(backend, 1)["replicas"]] == ["fast"]


# --- faults under load -----------------------------------------------------------------------------------------------


def test_a_killed_replica_is_replaced_and_what_it_held_is_answered(backend, tmp_path):
    backend.apply(stages((SLOW, 2, 1), (FAST, 1, 1)))
    traffic = Load(backend, tmp_path, [20] * 5)
    time.sleep(2)
    killed = backend.stages[0].replicas[0].process
    os.kill(killed.pid, signal.SIGKILL)
    assert outcomes(traffic.records()) == {"completed": 100}
    eventually(lambda: backend.stages[0].settled)
    names = [replica["name"] for replica in queue_of(backend, 0)["replicas"]]
    assert len(names) == 2 and killed.name not in names


def test_a_stopped_replica_is_noticed_by_its_silence_and_replaced(backend, tmp_path):
    stopped = backend.stages[1].replicas[0].process
    os.kill(stopped.pid, signal.SIGSTOP)
    records = Load(backend, tmp_path, [1]).records()
    assert not psutil.pid_exists(stopped.pid) or eventually(stopped.ended)
    assert records["outcome"].isin(["completed", "dropped"]).all()
    eventually(lambda: backend.stages[1].settled)
    assert outcomes(Load(backend, tmp_path, [3]).records()) == {"completed": 3}


def test_a_killed_queue_comes_back_and_the_requests_it_held_are_answered(backend, tmp_path):
    traffic = Load(backend, tmp_path, [10] * 5)
    time.sleep(2)
    os.kill(backend.stages[1].queue.pid, signal.SIGKILL)
    assert outcomes(traffic.records()) == {"completed": 50}


def test_a_full_queue_refuses_and_answers_the_rest(backend, tmp_path):
    backend.apply(stages((SLOW, 1, 1), (FAST, 1, 1)))
    counts = outcomes(Load(backend, tmp_path, [150]).records())
    assert counts["rejected"] > 0 and counts["completed"] > 0
    assert sum(counts.values()) == 150 and set(counts) == {"rejected", "completed"}


def test_a_malformed_request_gets_its_own_error(backend, tmp_path):
    backend.apply(stages((FAST, 1, 4), (FAST, 1, 1)))
    records = Load(backend, tmp_path, [30], texts=("hello", "bad")).records()
    bad = records[records["payload"] == 1]
    assert outcomes(records[records["payload"] == 0]) == {"completed": 30 - len(bad)}
    assert len(bad) and set(bad["code"]) == {"INVALID_ARGUMENT"}
    assert bad["detail"].str.contains("which is no text to answer").all()


def test_without_its_monitor_the_pipeline_is_blind_until_it_is_back(backend, tmp_path):
    process = getattr(backend.monitor, "_process", None)
    if process is None:
        pytest.skip("no prometheus binary here; the embedded scraper lives in this process")
    from opd.control.loop import ObservationError

    Load(backend, tmp_path, [5] * 3).records()
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    with pytest.raises(ObservationError, match="died"):
        backend.observe()
    eventually(lambda: observed(backend) is not None, poll=0.5)


def observed(backend):
    from opd.control.loop import ObservationError

    try:
        return backend.observe()
    except ObservationError:
        return None


def test_an_interval_counts_what_was_sent(backend, tmp_path):
    backend.wait()
    traffic = Load(backend, tmp_path, [10] * 30)
    # The generator takes seconds to start; the interval after the first with requests is the first whole one.
    eventually(lambda: backend.wait().offered[0] > 0, poll=0.0)
    # A scrape that comes late counts in the next interval, so that only together they are exact; on a machine that is
    # busy for seconds an interval is not measured at all.
    intervals = [interval for interval in (backend.wait() for _ in range(6)) if np.isfinite(interval.offered[0])]
    assert len(intervals) >= 3
    assert np.mean([each.offered[0] for each in intervals]) == pytest.approx(10 * PARAMETERS.interval, rel=0.25)
    assert sum(each.dropped[0] for each in intervals) == 0
    observations = (observed(backend) for _ in range(3) if backend.wait())
    observation = next(filter(None, observations))
    traffic.records()
    assert observation.configuration == INITIAL and observation.queue.shape == (2,)
    assert observation.history[-8:].mean() == pytest.approx(10, rel=0.3)


def test_after_a_pause_an_interval_is_as_long_as_ever(backend):
    backend.observe()
    backend.wait()
    time.sleep(2 * PARAMETERS.interval)
    backend.observe()
    begin = time.monotonic()
    backend.wait()
    assert time.monotonic() - begin > 0.8 * PARAMETERS.interval


def test_no_proxy_of_the_environment_is_asked(backend, tmp_path, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        for name in ("http_proxy", "HTTP_PROXY", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{nobody.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        backend.apply(stages((SLOW, 1, 1), (FAST, 1, 1)))
        assert outcomes(Load(backend, tmp_path, [3]).records()) == {"completed": 3}


@pytest.fixture
def without_spares(backend, monkeypatch):
    """No replica starts faster than another."""
    for stage in backend.stages:
        monkeypatch.setattr(stage, "spares", 0)
    for stage in backend.stages:
        for spare in list(stage._spare):
            spare.process.kill()
    eventually(lambda: not any(stage._spare for stage in backend.stages))


def test_a_server_that_was_late_is_named_with_the_limit(backend, without_spares, monkeypatch):
    monkeypatch.setattr(backoff, "START_SECONDS", 0.2)
    with pytest.raises(ApplyError, match="variant 'slow' of 'first' did not start 2 times .* not ready after 0.2 s; "):
        backend.apply(stages((SLOW, 1, 1), (FAST, 1, 1)))


def test_what_is_missing_when_the_time_is_over_is_named(backend, without_spares, monkeypatch):
    monkeypatch.setattr(backend, "_apply_seconds", 0.3)
    with pytest.raises(
        ApplyError, match=r"ready after 0.3 s: 0 of 2 replicas of 'slow' at 'second'.*second-\d+ began 0"
    ):
        backend.apply(stages((FAST, 1, 1), (SLOW, 2, 1)))


@pytest.mark.parametrize("which", ["queue", "router"])
def test_a_server_that_cannot_start_is_named_with_its_reason(backend, which):
    server = {"queue": backend.stages[0].queue, "router": backend.router}[which]
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with backend._changed:  # nobody tends the processes meanwhile
            os.kill(server.pid, signal.SIGKILL)
            eventually(lambda: not server.alive)
            taken.bind(("127.0.0.1", server.settings.metrics_port))
            taken.listen()
        with pytest.raises(ApplyError, match=rf"{server.name} did not start 2 times in a row: OSError: .* in use"):
            backend.apply(stages((SLOW, 1, 1), (FAST, 1, 1)))
    eventually(lambda: server.answers and not server.starts.error)


@pytest.mark.parametrize("which", ["queue", "router"])
def test_a_stopped_queue_or_router_is_noticed_by_its_silence(backend, tmp_path, monkeypatch, which):
    server = {"queue": backend.stages[0].queue, "router": backend.router}[which]
    monkeypatch.setattr(processes, "HTTP_TIMEOUT", 0.5)
    stopped = server.pid
    os.kill(stopped, signal.SIGSTOP)
    eventually(lambda: server.pid != stopped and server.answers)
    eventually(lambda: backend.stages[0].settled)
    assert outcomes(Load(backend, tmp_path, [3]).records()) == {"completed": 3}


def test_who_leaves_is_kept_while_the_queue_does_not_say_that_it_has_finished(backend):
    stage = backend.stages[0]
    with backend._changed:  # nobody tends the processes meanwhile
        os.kill(stage.queue.pid, signal.SIGSTOP)
        (replica,) = stage.replicas
        replica.leaving = True
        try:
            stage._release_leaving()
            assert not stage._push({"batch_size": 2, "replicas": []})
        finally:
            os.kill(stage.queue.pid, signal.SIGCONT)
        stage._release_leaving()  # what the queue knows is not certain until it has been told again
        assert stage.replicas == [replica] and replica.process.alive
    eventually(lambda: stage.settled and replica not in stage.replicas)


def test_a_spare_that_may_have_a_variant_is_not_kept(backend):
    stage = backend.stages[0]
    spare = ready_spare(stage)
    os.kill(spare.process.pid, signal.SIGSTOP)
    backend.apply(stages((SLOW, 1, 1), (FAST, 1, 1)))
    assert spare not in stage._spare
    eventually(spare.process.ended)


def ready_spare(stage):
    return eventually(lambda: next((spare for spare in stage._spare if spare.ready), None))


def test_spares_that_die_at_start_are_tried_with_pauses_and_fail_no_change(backend, monkeypatch, caplog):
    ready_spare(backend.stages[0])  # so none has failed just now
    begun = []

    def stillborn(name, pipeline, task, variant, *place):
        if spare := variant is None and task == "first":
            begun.append(time.monotonic())
            if len(begun) == 2:
                raise OSError("too many open files")
        process = processes.model_process(name, pipeline, task, variant, *place)
        if spare:
            process.kill()
        return process

    monkeypatch.setattr(local_stage, "model_process", stillborn)
    backend.apply(stages((SLOW, 2, 1), (FAST, 1, 1)))  # the first takes the spare there is
    eventually(lambda: "a spare of 'first' did not start 2 times in a row: too many open files" in caplog.text)
    assert "a spare of 'first' did not start: it wrote nothing" in caplog.text
    assert begun[1] - begun[0] > 1.5
    backend.apply(INITIAL)
    assert not backend._errors()


def test_a_spare_that_hangs_at_start_is_killed_and_named_with_the_limit(backend, monkeypatch, caplog):
    stage = backend.stages[0]
    spare = ready_spare(stage)
    monkeypatch.setattr(backoff, "START_SECONDS", 0.2)
    monkeypatch.setattr(backoff, "LONGEST_PAUSE", 0.1)
    os.kill(spare.process.pid, signal.SIGKILL)
    eventually(lambda: re.search(r"a spare of 'first' did not start.*: not ready after 0.2 s; ", caplog.text))
    assert stage.settled and not backend._errors()
    monkeypatch.undo()
    assert ready_spare(stage)


# --- controllers -----------------------------------------------------------------------------------------------------


def test_a_second_controller_is_refused_and_told_who_holds_the_pipeline(backend, store):
    folder = backend.router.folder
    with pytest.raises(AlreadyControlledError, match=f"is controlled by process {os.getpid()}"):
        LocalBackend(tiny_pipeline(), PARAMETERS, INITIAL, folder, store)
    assert backend.router.alive


CONTROLLER = """
import signal, sys, time
sys.path[:0] = [{tests!r}, {tests!r} + "/.."]
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell began in the background
from test_local import INITIAL, PARAMETERS, tiny_pipeline
from opd.serving.local import LocalBackend
from pathlib import Path
with LocalBackend(tiny_pipeline(), PARAMETERS, INITIAL, Path({folder!r}), {store!r}) as backend:
    print("up", *[process.pid for process in backend.processes()], flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_its_controller(tmp_path, store, how):
    script = CONTROLLER.format(tests=str(Path(__file__).parent), folder=str(tmp_path), store=store)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as controller:
        word, *pids = controller.stdout.readline().split()
        assert word == "up" and len(pids) == 5
        family = [psutil.Process(controller.pid), *psutil.Process(controller.pid).children(recursive=True)]
        assert {int(pid) for pid in pids} <= {process.pid for process in family}
        controller.send_signal(how)
        assert psutil.wait_procs(family, timeout=PATIENCE)[1] == []


def test_what_runs_when_the_backend_closes_is_finished_however_long_that_takes(tmp_path, store, monkeypatch):
    """Three seconds of work at the first stage and some at the second, though an idle server has half a second."""
    for module in (processes, local):
        monkeypatch.setattr(module, "STOP_SECONDS", 0.5)
    parameters = SimulationParameters(interval=2, drop_after=10 * PATIENCE)
    configuration = stages((SLOW, 1, 1), (FAST, 1, 1))
    backend = LocalBackend(tiny_pipeline(), parameters, configuration, tmp_path, store)
    with backend, ThreadPoolExecutor(1) as caller:
        answers = caller.submit(asyncio.run, ask(backend, [b"hello"] * 60))
        eventually(lambda: queue_of(backend, 0)["waiting"])
        with within():  # far from the longest that a request may live
            backend.close()
    assert answers.result() == [b"HELLO"] * 60


async def ask(backend, payloads):
    client = Client(backend.address, "tiny")
    try:
        return await client.infer(payloads, 0.0, PATIENCE)
    finally:
        await client.close()


def test_nothing_is_started_once_the_backend_closes(tmp_path):
    closing = threading.Event()
    stage = LocalStage("tiny", tiny_pipeline().tasks[0], StageSettings(), "", tmp_path, INITIAL[0], closing=closing)
    closing.set()
    stage.queue.kill()
    eventually(stage.queue.ended)
    stage.tend()
    assert stage.replicas == [] and not stage.queue.alive


def test_nobody_is_given_the_ports_of_a_server_that_is_starting(tmp_path):
    process = ServerProcess("queue", ServerSettings(kind="queue", name="first"), tmp_path)
    settings = process.settings
    for port in (settings.http_port, settings.grpc_port, settings.metrics_port):
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
    process.kill()
    eventually(process.ended)


def test_a_server_can_listen_on_a_held_port():
    with processes.hold_port() as holder:
        place = ("127.0.0.1", processes.port_of(holder))
        with socket.create_server(place), socket.create_connection(place, 1):
            pass


def test_the_last_words_of_a_server_are_its_own(tmp_path):
    (tmp_path / "queue.log").write_text("OSError: of an earlier one\n")
    process = ServerProcess("queue", ServerSettings(kind="queue", name="first"), tmp_path)
    assert process.last_words() == "it wrote nothing"
    eventually(process.ended)
    assert process.last_words().startswith("KeyError: 'pipeline'")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [(dict(max_queue=0), "max_queue"), (dict(), "Prometheus server at http://nobody:1 cannot")],
)
def test_a_start_that_fails_early_leaves_the_folder_to_others(tmp_path, store, monkeypatch, arguments, error):
    monkeypatch.setenv(URL_VARIABLE, "http://nobody:1")
    with pytest.raises((ValueError, MonitoringError), match=error) as caught:  # holds the frames and all in them
        LocalBackend(tiny_pipeline(), PARAMETERS, INITIAL, tmp_path, store, **arguments)
    local._lock(tmp_path, "tiny").close()
    assert caught.value


def test_what_cannot_start_leaves_nothing_behind(tmp_path, store):
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(StartError, match="variant 'broken' of 'first' did not start 2 times"):
        LocalBackend(tiny_pipeline(), PARAMETERS, stages((BROKEN, 1, 1), (FAST, 1, 1)), tmp_path, store)
    eventually(lambda: set(psutil.Process().children(recursive=True)) <= before)
