"""Pipelines served on this machine for real callers: decided every interval until they are stopped, with a live view.

.. code-block:: python

    served = Served(pipeline, policy, forecast, objective, parameters, folder)
    show(serve([served], StaticSplit((pipeline.capacity,))))
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from opd.control.arbiter import Arbiter
from opd.control.policies import Policy
from opd.control.record import append_entry, step_entry
from opd.control.sharing import Member, StaticSplit, run_together
from opd.control.warm_up import warm_up
from opd.live.run_log import collected_warnings
from opd.measurement import SimulationParameters
from opd.objective import Objective
from opd.pipeline import Pipeline
from opd.serving.emulation.names import emulated_pipeline
from opd.serving.local import LocalBackend
from opd.view.model import View, view_of
from opd.view.page import served_page
from opd.view.terminal import Terminal

SERVING = "serving"
WARMING_UP = "serving; warming up for the first decision"
STOPPING = "stopping: running requests are answered, new ones refused"


@dataclass(frozen=True)
class Served:
    """A pipeline to serve.

    Attributes:
        pipeline: its variants are in the model store; its capacity is that of the device.
        policy: decides.
        forecast: predicted maximum load (requests/s) for a history of per-second counts.
        objective: of the reward.
        parameters: interval, batch timeout and maximum age of requests.
        folder: for settings, logs and metrics of the processes.
        store: URL of the model store; by default that of the project.
        emulated: serve it by emulated replicas, under a name that says so; the policy decides as for real ones.
        record: file that gets a line for every decision; None for none.
        project: folder with modules of the adapters; by default the working directory.
    """

    pipeline: Pipeline
    policy: Policy
    forecast: Callable[[np.ndarray], float]
    objective: Objective
    parameters: SimulationParameters
    folder: Path
    store: str | None = None
    emulated: bool = False
    record: Path | None = None
    project: Path | None = None


def serve(served: Sequence[Served], division: Arbiter | StaticSplit, standbys: int = 0) -> Generator[View, None, None]:
    """Start pipelines on this machine and let their policies decide every interval until the iterator is closed.

    Closing it, or Ctrl-C, refuses new requests, answers those that are running, and ends every process.

    Args:
        served: the pipelines, with the same interval.
        division: divides the cores of the device among them.
        standbys: processes that each stage keeps warm.

    Yields:
        The view of each pipeline once all serve and after every interval, and that of all when Ctrl-C begins their end.

    Raises:
        StartError: if a pipeline does not start; nothing is left running.
        AlreadyControlledError: if another process controls one in its folder.
    """
    views: list[View] = []
    known: list[dict[str, Any]] = []
    with _closed_together() as running:
        members = []
        for each in served:
            member = _started(each, standbys, running)
            members.append(member)
            known.append({"address": member.backend.address, "agent": getattr(each.policy, "origin", "")})
            views.append(view_of(member.pipeline, member.backend.configuration, state=WARMING_UP, **known[-1]))
        try:
            yield from views
            division.warm_up()
            for each in served:
                warm_up(each.pipeline, each.policy, each.forecast)
            for steps in run_together(members, division, sys.maxsize):
                for n, (member, step) in enumerate(zip(members, steps, strict=True)):
                    append_entry(served[n].record, step_entry(member.pipeline, step))
                    views[n] = view_of(member.pipeline, step.configuration, step, state=SERVING, **known[n])
                yield from views
        except KeyboardInterrupt:
            yield from (replace(view, state=STOPPING) for view in views)
            raise


@contextmanager
def _closed_together() -> Iterator[list[LocalBackend]]:
    """Yield a list for backends; after the block all refuse new requests at once, and drain at the same time."""
    started: list[LocalBackend] = []
    try:
        yield started
    finally:
        if len(started) == 1:
            started[0].close()
        else:  # not in a pool, whose threads a second Ctrl-C would wait for
            threads = [threading.Thread(target=each.close, daemon=True) for each in started]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()


def _started(each: Served, standbys: int, running: list[LocalBackend]) -> Member[LocalBackend]:
    """Start a pipeline with its smallest configuration; requests may arrive from now on."""
    pipeline = emulated_pipeline(each.pipeline) if each.emulated else each.pipeline
    first = pipeline.smallest_configuration()
    common = pipeline, each.parameters, first, each.folder, each.store, standbys
    backend = LocalBackend(*common, project=each.project)
    running.append(backend)
    backend.begin_run()
    return Member(backend, pipeline, each.policy, each.forecast, each.objective)


def show(
    views: Generator[View, None, None], page: tuple[str, int] | None = None, console: Console | None = None
) -> None:
    """Show served pipelines in the terminal, and on a page, until Ctrl-C or SIGTERM; then drain them and return.

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
