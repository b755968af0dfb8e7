"""The view as a small web page: static files that ask for one JSON document, from a server that answers GET only."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from typing import Any

from opd.host.get_server import Reply, get_server
from opd.host.json_data import plain_data
from opd.host.paths import package_path
from opd.view.model import IntervalView, View

logger = logging.getLogger(__name__)

INTERVALS = 360
"""Intervals that charts go back: an hour of ten seconds each."""

WARNINGS = 20
"""Warnings that are kept for the page."""

DATA = "/view.json"

_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}

_DIGITS = 4
"""Decimals of the figures of charts."""


class ViewPage(logging.Handler):
    """What browsers are shown: the newest view, the last intervals, and the last warnings that were logged.

    All of it is replaced as a whole, so that no reader needs a lock.

    Attributes:
        url: where it is served; empty if it is not.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.url = ""
        self._view: View | None = None
        self._course: tuple[IntervalView, ...] = ()
        self._warnings: tuple[tuple[float, str], ...] = ()
        self._answered: tuple[object, object, Reply] | None = None
        self._files = {
            path: Reply(200, package_path("view", name).read_bytes(), kind) for path, (name, kind) in _FILES.items()
        }

    def show(self, view: View) -> None:
        """Show a view from now on; returns at once."""
        if view.interval is not None and view.interval not in self._course[-1:]:
            self._course = (*self._course, view.interval)[-INTERVALS:]
        self._view = view

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning."""
        try:
            self._warnings = (*self._warnings, (record.created, record.getMessage()))[-WARNINGS:]
        except Exception:
            self.handleError(record)

    def answer(self, path: str) -> Reply:
        """Return what a path is answered with."""
        if path == DATA:
            return self._data()
        return self._files.get(path, Reply(404, f"there are {', '.join((*_FILES, DATA))}\n".encode()))

    def _data(self) -> Reply:
        """The document; written once for a view and its warnings, however many browsers ask how often."""
        view, warnings, answered = self._view, self._warnings, self._answered
        if answered is None or answered[0] is not view or answered[1] is not warnings:
            content = json.dumps(self.document()).encode()
            answered = self._answered = view, warnings, Reply(200, content, "application/json")
        return answered[2]

    def document(self) -> dict[str, Any]:
        """Return everything that the page shows.

        Returns:
            ``view``, the newest one, null before the first; ``course``, the figures of the last intervals by name
            (:class:`opd.view.model.IntervalView`), the oldest first; ``warnings``, the last ones with their times.
        """
        view, course = self._view, self._course
        columns = {
            field.name: [round(getattr(each, field.name), _DIGITS) for each in course] for field in fields(IntervalView)
        }
        return {
            "view": view.as_json() if view else None,
            "course": plain_data(columns),
            "warnings": [{"time": when, "text": text} for when, text in self._warnings],
        }


@contextmanager
def served_page(address: tuple[str, int] | None) -> Iterator[ViewPage]:
    """Serve a page while the context lasts; if that is impossible, this is logged, and the page has no URL.

    Args:
        address: host and port, any free one if 0; None to serve nothing.
    """
    page, package = ViewPage(), logging.getLogger("opd")
    with ExitStack() as stack:
        if address is not None:
            host, port = address
            try:
                port = stack.enter_context(get_server(host, port, page.answer, "page", own_names_only=True))
                page.url = f"http://{host}:{port}/"
            except OSError as error:
                logger.warning(
                    "the page is not served at %s:%d (%s); choose another address by --view", *address, error.strerror
                )
        package.addHandler(page)  # only now: with a handler, the warning above would not be printed
        stack.callback(package.removeHandler, page)
        yield page
