"""A Ray cluster of several nodes on this machine, each in processes of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from opd.host.parallel import RAY_ADDRESS

NODE_SECONDS = 480.0
"""Within which a node must be up; on an idle machine it takes a few seconds."""

SLOW_STARTS = {
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_gcs_server_request_timeout_seconds": "240",
    "RAY_health_check_timeout_ms": "60000",
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment of the nodes: on a busy machine their parts may take minutes to start and seconds to answer,
and tasks that yield to every other process would take longer still."""


@contextmanager
def ray_nodes(number: int) -> Iterator[Any]:
    """Start a head without cores for tasks, and nodes with one core each; yield the cluster, which RAY_ADDRESS names.

    Args:
        number: of the nodes beside the head.
    """
    import ray
    from ray.cluster_utils import Cluster

    from opd.host.ray_tasks import connect

    with mock.patch.dict(os.environ, SLOW_STARTS):
        cluster = Cluster()
        try:
            add_node(cluster, num_cpus=0, include_dashboard=False)
            connect(cluster.address)  # to the head, the only node so far
            for _ in range(number):
                add_node(cluster, num_cpus=1)
            os.environ[RAY_ADDRESS] = cluster.address
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def add_node(cluster: Any, **options: Any) -> Any:
    """Add a node and wait until it is up. Ray itself waits for half a minute, which may not suffice on a busy machine.

    Raises:
        TimeoutError: if it is not up after :data:`NODE_SECONDS`.
    """
    node = cluster.add_node(wait=False, **options)
    cluster.wait_for_nodes(NODE_SECONDS)
    return node
