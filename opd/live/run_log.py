"""Warnings of a run, such as replicas that ended: shown as they come, and kept with the results."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class _Collector(logging.Handler):
    """Appends the messages of warnings to a list."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())


@contextmanager
def collected_warnings(show: bool = True) -> Iterator[list[str]]:
    """Collect the warnings of the package, as they come, in the list that is yielded.

    Args:
        show: write them to stderr, too, with the time.
    """
    messages: list[str] = []
    handlers: list[logging.Handler] = [_Collector(messages)]
    if show:
        handlers.append(logging.StreamHandler())
        handlers[-1].setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    package = logging.getLogger("opd")
    for handler in handlers:
        package.addHandler(handler)
    try:
        yield messages
    finally:
        for handler in handlers:
            package.removeHandler(handler)
