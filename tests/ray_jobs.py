"""Tasks for a Ray cluster, in a module that its nodes can import."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from deadlines import PATIENCE, eventually


class Errand(NamedTuple):
    """What tasks share.

    Attributes:
        folder: where a task notes that it began.
        lost: node on which tasks wait for its end, while those of other nodes wait until it has one; empty for none.
    """

    folder: Path
    lost: str = ""


def node_id() -> str:
    """The Ray node of this process; empty outside a cluster."""
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""


def square(errand: Errand, number: int) -> tuple[int, str, str | None]:
    """The square of a number, the working directory and the number of threads."""
    (errand.folder / f"{number}-{node_id()}").touch()
    if errand.lost and node_id() == errand.lost:
        time.sleep(PATIENCE)
        raise AssertionError("the node was not lost")
    if errand.lost:
        eventually(lambda: list(errand.folder.glob(f"*-{errand.lost}")))
    return number**2, os.getcwd(), os.environ.get("OMP_NUM_THREADS")


def refuse(errand: Errand, number: int) -> int:
    """Note that the task began; number 1 is refused, and those above 3 wait for the file ``done``."""
    (errand.folder / f"{number}").touch()
    if number == 1:
        raise ValueError(f"{number} is refused")
    if number > 3:
        eventually((errand.folder / "done").exists)
    return number
