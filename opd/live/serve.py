"""A pipeline served on this machine for real callers: decided every interval until it is stopped, with a live view.

.. code-block:: python

    show(serve(pipeline, policy, forecast, objective, parameters, folder))
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from opd.control.loop import Step, run
from opd.control.policies import Policy
from opd.control.record import append_entry, step_entry
from opd.control.warm_up import warm_up
from opd.live.run_log import collected_warnings
from opd.measurement import SimulationParameters
from opd.objective import Objective
from opd.pipeline import Pipeline
from opd.serving.emulation.pipeline import emulated_pipeline
from opd.serving.local import LocalBackend
from opd.view.model import View, view_of
from opd.view.page import served_page
from opd.view.terminal import Terminal

SERVING = "serving"
WARMING_UP = "serving; warming up for the first decision"
STOPPING = "stopping: running requests are answered, new ones refused"


def serve(
    pipeline: Pipeline,
    policy: Policy,
    forecast: Callable[[np.ndarray], float],
    objective: Objective,
    parameters: SimulationParameters,
    folder: Path,
    store: str | None = None,
    standbys: int = 0,
    emulated: bool = False,
    record: Path | None = None,
) -> Generator[View, None, None]:
    """Start a pipeline on this machine and let a policy decide every interval until the iterator is closed.

    Closing it, or Ctrl-C, refuses new requests, answers those that are running, and ends every process.

    Args:
        pipeline: its variants are in the model store.
        policy: decides.
        forecast: predicted maximum load (requests/s) for a history of per-second counts.
        objective: of the reward.
        parameters: interval, batch timeout and maximum age of requests.
        folder: for settings, logs and metrics of the processes.
        store: URL of the model store; by default that of the project.
        standbys: processes that each stage keeps warm.
        emulated: serve it by emulated replicas, under a name that says so; the policy decides as for real ones.
        record: file that gets a line for every decision; None for none.

    Yields:
        The view as soon as the pipeline serves, after every interval, and when Ctrl-C begins its end.

    Raises:
        StartError: if the pipeline does not start; nothing is left running.
        AlreadyControlledError: if another process controls it in ``folder``.
    """
    first = pipeline.smallest_configuration()
    served = emulated_pipeline(pipeline) if emulated else pipeline
    with LocalBackend(served, parameters, first, folder, store, standbys) as backend:
        backend.begin_run()  # requests may arrive from now on
        known: dict[str, Any] = {"address": backend.address, "agent": getattr(policy, "origin", "")}
        view = view_of(served, first, state=WARMING_UP, **known)
        try:
            yield view
            warm_up(pipeline, policy, forecast)
            for step in _recorded(run(backend, served, policy, forecast, objective, sys.maxsize), served, record):
                view = view_of(served, step.configuration, step, state=SERVING, **known)
                yield view
        except KeyboardInterrupt:
            yield replace(view, state=STOPPING)
            raise


def _recorded(steps: Iterator[Step], pipeline: Pipeline, record: Path | None) -> Iterator[Step]:
    """Pass the steps on, each with a line in the record."""
    for step in steps:
        append_entry(record, step_entry(pipeline, step))
        yield step


def show(
    views: Generator[View, None, None], page: tuple[str, int] | None = None, console: Console | None = None
) -> None:
    """Show a served pipeline in the terminal, and on a page, until Ctrl-C or SIGTERM; then drain it and return.

    A second Ctrl-C ends the processes without waiting for running requests.

    Args:
        views: of :func:`serve`.
        page: host and port of the page; None for no page.
        console: where to write; standard output by default. Where that is no terminal every view is a line.
    """
    screen = console or Console()
    with served_page(page) as served, Terminal(served.url, screen) as terminal:
        follow(views, served.show, terminal.show)
    screen.print("stopped: running requests were answered, and every process has ended")


def show_as_json(views: Generator[View, None, None], page: tuple[str, int] | None = None) -> None:
    """Do the same as :func:`show`, but write every view as a line of JSON, with the warnings since the last one."""

    def write(view: View) -> None:
        news = [warnings.pop(0) for _ in range(len(warnings))]  # other threads append meanwhile
        print(json.dumps({**view.as_json(), "page": served.url, "warnings": news}), flush=True)

    with served_page(page) as served, collected_warnings(show=False) as warnings:
        follow(views, served.show, write)


def follow(views: Generator[View, None, None], *shows: Callable[[View], None]) -> None:
    """Pass on every view of a served pipeline until Ctrl-C or SIGTERM; then drain it and return.

    A second Ctrl-C ends the processes without waiting for running requests.
    """
    with _interruptible(), closing(views), suppress(KeyboardInterrupt):
        for view in views:
            for show in shows:
                show(view)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM interrupt the block like Ctrl-C, which a shell disables for programs in the background."""
    if threading.current_thread() is not threading.main_thread():  # signals are for the main thread
        yield
        return
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
