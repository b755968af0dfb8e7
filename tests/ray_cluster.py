"""The loss of a node of a Ray cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deadlines import PATIENCE, eventually


@contextmanager
def lost_after(cluster, sign: Callable[[], object], node) -> Iterator[None]:
    """Kill all processes of a node as soon as there is a sign; at the end it must be gone."""

    def kill() -> None:
        eventually(sign, 2 * PATIENCE)
        cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    yield
    killer.join(PATIENCE)
    assert not killer.is_alive() and node not in cluster.worker_nodes
