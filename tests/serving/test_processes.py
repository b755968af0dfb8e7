"""Server processes: their ports, their end, and their last words."""

import socket

import pytest
from deadlines import eventually

from opd.serving.processes import ServerProcess, hold_port
from opd.serving.settings import ServerSettings

pytestmark = pytest.mark.processes


def test_the_ports_of_a_starting_server_are_reserved(tmp_path):
    process = ServerProcess("queue", ServerSettings(kind="queue", name="first"), tmp_path)
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
    (tmp_path / "queue.log").write_text("OSError: of an earlier one\n")
    process = ServerProcess("queue", ServerSettings(kind="queue", name="first"), tmp_path)
    assert process.last_words() == "it wrote nothing"
    eventually(process.ended)
    assert process.last_words().startswith("KeyError: 'pipeline'")
