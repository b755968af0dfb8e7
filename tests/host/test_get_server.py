"""A server that answers GET and nothing else."""

import socket

import pytest
import requests
from deadlines import PATIENCE

from opd.host.get_server import Reply, get_server, is_own_name


def answer(path):
    if path == "/broken":
        raise ZeroDivisionError("a bug")
    return Reply(200, path.encode()) if path != "/nothing" else Reply(404, b"nothing here")


def test_get_is_answered_by_path_without_the_query():
    with get_server("127.0.0.1", 0, answer, "test") as port:
        url = f"http://127.0.0.1:{port}"
        assert requests.get(f"{url}/some/path?x=1", timeout=PATIENCE).text == "/some/path"
        assert requests.get(f"{url}/nothing", timeout=PATIENCE).status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"])
def test_other_methods_are_refused_without_asking(method):
    asked = []
    with get_server("127.0.0.1", 0, asked.append, "test") as port:
        refused = requests.request(method, f"http://127.0.0.1:{port}/", timeout=PATIENCE)
    assert (refused.status_code, refused.headers["Allow"]) == (405, "GET") and not asked


def test_an_error_is_logged_and_the_server_goes_on(caplog):
    with get_server("127.0.0.1", 0, answer, "test") as port:
        broken = requests.get(f"http://127.0.0.1:{port}/broken", timeout=PATIENCE)
        assert broken.status_code == 500 and "bug" not in broken.text
        assert requests.get(f"http://127.0.0.1:{port}/", timeout=PATIENCE).status_code == 200
    assert "GET /broken failed" in caplog.text and "ZeroDivisionError: a bug" in caplog.text


def test_a_client_that_goes_away_is_no_error(capfd):
    with get_server("127.0.0.1", 0, lambda path: Reply(200, b"x" * 10_000_000), "test") as port:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            client.recv(1)
        assert requests.get(f"http://127.0.0.1:{port}/", timeout=PATIENCE).status_code == 200
    assert "Traceback" not in capfd.readouterr().err


def test_after_its_context_nothing_listens():
    with get_server("127.0.0.1", 0, answer, "test") as port:
        pass
    with socket.create_server(("127.0.0.1", port)):
        pass


def ask(port: int, *lines: bytes) -> bytes:
    """The answer to a GET with these header lines, whole."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.settimeout(PATIENCE)
        client.sendall(b"\r\n".join([b"GET /secret HTTP/1.0", *lines, b"", b""]))
        return b"".join(iter(lambda: client.recv(4096), b""))


def test_a_request_for_another_host_is_refused_where_own_names_only_are_answered():
    with get_server("127.0.0.1", 0, answer, "test", own_names_only=True) as port:
        for host in (b"localhost", b"127.0.0.1:%d" % port, b"LOCALHOST:1", b"[::1]:80"):
            assert ask(port, b"Host: " + host).endswith(b"/secret")
        for lines in ([b"Host: rebound.example:%d" % port], [b"Host: 127.0.0.1.rebound.example"], [b"Host: [x"], []):
            refused = ask(port, *lines)
            assert refused.startswith(b"HTTP/1.0 403 ") and b"localhost or 127.0.0.1" in refused
            assert b"/secret" not in refused
    with get_server("127.0.0.1", 0, answer, "test") as port:
        assert ask(port, b"Host: pod.example").endswith(b"/secret"), "probes of a cluster ask by any name"


@pytest.mark.parametrize(
    ("header", "host", "expected"),
    [
        ("box.lan:8090", "Box.lan", True),
        ("box.lan:8090", "127.0.0.1", False),
        ("192.168.0.7", "192.168.0.7", True),
        ("192.168.0.8", "192.168.0.7", False),
        ("192.168.0.7:8090", "0.0.0.0", True),
        ("box.lan", "0.0.0.0", False),
        ("127.3.2.1", "box.lan", True),
        ("", "127.0.0.1", False),
        (None, "127.0.0.1", False),
    ],
)
def test_own_names_are_loopback_names_and_the_host_that_was_told(header, host, expected):
    assert is_own_name(header, host) is expected
