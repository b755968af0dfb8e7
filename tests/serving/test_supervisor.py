"""Programs that must not outlive the process that started them."""

import signal
import subprocess
import sys

import pytest
from deadlines import PATIENCE, eventually
from process_family import ended, family

from opd.serving import supervisor

pytestmark = pytest.mark.processes


def supervised(code):
    process = supervisor.start([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    return process, family(process.pid)


STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
)


def test_a_supervisor_exits_with_the_code_of_its_program():
    process, _ = supervised("print('ready', flush=True); raise SystemExit(7)")
    assert process.wait(PATIENCE) == 7
    process.communicate()
    missing = supervisor.start(["no-such-program"], stderr=subprocess.PIPE)
    assert "cannot run no-such-program" in missing.communicate(timeout=PATIENCE)[1] and missing.returncode == 127


def test_a_supervisor_forwards_signals():
    process, everyone = supervised("import time; print('ready', flush=True); time.sleep(600)")
    process.send_signal(signal.SIGINT)
    process.wait(PATIENCE)
    assert all(ended(each) for each in everyone)
    process.communicate()
    process, everyone = supervised("import time; print('ready', flush=True); time.sleep(600)")
    assert supervisor.stop(process, PATIENCE) == 128 + signal.SIGTERM
    process.stdout.close()
    assert all(ended(each) for each in everyone)


def test_a_program_that_ignores_signals_is_killed_with_its_supervisor():
    process, everyone = supervised(STUBBORN)
    assert supervisor.stop(process, 0.3) == -signal.SIGKILL
    process.stdout.close()
    eventually(lambda: all(ended(each) for each in everyone))
