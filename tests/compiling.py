"""Processes of the tests share what one of them compiles, also for copies of the package."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock
from numba.core import event
from numba.core.caching import UserProvidedCacheLocator

PACKAGE = Path(__file__).parents[1] / "opd"

HANGING_SECONDS = 3600
"""After this a compilation hangs; on an idle machine the longest takes half a minute."""


def cache() -> Path:
    """Numba's folder of compiled code."""
    return Path(os.environ["NUMBA_CACHE_DIR"])


def one_process_at_a_time() -> None:
    """Let other processes wait while one compiles: what they need next is often the same, and then in the cache.

    Numba looks a function up in its cache, compiles it and stores it under its global lock, and reports when it takes
    and when it gives back that lock. Without a lock between processes, those that begin together all compile the same.
    """
    cache().mkdir(parents=True, exist_ok=True)
    event.register("numba:compiler_lock", _Lock(FileLock(cache() / "compiling.lock", timeout=HANGING_SECONDS)))


class _Lock(event.Listener):
    """Takes and gives back a lock whenever Numba does with its own; both may be taken again by the same thread."""

    def __init__(self, lock: FileLock) -> None:
        self._lock = lock

    def on_start(self, event: event.Event) -> None:
        self._lock.acquire()

    def on_end(self, event: event.Event) -> None:
        self._lock.release()


def share_with(copy: Path) -> None:
    """Let a copy of the package use the code compiled for this one, and this one what is compiled for the copy.

    Numba keeps compiled code in a folder for each folder of sources, and uses it as long as the content of a source
    file is the same.
    """
    for folder in {path.parent for path in PACKAGE.rglob("*.py")}:
        own, other = (_compiled(each) for each in (folder, copy / folder.relative_to(PACKAGE)))
        own.mkdir(parents=True, exist_ok=True)
        if not other.exists():  # a temporary folder may have the name of an earlier one
            other.symlink_to(own)


def _compiled(folder: Path) -> Path:
    return cache() / UserProvidedCacheLocator.get_suitable_cache_subpath(folder / "module.py")
