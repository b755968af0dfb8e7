"""The view in the terminal: a live display, or a line for every interval where output is no terminal."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from logging.handlers import QueueHandler
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from opd.control.loop import REFUSED
from opd.view.model import IDLE, DecisionView, IntervalView, StageView, View, number

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 5.0
"""Seconds in which a terminal must take what is left to draw; one that stands still does not keep the process."""

_FORMAT = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")


class Terminal:
    """Draws views and the lines of the log on standard output while its context lasts.

    A thread draws, so a terminal that stands still keeps nobody waiting. In the meantime log lines that would go to a
    terminal appear above the display. Everything that was shown or logged before the end is drawn.

    Args:
        page: URL of the page; empty if there is none.
        console: where to draw; standard output by default.
    """

    def __init__(self, page: str = "", console: Console | None = None) -> None:
        self._page, self._console = page, console or Console()
        self._queue: SimpleQueue[View | logging.LogRecord | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._draw_all, daemon=True, name="terminal")
        self._log = QueueHandler(self._queue)  # type: ignore[arg-type]
        self._log.setFormatter(_FORMAT)
        self._log.addFilter(lambda record: record.name != __name__)  # what drawing logs must not be drawn again
        self._replaced: list[logging.Handler] = []
        self._views: dict[str, View] = {}

    def show(self, view: View) -> None:
        """Draw a view soon; returns at once."""
        self._queue.put(view)

    def __enter__(self) -> Self:
        root = logging.getLogger()
        self._replaced = [each for each in root.handlers if _writes_to_a_terminal(each)]
        for handler in self._replaced:
            root.removeHandler(handler)
        root.addHandler(self._log)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        root = logging.getLogger()
        root.removeHandler(self._log)
        for handler in self._replaced:
            root.addHandler(handler)
        self._queue.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _draw_all(self) -> None:
        live = Live(console=self._console, auto_refresh=False) if self._console.is_interactive else None
        display: AbstractContextManager[object] = live or nullcontext()
        if live is None and self._page:
            self._print(f"page at {self._page}")
        with display:
            while (shown := self._queue.get()) is not None:
                try:
                    self._draw(shown, live)
                except (Exception, SystemExit):  # rich exits where the reader of a pipe is gone
                    logger.warning("the view is not drawn; control goes on", exc_info=True)

    def _draw(self, shown: View | logging.LogRecord, live: Live | None) -> None:
        if isinstance(shown, logging.LogRecord):
            self._print(shown.getMessage())
        elif live is None:
            self._print(line(shown))
        else:  # the newest view of every pipeline
            self._views[shown.pipeline] = shown
            live.update(Group(*(render(view, self._page) for view in self._views.values())), refresh=True)

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


def _writes_to_a_terminal(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and handler.stream.isatty()


# ------------------------------------------------------------------------------------------------------ rendering


def render(view: View, page: str = "") -> RenderableType:
    """Draw a view for a terminal of 80 columns: load, latency, decision, and a table of the stages."""
    heading = view.pipeline + f" at {view.address}" * bool(view.address)
    facts = Table.grid(padding=(0, 2))
    for name, text in _facts(view, page):
        facts.add_row(Text(name), text)
    parts: list[RenderableType] = [Text(heading, style="bold"), facts]
    return Group(*parts, _table(view.stages)) if view.stages else Group(*parts)


def line(view: View) -> str:
    """Write a view in one line: time, state, the figures of the last interval, the decision and what runs."""
    heading = f"{view.pipeline} at {view.address}" if view.address else view.pipeline
    repeated = ("state", "load", "latency", "decision")
    facts = [(name, text.plain) for name, text in _facts(view) if name in repeated or view.interval is None]
    texts = [text if name == "state" else f"{name} {text}" for name, text in facts]
    stages = [
        f"{each.task} {each.replicas} x {each.variant} batch {each.batch_size}, {number(each.waiting)} waiting"
        for each in view.stages
    ]
    when = time.strftime("%H:%M:%S", time.localtime(view.interval.end if view.interval else None))
    return f"{when} {heading}: {'; '.join([*texts, *stages])}"


def _facts(view: View, page: str = "") -> Iterable[tuple[str, Text]]:
    """Yield everything but the stages: names and texts."""
    if page:
        yield "page", Text(page)
    if view.state:
        yield "state", Text(view.state)
    if view.emulated:
        yield "replicas", Text("emulated: they take the profiled times and no cores", style="yellow")
    if view.assumed:
        yield "profile", Text(view.assumed, style="yellow")
    if view.agent:
        yield "agent", Text(view.agent)
    interval, decision = view.interval, view.decision
    if interval is None or decision is None:
        return
    if decision.outcome == IDLE and interval.offered == 0:
        yield "load", Text("no requests yet; the configuration stays until the first one arrives")
        return
    yield "load", _load(interval)
    yield "latency", _latency(view, interval)
    yield "cores", Text(f"{number(interval.cores)} of {number(view.device_cores)}")
    yield "decision", _decision(decision)


def _load(interval: IntervalView) -> Text:
    load, forecast, capacity = map(number, (interval.load, interval.forecast, interval.capacity))
    text = Text(f"{load} requests/s, forecast maximum {forecast}, capacity {capacity}")
    if interval.failed > 0:
        text.append(f"; {interval.failed:.0f} of {interval.offered:.0f} requests got no answer", style="red")
    return text


def _latency(view: View, interval: IntervalView) -> Text:
    text = Text(f"mean {_milliseconds(interval.latency_mean)}, p99 {_milliseconds(interval.latency_p99)}")
    if view.level is None:
        return text
    met = interval.within >= view.level.percentile / 100
    style = "" if np.isnan(interval.within) else "green" if met else "red"
    return text.append("; ").append(view.level.stated(interval.within), style=style)


def _decision(decision: DecisionView) -> Text:
    if decision.outcome == IDLE:
        return Text("none before the first request, configuration kept")
    text = Text(f"{decision.outcome} after {_milliseconds(decision.seconds)}")
    text.append(f" ({decision.basis})" if decision.basis else "")
    for change in decision.changes:
        text.append("; ").append(change, style="bold")
    for remark in decision.remarks:
        text.append("; ").append(remark, style="red" if decision.outcome == REFUSED else "yellow")
    return text


def _table(stages: Iterable[StageView]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("stage", overflow="fold")
    table.add_column("variant", overflow="fold")
    for column in ("replicas", "batch size", "waiting", "time / profile"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in stages:
        factor, deviation = each.service_factor, each.service_factor * each.service_deviation
        relative = "?" if np.isnan(factor) else f"{factor:.2f} ± {deviation:.2f}"
        counts = str(each.replicas), str(each.batch_size), number(each.waiting)
        table.add_row(Text(each.task), Text(each.variant), *counts, relative)
    return table


def _milliseconds(seconds: float) -> str:
    return "?" if np.isnan(seconds) else f"{number(1e3 * seconds)} ms"
