"""A Ray cluster of several nodes on this machine, each in processes of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from deadlines import PATIENCE
from tenacity import Retrying, stop_after_delay

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
def ray_cluster(workers: int) -> Iterator[object]:
    """A head without cores for tasks, and nodes with one core each; RAY_ADDRESS names it."""
    import ray
    from ray.cluster_utils import Cluster

    from opd.host.ray_tasks import connect

    with pytest.MonkeyPatch.context() as patched:
        for name, value in SLOW_STARTS.items():
            patched.setenv(name, value)
        cluster = Cluster()
        try:
            add_node(cluster, num_cpus=0, include_dashboard=False)
            connect(cluster.address)  # to the head, the only node so far
            for _ in range(workers):
                add_node(cluster, num_cpus=1)
            patched.setenv("RAY_ADDRESS", cluster.address)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def add_node(cluster, **options):
    """Add a node. Ray waits for half a minute until it is up, which on a busy machine may not suffice."""
    for attempt in Retrying(stop=stop_after_delay(2 * PATIENCE), reraise=True):
        with attempt:
            return cluster.add_node(**options)
