"""Fixtures of the cluster's tests, which need optional extras of the package."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from emulator.api_server import ApiServer
    from tiny_cluster import TinyCluster, TinyDeployment

    from opd.cluster.api import Cluster

NEEDED = ("mlserver", "kubernetes", "kubernetes_validate")
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["test_*.py"]


@pytest.fixture
def server() -> Iterator["ApiServer"]:
    """An emulated API server of Kubernetes."""
    from emulator.api_server import ApiServer

    api = ApiServer()
    yield api
    api.stop()


@pytest.fixture
def cluster(server: "ApiServer", tmp_path: Path) -> "Cluster":
    """Namespace ``space`` of the emulated API server, with short calls."""
    from emulator.api_server import kubeconfig
    from tiny_cluster import SHORT_CALLS

    from opd.cluster.api import Cluster
    from opd.cluster.connection import credentials

    path = kubeconfig(server, tmp_path)
    return Cluster("space", lambda: credentials(str(path)), SHORT_CALLS)


@pytest.fixture(autouse=True)
def poll_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of deployments and deletions poll often."""
    monkeypatch.setattr("opd.cluster.status.POLL_SECONDS", 0.02)
    monkeypatch.setattr("opd.cluster.deletion.POLL_SECONDS", 0.02)
    monkeypatch.setattr("opd.cluster.starts.POLL_SECONDS", 0.02)


@pytest.fixture
def space(tmp_path: Path) -> Iterator["TinyCluster"]:
    """An empty namespace of an emulated cluster."""
    from tiny_cluster import TinyCluster

    with TinyCluster(tmp_path) as tiny:
        yield tiny


@pytest.fixture
def world(tmp_path: Path) -> Iterator["TinyDeployment"]:
    """A pipeline that is deployed on an emulated cluster."""
    from tiny_cluster import TinyDeployment

    with TinyDeployment(tmp_path) as tiny:
        yield tiny
