"""The health check of the image, against real servers."""

from __future__ import annotations

import subprocess
import sys

import pytest
from deadlines import PATIENCE

from opd.host.get_server import Reply, get_server
from opd.host.health import PATHS, alive


@pytest.mark.parametrize("path", PATHS)
def test_a_server_that_answers_at_one_of_its_paths_is_alive(path):
    answers = {path: Reply(200, b"")}
    with get_server("127.0.0.1", 0, lambda asked: answers.get(asked, Reply(404, b"")), "server") as port:
        assert alive(port)


def test_a_server_that_says_that_it_is_not_well_is_not_alive():
    with get_server("127.0.0.1", 0, lambda asked: Reply(503, b""), "server") as port:
        assert not alive(port)
    assert not alive(port), "it has ended"


@pytest.mark.processes
def test_the_exit_code_tells_the_container_engine():
    command = [sys.executable, "-m", "opd.host.health"]
    with get_server("127.0.0.1", 0, lambda asked: Reply(200, b""), "server") as port:
        assert subprocess.run([*command, str(port)], timeout=PATIENCE, check=False).returncode == 0
    assert subprocess.run([*command, str(port)], timeout=PATIENCE, check=False).returncode == 1
