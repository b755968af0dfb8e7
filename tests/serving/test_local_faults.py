"""A live pipeline of real processes, with tiny models, under every fault it must survive."""

import os
import re
import signal
import socket
import time

import psutil
import pytest
from deadlines import eventually
from full_disk import full_disk
from small_pipelines import stages
from tiny_local import FAST, INITIAL, SLOW, Load, outcomes, queue_status

from opd.control.loop import ApplyError
from opd.serving import local, local_stage, processes, supervised_server

pytestmark = [pytest.mark.processes, pytest.mark.slow]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """A failed start is tried again soon."""
    monkeypatch.setattr(supervised_server, "LONGEST_PAUSE", 0.1)


# --- faults under load -----------------------------------------------------------------------------------------------


def test_a_killed_replica_is_reported_and_replaced_and_its_requests_are_answered(backend, tmp_path, caplog):
    backend.apply(stages((SLOW, 2, 1), (FAST, 1, 1)))
    traffic = Load(backend, tmp_path, [8] * 5)  # no more than the queue holds, however long it takes
    traffic.wait_until_under_way()
    killed = backend.stages[0].replicas[0].process
    os.kill(killed.pid, signal.SIGKILL)
    assert outcomes(traffic.records()) == {"completed": 40}
    eventually(lambda: backend.stages[0].settled)
    names = [replica["name"] for replica in queue_status(backend, 0)["replicas"]]
    assert len(names) == 2 and killed.name not in names
    assert re.search(rf"stage first: replica {killed.name} died: .*killed by SIGKILL after", caplog.text)


def test_a_stopped_replica_is_detected_and_replaced(backend, tmp_path):
    stopped = backend.stages[1].replicas[0].process
    os.kill(stopped.pid, signal.SIGSTOP)
    records = Load(backend, tmp_path, [1]).records()
    assert not psutil.pid_exists(stopped.pid) or eventually(stopped.ended)
    assert records["outcome"].isin(["completed", "dropped"]).all()
    eventually(lambda: backend.stages[1].settled)
    assert outcomes(Load(backend, tmp_path, [3]).records()) == {"completed": 3}


def test_a_killed_gateway_comes_back_and_callers_that_retry_lose_nothing(backend, tmp_path):
    traffic = Load(backend, tmp_path, [6] * 6, retry=True)  # no more than the queue holds, however long it takes
    traffic.wait_until_under_way()
    os.kill(backend.gateways.servers[0].pid, signal.SIGKILL)
    assert outcomes(traffic.records()) == {"completed": 36}


def test_a_killed_gateway_loses_only_what_it_held_and_what_comes_before_it_is_back(backend, tmp_path):
    backend.apply(stages((SLOW, 1, 1), (SLOW, 1, 1)))
    traffic = Load(backend, tmp_path, [6] * 6)  # no more than the queue holds, however long it takes
    traffic.wait_until_under_way()
    (gateway,) = backend.gateways.servers
    killed = gateway.pid
    os.kill(killed, signal.SIGKILL)
    records = traffic.records()
    assert set(records["outcome"]) <= {"completed", "failed"}
    failed = records[records["outcome"] == "failed"]
    assert set(failed["code"]) <= {"UNAVAILABLE"}  # so that callers know that they may send again
    eventually(lambda: gateway.pid != killed and gateway.answers)
    eventually(lambda: all(stage.settled for stage in backend.stages))
    assert outcomes(Load(backend, tmp_path, [3]).records()) == {"completed": 3}


def test_a_stopped_gateway_is_detected_and_restarted(backend, tmp_path, monkeypatch):
    (gateway,) = backend.gateways.servers
    monkeypatch.setattr(processes, "HTTP_TIMEOUT", 0.5)
    monkeypatch.setattr(supervised_server, "PROBE_SECONDS", 0.2)
    stopped = gateway.pid
    os.kill(stopped, signal.SIGSTOP)
    eventually(lambda: gateway.pid != stopped and gateway.answers)
    eventually(lambda: backend.stages[0].settled)
    assert outcomes(Load(backend, tmp_path, [3]).records()) == {"completed": 3}


# --- servers that do not start ---------------------------------------------------------------------------------------


@pytest.fixture
def without_standbys(backend, monkeypatch):
    """No replica starts faster than another."""
    with backend._changed:  # no standby is just being started
        for stage in backend.stages:
            monkeypatch.setattr(stage, "standbys", 0)
            for standby in stage._standby:
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


def test_the_error_for_a_gateway_that_cannot_start_gives_the_reason(backend):
    (server,) = backend.gateways.servers
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


# --- a full disk -----------------------------------------------------------------------------------------------------


def test_on_a_full_disk_what_runs_goes_on_and_the_error_gives_the_reason(backend, without_standbys, tmp_path):
    traffic = Load(backend, tmp_path, [8] * 5)  # no more than the queue holds, however long it takes
    with full_disk(), pytest.raises(ApplyError, match="variant 'slow' of 'first' did not start 2 times .*too large"):
        backend.apply(stages((SLOW, 1, 1), (FAST, 1, 1)))
    assert backend.configuration == INITIAL
    assert outcomes(traffic.records()) == {"completed": 40}
    backend.apply(stages((SLOW, 1, 1), (FAST, 1, 1)))


def test_a_gateway_that_ends_on_a_full_disk_comes_back_once_there_is_room(backend, caplog):
    (server,) = backend.gateways.servers
    with full_disk():
        os.kill(server.pid, signal.SIGKILL)
        eventually(lambda: f"{server.name} did not start 2 times in a row: [Errno" in caplog.text)
        assert caplog.text.count(f"{server.name} died: ") == 1
    eventually(lambda: server.answers and not server.backoff.error)


# --- replicas that come and go ---------------------------------------------------------------------------------------


def test_a_draining_replica_runs_until_the_gateway_reports_that_it_has_finished(backend):
    stage, (gateway,) = backend.stages[0], backend.gateways.servers
    with backend._changed:  # the processes are not reconciled meanwhile
        os.kill(gateway.pid, signal.SIGSTOP)
        (replica,) = stage.replicas
        replica.draining = True
        try:
            stage._stop_drained()
            assert not backend.gateways.configure("first", 2, [])
        finally:
            os.kill(gateway.pid, signal.SIGCONT)
        stage._stop_drained()  # what the gateway uses is unknown until it is configured again
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
    monkeypatch.setattr(supervised_server, "LONGEST_PAUSE", 30.0)
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
    os.kill(standby.pid, signal.SIGKILL)
    eventually(lambda: re.search(r"a standby of 'first' did not start.*: not ready after 0.2 s; ", caplog.text))
    assert stage.settled and not backend._errors()
    monkeypatch.undo()
    assert ready_standby(stage)
