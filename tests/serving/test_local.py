"""A live pipeline of real processes, with tiny models, under load and under every fault it must survive."""

import os
import re
import signal
import socket
import time

import numpy as np
import psutil
import pytest
from deadlines import eventually
from small_pipelines import stages
from tiny_local import BROKEN, FAST, INITIAL, PARAMETERS, SLOW, Load, outcomes, queue_status, tiny_pipeline

from opd.control.loop import ApplyError, ObservationError
from opd.serving import local, local_stage, processes, supervised_server
from opd.serving.local import AlreadyControlledError, LocalBackend

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def running(tmp_path_factory, store):
    folder = tmp_path_factory.mktemp("live")
    with LocalBackend(tiny_pipeline(), PARAMETERS, INITIAL, folder, store, max_queue=40, standbys=1) as backend:
        yield backend


@pytest.fixture
def backend(running):
    """The running pipeline, back in its first configuration."""
    running.apply(INITIAL)
    yield running


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
            status = queue_status(backend, position)
            serving = [replica for replica in status["replicas"] if not replica["retired"]]
            assert status["batch_size"] == stage.batch_size
            assert [replica["variant"] for replica in serving] == [("fast", "slow")[stage.variant]] * stage.replicas
    records = traffic.records()
    assert outcomes(records) == {"completed": 180}
    assert set(records["answer"]) == {"HELLO"}
    eventually(lambda: sum(len(stage.replicas) for stage in backend.stages) == 2)


def test_a_variant_that_does_not_load_is_rolled_back_and_the_error_gives_the_reason(backend):
    with pytest.raises(ApplyError, match="variant 'broken' of 'second' did not start 2 times .* damaged .exit code 1"):
        backend.apply(stages((SLOW, 1, 1), (BROKEN, 1, 1)))
    assert backend.configuration == INITIAL
    eventually(lambda: all(stage.settled for stage in backend.stages))
    assert [replica["variant"] for replica in queue_status(backend, 1)["replicas"]] == ["fast"]


# --- faults under load -----------------------------------------------------------------------------------------------


def test_a_killed_replica_is_replaced_and_its_requests_are_answered(backend, tmp_path):
    backend.apply(stages((SLOW, 2, 1), (FAST, 1, 1)))
    traffic = Load(backend, tmp_path, [20] * 5)
    time.sleep(2)
    killed = backend.stages[0].replicas[0].process
    os.kill(killed.pid, signal.SIGKILL)
    assert outcomes(traffic.records()) == {"completed": 100}
    eventually(lambda: backend.stages[0].settled)
    names = [replica["name"] for replica in queue_status(backend, 0)["replicas"]]
    assert len(names) == 2 and killed.name not in names


def test_a_stopped_replica_is_detected_and_replaced(backend, tmp_path):
    stopped = backend.stages[1].replicas[0].process
    os.kill(stopped.pid, signal.SIGSTOP)
    records = Load(backend, tmp_path, [1]).records()
    assert not psutil.pid_exists(stopped.pid) or eventually(stopped.ended)
    assert records["outcome"].isin(["completed", "dropped"]).all()
    eventually(lambda: backend.stages[1].settled)
    assert outcomes(Load(backend, tmp_path, [3]).records()) == {"completed": 3}


def test_a_killed_queue_comes_back_and_its_requests_are_answered(backend, tmp_path):
    traffic = Load(backend, tmp_path, [10] * 5)
    time.sleep(2)
    os.kill(backend.stages[1].queue.pid, signal.SIGKILL)
    assert outcomes(traffic.records()) == {"completed": 50}


def test_a_full_queue_rejects_requests_and_answers_the_rest(backend, tmp_path):
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
    assert bad["detail"].str.contains("which is not a text to answer").all()


def test_observing_fails_without_the_monitor_until_it_is_back(backend, tmp_path):
    process = getattr(backend.monitor, "_process", None)
    if process is None:
        pytest.skip("no prometheus binary here; the embedded scraper lives in this process")
    Load(backend, tmp_path, [5] * 3).records()
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    with pytest.raises(ObservationError, match="died"):
        backend.observe()
    eventually(lambda: observed(backend) is not None, poll=0.5)


def observed(backend):
    try:
        return backend.observe()
    except ObservationError:
        return None


def test_an_interval_counts_what_was_sent(backend, tmp_path):
    backend.wait()
    traffic = Load(backend, tmp_path, [10] * 30)
    # The generator takes seconds to start; the interval after the first with requests is the first whole one.
    eventually(lambda: backend.wait()[1].offered[0] > 0, poll=0.0)
    # A scrape that comes late counts in the next interval: only the sum is exact. On a machine that is
    # busy for seconds, an interval is not measured at all.
    intervals = [interval for _, interval in (backend.wait() for _ in range(6)) if np.isfinite(interval.offered[0])]
    assert len(intervals) >= 3
    assert np.mean([each.offered[0] for each in intervals]) == pytest.approx(10 * PARAMETERS.interval, rel=0.25)
    assert sum(each.dropped[0] for each in intervals) == 0
    observations = (observed(backend) for _ in range(3) if backend.wait())
    observation = next(filter(None, observations))
    traffic.records()
    assert observation.configuration == INITIAL and observation.queue.shape == (2,)
    assert observation.history[-8:].mean() == pytest.approx(10, rel=0.3)


def test_after_a_pause_an_interval_has_its_full_length(backend):
    backend.observe()
    backend.wait()
    time.sleep(2 * PARAMETERS.interval)
    backend.observe()
    begin = time.monotonic()
    backend.wait()
    assert time.monotonic() - begin > 0.8 * PARAMETERS.interval


def test_the_environments_proxies_are_not_used(backend, tmp_path, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        for name in ("http_proxy", "HTTP_PROXY", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{unused.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        backend.apply(stages((SLOW, 1, 1), (FAST, 1, 1)))
        assert outcomes(Load(backend, tmp_path, [3]).records()) == {"completed": 3}


@pytest.fixture
def without_standbys(backend, monkeypatch):
    """No replica starts faster than another."""
    for stage in backend.stages:
        monkeypatch.setattr(stage, "standbys", 0)
    for stage in backend.stages:
        for standby in list(stage._standby):
            standby.kill()
    eventually(lambda: not any(stage._standby for stage in backend.stages))


def test_the_error_for_a_late_server_names_the_limit(backend, without_standbys, monkeypatch):
    monkeypatch.setattr(processes, "START_SECONDS", 0.2)
    with pytest.raises(ApplyError, match="variant 'slow' of 'first' did not start 2 times .* not ready after 0.2 s; "):
        backend.apply(stages((SLOW, 1, 1), (FAST, 1, 1)))


def test_an_error_names_what_is_missing_when_the_time_is_over(backend, without_standbys, monkeypatch):
    monkeypatch.setattr(local, "APPLY_SECONDS", 0.3)
    with pytest.raises(
        ApplyError, match=r"ready after 0.3 s: 0 of 2 replicas of 'slow' at 'second'.*second-\d+ began 0"
    ):
        backend.apply(stages((FAST, 1, 1), (SLOW, 2, 1)))


@pytest.mark.parametrize("which", ["queue", "router"])
def test_the_error_for_a_server_that_cannot_start_gives_the_reason(backend, which):
    server = {"queue": backend.stages[0].queue, "router": backend.router}[which]
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with backend._changed:  # the processes are not reconciled meanwhile
            os.kill(server.pid, signal.SIGKILL)
            eventually(lambda: not server.alive)
            taken.bind(("127.0.0.1", server.settings.metrics_port))
            taken.listen()
        with pytest.raises(ApplyError, match=rf"{server.name} did not start 2 times in a row: OSError: .* in use"):
            backend.apply(stages((SLOW, 1, 1), (FAST, 1, 1)))
    eventually(lambda: server.answers and not server.backoff.error)


@pytest.mark.parametrize("which", ["queue", "router"])
def test_a_stopped_queue_or_router_is_detected_and_restarted(backend, tmp_path, monkeypatch, which):
    server = {"queue": backend.stages[0].queue, "router": backend.router}[which]
    monkeypatch.setattr(processes, "HTTP_TIMEOUT", 0.5)
    stopped = server.pid
    os.kill(stopped, signal.SIGSTOP)
    eventually(lambda: server.pid != stopped and server.answers)
    eventually(lambda: backend.stages[0].settled)
    assert outcomes(Load(backend, tmp_path, [3]).records()) == {"completed": 3}


def test_a_draining_replica_runs_until_the_queue_reports_that_it_has_finished(backend):
    stage = backend.stages[0]
    with backend._changed:  # the processes are not reconciled meanwhile
        os.kill(stage.queue.pid, signal.SIGSTOP)
        (replica,) = stage.replicas
        replica.draining = True
        try:
            stage._stop_drained()
            assert not stage._push({"batch_size": 2, "replicas": []})
        finally:
            os.kill(stage.queue.pid, signal.SIGCONT)
        stage._stop_drained()  # the state of the queue is unknown until it is configured again
        assert stage.replicas == [replica] and replica.process.alive
    eventually(lambda: stage.settled and replica not in stage.replicas)


def test_a_standby_that_may_have_taken_a_variant_is_killed(backend):
    stage = backend.stages[0]
    standby = ready_standby(stage)
    os.kill(standby.pid, signal.SIGSTOP)
    backend.apply(stages((SLOW, 1, 1), (FAST, 1, 1)))
    assert standby not in stage._standby
    eventually(standby.ended)


def ready_standby(stage):
    return eventually(lambda: next((standby for standby in stage._standby if standby.was_ready), None))


def test_standbys_that_die_at_start_are_retried_with_pauses_and_fail_no_reconfiguration(backend, monkeypatch, caplog):
    ready_standby(backend.stages[0])  # so none has failed just now
    begun = []

    def stillborn(name, pipeline, task, variant, *place):
        if standby := variant is None and task == "first":
            begun.append(time.monotonic())
            if len(begun) == 2:
                raise OSError("too many open files")
        process = processes.model_process(name, pipeline, task, variant, *place)
        if standby:
            process.kill()
        return process

    monkeypatch.setattr(local_stage, "model_process", stillborn)
    backend.apply(stages((SLOW, 2, 1), (FAST, 1, 1)))  # the first takes the standby there is
    eventually(lambda: "a standby of 'first' did not start 2 times in a row: too many open files" in caplog.text)
    assert "a standby of 'first' did not start: it wrote nothing (killed by SIGKILL after" in caplog.text
    assert begun[1] - begun[0] > 1.5
    backend.apply(INITIAL)
    assert not backend._errors()


def test_a_standby_that_hangs_at_start_is_killed_and_logged_with_the_limit(backend, monkeypatch, caplog):
    stage = backend.stages[0]
    standby = ready_standby(stage)
    monkeypatch.setattr(processes, "START_SECONDS", 0.2)
    monkeypatch.setattr(supervised_server, "LONGEST_PAUSE", 0.1)
    os.kill(standby.pid, signal.SIGKILL)
    eventually(lambda: re.search(r"a standby of 'first' did not start.*: not ready after 0.2 s; ", caplog.text))
    assert stage.settled and not backend._errors()
    monkeypatch.undo()
    assert ready_standby(stage)


def test_a_second_controller_is_refused_and_the_error_names_the_first(backend, store):
    with pytest.raises(AlreadyControlledError, match=f"is controlled by process {os.getpid()}"):
        LocalBackend(tiny_pipeline(), PARAMETERS, INITIAL, backend.router.folder, store)
    assert backend.router.alive
