"""Keeps a program from outliving the process that started it, however that one ends.

``python -m opd.serving.guard -- program arguments`` runs the program and watches its own standard input, a pipe that
only the starting process holds: when that process ends, killed or not, the pipe closes, and the program is told to
terminate. SIGTERM and SIGINT are passed on, and the program's exit code is the guard's. It is for programs that do not
watch their standard input themselves.
"""

from __future__ import annotations

import argparse
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
"""A program that has been told to terminate has this long; then it is killed."""


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Start ``command`` under a guard, in a session of its own so that Ctrl-C in a terminal does not reach it.

    Args:
        command: the program and its arguments.
        options: more options of ``subprocess.Popen``; standard input is the guard's.

    Returns:
        the guard's process. Stop it with :func:`stop`.
    """
    guarded = [sys.executable, "-m", "opd.serving.guard", "--", *command]
    return subprocess.Popen(guarded, stdin=subprocess.PIPE, text=True, start_new_session=True, **options)


def stop(process: subprocess.Popen[str], seconds: float) -> int:
    """Terminate a guard and its program; kill both if they have not ended after ``seconds``.

    Returns:
        the exit code, negative for the signal that killed the guard itself.
    """
    process.terminate()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        # The guard leads a process group that holds it and the program, whatever their state.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait(seconds)
    finally:
        if process.stdin is not None:
            process.stdin.close()


def _end_of_input(wishes: SimpleQueue[int | None]) -> None:
    # Not sys.stdin.read(): its lock would be held when the interpreter shuts down.
    while os.read(0, 4096):
        pass
    wishes.put(signal.SIGTERM)


def _end_of_program(program: subprocess.Popen[bytes], wishes: SimpleQueue[int | None]) -> None:
    program.wait()
    wishes.put(None)


def run(command: Sequence[str], grace: float) -> int:
    """Run ``command`` until it ends, or until this process is told to end or its standard input does.

    Args:
        command: the program and its arguments.
        grace: seconds the program has to end by itself once told to.

    Returns:
        its exit code, 128 + n if signal n ended it.
    """
    wishes: SimpleQueue[int | None] = SimpleQueue()
    # Before the program starts, so that no signal can come between and leave it alone.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, frame: wishes.put(received))
    program = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    for target, arguments in ((_end_of_input, (wishes,)), (_end_of_program, (program, wishes))):
        threading.Thread(target=target, args=arguments, daemon=True).start()
    while (wish := wishes.get()) is not None:
        program.send_signal(wish)
        killer = threading.Timer(grace, program.kill)
        killer.daemon = True
        killer.start()
    return program.returncode if program.returncode >= 0 else 128 - program.returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 127 if there is no such program, as in a shell."""
    parser = argparse.ArgumentParser(prog="python -m opd.serving.guard", description=__doc__)
    parser.add_argument("--grace", type=float, default=GRACE_SECONDS, help="seconds to end in once told to")
    parser.add_argument("command", nargs="+", help="the program and its arguments, after --")
    options = parser.parse_args(arguments)
    try:
        return run(options.command, options.grace)
    except OSError as error:
        print(f"cannot run {options.command[0]}: {error}", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(main())
