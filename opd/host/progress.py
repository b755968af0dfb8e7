"""Progress of long work: a bar on a terminal and in Jupyter, plain lines in logs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any

from tqdm import tqdm

STYLE_VARIABLE = "OPD_PROGRESS"
"""Environment variable; with the value ``lines``, progress is shown as lines even in a notebook."""

SECONDS_BETWEEN_LINES = 20.0

_LINE = "{desc}: {n_fmt} of {total_fmt}, {elapsed} so far, {remaining} left{postfix}"


class ProgressLines:
    """Progress as a line of text at most every 20 s and at the end, on the standard error of the process.

    It has the methods of :class:`tqdm.tqdm` that are used here. The lines go to the log of the process and not into
    the outputs of a notebook.

    Args:
        items: what is iterated over.
        total: number of items; by default the length of ``items``.
        desc: what is done.
    """

    def __init__(self, items: Iterable[Any] | None = None, total: int | None = None, desc: str = "") -> None:
        self.items: Iterable[Any] = () if items is None else items
        self.total = len(items) if total is None and isinstance(items, Sized) else total
        self.desc, self.postfix = desc or "progress", ""
        self.done, self.shown = 0, -1
        self.begin = self.last = time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.items:
                yield item
                self.update()

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        """Count items that are done."""
        self.done += count
        if time.monotonic() - self.last >= SECONDS_BETWEEN_LINES:
            self._print()

    def set_postfix_str(self, text: str) -> None:
        """Set a text for the end of the next line, such as the item in work."""
        self.postfix = text

    def close(self) -> None:
        """Print how far it came, if that has not been printed."""
        if self.done > self.shown:
            self.postfix = ""
            self._print()

    def _print(self) -> None:
        self.shown, self.last = self.done, time.monotonic()
        look = dict(prefix=self.desc, postfix=self.postfix, bar_format=_LINE)
        line = tqdm.format_meter(self.done, self.total, self.last - self.begin, **look)
        print(line, file=sys.__stderr__, flush=True)


def progress_bar(
    items: Iterable[Any] | None = None, total: int | None = None, desc: str = "", unit: str = "item", **look: Any
) -> Any:
    """Make a bar of tqdm on a terminal and in Jupyter, and :class:`ProgressLines` elsewhere.

    Args:
        items: what is iterated over; without them, call ``update`` for each item.
        total: number of items; by default the length of ``items``.
        desc: what is done.
        unit: name of an item.
        look: further arguments of :class:`tqdm.tqdm`.
    """
    interactive = sys.stderr.isatty() or "ipykernel" in sys.modules
    if interactive and os.environ.get(STYLE_VARIABLE) != "lines":
        from tqdm.auto import tqdm as bar  # warns where Jupyter's widgets are missing, which only matters here

        return bar(items, total=total, desc=desc, unit=unit, **look)
    return ProgressLines(items, total, desc)
