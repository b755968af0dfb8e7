"""Server processes: their ports, their end, and their last words."""

import os
import socket

import psutil
import pytest
from deadlines import PATIENCE, eventually, within

from opd.serving.processes import ServerProcess, StartError, hold_port, last_error, model_process, running
from opd.serving.settings import ServerSettings

pytestmark = pytest.mark.processes

STORELESS = ServerSettings(name="first", parameters={"variant": "fast"})
"""Of a server that ends as it starts, because it has a variant and no store to take it from."""


def test_the_ports_of_a_starting_server_are_reserved(tmp_path):
    process = ServerProcess("replica", STORELESS, tmp_path)
    settings = process.settings
    for port in (settings.http_port, settings.grpc_port, settings.metrics_port):
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
    process.kill()
    eventually(process.ended)


def test_a_server_can_listen_on_a_held_port(request):
    place = ("127.0.0.1", hold_port(request))
    with socket.create_server(place), socket.create_connection(place, 1):
        pass


def test_the_last_words_of_a_server_are_its_own(tmp_path):
    (tmp_path / "replica.log").write_text("OSError: of an earlier one\n")
    process = ServerProcess("replica", STORELESS, tmp_path)
    assert process.last_words() == "it wrote nothing"
    eventually(process.ended)
    assert process.last_words().startswith("KeyError: 'store'")


def test_last_errors_name_the_classes_of_others_only():
    logged = "INFO: begin\nTraceback:\n{}ModelError: tickets cannot be loaded: ImportError: no module\nINFO: end"
    assert last_error(logged.format("opd.serving.loaded_model.")) == "tickets cannot be loaded: ImportError: no module"
    assert last_error(logged.format("other.")).startswith("other.ModelError: ")


def test_a_server_that_ends_before_it_is_ready_is_reported_at_once_with_its_exit_code_and_last_words(tmp_path):
    process = ServerProcess("replica", STORELESS, tmp_path)
    reason = r"replica ended before it was ready: KeyError: 'store' \(exit code 1 after \d+\.\d s\)"
    with within(), pytest.raises(StartError, match=reason), running(process, 10 * PATIENCE):
        pass


def test_the_reason_of_a_killed_server_names_the_signal(tmp_path):
    process = ServerProcess("replica", STORELESS, tmp_path)
    process.kill()
    eventually(process.ended)
    assert "killed by SIGKILL after" in process.failure_reason()


def test_replicas_yield_to_the_gateway(tmp_path):
    own, other = os.getpriority(os.PRIO_PROCESS, 0), ServerProcess("gateway", STORELESS, tmp_path)
    replica = model_process("replica", "shop", "first", "fast", str(tmp_path), tmp_path)
    assert psutil.Process(other.pid).nice() == own < psutil.Process(replica.pid).nice()
    for process in (other, replica):
        process.kill()
        eventually(process.ended)
