"""Keeps a program from outliving the process that started it, even if that process is killed.

``python -m opd.serving.supervisor program arguments`` runs the program and watches its own standard input, a pipe
that only the starting process holds open. When that process ends, the pipe closes and the program is terminated.
SIGTERM and SIGINT are forwarded, and the supervisor exits with the program's exit code. Use it for programs that do not
watch their standard input themselves.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

GRACE_SECONDS = 15.0
"""Time a program has to terminate before it is killed."""


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Start ``command`` under a supervisor, in its own session so that Ctrl-C in a terminal does not reach it.

    Args:
        command: the program and its arguments.
        options: further options of ``subprocess.Popen``; standard input belongs to the supervisor.

    Returns:
        the supervisor's process. Stop it with :func:`stop`.
    """
    supervised = [sys.executable, "-m", "opd.serving.supervisor", *command]
    return subprocess.Popen(supervised, stdin=subprocess.PIPE, text=True, start_new_session=True, **options)


def stop(process: subprocess.Popen[str], seconds: float) -> int:
    """Terminate a supervisor and its program; kill both if they are still running after ``seconds``.

    Returns:
        the exit code, negative for the signal that killed the supervisor itself.
    """
    process.terminate()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        # The supervisor leads a process group that contains the program.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait(seconds)
    finally:
        if process.stdin is not None:
            process.stdin.close()


def _watch_input(events: SimpleQueue[int | None]) -> None:
    # Not sys.stdin.read(): its lock would still be held at interpreter shutdown.
    while os.read(0, 4096):
        pass
    events.put(signal.SIGTERM)


def _watch_program(program: subprocess.Popen[bytes], events: SimpleQueue[int | None]) -> None:
    program.wait()
    events.put(None)


def run(command: Sequence[str]) -> int:
    """Run ``command`` until it ends, this process gets a signal, or standard input closes.

    Args:
        command: the program and its arguments. After a signal it has :data:`GRACE_SECONDS` to end.

    Returns:
        its exit code, 128 + n if signal n ended it; 127 if the program does not exist, as from a shell.
    """
    events: SimpleQueue[int | None] = SimpleQueue()
    # Installed before the program starts, so that no signal can end this process and orphan the program.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, frame: events.put(received))
    try:
        program = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        print(f"cannot run {command[0]}: {error}", file=sys.stderr)
        return 127
    for target, arguments in ((_watch_input, (events,)), (_watch_program, (program, events))):
        threading.Thread(target=target, args=arguments, daemon=True).start()
    while (received := events.get()) is not None:
        program.send_signal(received)
        killer = threading.Timer(GRACE_SECONDS, program.kill)
        killer.daemon = True
        killer.start()
    return program.returncode if program.returncode >= 0 else 128 - program.returncode


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
