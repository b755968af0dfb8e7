"""What every server process does first: read its settings, watch its parent, and run in a fast event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from opd.serving.settings import ProcessSettings

GRACE_SECONDS = 3600.0
"""Longer than any request lives. The controller or the cluster that stops a server also kills it after its grace
period; a second limit in the server could only shorten that."""

Settings = TypeVar("Settings", bound=ProcessSettings)


def run_server(
    settings_type: type[Settings],
    serve: Callable[[Settings], Coroutine[Any, Any, None]],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
) -> None:
    """Serve with the settings in the file that the command line names, until ``serve`` returns.

    Args:
        settings_type: of the file.
        serve: serves.
        loop_factory: makes the event loop.

    Raises:
        SystemExit: if the command line does not name one file.
    """
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m {settings_type.module} FILE, a JSON document of {settings_type.__name__}")
    settings = settings_type.model_validate_json(Path(sys.argv[1]).read_text())
    if settings.end_with_parent:
        _end_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(serve(settings))


async def stopped() -> None:
    """Wait for SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()


def _end_with_parent() -> None:
    """End this process at once when its standard input closes: its requests came from the parent, which is gone."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os._exit(0)

    threading.Thread(target=watch, daemon=True, name="parent").start()
